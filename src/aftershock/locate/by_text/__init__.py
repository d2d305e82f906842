"""Find a corruption with nothing but the corrupted model and some text."""

from aftershock.locate.by_text.branches import Branch, Damped
from aftershock.locate.by_text.on_disk import located_in_files, stored_dtype
from aftershock.locate.by_text.packed import PackedWords
from aftershock.locate.by_text.recovery import Masked, Measure, applied, measure
from aftershock.locate.by_text.search import Found, Search, Tried
from aftershock.locate.by_text.suspects import PlainWords, Suspect, WordsInUse, layer_of
from aftershock.locate.by_text.text_loss import LAST, TextLoss, text_rows
from aftershock.locate.by_text.verdict import FlippedBit, SuspectBranch, TextVerdict, locate_by_text, mend_by_text

__all__ = [
    "LAST",
    "Branch",
    "Damped",
    "FlippedBit",
    "Found",
    "Masked",
    "Measure",
    "PackedWords",
    "PlainWords",
    "Search",
    "Suspect",
    "SuspectBranch",
    "TextLoss",
    "TextVerdict",
    "Tried",
    "WordsInUse",
    "applied",
    "layer_of",
    "locate_by_text",
    "located_in_files",
    "measure",
    "mend_by_text",
    "stored_dtype",
    "text_rows",
]

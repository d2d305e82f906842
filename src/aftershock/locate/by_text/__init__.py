"""Find a corruption with nothing but the corrupted model and some text."""

from aftershock.locate.by_text.branches import Branch, Damped
from aftershock.locate.by_text.packed import PackedWords
from aftershock.locate.by_text.search import Found, Search, Tried
from aftershock.locate.by_text.suspects import PlainWords, Suspect, WordsInUse, layer_of
from aftershock.locate.by_text.text_loss import LAST, TextLoss, text_rows

__all__ = [
    "LAST",
    "Branch",
    "Damped",
    "Found",
    "PackedWords",
    "PlainWords",
    "Search",
    "Suspect",
    "TextLoss",
    "Tried",
    "WordsInUse",
    "layer_of",
    "text_rows",
]

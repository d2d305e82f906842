"""From "something is wrong" to tensor, word and bit, and back to the clean model."""

from aftershock.locate.by_activations import ActivationFinding, Noise, locate_by_activations, noise_of
from aftershock.locate.by_fingerprint import (
    clean_digests,
    locate_by_fingerprint,
    locate_in_tensor,
    solve_tensor,
)
from aftershock.locate.by_text import (
    LAST,
    Branch,
    Damped,
    Found,
    PackedWords,
    PlainWords,
    Search,
    Suspect,
    TextLoss,
    Tried,
    WordsInUse,
    layer_of,
    text_rows,
)
from aftershock.locate.by_words import MOST_LISTED, Comparison, locate_by_words, suspect_words
from aftershock.locate.changes import Ambiguous, Located, Restored, WordChanges, word_changes
from aftershock.locate.decoding import decode
from aftershock.locate.explaining import Element
from aftershock.locate.findings import Findings, Unclear, findings
from aftershock.locate.live import LiveSuspect
from aftershock.locate.peeling import peel
from aftershock.locate.places import ChangedWord, component_of, describe
from aftershock.locate.probing import ProbedWord, ProbeFinding, locate_forced, probe_module, probe_norm, probe_table
from aftershock.locate.repair import Repaired, repair_files, repair_module, restore_files
from aftershock.locate.scrub import Corruption, Scrubber

__all__ = [
    "LAST",
    "MOST_LISTED",
    "ActivationFinding",
    "Ambiguous",
    "Branch",
    "ChangedWord",
    "Comparison",
    "Corruption",
    "Damped",
    "Element",
    "Findings",
    "Found",
    "LiveSuspect",
    "Located",
    "Noise",
    "PackedWords",
    "PlainWords",
    "ProbeFinding",
    "ProbedWord",
    "Repaired",
    "Restored",
    "Scrubber",
    "Search",
    "Suspect",
    "TextLoss",
    "Tried",
    "Unclear",
    "WordChanges",
    "WordsInUse",
    "clean_digests",
    "component_of",
    "decode",
    "describe",
    "findings",
    "layer_of",
    "locate_by_activations",
    "locate_by_fingerprint",
    "locate_by_words",
    "locate_forced",
    "locate_in_tensor",
    "noise_of",
    "peel",
    "probe_module",
    "probe_norm",
    "probe_table",
    "repair_files",
    "repair_module",
    "restore_files",
    "solve_tensor",
    "suspect_words",
    "text_rows",
    "word_changes",
]

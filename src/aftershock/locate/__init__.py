"""From "something is wrong" to tensor, word and bit, and back to the clean model."""

from aftershock.locate.by_activations import ActivationFinding, Noise, locate_by_activations, noise_of
from aftershock.locate.by_fingerprint import (
    clean_digests,
    locate_by_fingerprint,
    locate_in_tensor,
    solve_tensor,
)
from aftershock.locate.by_text.on_disk import located_in_files, stored_dtype
from aftershock.locate.by_text.verdict import FlippedBit, SuspectBranch, TextVerdict, locate_by_text, mend_by_text
from aftershock.locate.by_words import MOST_LISTED, Comparison, locate_by_words, suspect_words
from aftershock.locate.changes import Ambiguous, Located, Restored, WordChanges, word_changes
from aftershock.locate.decoding import decode
from aftershock.locate.explaining import Element
from aftershock.locate.findings import Findings, Unclear, findings
from aftershock.locate.live import LiveSuspect
from aftershock.locate.live_repair import mend_in_module, repair_module
from aftershock.locate.peeling import peel
from aftershock.locate.places import ChangedWord, component_of, describe
from aftershock.locate.probing import ProbedWord, ProbeFinding, locate_forced, probe_module, probe_norm, probe_table
from aftershock.locate.repair import Repaired, patch_files, repair_files, restore_files
from aftershock.locate.scrub import Corruption, Scrubber

__all__ = [
    "MOST_LISTED",
    "ActivationFinding",
    "Ambiguous",
    "ChangedWord",
    "Comparison",
    "Corruption",
    "Element",
    "Findings",
    "FlippedBit",
    "LiveSuspect",
    "Located",
    "Noise",
    "ProbeFinding",
    "ProbedWord",
    "Repaired",
    "Restored",
    "Scrubber",
    "SuspectBranch",
    "TextVerdict",
    "Unclear",
    "WordChanges",
    "clean_digests",
    "component_of",
    "decode",
    "describe",
    "findings",
    "locate_by_activations",
    "locate_by_fingerprint",
    "locate_by_text",
    "locate_by_words",
    "locate_forced",
    "locate_in_tensor",
    "located_in_files",
    "mend_by_text",
    "mend_in_module",
    "noise_of",
    "patch_files",
    "peel",
    "probe_module",
    "probe_norm",
    "probe_table",
    "repair_files",
    "repair_module",
    "restore_files",
    "solve_tensor",
    "stored_dtype",
    "suspect_words",
    "word_changes",
]

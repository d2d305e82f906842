"""Tell whether a model's stored words are still those that they were, and keep what finds and undoes a few changes."""

from aftershock.detect.checksum import checksum, checksums, seed_of
from aftershock.detect.digests import file_digest, hasher, read_key, tensor_digest
from aftershock.detect.fingerprint import FilePrint, Fingerprint, Profile, TensorPrint, as_named, take_fingerprint
from aftershock.detect.lines import LineSums, differences, line_sums
from aftershock.detect.multipliers import multipliers
from aftershock.detect.saved import check_replaceable, load_fingerprint, save_fingerprint
from aftershock.detect.syndromes import PRIME, Syndromes, blocks_of, correctable, syndromes
from aftershock.detect.verification import Verification, fingerprinted_words, verify

__all__ = [
    "PRIME",
    "FilePrint",
    "Fingerprint",
    "LineSums",
    "Profile",
    "Syndromes",
    "TensorPrint",
    "Verification",
    "as_named",
    "blocks_of",
    "check_replaceable",
    "checksum",
    "checksums",
    "correctable",
    "differences",
    "file_digest",
    "fingerprinted_words",
    "hasher",
    "line_sums",
    "load_fingerprint",
    "multipliers",
    "read_key",
    "save_fingerprint",
    "seed_of",
    "syndromes",
    "take_fingerprint",
    "tensor_digest",
    "verify",
]

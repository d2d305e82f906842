"""Tell whether a model's stored words are still those that they were, and keep what finds and undoes a few changes."""

from aftershock.detect.checksum import checksum, checksums, seed_of
from aftershock.detect.digests import file_digest, hasher, read_key, tensor_digest
from aftershock.detect.fingerprint import FilePrint, Fingerprint, Profile, TensorPrint, as_named, take_fingerprint
from aftershock.detect.integer_products import (
    integer_column_deviations,
    integer_deviations_from,
    integer_row_deviations,
)
from aftershock.detect.lines import LineSums, differences, line_sums
from aftershock.detect.multipliers import multipliers
from aftershock.detect.products import (
    LinearChecksum,
    RowCheck,
    Tolerance,
    TwoSidedCheck,
    check_both_sides,
    check_columns,
    check_product,
    check_rows,
    compared,
    expected_sums,
    linear_checksum,
    tolerance,
)
from aftershock.detect.rounding import Rounding, rounding_of
from aftershock.detect.saved import check_replaceable, load_fingerprint, save_fingerprint
from aftershock.detect.syndromes import PRIME, Syndromes, blocks_of, correctable, syndromes
from aftershock.detect.verification import Verification, fingerprinted_words, verify

__all__ = [
    "PRIME",
    "FilePrint",
    "Fingerprint",
    "LineSums",
    "LinearChecksum",
    "Profile",
    "Rounding",
    "RowCheck",
    "Syndromes",
    "TensorPrint",
    "Tolerance",
    "TwoSidedCheck",
    "Verification",
    "as_named",
    "blocks_of",
    "check_both_sides",
    "check_columns",
    "check_product",
    "check_replaceable",
    "check_rows",
    "checksum",
    "checksums",
    "compared",
    "correctable",
    "differences",
    "expected_sums",
    "file_digest",
    "fingerprinted_words",
    "hasher",
    "integer_column_deviations",
    "integer_deviations_from",
    "integer_row_deviations",
    "line_sums",
    "linear_checksum",
    "load_fingerprint",
    "multipliers",
    "read_key",
    "rounding_of",
    "save_fingerprint",
    "seed_of",
    "syndromes",
    "take_fingerprint",
    "tensor_digest",
    "tolerance",
    "verify",
]

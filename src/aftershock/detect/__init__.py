"""Tell whether words and products are what they should be: fingerprints of stored words, checksums of products."""

from aftershock.detect.checksum import checksum, checksums, seed_of
from aftershock.detect.digests import file_digest, hasher, read_key, tensor_digest
from aftershock.detect.fingerprint import FilePrint, Fingerprint, Profile, TensorPrint, as_named, take_fingerprint
from aftershock.detect.integer_products import (
    integer_column_deviations,
    integer_deviations_from,
    integer_row_deviations,
)
from aftershock.detect.linear_checksum import LinearChecksum, linear_checksum
from aftershock.detect.lines import LineSums, differences, line_sums
from aftershock.detect.locating_errors import (
    ChangedColumn,
    PlacedChecksum,
    WrongColumn,
    WrongWeight,
    changed_column,
    column_word_sums,
    placed_checksum,
    put_back,
    weighted_deviations,
    wrong_columns,
    wrong_weight,
)
from aftershock.detect.multipliers import multipliers
from aftershock.detect.products import (
    RowCheck,
    Tolerance,
    TwoSidedCheck,
    check_both_sides,
    check_columns,
    check_product,
    check_rows,
    check_rows_within,
    tolerance,
)
from aftershock.detect.ranges import Bounds, bounds_by_channel, bounds_of, clamped, dtype_of_bounds, not_finite, outside
from aftershock.detect.rounding import Rounding, rounding_of
from aftershock.detect.saved import check_replaceable, load_fingerprint, save_fingerprint
from aftershock.detect.syndromes import PRIME, Syndromes, blocks_of, correctable, syndromes
from aftershock.detect.verification import Verification, fingerprinted_words, verify

__all__ = [
    "PRIME",
    "Bounds",
    "ChangedColumn",
    "FilePrint",
    "Fingerprint",
    "LineSums",
    "LinearChecksum",
    "PlacedChecksum",
    "Profile",
    "Rounding",
    "RowCheck",
    "Syndromes",
    "TensorPrint",
    "Tolerance",
    "TwoSidedCheck",
    "Verification",
    "WrongColumn",
    "WrongWeight",
    "as_named",
    "blocks_of",
    "bounds_by_channel",
    "bounds_of",
    "changed_column",
    "check_both_sides",
    "check_columns",
    "check_product",
    "check_replaceable",
    "check_rows",
    "check_rows_within",
    "checksum",
    "checksums",
    "clamped",
    "column_word_sums",
    "correctable",
    "differences",
    "dtype_of_bounds",
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
    "not_finite",
    "outside",
    "placed_checksum",
    "put_back",
    "read_key",
    "rounding_of",
    "save_fingerprint",
    "seed_of",
    "syndromes",
    "take_fingerprint",
    "tensor_digest",
    "tolerance",
    "verify",
    "weighted_deviations",
    "wrong_columns",
    "wrong_weight",
]

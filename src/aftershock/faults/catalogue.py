"""Fault models that others have used or measured, by name."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FaultModel:
    """Keys of the `[faults]` table, what they stand for, and where that is from."""

    keys: dict[str, Any]
    what: str
    source: str


CATALOGUE: dict[str, FaultModel] = {
    "single-bit": FaultModel({"corruption": "flip", "bits_per_word": 1}, "one bit of one value", "LLMFI, SC'25"),
    "double-bit": FaultModel(
        {"corruption": "flip", "bits_per_word": 2},
        "two bits of one value",
        "LLMFI, case study of multi-bit faults; FT2",
    ),
    "adjacent-bits": FaultModel(
        {"corruption": "flip", "bits_per_word": 2, "bit_pattern": "adjacent"},
        "two neighbouring bits of one value",
        "NVBitFI and SASSIFI",
    ),
    "exponent-bit": FaultModel(
        {"corruption": "flip", "bit_classes": ["exponent"]}, "one exponent bit of one value", "FT2, fault model EXP"
    ),
    "zero": FaultModel({"corruption": "replace", "value": 0.0}, "a value becomes zero", "NVBitFI and SASSIFI"),
    "same-row": FaultModel({"pattern": "row", "span": 8}, "8 neighbours in a row", "CLASSES; 8 is our choice"),
    "same-column": FaultModel({"pattern": "column", "span": 8}, "8 neighbours in a column", "CLASSES; 8 is our choice"),
    "block": FaultModel({"pattern": "block", "span": 4}, "a square of 4 x 4 values", "CLASSES; 4 is our choice"),
    "skip-4": FaultModel(
        {"pattern": "stride", "stride": 4, "span": 8}, "8 values of a row, every fourth", "CLASSES; 8 is our choice"
    ),
    "warp": FaultModel(
        {"pattern": "stride", "stride": 32, "span": 4, "corruption": "flip", "bits_per_word": 2},
        "4 values of a row, 32 apart, two bits of each",
        "arXiv 2605.04213: addresses periodic and aligned with warps, most events of several bits; 4, 2: our choice",
    ),
    "dead-channel": FaultModel(
        {"pattern": "row", "span": "all", "corruption": "replace", "value": 0.0},
        "all values of a row are zero: in a linear layer's weight one output channel",
        "CLASSES, full channel",
    ),
    "stuck-lane": FaultModel(
        {"pattern": "stride", "stride": 32, "span": "all", "corruption": "stuck-at-1"},
        "one bit of every 32nd value of a row stays 1",
        "a stuck wire in one lane of 32; the width is our choice",
    ),
}

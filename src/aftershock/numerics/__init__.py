"""Number formats and their bits, and the one source of randomness."""

from aftershock.numerics.fields import field_counts
from aftershock.numerics.formats import (
    BIT_CLASSES,
    FORMATS,
    INT32,
    BitClass,
    NumberFormat,
    format_of,
    format_of_words,
    words,
)
from aftershock.numerics.random import generator
from aftershock.numerics.storage import GGUF_FORMATS, STORAGE, BlockFormat, storage_format, worth

__all__ = [
    "BIT_CLASSES",
    "FORMATS",
    "GGUF_FORMATS",
    "INT32",
    "STORAGE",
    "BitClass",
    "BlockFormat",
    "NumberFormat",
    "field_counts",
    "format_of",
    "format_of_words",
    "generator",
    "storage_format",
    "words",
    "worth",
]

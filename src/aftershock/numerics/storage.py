"""Formats in which weights lie in memory when they are not plain numbers: blocks of packed words.

A block holds the quantised values of some elements of a row and the words that turn them into numbers: scales, minima,
zero points. A table tells in which bit of which byte each bit of each word lies; what the words mean is left to a
library's dequantisation (gguf's, torch's) or to one formula, so that a table can be held against it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import gguf
import numpy as np
import torch

from aftershock.errors import InputError
from aftershock.numerics.formats import NumberFormat, format_of

Dequantise = Callable[[np.ndarray], np.ndarray]
"""From blocks, uint8 of shape (..., bytes a block), to values, float32 of shape (..., elements a block)."""

Quantise = Callable[[np.ndarray], np.ndarray]
"""The other way round."""


@dataclass(frozen=True, eq=False)
class Field:
    """The words of one kind in a block: `places[w, b]` is the bit of the block, 8 x byte + bit, in which bit b of
    word w lies; int64, shape (words, bits). `number` is the format of words that are floating-point numbers."""

    places: np.ndarray
    number: NumberFormat | None = None

    @property
    def words(self) -> int:
        """Words in a block."""
        return int(self.places.shape[0])

    @property
    def bits(self) -> int:
        """Bits of a word."""
        return int(self.places.shape[1])

    def bit_class(self, bit: int) -> str:
        """What a bit of a word is: its class in a floating-point number, else `integer`."""
        return "integer" if self.number is None else self.number.bit_class(bit)


def worth(number: NumberFormat | None, word: int) -> float:
    """What a word is in numbers: the floating-point number of a format, or itself."""
    if number is None:
        return float(word)
    kind = {8: torch.uint8, 16: torch.uint16, 32: torch.uint32}[number.bits]
    return float(torch.tensor([word], dtype=torch.int64).to(kind).view(number.dtype).double())


@dataclass(frozen=True, eq=False)
class BlockFormat:
    """A format of blocks of `elements` values in `size` bytes."""

    name: str
    elements: int
    size: int
    fields: Mapping[str, Field]
    dequantise: Dequantise
    quantise: Quantise

    def word(self, block: np.ndarray, field: str, number: int) -> int:
        """A word of a block (uint8, shape (size,)), as an unsigned integer."""
        places = self.fields[field].places[number]
        return int((((block[places // 8] >> (places % 8)) & 1).astype(np.int64) << np.arange(len(places))).sum())

    def with_word(self, block: np.ndarray, field: str, number: int, word: int) -> np.ndarray:
        """A copy of the block with another word in the place of one."""
        places = self.fields[field].places[number]
        bits = np.unpackbits(block, bitorder="little")
        bits[places] = (word >> np.arange(len(places))) & 1
        return np.packbits(bits, bitorder="little")


STORAGE: tuple[str, ...] = ("fp8_e4m3", "fp8_e5m2", "int8", "int4", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1")
"""Formats that weights can be rounded to here; GGUF files bring `q4_k`, `q5_k` and `q6_k` besides."""

GGUF_FORMATS: tuple[str, ...] = ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k")
"""GGUF's block formats that have a table."""

_FP8 = {
    "fp8_e4m3": NumberFormat("fp8_e4m3", torch.float8_e4m3fn, torch.uint8, exponent_bits=4, mantissa_bits=3),
    "fp8_e5m2": NumberFormat("fp8_e5m2", torch.float8_e5m2, torch.uint8, exponent_bits=5, mantissa_bits=2),
}


@cache
def storage_format(name: str, columns: int) -> BlockFormat:
    """The format of this name for rows of so many elements.

    `int8` and `fp8_*` have one fp32 scale a row (w = q s), `int4` a fp16 scale and a zero point for every group of 128
    (or 64, 32, 16, whatever divides the row; else the row), w = (q - z) s, as GPTQ and AWQ have them. The others are
    GGUF's. Raises InputError for an unknown name and for rows that its blocks don't fill.
    """
    if name in _FP8:
        return _one_scale(name, columns, Field(_bytes(0, columns), _FP8[name]), *_fp8(_FP8[name]))
    if name == "int8":
        return _one_scale(name, columns, Field(_bytes(0, columns)), *_int8())
    if name == "int4":
        return _int4(next((size for size in (128, 64, 32, 16) if columns % size == 0), columns))
    if name not in _GGUF:
        raise InputError(f"storage {name!r} is not known: choose from {', '.join(STORAGE)}")
    form = _GGUF[name]()
    if columns % form.elements:
        raise InputError(
            f"rows of {columns} values don't fill {name} blocks of {form.elements}: choose another storage"
        )
    return form


def _bytes(start: int, words: int, width: int = 1) -> np.ndarray:
    """Places of words of whole bytes, one after the other, the lowest byte first."""
    return 8 * start + np.arange(8 * width * words).reshape(words, 8 * width)


def _nibbles(start: int, halves: int, run: int) -> np.ndarray:
    """Places of 4-bit words: of each `run` bytes first the low halves, then the high ones; so many runs x 2."""
    order = np.arange(halves)[:, None] // 2 * 8 * run + np.arange(halves)[:, None] % 2 * 4 + 8 * np.arange(run)
    return 8 * start + order.reshape(-1, 1) + np.arange(4)


_FP16, _FP32 = format_of("float16"), format_of("float32")


def _one_scale(name: str, columns: int, quant: Field, dequantise: Dequantise, quantise: Quantise) -> BlockFormat:
    scale = Field(_bytes(columns, 1, 4), _FP32)
    return BlockFormat(name, columns, columns + 4, {"quant": quant, "scale": scale}, dequantise, quantise)


def _scaled(quants: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks of one byte a value and a scale, float32 of shape (..., 1)."""
    return np.concatenate([quants.view(np.uint8), np.ascontiguousarray(scales).view(np.uint8)], axis=-1)


def _split(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return blocks[..., :-4], np.ascontiguousarray(blocks[..., -4:]).view(np.float32)


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest size in each row, 1 where all are zero; float32, shape (..., 1)."""
    largest = np.abs(values).max(axis=-1, keepdims=True).astype(np.float32)
    return np.where(largest == 0, np.float32(1), largest)


def _int8() -> tuple[Dequantise, Quantise]:
    def dequantise(blocks: np.ndarray) -> np.ndarray:
        quants, scales = _split(blocks)
        with np.errstate(all="ignore"):
            values: np.ndarray = np.ascontiguousarray(quants).view(np.int8).astype(np.float32) * scales
        return values

    def quantise(values: np.ndarray) -> np.ndarray:
        scales = _largest(values) / np.float32(127)
        return _scaled(np.clip(np.rint(values / scales), -127, 127).astype(np.int8), scales)

    return dequantise, quantise


def _fp8(form: NumberFormat) -> tuple[Dequantise, Quantise]:
    def dequantise(blocks: np.ndarray) -> np.ndarray:
        quants, scales = _split(blocks)
        values = torch.from_numpy(np.ascontiguousarray(quants)).view(form.dtype).float().numpy()
        with np.errstate(all="ignore"):
            scaled: np.ndarray = values * scales
        return scaled

    def quantise(values: np.ndarray) -> np.ndarray:
        scales = _largest(values) / np.float32(torch.finfo(form.dtype).max)
        return _scaled(torch.from_numpy(values / scales).to(form.dtype).view(torch.uint8).numpy(), scales)

    return dequantise, quantise


def _int4(group: int) -> BlockFormat:
    """Quants two a byte, then the scale, then a byte whose low half is the zero point."""
    half = group // 2

    def dequantise(blocks: np.ndarray) -> np.ndarray:
        low, high = blocks[..., :half] & 15, blocks[..., :half] >> 4
        scales = np.ascontiguousarray(blocks[..., half : half + 2]).view(np.float16).astype(np.float32)
        zeros = (blocks[..., half + 2 :] & 15).astype(np.float32)
        with np.errstate(all="ignore"):
            return (np.concatenate([low, high], axis=-1).astype(np.float32) - zeros) * scales

    def quantise(values: np.ndarray) -> np.ndarray:
        least = np.minimum(values.min(axis=-1, keepdims=True), 0)
        spread = np.maximum(values.max(axis=-1, keepdims=True), 0) - least
        scales = np.where(spread == 0, 1, spread / 15).astype(np.float16)
        scales = np.maximum(scales, np.finfo(np.float16).smallest_subnormal)
        zeros = np.clip(np.rint(-least / scales.astype(np.float32)), 0, 15)
        quants = np.clip(np.rint(values / scales.astype(np.float32)) + zeros, 0, 15).astype(np.uint8)
        packed = quants[..., :half] | quants[..., half:] << 4
        return np.concatenate([packed, scales.view(np.uint8), zeros.astype(np.uint8)], axis=-1)

    fields = {
        "quant": Field(_nibbles(0, 2, half)),
        "scale": Field(_bytes(half, 1, 2), _FP16),
        "zero": Field(8 * (half + 2) + np.arange(4)[None]),
    }
    return BlockFormat("int4", group, half + 3, fields, dequantise, quantise)


def _gguf(name: str, fields: Mapping[str, Field]) -> BlockFormat:
    kind = gguf.GGMLQuantizationType[name.upper()]
    elements, size = gguf.GGML_QUANT_SIZES[kind]

    def dequantise(blocks: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return gguf.dequantize(blocks, kind)

    return BlockFormat(name, elements, size, fields, dequantise, lambda values: gguf.quantize(values, kind))


def _fifth_bits(nibbles: np.ndarray, places: np.ndarray) -> Field:
    """Words of five bits, the fifth by itself at some places, shape (words,)."""
    return Field(np.concatenate([nibbles, places[:, None]], axis=1))


def _q5(name: str, scales: Mapping[str, Field], start: int) -> BlockFormat:
    """32 quants: their fifth bits in 4 bytes, then the others as nibbles."""
    quant = _fifth_bits(_nibbles(start + 4, 2, 16), 8 * start + np.arange(32))
    return _gguf(name, {"quant": quant, **scales})


def _k_block(name: str, quant: Field) -> BlockFormat:
    """Super-block of 8 sub-blocks, each with a 6-bit scale and a 6-bit minimum in 12 shared bytes: the first four have
    theirs in the low six bits of bytes 0 to 7, the others in the halves of bytes 8 to 11 and what those left."""
    six, four = np.arange(6), np.arange(4)
    scales = [8 * (4 + sub) + six for sub in range(4)]
    minima = [8 * (8 + sub) + six for sub in range(4)]
    scales += [np.concatenate([8 * (12 + sub) + four, 8 * (4 + sub) + np.array([6, 7])]) for sub in range(4)]
    minima += [np.concatenate([8 * (12 + sub) + 4 + four, 8 * (8 + sub) + np.array([6, 7])]) for sub in range(4)]
    fields = {
        "quant": quant,
        "block_scale": Field(np.array(scales)),
        "block_min": Field(np.array(minima)),
        "scale": Field(_bytes(0, 1, 2), _FP16),
        "min": Field(_bytes(2, 1, 2), _FP16),
    }
    return _gguf(name, fields)


def _q5_k() -> BlockFormat:
    """The fifth bits in 32 bytes: bit s of byte b is that of quant b of sub-block s."""
    fifth = 8 * 16 + np.arange(8)[:, None] + 8 * np.arange(32)
    return _k_block("q5_k", _fifth_bits(_nibbles(48, 8, 32), fifth.ravel()))


def _q6_k() -> BlockFormat:
    """Two halves of 128 quants: the low four bits in 64 bytes, half by half as nibbles, the upper two in 32 bytes."""
    low = _nibbles(0, 4, 64).reshape(2, 128, 4)
    upper = 8 * 128 + np.arange(2)[:, None, None] * 8 * 32 + np.arange(4)[:, None] * 2 + 8 * np.arange(32)
    quants = np.concatenate([low, upper.reshape(2, 128, 1) + np.arange(2)], axis=-1)
    fields = {
        "quant": Field(quants.reshape(256, 6)),
        "block_scale": Field(_bytes(192, 16)),
        "scale": Field(_bytes(208, 1, 2), _FP16),
    }
    return _gguf("q6_k", fields)


_GGUF: Mapping[str, Callable[[], BlockFormat]] = {
    "q8_0": lambda: _gguf("q8_0", {"quant": Field(_bytes(2, 32)), "scale": Field(_bytes(0, 1, 2), _FP16)}),
    "q4_0": lambda: _gguf("q4_0", {"quant": Field(_nibbles(2, 2, 16)), "scale": Field(_bytes(0, 1, 2), _FP16)}),
    "q4_1": lambda: _gguf(
        "q4_1",
        {
            "quant": Field(_nibbles(4, 2, 16)),
            "scale": Field(_bytes(0, 1, 2), _FP16),
            "min": Field(_bytes(2, 1, 2), _FP16),
        },
    ),
    "q5_0": lambda: _q5("q5_0", {"scale": Field(_bytes(0, 1, 2), _FP16)}, 2),
    "q5_1": lambda: _q5("q5_1", {"scale": Field(_bytes(0, 1, 2), _FP16), "min": Field(_bytes(2, 1, 2), _FP16)}, 4),
    "q4_k": lambda: _k_block("q4_k", Field(_nibbles(16, 8, 32))),
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}

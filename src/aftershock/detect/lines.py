"""Integer sums of a tensor's words along its rows and columns: from them a few changed words can be found and undone.

A word is a signed integer of its width; sums are taken modulo 2^64 and so are exact whatever the order, the device
and the number of parts. The plain sum of a line tells by how much its words changed in all. The weighted sum, each
word times the multiplier of its place in the line, tells where: a single change d at place c adds m_c d.

A line whose words changed keeps its plain sum only where the changes cancel. For fixed changes at two or more places,
none of them more than 32 bits, a multiplier is the one that makes the weighted changes cancel too with chance 2^-32 at
most were the multipliers drawn at random: d = 2^k u with u odd and k < 32 leaves 2^k of 2^63 odd numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from aftershock.detect.multipliers import multipliers
from aftershock.models import ModelWords, TensorWords, parts

_AT_ONCE = 1 << 18
"""Words that are held as 64-bit integers at one time: they stay in a core's cache."""


@dataclass(frozen=True)
class LineSums:
    """Sums of each row, int64 of shape (rows, 2), and of each column, int64 of shape (columns, 2).

    `[:, 0]` is the plain sum, `[:, 1]` that of words times multipliers: a row's words have their column's multiplier,
    a column's their row's.
    """

    rows: torch.Tensor
    columns: torch.Tensor


def line_sums(words: ModelWords, tensor: TensorWords) -> LineSums:
    """Sums of all rows and columns of a tensor, read a part at a time, summed where the words are, given on the CPU.

    Raises InputError where the words can't be read.
    """
    rows: list[torch.Tensor] = []
    columns = torch.zeros(2, tensor.columns, dtype=torch.int64)
    by_row = multipliers(tensor.rows)
    for first, part in parts(words, tensor):
        columns = columns.to(part.device)
        of_columns = multipliers(tensor.columns, device=part.device)
        of_rows = by_row[first : first + len(part)].to(part.device)
        for whole, factors in _pieces(part, of_rows):
            rows.append(torch.stack([whole.sum(1), (whole * of_columns).sum(1)], 1).cpu())
            _add_columns(columns, whole, factors)
    return LineSums(torch.cat([*rows, torch.empty(0, 2, dtype=torch.int64)]), columns.T.contiguous().cpu())


def column_sums(words: torch.Tensor) -> torch.Tensor:
    """Sums of all columns of words, signed integers of shape (rows, columns), as `LineSums` has them, where they are:
    int64, shape (columns, 2)."""
    sums = torch.zeros(2, words.shape[1], dtype=torch.int64, device=words.device)
    for whole, factors in _pieces(words, multipliers(len(words), device=words.device)):
        _add_columns(sums, whole, factors)
    return sums.T.contiguous()


def _pieces(words: torch.Tensor, factors: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Some rows after the other as 64-bit integers, with their multipliers."""
    step = max(1, _AT_ONCE // words.shape[1])
    pieces = zip(torch.split(words, step), torch.split(factors, step), strict=True)
    return ((piece.to(torch.int64), own) for piece, own in pieces)


def _add_columns(sums: torch.Tensor, whole: torch.Tensor, factors: torch.Tensor) -> None:
    sums[0] += whole.sum(0)
    sums[1] += (whole * factors[:, None]).sum(0)


def differences(now: LineSums, clean: LineSums) -> LineSums:
    """What the changes of the words add to each sum: `now - clean`, modulo 2^64."""
    return LineSums(now.rows - clean.rows, now.columns - clean.columns)

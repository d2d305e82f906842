"""The fixed numbers that decide shapes. Rounding depends on shapes, so golden runs and all executors share them."""

from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from aftershock.errors import InputError
from aftershock.models import Block, LoadedModel, Prefix

MOST_CALLS = 8
"""Teacher-forced columns are cut into about so many calls at most."""

COLUMN_STEP = 16
"""Columns that an answer which goes on sees are a multiple of this."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of what runs together.

    `copies`: how often a batch's rows stand in one teacher-forced run, each time under the faults of another trial.
    `call_tokens`: tokens in one of its calls, padding counted, at least. `continued_rows`: rows in which answers that
    left golden's are written on. `head_rows`: positions that the head over the vocabulary takes at a time in
    teacher-forced runs, all of a call's if None; a small number lets trials spare it where no choice is in doubt.
    """

    copies: int
    call_tokens: int
    continued_rows: int
    head_rows: int | None = None

    def __post_init__(self) -> None:
        if self.head_rows is not None and self.copies > 1:
            raise InputError("the head is spared where trials run alone: leave one of head_rows and copies > 1 out")

    def rows(self, prefix: Prefix, columns: int) -> int:
        """Rows in which answers like `prefix` are written on: as many as are wanted, halved until their keys and
        values, in so many columns, fit a quarter of the device's memory."""
        per_row = 2 * columns * prefix.nbytes // prefix.fed
        rows = self.continued_rows
        while rows > 1 and rows * per_row > _memory(prefix.states[0].device) // 4:
            rows //= 2
        return rows

    def cuts(self, block: Block) -> tuple[int, ...]:
        """Columns before which every teacher-forced run over the block is cut: one call ends where the context does,
        so that what came before a fault need not run again. Small blocks are not cut."""
        width = int(block.tokens.shape[1])
        # Where contexts are shared their last column is one of theirs, though it predicts too.
        answers = block.context_width if block.shares_contexts else block.context_width - 1
        context, step = self._step(len(block.context_rows), width), self._step(block.rows, width)
        if context >= width:
            return ()
        return (*range(answers % context, answers, context), *range(answers, width, step))

    def _step(self, rows: int, width: int) -> int:
        """Columns of one call that has so many rows."""
        return max(-(-self.call_tokens // rows), -(-width // MOST_CALLS))


def _memory(device: torch.device) -> int:
    """Bytes of a device's memory; of a CPU's, what shapes are made for."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**34


def memory_budget(device: torch.device) -> int:
    """Bytes that an executor may keep where nobody says: 2 GiB, on a GPU half of this process's share of its memory."""
    if device.type != "cuda":
        return _memory(device) // 8
    return int(_memory(device) * torch.cuda.get_per_process_memory_fraction(device.index)) // 2


BY_DEVICE = MappingProxyType({"cpu": Shapes(1, 256, 64, 128), "cuda": Shapes(32, 2**15, 8192)})


def shapes_of(model: LoadedModel) -> Shapes:
    """The sizes that suit the model's device.

    Experts work on the tokens that all rows send them, so there a row's bits depend on its company: one copy.
    """
    found = BY_DEVICE.get(model.device.type, BY_DEVICE["cuda"])
    return replace(found, copies=1) if rows_mix(model) else found


def rows_mix(model: LoadedModel) -> bool:
    """Whether a row's bits depend on the other rows (experts do that)."""
    return any(site.component == "router" for site in model.components.outputs)

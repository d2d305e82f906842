"""The fixed numbers that decide shapes. Rounding depends on shapes, so golden runs and all executors share them."""

from dataclasses import dataclass
from types import MappingProxyType

from aftershock.models import Block, LoadedModel

MOST_CALLS = 8
"""Teacher-forced columns are cut into about so many calls at most."""

COLUMN_STEP = 16
"""Columns that an answer which goes on sees are a multiple of this."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of what runs together.

    `copies`: how often a batch's rows stand in one teacher-forced run, each time under the faults of another trial.
    `call_columns`: columns of one of its calls, at least. `continued_rows`: rows in which answers that left golden's
    are written on.
    """

    copies: int
    call_columns: int
    continued_rows: int

    def cuts(self, block: Block) -> tuple[int, ...]:
        """Columns before which every teacher-forced run over the block is cut: one call ends where the context does,
        so that what came before a fault need not run again."""
        width, answers = int(block.tokens.shape[1]), block.context_width - 1
        step = max(self.call_columns, -(-width // MOST_CALLS))
        return (*range(answers % step, answers, step), *range(answers, width, step))


BY_DEVICE = MappingProxyType({"cpu": Shapes(1, 16, 64), "cuda": Shapes(16, 64, 2048)})


def shapes_of(model: LoadedModel) -> Shapes:
    """The sizes that suit the model's device.

    Experts work on the tokens that all rows send them, so there a row's bits depend on its company: one copy.
    """
    found = BY_DEVICE.get(model.device.type, BY_DEVICE["cuda"])
    return Shapes(1, found.call_columns, found.continued_rows) if rows_mix(model) else found


def rows_mix(model: LoadedModel) -> bool:
    """Whether a row's bits depend on the other rows (experts do that)."""
    return any(site.component == "router" for site in model.components.outputs)

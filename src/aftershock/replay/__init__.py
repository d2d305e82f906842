"""Golden runs, and trials against them."""

from aftershock.replay.batches import Batch, make_batches
from aftershock.replay.executor import (
    Distance,
    Executor,
    ItemRun,
    ModelCrashedError,
    ReferenceExecutor,
    Run,
    distance,
)
from aftershock.replay.trace import residual_error

__all__ = [
    "Batch",
    "Distance",
    "Executor",
    "ItemRun",
    "ModelCrashedError",
    "ReferenceExecutor",
    "Run",
    "distance",
    "make_batches",
    "residual_error",
]

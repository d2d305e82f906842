"""Golden runs, and trials against them."""

from aftershock.replay.batches import Batch, make_batches
from aftershock.replay.distance import distance
from aftershock.replay.executor import Distance, Executor, ItemRun, Job, ModelCrashedError, Proof, Run
from aftershock.replay.fast import FastExecutor
from aftershock.replay.reference import ReferenceExecutor
from aftershock.replay.shapes import Shapes, shapes_of
from aftershock.replay.trace import residual_error
from aftershock.replay.use import ExpertUse, expert_use

__all__ = [
    "Batch",
    "Distance",
    "Executor",
    "ExpertUse",
    "FastExecutor",
    "ItemRun",
    "Job",
    "ModelCrashedError",
    "Proof",
    "ReferenceExecutor",
    "Run",
    "Shapes",
    "distance",
    "expert_use",
    "make_batches",
    "residual_error",
    "shapes_of",
]

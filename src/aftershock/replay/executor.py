"""What every executor takes and gives.

An answer is defined once, for all of them. Choices, clozes and texts to be scored are one teacher-forced pass. A
generated answer is golden's as long as a pass over golden's text, teacher-forced under the faults, chooses golden's
tokens; from the first other token on it is written greedily, in rows and columns of one fixed number. So golden runs
and trials have the same shapes, whatever else runs beside them, and shapes are what rounding depends on.

Two kinds of trial are decoded token by token instead, as golden itself is (`models.generate`): those with a fault that
begins or ends after the answer has left golden's, and in fp32 those where a choice was so close that the rounding of
the two paths could have decided it, and decoding that far gave another. That makes fp32 answers equal to `generate`'s.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from aftershock.errors import ContractError, InputError
from aftershock.faults import Fault
from aftershock.inject import Struck, StruckSet
from aftershock.replay.batches import Batch
from aftershock.tasks import Answer

Proof = Literal["not_activated", "converged"]
"""How a run was known to be golden's before it came to its end.

`not_activated`: nothing that runs reads what the faults change, such as the embedding of a token that no prompt holds,
or their moment never comes. `converged`: after the last faulty layer of every call that they touch, the residual stream
and all keys and values were golden's to the bit.
"""


@dataclass(frozen=True)
class Distance:
    """How far faulty logits lie from golden ones: RMSE, and mean KL(golden || faulty) in nats."""

    rmse: float
    kl: float


@dataclass(frozen=True)
class ItemRun:
    """What one run gave for one item.

    The run was teacher-forced on `forced`, golden's tokens with the one that ended them (empty where the task gives the
    continuations). Of a fault-free run `logits[r]`, shape (positions, vocabulary), model dtype, are those of row r at
    the compared answer positions; of a trial `apart` tells how far they lie from golden's. `reached`: whether the item
    took part in a pass with some fault present.
    """

    answer: Answer
    forced: tuple[int, ...]
    logits: tuple[torch.Tensor, ...]
    reached: bool
    apart: Distance | None = None


@dataclass(frozen=True)
class Run:
    """What one run of a batch gave: its items, the words that faults wrote, and the proof that ended it early (None
    where it ran to its end)."""

    items: tuple[ItemRun, ...]
    struck: tuple[Struck | StruckSet, ...]
    proof: Proof | None = None


class ModelCrashedError(Exception):
    """The model itself failed under the faults, as an index out of range would make it: that is a result.

    `struck` holds the words that faults wrote before. A machine that ran out of memory or lost its accelerator is no
    result, and neither is a fault that can't be armed: those exceptions pass through as they are.
    """

    def __init__(self, error: Exception, struck: tuple[Struck | StruckSet, ...]) -> None:
        super().__init__(str(error))
        self.error, self.struck = error, struck


@contextmanager
def crashes_told(struck: Callable[[], tuple[Struck | StruckSet, ...]]) -> Iterator[None]:
    """The model runs inside, and it alone: an exception there that is a result is raised as ModelCrashedError, with
    what was `struck` by then."""
    try:
        yield
    except (ContractError, InputError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):
            raise
        raise ModelCrashedError(error, struck()) from error


@dataclass(frozen=True)
class Job:
    """One batch to run under one set of faults; `key` is whatever its owner knows it by."""

    key: Hashable
    batch: Batch
    faults: tuple[Fault, ...]


class Executor(Protocol):
    """Runs batches without faults and with them, in the same shapes.

    `audited` tells that it takes short cuts, so that a share of its trials is to be repeated by the reference executor.
    """

    audited: bool

    def golden(self, batch: Batch, faults: Sequence[Fault] = ()) -> Run:
        """The fault-free run, cut between the same passes as a run under `faults`."""
        ...

    def trials(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Run | ModelCrashedError]]:
        """Every job with its run, in any order; an error where the model itself failed under the faults."""
        ...

    def trial(self, batch: Batch, faults: Sequence[Fault]) -> Run:
        """One run under the faults. Raises ModelCrashedError when the model itself fails under them."""
        ...

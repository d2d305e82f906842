"""How an error grows or dies on its way through the layers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from aftershock.faults import Fault, splits
from aftershock.inject import Injection
from aftershock.models import Block, LoadedModel, align, teacher_forced
from aftershock.replay.batches import Batch
from aftershock.replay.executor import Run


def residual_error(model: LoadedModel, batch: Batch, faults: Sequence[Fault], golden: Run) -> tuple[float, ...]:
    """Relative error of the residual stream after the embedding and after each layer.

    Both runs are teacher-forced on the golden text. Entry l is the largest over the rows of
    ||h_faulty - h_golden|| / ||h_golden||, Frobenius norms over the row's own tokens; NaN counts as infinite.
    """
    contexts = [context for context, _ in batch.sequences]
    if batch.generates:
        answers = [item.forced[:-1] for item in golden.items]
    else:
        answers = [answer for _, answer in batch.sequences]
    block = align(contexts, answers, model.device)
    clean = _residual_stream(model, block, (), splits(tuple(faults)))
    faulty = _residual_stream(model, block, faults, splits(tuple(faults)))
    return tuple(_relative_error(a, b, block.mask) for a, b in zip(clean, faulty, strict=True))


@torch.inference_mode()
def _relative_error(clean: torch.Tensor, faulty: torch.Tensor, mask: torch.Tensor) -> float:
    real = mask.to(clean.device).bool()[..., None]
    difference = torch.where(real, faulty.double() - clean.double(), 0.0).norm(dim=(1, 2))
    error = difference / torch.where(real, clean.double(), 0.0).norm(dim=(1, 2))
    largest = float(error.nan_to_num(math.inf, math.inf).max())
    return largest


def _residual_stream(
    model: LoadedModel, block: Block, faults: Sequence[Fault], boundaries: frozenset[int]
) -> list[torch.Tensor]:
    """Outputs of the embedding and of every layer, each of shape (rows, columns, width)."""
    outputs = model.components.outputs
    # Where a projection follows the embedding, the residual stream begins after it.
    sites = [site for site in outputs if site.component == "embedding"][-1:]
    sites += [site for site in outputs if site.component == "residual"]
    with (
        Injection(model, faults) as injection,
        _captured(model, [site.module for site in sites]) as captured,
    ):
        teacher_forced(model, block, boundaries, injection.begin_pass)
    return [torch.cat(captured[site.module], dim=1) for site in sites]


@contextmanager
def _captured(model: LoadedModel, names: Sequence[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collect outputs of modules. Entered after an injection, so what is collected is what the faults left."""
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs[name].append(
            (output[0] if isinstance(output, tuple) else output).clone()
        )

    hooks = [model.module.get_submodule(name).register_forward_hook(keep(name)) for name in outputs]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()

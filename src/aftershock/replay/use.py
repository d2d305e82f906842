"""How often each expert is chosen in golden runs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from aftershock.models import LoadedModel, Pass, align, chosen_experts, teacher_forced
from aftershock.replay.batches import Batch
from aftershock.replay.reference import ReferenceExecutor

ExpertUse = dict[int, tuple[float, ...]]
"""For each layer with experts the share of the tokens that choose each of them; they sum to the number that a token
chooses."""


def expert_use(model: LoadedModel, batches: Sequence[Batch]) -> ExpertUse:
    """Measured over every token that runs in a teacher-forced golden run: contexts, options and golden's own answers.

    Options of a question share their context's tokens, which count once. Empty for a model without experts.
    """
    routers = [
        (site.layer, model.module.get_submodule(site.module))
        for site in model.components.outputs
        if site.component == "router" and site.layer is not None
    ]
    counts = dict[int, torch.Tensor]()
    calls: list[Pass] = []

    def count(layer: int) -> Callable[..., None]:
        def after(_: torch.nn.Module, __: Any, output: Any) -> None:
            chosen = chosen_experts(output)
            if chosen is not None:
                (call,) = calls[-1:]
                real = call.block.mask[call.running, call.start : call.stop].flatten().bool()
                found = chosen[real.to(chosen.device)].flatten().bincount(minlength=output[0].shape[-1]).cpu()
                counts[layer] = counts.get(layer, torch.zeros_like(found)) + found

        return after

    tokens = 0
    golden = ReferenceExecutor(model)
    for batch in batches if routers else ():
        contexts = [context for context, _ in batch.sequences]
        answers = [answer for _, answer in batch.sequences]
        if batch.generates:
            answers = [item.forced[:-1] for item in golden.golden(batch).items]
        block = align(contexts, answers, model.device, batch.owners)
        hooks = [router.register_forward_hook(count(layer)) for layer, router in routers]
        calls.clear()
        try:
            teacher_forced(model, block, frozenset(), calls.append)
        finally:
            for hook in hooks:
                hook.remove()
        tokens += sum(int(call.block.mask[call.running, call.start : call.stop].sum()) for call in calls)
    return {layer: tuple((found / tokens).tolist()) for layer, found in sorted(counts.items())}

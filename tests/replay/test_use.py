"""How often experts are chosen in golden runs, against counting by hand, token by token."""

import pytest
import torch
from small_tasks import ITEMS

from aftershock.models import LoadedModel
from aftershock.replay import ReferenceExecutor, expert_use, make_batches
from tiny_models import tiny_loaded


def by_hand(model: LoadedModel, tokens: list[int]) -> list[torch.Tensor]:
    """Experts chosen for each token of a row that runs alone, by layer."""
    chosen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _, __, output: chosen.append(output[2]))
        for layer in model.module.model.layers
    ]
    model.module(input_ids=torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return chosen


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_uses_are_shares_of_the_tokens_fed(family: str) -> None:
    model = tiny_loaded(family)
    batches = make_batches(ITEMS, model, 4, 0)
    assert {batch.generates for batch in batches} == {True, False}
    counts, tokens = [torch.zeros(4), torch.zeros(4)], 0
    golden = ReferenceExecutor(model)
    for batch in batches:
        answers = [item.forced[:-1] for item in golden.golden(batch).items] if batch.generates else None
        for row, (context, answer) in enumerate(batch.sequences):
            fed = [*context, *(answer if answers is None else answers[row])]
            # Options of a question share their context.
            begin = 0 if batch.owners[row] == row else len(context)
            tokens += len(fed) - begin
            for count, chosen in zip(counts, by_hand(model, fed), strict=True):
                count += chosen[begin:].flatten().bincount(minlength=4)
    found = expert_use(model, batches)
    assert list(found) == [0, 1]
    for layer in (0, 1):
        assert found[layer] == pytest.approx((counts[layer] / tokens).tolist(), abs=1e-6)
        assert sum(found[layer]) == pytest.approx(2)
    assert not any(part._forward_hooks for part in model.module.modules())


def test_a_model_without_experts_has_none() -> None:
    model = tiny_loaded("llama")
    assert expert_use(model, make_batches(ITEMS, model, 4, 0)) == {}

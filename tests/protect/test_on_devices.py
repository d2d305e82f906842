"""The verb on every device that is there: recovery, counting in what is replayed, the checks that are fused.

On a GPU recovery comes after a whole pass, and what is replayed is a CUDA graph; on a CPU products are computed again
at once, and a replay is one more call.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from aftershock.models import LoadedModel
from aftershock.numerics import words
from aftershock.protect import Checksum, FusedChecksum, protect
from tiny_models import tiny_loaded

DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
RECOVERED = {"cpu": "down", "cuda": "pass"}
"""The component that an event of recovery names."""

DOWN = "model.layers.1.mlp.down_proj"
GENERATE = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def model(request: pytest.FixtureRequest, device: torch.device) -> LoadedModel:
    made = tiny_loaded("llama", request.param)
    return replace(made, module=made.module.to(device), device=device)


@pytest.fixture
def tokens(device: torch.device) -> torch.Tensor:
    return torch.arange(4, 28, device=device).view(2, 12)


def replayed(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    if device.type == "cpu":
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def logits(model: LoadedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.module(input_ids=tokens, use_cache=False).logits
    return words(found)


def strike(model: LoadedModel) -> None:
    with torch.no_grad():
        model.module.get_parameter(f"{DOWN}.weight")[3, 5] += 1000.0


def struck_once(model: LoadedModel, pass_: int) -> Callable[[], None]:
    """One wrong value in one pass, on the device, before any other hook; what takes the hook off."""
    seen = 0

    def hook(_module: torch.nn.Module, _arguments: object, output: torch.Tensor) -> None:
        nonlocal seen
        if seen == pass_:
            output.view(-1, output.shape[-1])[-1, 2] = 1e4
        seen += 1

    return model.module.get_submodule(DOWN).register_forward_hook(hook, prepend=True).remove


def test_clean_words_stay_and_nothing_alarms(model: LoadedModel, tokens: torch.Tensor):
    before = logits(model, tokens)
    with protect(model, [Checksum(action="count")]) as protected:
        assert torch.equal(logits(model, tokens), before)
        assert {counts.wrong for counts in protected.report()} == {0}
        assert all(counts.checked for counts in protected.report())


@pytest.mark.parametrize("pass_", [0, 2])
def test_a_wrong_pass_of_a_generation_is_run_again(model: LoadedModel, tokens: torch.Tensor, pass_: int):
    clean = model.module.generate(tokens, **GENERATE)
    with protect(model, [Checksum()]) as protected:
        remove = struck_once(model, pass_)
        assert torch.equal(model.module.generate(tokens, **GENERATE), clean)
        remove()
        assert [event.site.component for event in protected.events] == [RECOVERED[model.device.type]]


def test_a_wrong_weight_is_put_back_to_the_word(model: LoadedModel, tokens: torch.Tensor):
    before = logits(model, tokens)
    with protect(model, [Checksum()]):
        strike(model)
        assert torch.equal(logits(model, tokens), before)
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("protection", [Checksum(action="count"), FusedChecksum()], ids=["hooks", "fused"])
def test_counts_are_kept_in_what_is_replayed(
    model: LoadedModel, tokens: torch.Tensor, protection: Checksum | FusedChecksum
):
    def run() -> object:
        return model.module(input_ids=tokens, use_cache=False)

    with protect(model, [protection]) as protected, torch.inference_mode():
        for _ in range(2):
            run()
        replay = replayed(run, model.device)
        protected.reset()
        replay()
        assert {counts.wrong for counts in protected.report()} == {0}
        assert all(counts.checked for counts in protected.report())
        strike(model)
        replay()
        assert DOWN in {counts.site.module for counts in protected.report() if counts.wrong}

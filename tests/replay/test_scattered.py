"""Both executors give the same bits under scattered sets and under faults in outputs that last."""

from pathlib import Path

import pytest
import torch
from small_tasks import ITEMS
from test_fast import IN_COMPANY, SHORT_CALLS, disagreements

from aftershock.faults import parse_faults
from aftershock.models import LoadedModel, load, model_hash
from aftershock.replay import Job, make_batches
from aftershock.replay.shapes import Shapes
from tiny_models import save_tiny, tiny_loaded

TRIGGERS = ("always", "at prefill", "from first_token", "from decode:2", "from prefill to decode:2", "at decode:1")
WEIGHTS = (
    "scattered weight {weight} rate 0.01 key 3 flip 20-24",
    "scattered weight {weight} count 9 key 4 replace uniform[-2.0,2.0]",
)
OUTPUTS = (
    "activation {module}[3] stuck-at-1 {bit}",
    "scattered activation {module} rate 0.02 key 5 flip {bit}",
    "scattered activation {module} count 2 key 6 add {amount}",
)


def agree(model: LoadedModel, lines: list[str], shapes: Shapes = SHORT_CALLS) -> int:
    """Both executors on every batch of choices and generated answers; the number of answers that left golden's."""
    before = model_hash(model.module)
    jobs = [
        Job((batch.number, number), batch, parse_faults(line))
        for batch in make_batches(ITEMS, model, 4, 3)
        for number, line in enumerate(lines)
    ]
    different, left = disagreements(model, jobs, shapes)
    assert [str(job.faults[0]) for job in different] == []
    assert model_hash(model.module) == before
    return left


def lines_of(kinds: tuple[str, ...], **names: object) -> list[str]:
    return [f"{kind.format(**names)} {trigger}" for kind in kinds for trigger in TRIGGERS]


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.float32), ("gpt2", torch.bfloat16)])
def test_scattered_weights(family: str, dtype: torch.dtype) -> None:
    weight = {"llama": "model.layers.1.mlp.up_proj.weight", "gpt2": "transformer.h.1.attn.c_attn.weight of k"}[family]
    kinds = WEIGHTS if dtype == torch.float32 else tuple(kind.replace("20-24", "7-11") for kind in WEIGHTS)
    assert agree(tiny_loaded(family, dtype), lines_of(kinds, weight=weight)) > 2


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("llama", "model.layers.1.self_attn.o_proj"),
        ("llama", "lm_head"),
        ("opt", "model.decoder.layers.0.fc1"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value of v"),
        ("gemma3", "model.layers.1.self_attn.k_norm"),
        ("mixtral", "model.layers.0.mlp.gate"),
    ],
)
def test_outputs_in_every_layout(family: str, module: str) -> None:
    model = tiny_loaded(family)
    kinds = OUTPUTS if " of " not in module else OUTPUTS[1:]
    lines = lines_of(kinds, module=module, bit=29, amount=3.0)
    agree(model, [line for line in lines if not (module == "lm_head" and line.endswith("at prefill"))])


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("integers")
    return load(str(save_tiny(folder / "llama", "llama")), arithmetic="w8a8")


def test_accumulators_of_all_layers(integers: LoadedModel) -> None:
    modules = [part.module for part in integers.components.accumulators if part.component == "down"]
    lines = lines_of(OUTPUTS, module="{module}", bit=30, amount=2.0**20)
    every = [" & ".join(line.format(module=module) for module in modules) for line in lines]
    assert agree(integers, every) > 5


@pytest.mark.parametrize("product", ["qk", "sv"])
def test_sums_of_attentions_products(integers: LoadedModel, product: str) -> None:
    modules = [f"model.layers.{layer}.self_attn.{product}.accumulator" for layer in (0, 1)]
    lines = lines_of(OUTPUTS[1:], module="{module}", bit=30, amount=2.0**20)
    every = [" & ".join(line.format(module=module) for module in modules) for line in lines]
    assert agree(integers, every) > 5


def test_sums_of_scores_in_a_sliding_window(tmp_path: Path) -> None:
    model = load(str(save_tiny(tmp_path / "gemma3", "gemma3", sliding_window=3)), arithmetic="w8a8")
    agree(model, lines_of(OUTPUTS[1:], module="model.layers.0.self_attn.qk.accumulator", bit=30, amount=2.0**20))


def test_in_company_they_run_alone() -> None:
    lines = lines_of(OUTPUTS, module="model.layers.0.mlp.up_proj", bit=29, amount=3.0)[::3]
    agree(tiny_loaded("llama"), lines + lines_of(WEIGHTS, weight="model.norm.weight")[::3], IN_COMPANY)


def test_all_kinds_at_once() -> None:
    lines = [
        f"{WEIGHTS[0].format(weight='model.layers.0.mlp.down_proj.weight')} from decode:1 & "
        f"{OUTPUTS[1].format(module='model.layers.1.mlp.up_proj', bit=29)} from first_token & "
        f"{OUTPUTS[0].format(module='model.layers.0.self_attn.q_proj', bit=29)} at decode:2"
    ]
    agree(tiny_loaded("llama"), lines)

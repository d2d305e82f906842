"""What `protect` costs on transformers' own Llama on one GPU, attention's products included.

    python -m benchmarks.protect_cost_llama --json [--quick] [--layers 4] [--turns 30] [--tokens 4096] [--rows 16]

Layers of Llama 3 8B's shape (bf16, random weights, eager attention): a prefill of one row, and a pass over one token
of many rows, both without a cache, each captured as one CUDA graph and run in turns with the plain model. Recovery
reads a flag after each pass, so it is not captured: its base line is the plain model launched kernel by kernel, too.
A weight that is struck must be seen by every protection.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aftershock.models import LoadedModel, component_map
from aftershock.protect import Checksum, FusedChecksum, Protection, protect
from benchmarks.arguments import parser
from benchmarks.cuda_timing import captured, milliseconds
from benchmarks.environment import environment
from benchmarks.llama_shaped import fill_normal
from benchmarks.locate_speed import ratio, spread

SEED = 20261124
LINEAR = ("q", "k", "v", "o", "gate", "up", "down", "lm_head")
COUNTED: dict[str, Sequence[Protection]] = {
    "fused": [FusedChecksum()],
    "hooks on linear layers": [Checksum(LINEAR, "count")],
    "hooks on o + down": [Checksum(("o", "down"), "count")],
    "hooks on attention's products": [Checksum(("qk", "sv"), "count")],
}
STRUCK = "model.layers.1.mlp.down_proj.weight"


def llama(layers: int, device: str, dtype: torch.dtype, **sizes: int) -> LoadedModel:
    """A Llama with random weights of a standard deviation of 0.02; of Llama 3 8B's shape but for `sizes`."""
    shape = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    config = LlamaConfig(**{**shape, **sizes}, num_hidden_layers=layers, attn_implementation="eager")
    # Its positions' frequencies are no weights: they are made where they can be computed.
    with torch.device(device), torch.random.fork_rng():
        module = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    for number, (name, parameter) in enumerate(module.named_parameters()):
        if not name.endswith("norm.weight"):
            fill_normal(parameter, 0.02, SEED, number)
    return LoadedModel(module, None, "random", dtype, torch.device(device), component_map(module))


def cost(found: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Each one's time over the base's, less one, with its spread; and all times in milliseconds."""
    over = {name: ratio(times, found[base]) for name, times in found.items() if name != base}
    return {
        "n": len(found[base]),
        "cost": {
            name: own | {part: own[part] - 1 for part in ("estimate", "low", "high")} for name, own in over.items()
        },
        "milliseconds": {name: spread(times) for name, times in found.items()},
    }


def struck_and_seen(model: LoadedModel, protections: Sequence[Protection], run: Callable[[], object]) -> bool:
    """Whether what watches the struck product says so, and nothing alarms before."""
    weight = model.module.get_parameter(STRUCK)
    with protect(model, protections) as protected:
        run()
        clean = not any(counts.wrong for counts in protected.report())
        kept = weight[3, 5].clone()
        weight[3, 5] = 64.0
        run()
        weight[3, 5] = kept
        return clean and any(counts.wrong for counts in protected.report())


def measure(model: LoadedModel, rows: int, tokens: int, turns: int) -> dict[str, Any]:
    """One setting: counting checks as graphs, recovery kernel by kernel, and whether a struck weight is seen."""
    numbers = torch.arange(rows * tokens, device=model.device).view(rows, tokens) * 7919 % 128_000

    def run() -> torch.Tensor:
        found: torch.Tensor = model.module(input_ids=numbers, use_cache=False, logits_to_keep=1).logits
        return found

    plain = captured(run)
    found: dict[str, Any] = {}
    for name, protections in COUNTED.items():
        # A graph writes to the counts that it was captured with, so it is run while these are there.
        with protect(model, protections):
            found[name] = cost(milliseconds({"plain": plain, name: captured(run)}, turns), "plain")
    alone = milliseconds({"plain": run}, turns)
    for name, protection in (("counted", Checksum(LINEAR, "count")), ("recovered", Checksum(LINEAR))):
        with protect(model, [protection]):
            found[f"{name}, not captured"] = cost(alone | milliseconds({name: run}, turns), "plain")
    found["struck_weight_seen"] = {
        name: struck_and_seen(model, protections, run)
        for name, protections in COUNTED.items()
        if "attention" not in name
    }
    return found


def main() -> None:
    """Run it."""
    arguments = parser(__doc__, "two layers, few turns")
    arguments.add_argument("--layers", type=int, default=4)
    arguments.add_argument("--turns", type=int, default=30)
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--rows", type=int, default=16)
    given = arguments.parse_args()
    layers, turns = (2, 3) if given.quick else (given.layers, given.turns)
    with torch.inference_mode():
        model = llama(layers, "cuda", torch.bfloat16)
        settings = {
            f"{rows} x {tokens}": measure(model, rows, tokens, turns)
            for rows, tokens in ((1, given.tokens), (given.rows, 1))
        }
    checks = [
        {"name": f"{name}: {which} misses a struck weight", "value": int(not seen), "target": 0, "met": seen}
        for name, own in settings.items()
        for which, seen in own["struck_weight_seen"].items()
    ]
    found = {
        "benchmark": "protect_cost_llama",
        "environment": environment() | {"device": torch.cuda.get_device_name()},
        "seed": SEED,
        "layers": layers,
        "settings": settings,
        "checks": checks,
    }
    print(json.dumps(found) if given.json else json.dumps(settings, indent=1))


if __name__ == "__main__":
    main()

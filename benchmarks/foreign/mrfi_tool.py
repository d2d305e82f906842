"""Trials by MRFI 2.1.0, and what it does when more is asked of it.

`python -m benchmarks.foreign.mrfi_tool` serves trials, `... FOLDER` prints the attempts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mrfi import MRFI, EasyConfig

from benchmarks.foreign.serve import Flip, Trial, flip_words, load, main, mentions

PROMPT = torch.arange(1000, 1008)[None]
MODULE = "model.layers.3.mlp.down_proj"
STRANGE = 77.0
"""A value that no fault-free output has."""


def fault(kind: str, selector: dict[str, Any], error: dict[str, Any], **modules: str) -> dict[str, Any]:
    """One entry of the tool's configuration; a copy of its parts, since the tool writes in what it is given."""
    return {"type": kind, "enabled": False, "selector": dict(selector), "error_mode": dict(error), **modules}


FIXED = {"method": "FixPosition", "position": [0, 0]}
SEVERAL = {"method": "FixPositions", "positions": [[0], [0], [0]]}
FLIP = {"method": "FloatFixedBitFlip", "bit": 0}


def make(model: Any, tokens: torch.Tensor) -> Trial:
    """Trials on the model as it is; one entry for each Linear's weight and output, switched on for its trial."""
    everything = [
        fault("weight", FIXED, FLIP, module_type="Linear"),
        fault("activation_out", SEVERAL, FLIP, module_type="Linear"),
    ]
    tool = MRFI(model, EasyConfig({"faultinject": everything}))
    rows = len(tokens)

    def forward() -> torch.Tensor:
        logits: torch.Tensor = tool(input_ids=tokens, use_cache=False).logits
        return logits

    def weight(flip: Flip) -> torch.Tensor:
        module = model.get_submodule(flip.module)
        configuration = module.FI_config.weights[0]
        configuration.selector.args.position = list(flip.index)
        configuration.error_mode.args.bit = flip.bit
        with enabled(configuration):
            logits = forward()
        # Switched off, the fault stays in the weight; its own copy puts it right without another forward pass.
        module.weight.copy_(configuration.weight_copy)
        return logits

    def activation(flip: Flip) -> torch.Tensor:
        token, channel = flip.index
        configuration = model.get_submodule(flip.module).FI_config.activation_out[0]
        configuration.selector.args.positions = [list(range(rows)), [token] * rows, [channel] * rows]
        configuration.error_mode.args.bit = flip.bit
        with enabled(configuration):
            return forward()

    return lambda flip: weight(flip) if flip.kind == "weight" else activation(flip)


@contextmanager
def enabled(configuration: Any) -> Iterator[None]:
    """Inside, the entry is switched on."""
    configuration.enabled = True
    try:
        yield
    finally:
        configuration.enabled = False


def armed(
    folder: str, kind: str, selector: dict[str, Any], error: dict[str, Any], dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """The tool with one fault switched on, and the model in it."""
    model = load(folder, dtype)
    entry = {**fault(kind, selector, error, module_fullname=MODULE), "enabled": True}
    return MRFI(model, EasyConfig({"faultinject": [entry]})), model


def generate(tool: Any, rows: int = 1) -> int:
    """Tokens that the faulty model generates."""
    tokens = tool.generate(input_ids=PROMPT.expand(rows, -1), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return int(tokens.shape[1]) - PROMPT.shape[1]


def struck(values: torch.Tensor, clean: torch.Tensor) -> list[tuple[int, ...]]:
    """Where two tensors differ in some bit."""
    places = (values.view(torch.int32) != clean.view(torch.int32)).nonzero()
    return [tuple(place) for place in places.tolist()]


def as_it_is(folder: str) -> str:
    """The transformers model without a wrapper."""
    tool, _ = armed(folder, "weight", FIXED, FLIP)
    tool(input_ids=PROMPT)
    return "runs"


def generate_random_weight(folder: str) -> str:
    """Generation under a weight fault at a random place: where is it in each pass?"""
    tool, model = armed(
        folder, "weight", {"method": "RandomPositionByNumber", "n": 1}, {"method": "FloatFixedBitFlip", "bit": 20}
    )
    module = model.get_submodule(MODULE)
    clean = module.weight.clone()
    places: list[list[tuple[int, ...]]] = []
    module.register_forward_hook(lambda *_: places.append(struck(module.weight, clean)))
    count = generate(tool)
    return f"{count} tokens; struck in its passes: {places}"


def generate_fixed_weight(folder: str) -> str:
    """Generation under a weight fault at a fixed place."""
    tool, _ = armed(folder, "weight", FIXED, FLIP)
    return f"{generate(tool)} tokens"


def generate_activation(folder: str, rows: int) -> str:
    """Generation of `rows` answers under a fault in row 0 at prompt token 5: where does it strike in each pass?"""
    tool, model = armed(
        folder,
        "activation_out",
        {"method": "FixPosition", "position": [0, 5, 3]},
        {"method": "SetValue", "value": STRANGE},
    )
    passes: list[str] = []

    def look(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        passes.append(f"{torch.isclose(output, torch.tensor(STRANGE)).nonzero().tolist()} of {list(output.shape)}")

    model.get_submodule(MODULE).register_forward_hook(look)
    try:
        count = generate(tool, rows)
    except Exception as error:
        return f"{type(error).__name__}: {error}; struck before: {passes}"
    return f"{count} tokens; (row, token, channel) struck in its passes: {passes}"


def sixteen(folder: str, dtype: torch.dtype) -> str:
    """A flip of bit 14 of a stored 16-bit word."""
    tool, model = armed(folder, "weight", FIXED, {"method": "FloatFixedBitFlip", "bit": 14}, dtype)
    weight = model.get_submodule(MODULE).weight
    old = weight[0, 0].clone()
    tool(input_ids=PROMPT)
    return "exact" if torch.equal(weight[0, 0], flip_words(old, 14)) else f"{float(old)} became {float(weight[0, 0])}"


def seeded(folder: str) -> str:
    """Two random places after the same global seed."""
    tool, model = armed(
        folder, "weight", {"method": "RandomPositionByNumber", "n": 1}, {"method": "FloatFixedBitFlip", "bit": 20}
    )
    weight = model.get_submodule(MODULE).weight
    clean = weight.clone()
    places = []
    for _ in range(2):
        # The global generator is what the tool draws from; that is tried here.
        torch.manual_seed(7)
        tool(input_ids=PROMPT)
        places.append(struck(weight, clean))
    return "the same place" if places[0] == places[1] else "different places"


def absent_module(folder: str) -> str:
    """A fault in a module that does not exist."""
    model = load(folder)
    clean = [parameter.clone() for parameter in model.parameters()]
    entry = {**fault("weight", FIXED, FLIP, module_fullname="model.layers.99.mlp.down_proj"), "enabled": True}
    MRFI(model, EasyConfig({"faultinject": [entry]}))(input_ids=PROMPT)
    changed = sum(int((one != other).sum()) for one, other in zip(clean, model.parameters(), strict=True))
    return f"no error (a logged warning); {changed} weights differ"


def undo(folder: str) -> str:
    """Whether a weight is as before once its fault is switched off."""
    tool, model = armed(folder, "weight", FIXED, {"method": "FloatFixedBitFlip", "bit": 20})
    weight = model.get_submodule(MODULE).weight
    clean = weight.clone()
    tool(input_ids=PROMPT)
    model.get_submodule(MODULE).FI_config.weights[0].enabled = False
    tool(input_ids=PROMPT)
    off = struck(weight, clean)
    model.get_submodule(MODULE).FI_config.weights[0].enabled = True
    with tool.golden_run():
        tool(input_ids=PROMPT)
    return f"differs after enabled = False and another pass: {off}; after golden_run(): {struck(weight, clean)}"


def golden_after_error(folder: str) -> str:
    """Whether golden_run() ends when the code in it fails."""
    tool, _ = armed(folder, "weight", FIXED, FLIP)
    try:
        with tool.golden_run():
            raise KeyError
    except KeyError:
        return f"golden is {tool.golden} afterwards"


def rate(folder: str) -> str:
    """A random selection at rate 0.1."""
    tool, _ = armed(folder, "weight", {"method": "RandomPositionByRate", "rate": 0.1}, FLIP)
    tool(input_ids=PROMPT)
    return "runs"


def words_of_source(_: str) -> str:
    """Lines of the source that speak of what a campaign needs."""
    return mentions("mrfi", ("seed", "resume", "interval", "confidence", "cache", "bfloat16"))


TRIES = {
    "the transformers model as it is": as_it_is,
    "generate, weight fault at a random place": generate_random_weight,
    "generate, weight fault at a fixed place": generate_fixed_weight,
    "generate, activation fault at prompt token 5": lambda folder: generate_activation(folder, 1),
    "the same, batch of 8": lambda folder: generate_activation(folder, 8),
    "flip in bf16": lambda folder: sixteen(folder, torch.bfloat16),
    "flip in fp16": lambda folder: sixteen(folder, torch.float16),
    "random fault after the same global seed": seeded,
    "fault in layer 99": absent_module,
    "undo": undo,
    "golden_run() after an exception": golden_after_error,
    "selection at rate 0.1": rate,
    "words in the source (lines)": words_of_source,
}

if __name__ == "__main__":
    main(make, TRIES)

"""Capture what transformers computes: `python transformers_engine.py REQUEST.json FOLDER`, where transformers is.

`model.generate` runs the prompts, as users run it. Prompts that run together are padded on the left; rows of padding,
and those of a request that is over while others go on, are dropped.

Options: `attention` (eager or sdpa), `round_weights_to` (a dtype that weights are rounded to before they are widened
to the request's: the reference for an engine that runs in it), `hf_overrides` (values for the configuration),
`sampling` (arguments of generate, or "default" for what the model's generation_config.json says), `plugin` (a Python
file whose `change(model)` is called before the first pass).
"""

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from assembly import assemble
from roles import ROTATED, layer_of
from settings import plain, rendered
from torch_modules import Watcher, shapes_of, source_of, weights_of
from wire import LOGITS, Asked, Recorder, Row, Share, Value, read_request


@dataclass
class Padded:
    """The layout of transformers, (rows, columns, channels) or with heads; `mask` is true where a column is a token."""

    mask: torch.Tensor = field(default_factory=lambda: torch.ones(0, 0, dtype=torch.bool))

    def rows(self, values: torch.Tensor) -> torch.Tensor | None:
        """The rows that are tokens, one request's after another's."""
        if values.dim() == 4 and self._heads_first(values):
            values = values.transpose(1, 2)
        if values.dim() == 2 and len(values) == self.mask.numel() and values.shape != self.mask.shape:
            values = values.reshape(*self.mask.shape, -1)  # rows and columns in one axis
        return values[self.mask] if values.shape[:2] == self.mask.shape else None

    def channels(self, values: torch.Tensor) -> int:
        """Number of values that a token has, over all heads."""
        return values.numel() // self.mask.numel()

    def _heads_first(self, values: torch.Tensor) -> bool:
        """Whether heads come before columns. Where both are as many, memory tells: a column's heads lie together."""
        columns = self.mask.shape[1]
        if values.shape[1] == values.shape[2] == columns:
            return values.stride(1) < values.stride(2)
        return values.shape[2] == columns


@dataclass
class Passes:
    """Follows the passes of `generate`: which token of which request each row is."""

    recorder: Recorder
    watcher: Watcher
    layout: Padded
    ends: frozenset[int]
    requests: Sequence[int] = ()
    prompts: Sequence[int] = ()
    fed: dict[int, int] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)

    def start(self, requests: Sequence[int], prompts: Sequence[int]) -> None:
        """These requests run next; `prompts` are the lengths of their prompts."""
        self.requests, self.prompts = requests, prompts
        self.fed = dict.fromkeys(requests, 0)
        self.over = set()

    def before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model's forward pass begins."""
        ids: torch.Tensor = kwargs["input_ids"]
        columns = ids.shape[1]
        attended, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        mask = torch.ones_like(ids) if attended is None else attended[:, -columns:]
        self.layout.mask = mask.bool().clone()
        rows = []
        for line, request in enumerate(self.requests):
            for column in range(columns):
                if not self.layout.mask[line, column]:
                    continue
                token, index = int(ids[line, column]), self.fed[request]
                if index >= self.prompts[line] and token in self.ends:
                    self.over.add(request)
                if request in self.over:
                    self.layout.mask[line, column] = False
                    continue
                places = None if positions is None else positions[line if len(positions) > 1 else 0]
                rows.append(Row(request, index, token, index if places is None else int(places[column])))
                self.fed[request] += 1
        self.watcher.begin()
        self.recorder.begin(rows)

    def after(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        """The logits of all tokens of a pass."""
        kind: Any = type(module)
        self.watcher.put(Value(module=LOGITS, type=kind.__name__, source=source_of(kind)), output.logits)


def capture(asked: Asked, folder: Path) -> None:
    """Run the prompts and write what was computed."""
    torch.set_num_threads(asked.threads)
    model, tokenizer = _load(asked)
    chosen = asked.options.get("sampling", {})
    own = model.generation_config
    if chosen != "default":
        special = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        own = transformers.GenerationConfig(**(special | {"do_sample": False} | chosen))
    own.max_new_tokens = asked.max_new_tokens
    if own.pad_token_id is None:
        own.pad_token_id = 0
    model.generation_config = own

    recorder = Recorder(folder, asked)
    settings = {
        "device": "cpu",
        "torch": torch.__version__,
        "attention": model.config._attn_implementation,
        "config": plain(model.config.to_dict()),
        "sampling": plain(own.to_diff_dict()),
        "template": getattr(tokenizer, "chat_template", None),
        "special_tokens": {"bos": own.bos_token_id, "eos": own.eos_token_id, "pad": own.pad_token_id},
    }
    recorder.header("transformers", transformers.__version__, settings, weights_of(model, model.config))
    requests = [rendered(tokenizer, prompt) for prompt in asked.prompts]
    sampled = _run(model, recorder, asked, [request["prompt"] for request in requests])
    recorder.finish([{**request, "sampled": tokens} for request, tokens in zip(requests, sampled, strict=True)])
    assemble(folder)


def _load(asked: Asked) -> tuple[Any, Any]:
    options = asked.options
    model = transformers.AutoModelForCausalLM.from_pretrained(
        asked.model,
        config=transformers.AutoConfig.from_pretrained(asked.model, **options.get("hf_overrides", {})),
        dtype=getattr(torch, asked.dtype),
        attn_implementation=options.get("attention"),
        local_files_only=True,
    )
    model.eval().requires_grad_(False)
    if "round_weights_to" in options:
        narrow = getattr(torch, options["round_weights_to"])
        for parameter in model.parameters():
            parameter.data = parameter.data.to(narrow).to(parameter.dtype)
    if "plugin" in options:
        runpy.run_path(str(options["plugin"]))["change"](model)
    if all(isinstance(prompt, list) and isinstance(prompt[0], int) for prompt in asked.prompts):
        return model, None
    return model, transformers.AutoTokenizer.from_pretrained(asked.model, local_files_only=True)


def _run(model: Any, recorder: Recorder, asked: Asked, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The tokens sampled for each prompt."""
    layout = Padded()
    watcher = Watcher(model, model.config, recorder, layout, shapes_of(model))
    ends = model.generation_config.eos_token_id
    stops = frozenset([ends] if isinstance(ends, int) else ends or ())
    passes = Passes(recorder, watcher, layout, stops)
    pad = model.generation_config.pad_token_id
    sampled: list[list[int]] = []
    # Registered first, so that a pass has begun before any module is called.
    model.register_forward_pre_hook(passes.before, with_kwargs=True)
    model.register_forward_hook(passes.after)
    with watcher.watching(), _rotations_watched(model, watcher), torch.inference_mode():
        for group in asked.groups():
            rows = [prompts[number] for number in group]
            passes.start(group, [len(row) for row in rows])
            longest = max(map(len, rows))
            ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            # All logits, not those of the last token alone.
            found = model.generate(input_ids=ids, attention_mask=mask, logits_to_keep=0)
            sampled += [_until(row[longest:].tolist(), stops) for row in found]
    return sampled


def _until(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Tokens up to the first that ends them, itself included."""
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: stop + 1]


@contextmanager
def _rotations_watched(model: Any, watcher: Watcher) -> Iterator[None]:
    """While open, what the rotary embedding makes of queries and keys is recorded: a function, not a module."""
    code: Any = sys.modules[type(model).__module__]
    rotate = getattr(code, "apply_rotary_pos_emb", None)
    if rotate is None:
        yield
        return

    def watched(*args: Any, **kwargs: Any) -> Any:
        outputs = rotate(*args, **kwargs)
        for number, (component, values) in enumerate(zip(ROTATED, outputs, strict=True)):
            flat = values.transpose(1, 2).flatten(2)
            shares = (Share(component, 0, flat.shape[-1], flat.shape[-1]),)
            path = f"{watcher.caller}.apply_rotary_pos_emb"
            value = Value(path, f"output.{number}", 0, "function", source_of(rotate), layer_of(path), shares=shares)
            watcher.put(value, flat)
        return outputs

    code.apply_rotary_pos_emb = watched
    try:
        yield
    finally:
        code.apply_rotary_pos_emb = rotate


if __name__ == "__main__":
    capture(read_request(sys.argv[1]), Path(sys.argv[2]))

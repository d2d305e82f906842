"""Capture what vLLM computes: `python vllm_engine.py REQUEST.json FOLDER`, in vLLM's environment.

The v1 engine, in one process and eager, since hooks see nothing of a compiled model. Rows of the profiling run, which
belong to no request, are dropped; chunks of a prompt are told by what the runner has already computed of a request;
rows that come out of the prefix cache are computed by no pass and so are absent.

Options: `sampling` (settings of SamplingParams, or "default" for what the model's generation_config.json says),
`plugin` (a Python file that runs before the engine is built, and whose `change(model)` is called before the first
pass), `kv_cache_gib`; all others are arguments of `vllm.LLM`, `hf_overrides` or `enable_prefix_caching` for example.
`max_model_len` is 2048, or what the model takes where that is less.
"""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assembly import assemble
from settings import is_chat, longest_text, plain
from wire import LOGITS, Asked, Recorder, Row, Value, read_request

_LONGEST = 2048
"""Tokens that a text may have unless `max_model_len` says otherwise: of more the cache would take much memory."""

_OWN = ("sampling", "plugin", "kv_cache_gib")


@dataclass
class FlatRows:
    """vLLM's layout: the tokens of all requests of a pass, one after another, then padding."""

    tokens: int = 0
    padded: int = 0

    def rows(self, values: Any) -> Any | None:
        """The rows that are tokens: all but the padding."""
        return values[: self.tokens] if values.dim() and values.shape[0] == self.padded else None

    def channels(self, values: Any) -> int:
        """Number of values that a token has, over all heads."""
        return int(values.numel() // max(values.shape[0], 1))


@dataclass
class Passes:
    """Follows the engine's passes: which token of which request each row is."""

    runner: Any
    recorder: Recorder
    watcher: Any
    layout: FlatRows
    last: list[int] = field(default_factory=list)

    def before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model's forward pass begins."""
        from vllm.forward_context import get_forward_context

        self.watcher.begin()
        batch = self.runner.input_batch
        if get_forward_context().attn_metadata is None:
            self.layout.padded = -1  # a pass over no request
            return
        ids = _argument("input_ids", 0, args, kwargs)
        positions = _argument("positions", 1, args, kwargs)
        count = batch.num_reqs
        bounds = self.runner.query_start_loc.np[: count + 1].tolist()
        done = batch.num_computed_tokens_cpu[:count].tolist()
        rows = []
        for name, start, end, computed in zip(batch.req_ids, bounds[:-1], bounds[1:], done, strict=True):
            request = int(name.split("-")[0])
            fed = zip(ids[start:end].tolist(), positions[start:end].tolist(), strict=True)
            rows += [Row(request, computed + index, token, place) for index, (token, place) in enumerate(fed)]
        self.layout.tokens, self.layout.padded = bounds[-1], int(ids.shape[0])
        self.last = [end - 1 for end in bounds[1:]]
        self.recorder.begin(rows)

    def logits(self, module: Any, _: Any, output: Any) -> None:
        """The logits of each request's last token in a pass."""
        from torch_modules import source_of, words_of

        if self.layout.padded < 0 or output is None or output.shape[0] != len(self.last):
            return
        kind: Any = type(module)
        value = Value(module=LOGITS, type=kind.__name__, source=source_of(kind))
        self.recorder.put(value, words_of(output), self.last)


def capture(asked: Asked, folder: Path) -> None:
    """Run the prompts and write what was computed."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(asked.options.get("kv_cache_gib", 1)),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(asked.threads),
    }
    from vllm import LLM, SamplingParams, __version__

    plugin = runpy.run_path(str(asked.options["plugin"])) if "plugin" in asked.options else {}
    weights: list[dict[str, Any]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    _read_weights_before_they_are_packed(weights, shapes)
    own = {key: value for key, value in asked.options.items() if key not in _OWN}
    longest = min(_LONGEST, longest_text(Path(asked.model)) or _LONGEST)
    engine = LLM(model=asked.model, dtype=asked.dtype, enforce_eager=True, **({"max_model_len": longest} | own))
    if "change" in plugin:
        engine.apply_model(plugin["change"])
    chosen = asked.options.get("sampling", {})
    sampling = engine.get_default_sampling_params() if chosen == "default" else SamplingParams(**_greedy(chosen))
    sampling.max_tokens = asked.max_new_tokens

    recorder = Recorder(folder, asked)
    recorder.header("vllm", __version__, _settings(engine, sampling), weights)
    outputs = _run(engine, sampling, recorder, asked, shapes)
    recorder.finish(
        [
            {
                "text": output.prompt,
                "prompt": list(output.prompt_token_ids),
                "sampled": list(output.outputs[0].token_ids),
            }
            for output in outputs
        ]
    )
    assemble(folder)


def _run(
    engine: Any, sampling: Any, recorder: Recorder, asked: Asked, shapes: Mapping[str, Sequence[int]]
) -> list[Any]:
    from torch_modules import Watcher

    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    model = runner.get_model()
    layout = FlatRows()
    watcher = Watcher(model, engine.model_config.hf_text_config, recorder, layout, shapes)
    passes = Passes(runner, recorder, watcher, layout)
    outputs: list[Any] = []
    # Registered first, so that a pass has begun before any module is called.
    model.register_forward_pre_hook(passes.before, with_kwargs=True)
    model.logits_processor.register_forward_hook(passes.logits)
    with watcher.watching(leave_out=["logits_processor"]):
        for group in asked.groups():
            outputs += _generate(engine, sampling, [asked.prompts[number] for number in group])
    return outputs


def _generate(engine: Any, sampling: Any, prompts: Sequence[Any]) -> list[Any]:
    chats = [is_chat(prompt) for prompt in prompts]
    if any(chats):
        if not all(chats):
            raise ValueError("prompts that are messages and others do not run together: run them one by one")
        return list(engine.chat(list(prompts), sampling, use_tqdm=False))
    given = [prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt} for prompt in prompts]
    return list(engine.generate(given, sampling, use_tqdm=False))


def _greedy(chosen: Any) -> dict[str, Any]:
    return {"temperature": 0.0, **chosen}


def _argument(name: str, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs[name] if name in kwargs else args[place]


def _read_weights_before_they_are_packed(found: list[dict[str, Any]], shapes: dict[str, tuple[int, ...]]) -> None:
    """vLLM packs linear weights for its kernels after loading, so that they can't be read any more."""
    from vllm.model_executor.model_loader import base_loader

    from torch_modules import shapes_of, weights_of

    pack = base_loader.process_weights_after_loading

    def read_and_pack(model: Any, model_config: Any, device: Any) -> None:
        found.extend(weights_of(model, model_config.hf_text_config))
        shapes.update(shapes_of(model))
        pack(model, model_config, device)

    base_loader.process_weights_after_loading = read_and_pack


def _settings(engine: Any, sampling: Any) -> dict[str, Any]:
    import torch

    config = engine.llm_engine.vllm_config
    tokenizer = engine.get_tokenizer()
    return {
        "device": config.device_config.device_type,
        "torch": torch.__version__,
        "config": plain(engine.model_config.hf_text_config.to_dict()),
        "sampling": plain({key: getattr(sampling, key) for key in sampling.__struct_fields__ if key[0] != "_"}),
        "template": getattr(tokenizer, "chat_template", None),
        "special_tokens": {
            "bos": tokenizer.bos_token_id,
            "eos": tokenizer.eos_token_id,
            "pad": tokenizer.pad_token_id,
        },
        "scheduler": {
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "block_size": config.cache_config.block_size,
            "prefix_caching": config.cache_config.enable_prefix_caching,
        },
    }


if __name__ == "__main__":
    capture(read_request(sys.argv[1]), Path(sys.argv[2]))

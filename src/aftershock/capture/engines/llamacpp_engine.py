"""Capture what llama.cpp computes: `python llamacpp_engine.py REQUEST.json FOLDER`, where llama-cpp-python is.

The model is a .gguf file. `dtype` `stored` runs it as it is; another one (float32, float16, bfloat16, or a name of
llama.cpp's as Q8_0) requantises it once. Values are read by the evaluation callback when they are computed, since ggml
uses their memory again. Only what is recorded is asked for: all else runs as it does without a callback, and
`settings.logits_moved_by` is by how much the first prompt's logits differ from a run without it.

The files of Llama models hold each head's queries and keys with the two channels of a rotation side by side; they are
recorded in the order of transformers, first halves first (`settings.reordered`).

Options: `cache_type` (f16 or f32), `flash_attention` (true or false), `context`, `ubatch`, `rope_freq_base`,
`rope_freq_scale`, `add_special_tokens` (true), `logits` (all or last), `repack` (false: llama.cpp's repacked kernels).
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import numpy.typing as npt

from assembly import assemble
from ggml import Ggml, Node
from ggml_graph import Reading, weights_of
from llamacpp_model import Engine, file_of
from wire import Asked, Recorder, Row, Words, read_request


@dataclass
class Evaluation:
    """What the callback collects while tokens are decoded. `rows` are those handed to the decoder, none while nothing
    is to be recorded."""

    ggml: Ggml
    recorder: Recorder
    reading: Reading
    rows: Sequence[Row] = ()
    outputs: Sequence[bool] = ()
    done: int = 0
    asked: Node | None = None
    seen: list[tuple[Node, Words]] = field(default_factory=list)
    failure: Exception | None = None

    def start(self, rows: Sequence[Row], outputs: Sequence[bool]) -> None:
        """These tokens are decoded next, perhaps in several passes; `outputs` tells whose logits are wanted."""
        self.rows, self.outputs, self.done, self.seen = rows, outputs, 0, []

    def callback(self, tensor: int, ask: bool, _: Any) -> bool:
        """Told of every node before it is computed, and of those asked for after it."""
        try:
            if ask:
                self.asked = self.reading.wanted(self.ggml.node(tensor))
                return self.asked is not None
            words = self.ggml.words(tensor) if self.asked and min(self.asked.shape) else None
            if self.asked and words is not None:
                if self.reading.begins(self.asked):
                    self.flush()
                self.seen.append((self.asked, Words(*words)))
            return True
        except Exception as failure:  # ctypes would print it and go on
            self.failure = failure
            return False

    def flush(self) -> None:
        """Record the pass that has ended."""
        if not self.seen or not self.rows:
            self.seen = []
            return
        columns = self.seen[0][0].shape[-2]
        part = slice(self.done, self.done + columns)
        self.done += columns
        places = [place for place, wanted in enumerate(self.outputs[part]) if wanted]
        self.recorder.begin(self.rows[part])
        for value, words in self.reading.values(self.seen, (columns, len(places))):
            self.recorder.put(value, words, None if len(words.array) == columns else places)
        self.seen = []


def capture(asked: Asked, folder: Path) -> None:
    """Run the prompts and write what was computed."""
    llama.llama_backend_init()
    file = file_of(asked)
    recorder = Recorder(folder, asked)
    plain = Engine(file, asked, None)
    metadata = plain.metadata()
    reading = Reading(metadata.get("general.architecture") == "llama")
    evaluation = Evaluation(Ggml(Path(llama.__file__).parent / "lib"), recorder, reading)
    engine = Engine(file, asked, llama.ggml_backend_sched_eval_callback(evaluation.callback))
    special = bool(asked.options.get("add_special_tokens", True))
    requests = [engine.tokens(prompt, special) for prompt in asked.prompts]
    settings = {
        "device": "cpu",
        "system": llama.llama_print_system_info().decode(),
        "config": {key: value for key, value in metadata.items() if key != "tokenizer.chat_template"},
        "sampling": {"do_sample": False},
        "template": metadata.get("tokenizer.chat_template"),
        "special_tokens": {
            "bos": llama.llama_vocab_bos(engine.vocabulary),
            "eos": llama.llama_vocab_eos(engine.vocabulary),
            "add_bos": bool(llama.llama_vocab_get_add_bos(engine.vocabulary)),
        },
        "reordered": "q and k: pairs to halves" if reading.pairs else None,
        "logits_moved_by": _moved(plain, engine, requests[0]["prompt"]),
    }
    plain.close()
    recorder.header("llama.cpp", f"llama-cpp-python {llama.__version__}", settings, list(weights_of(file, reading)))
    sampled: dict[int, list[int]] = {}
    for group in asked.groups():
        engine.clear()
        sampled |= _generate(engine, evaluation, group, [request["prompt"] for request in requests], asked)
    recorder.finish([{**request, "sampled": sampled[number]} for number, request in enumerate(requests)])
    assemble(folder)


def _moved(plain: Engine, engine: Engine, prompt: Sequence[int]) -> float:
    """By how much the callback moves the logits of the first prompt's last token."""
    rows = [Row(0, index, token, index) for index, token in enumerate(prompt)]
    last = [False] * (len(rows) - 1) + [True]
    first, second = (one.decode(rows, last, {0: 0}) for one in (plain, engine))
    return float(np.abs(first - second).max())


def _generate(
    engine: Engine, evaluation: Evaluation, group: Sequence[int], prompts: Sequence[Sequence[int]], asked: Asked
) -> dict[int, list[int]]:
    """Greedy answers of requests that run together, by number."""
    line = {number: place for place, number in enumerate(group)}
    sampled: dict[int, list[int]] = {number: [] for number in group}
    rows = [Row(number, index, token, index) for number in group for index, token in enumerate(prompts[number])]
    every = asked.options.get("logits", "all") == "all"
    for _ in range(asked.max_new_tokens):
        ends = [place + 1 == len(rows) or rows[place + 1].request != row.request for place, row in enumerate(rows)]
        outputs = [every or end for end in ends]
        evaluation.start(rows, outputs)
        logits = engine.decode(rows, outputs, line)
        if evaluation.failure is not None:
            raise evaluation.failure
        evaluation.flush()
        following = []
        for row, chosen in _last(rows, ends, outputs, logits):
            sampled[row.request].append(chosen)
            if not llama.llama_vocab_is_eog(engine.vocabulary, chosen):
                following.append(Row(row.request, row.index + 1, chosen, row.position + 1))
        rows = following
        if not rows:
            break
    return sampled


def _last(
    rows: Sequence[Row], ends: Sequence[bool], outputs: Sequence[bool], logits: npt.NDArray[np.float32]
) -> Iterator[tuple[Row, int]]:
    """The last row of each request, and the token that follows it."""
    output = -1
    for row, end, wanted in zip(rows, ends, outputs, strict=True):
        output += wanted
        if end:
            yield row, int(logits[output].argmax())


if __name__ == "__main__":
    capture(read_request(sys.argv[1]), Path(sys.argv[2]))

"""A model and a context of llama.cpp, by llama-cpp-python's low-level interface."""

import ctypes
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import numpy.typing as npt

from settings import is_chat
from wire import Asked, Row

_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_K_M": 17, "Q4_K_M": 15}
"""llama.cpp's numbers for the types of a file (enum llama_ftype)."""


def file_of(asked: Asked) -> Path:
    """The file in the dtype asked for. Raises ValueError for one that llama.cpp can't make."""
    file = Path(asked.model)
    if asked.dtype == "stored":
        return file
    if asked.dtype not in _TYPES:
        raise ValueError(f"dtype {asked.dtype} is none of stored, {', '.join(_TYPES)}")
    state = file.stat()
    key = blake2b(repr((file.name, state.st_size, state.st_mtime_ns, asked.dtype)).encode(), digest_size=12).hexdigest()
    target = Path(asked.cache) / f"{key}.gguf"
    if not target.exists():
        chosen = llama.llama_model_quantize_default_params()
        chosen.ftype, chosen.allow_requantize, chosen.nthread = _TYPES[asked.dtype], True, asked.threads
        staged = target.with_suffix(".partial")
        if llama.llama_model_quantize(str(file).encode(), str(staged).encode(), chosen):
            raise ValueError(f"{file} can't be requantised to {asked.dtype}: give dtype stored")
        staged.rename(target)
    return target


class Engine:
    """A model and its context."""

    def __init__(self, file: Path, asked: Asked, callback: Any) -> None:
        options = asked.options
        given = llama.llama_model_default_params()
        given.n_gpu_layers = 0
        given.use_extra_bufts = bool(options.get("repack", False))
        self.model: Any = llama.llama_model_load_from_file(str(file).encode(), given)
        if not self.model:
            raise ValueError(f"{file} can't be loaded: give a .gguf file that llama.cpp reads")
        self.vocabulary = llama.llama_model_get_vocab(self.model)
        chosen = llama.llama_context_default_params()
        chosen.n_ctx = chosen.n_batch = int(options.get("context", 2048))
        chosen.n_ubatch = int(options.get("ubatch", 512))
        chosen.n_seq_max = len(asked.prompts) if asked.batching == "together" else 1
        chosen.kv_unified = True  # else prompts that run together are reordered
        chosen.n_threads = chosen.n_threads_batch = asked.threads
        chosen.flash_attn_type = int(options.get("flash_attention", False))
        chosen.type_k = chosen.type_v = {"f32": 0, "f16": 1}[options.get("cache_type", "f16")]
        for name in ("rope_freq_base", "rope_freq_scale"):
            setattr(chosen, name, float(options.get(name, 0)))
        self._callback = callback  # ctypes frees what nothing holds
        if callback is not None:
            chosen.cb_eval = callback
        self.context: Any = llama.llama_init_from_model(self.model, chosen)
        if not self.context:
            raise ValueError("llama.cpp makes no context: give a smaller `context`, or a machine with more memory")

    def close(self) -> None:
        """Free context and model."""
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def clear(self) -> None:
        """Empty the cache."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def decode(self, rows: Sequence[Row], outputs: Sequence[bool], line: dict[int, int]) -> npt.NDArray[np.float32]:
        """Run tokens; the logits of those that they are wanted of, shape (outputs, vocabulary)."""
        batch = llama.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for place, row in enumerate(rows):
            batch.token[place], batch.pos[place] = row.token, row.position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, line[row.request]
            batch.logits[place] = outputs[place]
        code = llama.llama_decode(self.context, batch)
        llama.llama_batch_free(batch)
        if code:
            raise ValueError(f"llama_decode returned {code}: give a larger `context`")
        width = llama.llama_vocab_n_tokens(self.vocabulary)
        logits = llama.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (sum(outputs), width)).copy()

    def metadata(self) -> dict[str, str]:
        """What the file says of itself; lists, as the vocabulary, shortened."""
        found = {}
        for number in range(llama.llama_model_meta_count(self.model)):
            key, value = ctypes.create_string_buffer(256), ctypes.create_string_buffer(1 << 16)
            llama.llama_model_meta_key_by_index(self.model, number, key, len(key))
            llama.llama_model_meta_val_str_by_index(self.model, number, value, len(value))
            found[key.value.decode()] = value.value.decode(errors="replace")
        return {key: value if key == "tokenizer.chat_template" else value[:200] for key, value in found.items()}

    def tokens(self, prompt: Any, special: bool) -> dict[str, Any]:
        """A prompt's `text`, if it is one, and its token ids, by llama.cpp's own tokenizer and the file's template."""
        if not isinstance(prompt, str) and not is_chat(prompt):
            return {"text": None, "prompt": list(prompt)}
        text = prompt if isinstance(prompt, str) else self._rendered(prompt)
        data = text.encode()
        found = (llama.llama_token * (len(data) + 8))()
        count = llama.llama_tokenize(self.vocabulary, data, len(data), found, len(found), special, True)
        return {"text": text, "prompt": list(found[:count])}

    def _rendered(self, messages: Any) -> str:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self.metadata()["tokenizer.chat_template"]
        ends = (llama.llama_vocab_eos(self.vocabulary), llama.llama_vocab_bos(self.vocabulary))
        words = [(llama.llama_vocab_get_text(self.vocabulary, token) or b"").decode() for token in ends]
        return str(Jinja2ChatFormatter(template, *words)(messages=messages).prompt)

"""What an engine says it samples with, in the words that engines share."""

from collections.abc import Mapping
from typing import Any

from aftershock.diagnose.diagnosis import Said

_SYNONYMS = {"max_tokens": "max_new_tokens", "n_predict": "max_new_tokens", "temp": "temperature"}


class Sampling(Said):
    """How the next token is chosen: at temperature 0 the most likely one. `top_k` 0 and `top_p` 1 cut nothing off, a
    repetition penalty of 1 and the other two at 0 change nothing. `max_new_tokens` is None where no limit is known."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_new_tokens: int | None = None
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, after penalties."""
        return self.temperature == 0


def sampling_of(settings: Mapping[str, Any] | None) -> Sampling | None:
    """The sampling that settings describe; None where they don't. What they leave out changes nothing."""
    if not isinstance(settings, Mapping):
        return None
    named = {_SYNONYMS.get(key, key): value for key, value in settings.items() if value is not None}
    known = Sampling.model_fields.keys()
    found = {key: value for key, value in named.items() if key in known and isinstance(value, int | float)}
    if named.get("do_sample") is False:
        found["temperature"] = 0.0
    elif "do_sample" in named:
        found.setdefault("temperature", 1.0)
    if found.get("top_k", 0) < 0:
        found["top_k"] = 0  # vLLM's and llama.cpp's word for "all"
    return Sampling.model_validate(found)


def asked_sampling(settings: Mapping[str, Any], of_model: Sampling) -> Sampling:
    """The sampling that the capture was asked for: greedy, but for what its options say; `of_model` where they say
    "default", what the model's generation_config.json says."""
    options = settings.get("options")
    wanted = options.get("sampling") if isinstance(options, Mapping) else None
    return of_model if wanted == "default" else sampling_of(wanted) or Sampling()

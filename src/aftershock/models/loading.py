"""Load a model from anywhere it may lie, without ever running code from its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from aftershock.errors import InputError
from aftershock.models.cache import Progress, quiet
from aftershock.models.checkpoints import check_weights, folder_of, gguf_file
from aftershock.models.components import ComponentMap
from aftershock.models.conversion import converted, first_line
from aftershock.models.devices import devices_of, split_over
from aftershock.models.integer import projections_to_integers
from aftershock.models.mapping import component_map
from aftershock.models.products import products_to_integers
from aftershock.models.stored import StoredWords, rounded, words_of_file
from aftershock.numerics import NumberFormat, format_of

Attention = Literal["sdpa", "eager"]
"""How attention is computed: by a fused kernel, or step by step, where its scores and probabilities can be reached."""

Arithmetic = Literal["w8a8", "w8a8-requantised"]
"""How the products of decoder layers are computed, where not in the model's dtype."""

_QUANTISED_AGAIN: dict[Arithmetic, tuple[str, ...]] = {
    "w8a8": (),
    "w8a8-requantised": ("q", "k", "v", "sv", "gate", "up", "fc1"),
}
"""Components whose outputs are rounded to int8 once more (ReaLM, DAC'25)."""

_SENTENCES = (
    "The river rose after three days of rain, and the old bridge had to be closed until the water fell again.",
    "A list of numbers: 3, 14, 15, 92, 65. Their sum is 189, and the largest of them is 92.",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3]))",
    "La ville s'endort sous la neige, et les trains du soir partent en retard vers le sud.",
    "Los barcos salen del puerto al amanecer; por la tarde vuelven cargados de pescado.",
    "Question: Which planet is the largest? Answer: Jupiter is the largest planet of the solar system.",
)
"""Text whose activations set the migration of `w8a8`."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: in evaluation mode, without gradients, with its tokenizer and component map.

    `device` is where inputs go and logits come from; layers may lie on other devices. `stored` are the packed words
    that weights come from, where they do.
    """

    module: torch.nn.Module
    tokenizer: Any
    spec: str
    dtype: torch.dtype
    device: torch.device
    components: ComponentMap
    stored: StoredWords | None = None

    @cached_property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each decoder layer lies."""
        names = [site.module for site in self.components.outputs if site.component == "residual"]
        return tuple(next(self.module.get_submodule(name).parameters()).device for name in names)

    @cached_property
    def parameter_users(self) -> dict[torch.nn.Parameter, tuple[torch.nn.Module, ...]]:
        """The modules that hold each parameter themselves (several where it is tied)."""
        users: dict[torch.nn.Parameter, list[torch.nn.Module]] = {}
        for part in self.module.modules():
            for parameter in part.parameters(recurse=False):
                users.setdefault(parameter, []).append(part)
        return {parameter: tuple(modules) for parameter, modules in users.items()}

    @property
    def attention(self) -> Attention:
        """How attention is computed."""
        config: Any = self.module.config
        implementation: Attention = config._attn_implementation
        return implementation

    @property
    def format(self) -> NumberFormat:
        """Number format of the weights."""
        return format_of(self.dtype)


def load(
    spec: str,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    progress: Progress = quiet,
    attention: Attention | None = None,
    storage: str | None = None,
    arithmetic: Arithmetic | None = None,
) -> LoadedModel:
    """Load a model.

    `spec` is `demo:NAME`, a folder with safetensors, a `.gguf` file or a hub id (`organisation/name`); `dtype`
    one of float32, float16, bfloat16; `device` as `devices_of` reads it: `cpu`, `cuda`, `cuda:N`, or several GPUs that
    share the model's layers. `progress` is told of downloads and conversions. `attention` not given: transformers' own
    choice, `sdpa` or, where the architecture needs it (Gemma 2), `eager`. Logits are bit-identical to what transformers
    gives for the same folder, dtype, device and attention, the weights there being without gradients too (for others
    torch may take another kernel, which rounds otherwise). `storage`, one of `STORAGE`, rounds the weights of the
    projections in decoder layers to that format, and keeps its words; those of a GGUF file are kept where it is not
    given. `arithmetic = "w8a8"` computes the projections in integers (`Int8Linear`), their ranges migrated as
    SmoothQuant does with the activations of a few sentences, and attention's two products too (`QueriesByKeys`,
    `ProbabilitiesByValues`), for which it computes attention step by step; `w8a8-requantised` rounds the outputs of q,
    k, v, sv, gate, up and fc1 to int8 once more.

    Raises InputError for a model that is missing, damaged, pickled, quantised, without a tokenizer or of an
    unknown architecture, and for an unsupported dtype or device.
    """
    number_format, devices = format_of(dtype), devices_of(device)
    if arithmetic is not None:
        if len(devices) > 1 or storage is not None:
            raise InputError(f'arithmetic = "{arithmetic}" takes one device, and no storage: leave the others out')
        if attention == "sdpa":
            raise InputError(
                f'arithmetic = "{arithmetic}" computes attention\'s products too, which no fused kernel shows: '
                'leave attention = "sdpa" out'
            )
        attention = "eager"
    with _transformers_quiet():
        file = gguf_file(spec, progress)
        folder = folder_of(spec, progress) if file is None else converted(file, progress)
        check_weights(folder)
        tokenizer = _tokenizer(folder)
        module = _module(folder, number_format.dtype, devices, attention)
        module.eval().requires_grad_(False)
        components = component_map(module)
        if arithmetic is not None:
            again = _QUANTISED_AGAIN[arithmetic]
            projections_to_integers(module, components.outputs, again, _calibration(tokenizer, devices[0]))
            products_to_integers(module, dict.fromkeys(site.module for site in components.cached), again)
            components = component_map(module)
        stored = None
        if storage is not None:
            stored = rounded(module, components, storage)
        elif file is not None:
            stored = words_of_file(file, folder, progress)
    if stored is not None:
        components = replace(components, stored=tuple(stored.sites(components)))
    return LoadedModel(module, tokenizer, spec, number_format.dtype, devices[0], components, stored)


def save(model: LoadedModel, folder: Path) -> tuple[Path, ...]:
    """Save a model as safetensors, in its dtype, with its tokenizer; returns the files. Raises InputError where the
    folder holds a model, or can't be written."""
    try:
        if any(folder.glob("*.safetensors")):
            raise InputError(f"{folder} holds a model: give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        module: Any = model.module
        with _transformers_quiet():
            module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error.strerror or error}): give another folder") from error
    return tuple(sorted(folder.iterdir()))


def _calibration(tokenizer: Any, device: torch.device) -> list[torch.Tensor]:
    """Token ids of a few sentences in the languages of the probe set, one row each."""
    return [torch.tensor([tokenizer(text)["input_ids"]], device=device) for text in _SENTENCES]


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raise bare Exception on damaged files
        raise InputError(
            f"{folder} holds no readable tokenizer ({first_line(error)}): add tokenizer.json and tokenizer_config.json"
        ) from error


def _module(
    folder: Path, dtype: torch.dtype, devices: tuple[torch.device, ...], attention: Attention | None
) -> torch.nn.Module:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise InputError(f"{folder} holds quantised weights: give a float32, float16 or bfloat16 model")
        # What is asked for overrides the file, which could name a kernel to be fetched from the hub.
        module, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=split_over(config, dtype, devices) if len(devices) > 1 else None,
            attn_implementation=attention,
            experts_implementation=None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except InputError:
        raise
    except Exception as error:  # a wrong configuration makes transformers raise whatever comes
        raise InputError(
            f"{folder} cannot be loaded as a language model ({first_line(error)}): "
            "check its config.json and its .safetensors files"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{folder} lacks {len(missing)} of the model's tensors, {missing[0]} among them: copy or download it again"
        )
    loaded: torch.nn.Module = module
    return loaded if len(devices) > 1 else loaded.to(devices[0])


@contextmanager
def _transformers_quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers while open; its settings are the user's again after."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

"""Load a model, map its tensors and outputs to components, run its stages."""

from aftershock.models.attended import BY_CHANNEL, CachePart, CacheSite, HeadPart, HeadSite
from aftershock.models.blocks import BeforePass, Block, Pass, align, cut
from aftershock.models.cache import Progress, cache_folder, quiet
from aftershock.models.checkpoints import checkpoint_folder, gguf_file
from aftershock.models.columns import ColumnCache, States
from aftershock.models.components import (
    COMPONENTS,
    ComponentMap,
    ExpertSite,
    OutputSite,
    ParameterSite,
    Rows,
    StoredSite,
)
from aftershock.models.demo import DemoModel, demo_models, pull
from aftershock.models.devices import devices_of, share_gpus
from aftershock.models.hashing import model_hash
from aftershock.models.integer import Int8Linear, integer_product, projections_to_integers
from aftershock.models.loading import Arithmetic, Attention, LoadedModel, load, save
from aftershock.models.mapping import ARCHITECTURES, component_map, output_tensor
from aftershock.models.passes import (
    Choices,
    Generated,
    Prefix,
    choose,
    continue_greedy,
    end_tokens,
    forced_call,
    generate,
    has_ended,
    teacher_forced,
)
from aftershock.models.products import exact_sums
from aftershock.models.routing import chosen_experts, reroute
from aftershock.models.stages import FIRST_TOKEN, PREFILL, decode, stage_of
from aftershock.models.stored import StoredTensor, StoredWords
from aftershock.models.text import text_perplexity, text_windows
from aftershock.models.words import WORDS, Extent, LiveWords, ModelWords, TensorWords, live_words, parts, renamed
from aftershock.models.words_on_disk import FileWords, file_words, model_files

__all__ = [
    "ARCHITECTURES",
    "BY_CHANNEL",
    "COMPONENTS",
    "FIRST_TOKEN",
    "PREFILL",
    "WORDS",
    "Arithmetic",
    "Attention",
    "BeforePass",
    "Block",
    "CachePart",
    "CacheSite",
    "Choices",
    "ColumnCache",
    "ComponentMap",
    "DemoModel",
    "ExpertSite",
    "Extent",
    "FileWords",
    "Generated",
    "HeadPart",
    "HeadSite",
    "Int8Linear",
    "LiveWords",
    "LoadedModel",
    "ModelWords",
    "OutputSite",
    "ParameterSite",
    "Pass",
    "Prefix",
    "Progress",
    "Rows",
    "States",
    "StoredSite",
    "StoredTensor",
    "StoredWords",
    "TensorWords",
    "align",
    "cache_folder",
    "checkpoint_folder",
    "choose",
    "chosen_experts",
    "component_map",
    "continue_greedy",
    "cut",
    "decode",
    "demo_models",
    "devices_of",
    "end_tokens",
    "exact_sums",
    "file_words",
    "forced_call",
    "generate",
    "gguf_file",
    "has_ended",
    "integer_product",
    "live_words",
    "load",
    "model_files",
    "model_hash",
    "output_tensor",
    "parts",
    "projections_to_integers",
    "pull",
    "quiet",
    "renamed",
    "reroute",
    "save",
    "share_gpus",
    "stage_of",
    "teacher_forced",
    "text_perplexity",
    "text_windows",
]

"""Load a model, map its tensors and outputs to components, run its stages."""

from aftershock.models.components import COMPONENTS, ComponentMap, OutputSite, ParameterSite, Rows
from aftershock.models.loading import LoadedModel
from aftershock.models.mapping import ARCHITECTURES, component_map, output_tensor
from aftershock.models.passes import (
    BeforePass,
    Block,
    Generated,
    Pass,
    align,
    end_tokens,
    generate,
    pad_token,
    teacher_forced,
)
from aftershock.models.stages import FIRST_TOKEN, PREFILL, decode, stage_of

__all__ = [
    "ARCHITECTURES",
    "COMPONENTS",
    "FIRST_TOKEN",
    "PREFILL",
    "BeforePass",
    "Block",
    "ComponentMap",
    "Generated",
    "LoadedModel",
    "OutputSite",
    "ParameterSite",
    "Pass",
    "Rows",
    "align",
    "component_map",
    "decode",
    "end_tokens",
    "generate",
    "output_tensor",
    "pad_token",
    "stage_of",
    "teacher_forced",
]

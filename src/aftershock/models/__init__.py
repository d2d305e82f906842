"""Load a model, map its tensors and outputs to components, run its stages."""

from aftershock.models.components import COMPONENTS, ComponentMap, OutputSite, ParameterSite, Rows
from aftershock.models.loading import LoadedModel
from aftershock.models.mapping import ARCHITECTURES, component_map, output_tensor

__all__ = [
    "ARCHITECTURES",
    "COMPONENTS",
    "ComponentMap",
    "LoadedModel",
    "OutputSite",
    "ParameterSite",
    "Rows",
    "component_map",
    "output_tensor",
]

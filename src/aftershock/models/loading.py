"""Load a model from anywhere it may lie, without ever running code from its files."""

from dataclasses import dataclass
from typing import Any

import torch

from aftershock.models.components import ComponentMap
from aftershock.numerics import NumberFormat, format_of


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: in evaluation mode, without gradients, with its tokenizer and component map."""

    module: torch.nn.Module
    tokenizer: Any
    spec: str
    dtype: torch.dtype
    device: torch.device
    components: ComponentMap

    @property
    def format(self) -> NumberFormat:
        """Number format of the weights."""
        return format_of(self.dtype)

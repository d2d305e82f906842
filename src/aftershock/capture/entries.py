"""What a bundle's manifest is made of: tensors and where they lie, records, requests, weights.

Keys that a reader doesn't know are ignored, so that an engine may add its own; whatever changes the meaning of a known
key raises the version.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Operation = Literal["linear", "embedding", "norm", "other"]
"""How an output follows from input and tensors: `linear` weight x input + bias; `embedding` rows of a table; `norm` the
normalised input times the weight, channel by channel, plus bias; `other` in no way that is used."""

POINT = r"^(output(\.\d+)?|residual|input)$"
"""Which value of a call: its output, one of several, the sum of the two that make the residual stream, or its input."""


class Entry(BaseModel):
    """Base of all entries: frozen, unknown keys ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Stored(Entry):
    """Where a tensor lies: a safetensors file of the bundle's folder, and the key in it. `dtype` is the name that
    safetensors has for its type (`F32`, `F16`, `BF16`, `I64`)."""

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$")
    key: str
    dtype: str
    shape: tuple[int, ...]


class Share(Entry):
    """The channels of an output that belong to one component: i where `offset <= i % period < offset + length`."""

    component: str
    offset: int = Field(ge=0)
    length: int = Field(ge=1)
    period: int = Field(ge=1)


class Parameter(Entry):
    """A stored tensor that an output is made from. `output_dim` is the axis of a linear weight along which its output
    channels lie; `modules` are all that hold the tensor, several where it is tied."""

    name: str
    shape: tuple[int, ...]
    role: Literal["weight", "bias", "other"]
    output_dim: Literal[0, 1] = 0
    modules: tuple[str, ...] = ()


class Weight(Entry):
    """A tensor as the engine holds it, or the part of a fused one from row `offset` on. `dtype` is the engine's own
    name for its type; `digest` is BLAKE2b-128 over the words, hexadecimal."""

    name: str
    component: str | None = None
    layer: int | None = None
    offset: int = Field(default=0, ge=0)
    shape: tuple[int, ...]
    dtype: str
    digest: str


class Record(Entry):
    """One value of a module's call: an output, and the input where the module has tensors of its own.

    Tensors have shape (tokens, channels) or (tokens, heads, channels): no padding, no batch axis, the requests' tokens
    one request after another. The input of an embedding is int64, shape (tokens,): the rows of the table. `span` says
    which tokens: `all`, the `last` of each request, or the manifest's list of that name. `call` counts the calls of one
    module in a pass.
    """

    module: str
    point: str = Field(default="output", pattern=POINT)
    call: int = Field(default=0, ge=0)
    type: str | None = None
    source: str | None = None
    layer: int | None = None
    operation: Operation = "other"
    shares: tuple[Share, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    span: str = "all"
    output: Stored
    input: Stored | None = None

    @property
    def name(self) -> str:
        """Name of the value: the module, and what tells it from the module's other values."""
        call = f"#{self.call}" if self.call else ""
        return f"{self.module}{call}" if self.point == "output" else f"{self.module}{call}:{self.point}"

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        shapes = [self.output.shape] + ([] if self.input is None else [self.input.shape])
        if any(not shape or 0 in shape for shape in shapes) or len(self.output.shape) < 2:
            raise ValueError(f"record {self.module}: tensors of shapes {shapes} are no tokens x channels")
        looks_up = self.operation == "embedding"
        if self.output.dtype == "I64" or (self.input is not None and (self.input.dtype == "I64") != looks_up):
            raise ValueError(f"record {self.module}: only the input of an embedding is I64, and always")
        if self.operation in ("linear", "norm") and len({shape[:-1] for shape in shapes}) > 1:
            raise ValueError(f"record {self.module}: input and output of shapes {shapes} are not of the same tokens")
        if looks_up and any(len(shape) != length for shape, length in zip(shapes, (2, 1), strict=False)):
            raise ValueError(f"record {self.module}: an embedding takes (tokens,) to (tokens, channels), not {shapes}")
        for parameter in self.parameters:
            if parameter.role != "other" and (wrong := self._misfit(parameter)):
                raise ValueError(f"record {self.module}: {parameter.name} of shape {parameter.shape} {wrong}")
        return self

    def _misfit(self, parameter: Parameter) -> str | None:
        """Why the tensor can't be what it is said to be, None where it can."""
        shape, channels = parameter.shape, self.output.shape[-1]
        if self.operation == "other":
            return None
        if parameter.role == "bias" or self.operation == "norm":
            return None if shape == (channels,) else f"has not one value for each of {channels} channels"
        if len(shape) != 2:
            return "is no matrix"
        if self.operation == "embedding":
            return None if shape[1] == channels else f"has not {channels} columns, as the output"
        if shape[parameter.output_dim] != channels:
            return f"has not {channels} output channels along axis {parameter.output_dim}"
        if self.input is not None and shape[1 - parameter.output_dim] != self.input.shape[-1]:
            return f"does not take inputs of {self.input.shape[-1]} channels"
        return None


class Request(Entry):
    """One prompt: the tokens fed with their positions, and those sampled by the engine, if any. The first
    `prompt_tokens` are the prompt (all, where it is None), the others were sampled and fed again."""

    id: str
    tokens: tuple[int, ...] = Field(min_length=1)
    positions: tuple[int, ...]
    text: str | None = None
    prompt_tokens: int | None = Field(default=None, ge=1)
    sampled: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _one_position_a_token(self) -> Self:
        if len(self.positions) != len(self.tokens):
            raise ValueError(f"request {self.id} has {len(self.tokens)} tokens and {len(self.positions)} positions")
        if self.prompt_tokens is not None and self.prompt_tokens > len(self.tokens):
            raise ValueError(f"request {self.id} has {self.prompt_tokens} prompt tokens among {len(self.tokens)}")
        if min(*self.tokens, *self.positions, *self.sampled, 0) < 0:
            raise ValueError(f"request {self.id} has a negative token or position")
        return self


class Engine(Entry):
    """What ran the model."""

    name: str
    version: str


class Logits(Entry):
    """The logits, shape (tokens, vocabulary), before any sampling."""

    span: str = "all"
    stored: Stored

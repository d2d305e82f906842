"""Case files: what is planted where, and what a diagnosis should find."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aftershock.errors import InputError
from benchmarks.plants.operations import BY_ENGINE, OPERATIONS
from benchmarks.plants.targets import Sampling
from benchmarks.plants.vocabulary import CAUSES, COMPONENTS

FOLDER = Path(__file__).parents[1] / "diagnose_cases"

EngineName = Literal["transformers", "vllm", "onnxruntime", "llamacpp"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompts(_Entry):
    """What is asked: prompts of these lengths (random characters for a tiny model, text for a real one), texts, or
    chats of one user's turn; and how many tokens are generated after each."""

    lengths: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    chats: tuple[str, ...] = ()
    new_tokens: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(map(bool, (self.lengths, self.texts, self.chats))) != 1:
            raise ValueError("prompts need one of lengths, texts and chats")
        return self


class Plant(BaseModel):
    """One operation with its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow")

    operation: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but the operation's name."""
        return dict(self.model_extra or {})


class Found(_Entry):
    """A parameter that the diagnosis should name, and how far it may be from it, relative to it."""

    name: str
    value: float
    tolerance: float = Field(ge=0)


class Expected(_Entry):
    """What a diagnosis should find: any of these components, in these layers, for any of these causes. All empty: that
    nothing is wrong."""

    component: frozenset[str] = frozenset()
    layers: tuple[int, ...] | Literal["all"] = ()
    causes: frozenset[str] = frozenset()
    parameter: Found | None = None

    @model_validator(mode="after")
    def _known_words(self) -> Self:
        if wrong := sorted((self.component - COMPONENTS) | (self.causes - CAUSES)):
            raise ValueError(f"no such component or cause: {', '.join(wrong)}")
        if bool(self.component) != bool(self.causes):
            raise ValueError("component and causes belong together")
        return self


class Measured(_Entry):
    """What `python -m benchmarks.planting` measured: the planted error's effect on the logits over the noise of the
    case's dtype, of all tokens and largest against largest; for prompts and samplers the share of rows whose
    tokens differ; and, where the same can be planted in transformers, how far the two engines' planted logits are
    apart."""

    effect_over_noise: float | None = None
    largest_over_noise: float | None = None
    tokens_changed: float | None = None
    apart_from_transformers: float | None = None


class Case(_Entry):
    """One planted error. `author` says who wrote it: someone who did not know how causes are recognised, or the builder
    of the diagnosis. `[also]` is a second, separate error. Where `detectable` is false, the effect is beneath the
    noise. `rounds_to` is what kernels round to where that is less than `dtype`. `[sampling]` is what is asked of both
    engines, `[options]` are further options of the engine.
    """

    name: str
    source: tuple[str, ...] = ()
    author: Literal["independent", "builder"]
    engine: EngineName
    model: str
    dtype: Literal["float32", "bfloat16", "float16"]
    rounds_to: Literal["bfloat16", "float16"] | None = None
    why: str
    prompts: Prompts
    sampling: Sampling = Field(default_factory=Sampling)
    options: dict[str, Any] = Field(default_factory=dict)
    plant: tuple[Plant, ...] = ()
    expected: Expected
    also: Expected | None = None
    detectable: bool = True
    measured: Measured | None = None

    @property
    def is_control(self) -> bool:
        """Whether nothing is wrong."""
        return not self.expected.component

    @model_validator(mode="after")
    def _operations_exist(self) -> Self:
        for plant in self.plant:
            if plant.operation not in BY_ENGINE[self.engine]:
                raise ValueError(f"there is no operation '{plant.operation}' in {self.engine}")
            try:
                OPERATIONS[plant.operation].check(plant.parameters)
            except (KeyError, TypeError) as error:
                raise ValueError(f"operation {plant.operation}: {error}") from error
        return self


def read_case(path: Path) -> Case:
    """The case in a file. Raises InputError for one that is none."""
    try:
        content: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return Case.model_validate(content)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error}): give a case file") from error
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise InputError(f"{path} is no case: {error}") from error


def all_cases(folder: Path = FOLDER) -> dict[Path, Case]:
    """Every case of a folder, by file, sorted by name."""
    return {path: read_case(path) for path in sorted(folder.glob("*.toml"))}

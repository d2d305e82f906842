"""What protections there are: immutable descriptions, which `protect` makes real on a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from aftershock.errors import InputError
from aftershock.hardware import Scheme, SystolicArray

Action = Literal["count", "log", "recover", "zero", "raise"]
"""What is done about values that are wrong.

count    nothing; how many is kept on the device, and nothing is read back until it is asked for
log      an `Event` is written as well
recover  they are computed again; where that is wrong too the weight is put back from a `Backup` or a `Scrub`, and they
         are computed once more
zero     they become 0 (ThunderVolt)
raise    `CorruptionError` ends the pass

All but `count` read one flag a check, which on a GPU waits for it.
"""

Limit = Literal["count", "clamp", "zero"]
"""What is done about values out of range: nothing, the nearest value in range (0 for NaN), or 0."""

PRODUCTS = ("q", "k", "v", "o", "qk", "sv", "gate", "up", "down", "fc1", "fc2", "router", "expert", "lm_head")
"""Components that are products of matrices."""


@dataclass(frozen=True)
class Checksum:
    """The rows of products are checked against a checksum of their weight, taken when the model is protected.

    `components`: those of `PRODUCTS` to check; of products that several share all are. `scheme`, for models that
    compute in integers, says which tiles of an `array` are computed again, in place of the rows that are wrong:
    `hardware.StatisticalABFT` and others.
    """

    components: tuple[str, ...] = PRODUCTS
    action: Action = "recover"
    scheme: Scheme | None = None
    array: SystolicArray = field(default_factory=lambda: SystolicArray("output-stationary"))

    def __post_init__(self) -> None:
        known_components(self.components, PRODUCTS)


@dataclass(frozen=True)
class Duplication:
    """Products are computed twice and compared as words; where they differ, the second run's are used.

    A run that is itself wrong is not told from one that is right, and a wrong weight gives the same words twice.
    """

    components: tuple[str, ...] = PRODUCTS

    def __post_init__(self) -> None:
        known_components(self.components, PRODUCTS)


@dataclass(frozen=True)
class RangeGuard:
    """Outputs outside fixed bounds, by module: (lowest, highest), as `observe_bounds` finds them (Ranger,
    arXiv 2003.13874)."""

    bounds: Mapping[str, tuple[float, float]]
    limit: Limit = "clamp"

    def __post_init__(self) -> None:
        for module, (low, high) in self.bounds.items():
            if not low <= high:
                raise InputError(f"the bounds of {module} are {low} and {high}: give the lower one first, both numbers")


@dataclass(frozen=True)
class FirstTokenBounds:
    """Outputs outside bounds that each generation's first pass sets: `factor` times its smallest and largest values
    (FT2, HPDC'25). In the first pass itself only NaN becomes 0. The components are FT2's critical ones."""

    components: tuple[str, ...] = ("v", "o", "up", "down", "fc2")
    factor: float = 2.0
    limit: Limit = "clamp"

    def __post_init__(self) -> None:
        known_components(self.components, PRODUCTS)
        if not self.factor >= 1:
            raise InputError(f"a factor of {self.factor} would clamp what the first pass itself gave: give 1 or more")


@dataclass(frozen=True)
class FiniteScreen:
    """NaN and infinities in outputs; clamped, NaN becomes 0 and an infinity the largest number of the dtype."""

    components: tuple[str, ...] = PRODUCTS
    limit: Limit = "count"

    def __post_init__(self) -> None:
        known_components(self.components, PRODUCTS)


@dataclass(frozen=True)
class Scrub:
    """Before each `every`-th pass all parameters are compared with the checksums of a fingerprint that is taken when
    the model is protected; what differs is located by it and put back (`aftershock.locate`)."""

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"a scrub before each {self.every}-th pass is none: give 1 or more")


@dataclass(frozen=True)
class Backup:
    """Copies of parameters, by name, are written back before every pass. Costs their memory once more, and a pass over
    them; nothing waits for the device."""

    parameters: tuple[str, ...]


@dataclass(frozen=True)
class DualFirstToken:
    """The pass that makes the first token is run twice; where its logits differ in a word, once more, and two of three
    that agree are used (LLMFI's dual first-token generation). A wrong weight gives the same logits twice."""


@dataclass(frozen=True)
class Int8:
    """Projections of these components are computed in integers, W8A8 (LLMFI's mixed precision): what a flipped bit
    can do is bounded. Clean outputs change."""

    components: tuple[str, ...] = ("down",)
    calibration: tuple[str, ...] = field(default=("The largest planet of the solar system is Jupiter.",), repr=False)

    def __post_init__(self) -> None:
        known_components(self.components, ("q", "k", "v", "o", "gate", "up", "down", "fc1", "fc2"))


Protection = (
    Checksum | Duplication | RangeGuard | FirstTokenBounds | FiniteScreen | Scrub | Backup | DualFirstToken | Int8
)


def known_components(components: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise InputError where one is not known, or none is given."""
    unknown = [one for one in components if one not in known]
    if unknown or not components:
        what = f"{', '.join(unknown)} can't be protected so" if unknown else "no component is named"
        raise InputError(f"{what}: choose from {', '.join(known)}")

"""What protections there are: immutable descriptions, which `protect` makes real on a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from aftershock.errors import InputError
from aftershock.hardware import Scheme, SystolicArray
from aftershock.protect.given import (
    known_components,
    require_bounds,
    require_finite,
    require_kind,
    require_names,
    require_one_of,
)

Action = Literal["count", "log", "recover", "zero", "raise"]
"""What is done about values that are wrong.

count    nothing; how many is kept on the device, and nothing is read back until it is asked for
log      an `Event` is written as well
recover  they are computed again; where that is wrong too the weight is put back, from exact sums of its words, or from
         a `Backup` or a `Scrub` where these don't tell, and they are computed once more
zero     they become 0 (ThunderVolt)
raise    `CorruptionError` ends the pass

On a GPU `count` waits for nothing and `recover` reads one flag a pass: one that was wrong is run once more, and checks
then act at once. The others read one flag a check.
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
    `hardware.StatisticalABFT` and others. Tiles are checked as the array does, against the operands that it read: only
    errors of the product itself are seen, and a wrong weight is not. The action is then "recover".
    """

    components: tuple[str, ...] = PRODUCTS
    action: Action = "recover"
    scheme: Scheme | None = None
    array: SystolicArray = field(default_factory=lambda: SystolicArray("output-stationary"))

    def __post_init__(self) -> None:
        known_components(self.components, PRODUCTS)
        require_one_of(self.action, "action", get_args(Action))
        require_kind(self.array, "array", SystolicArray)
        if self.scheme is None:
            return
        require_kind(self.scheme, "scheme", Scheme)
        if self.action != "recover":
            raise InputError(f"a scheme recovers by itself, so the action can't be {self.action!r}: leave one out")


@dataclass(frozen=True)
class FusedChecksum:
    """The same check by the steps that stand between the products of Llama's layers anyway, norms, rotations and gates:
    nearly free on a GPU, also in CUDA graphs and under `torch.compile`. It only tells which rows were wrong.

    Products that read the same input (q, k and v; gate and up) are checked as one where any of them is asked for. On
    CUDA steps round as their kernels add, not as transformers does: clean outputs differ in last places there. Between
    layers goes a stream of their own (`protect.fused`), so that nothing else may hook whole layers.
    """

    components: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")

    def __post_init__(self) -> None:
        known_components(self.components, ("q", "k", "v", "o", "gate", "up", "down"))


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
        require_bounds(self.bounds)
        require_one_of(self.limit, "limit", get_args(Limit))


@dataclass(frozen=True)
class FirstTokenBounds:
    """Outputs outside bounds that each generation's first pass sets: `factor` times its smallest and largest values
    (FT2, HPDC'25). In the first pass itself only NaN becomes 0. The components are FT2's critical ones."""

    components: tuple[str, ...] = ("v", "o", "up", "down", "fc2")
    factor: float = 2.0
    limit: Limit = "clamp"

    def __post_init__(self) -> None:
        known_components(self.components, PRODUCTS)
        # Less would clamp what the first pass itself gave.
        require_finite(self.factor, "factor", 1)
        require_one_of(self.limit, "limit", get_args(Limit))


@dataclass(frozen=True)
class FiniteScreen:
    """NaN and infinities in outputs; clamped, NaN becomes 0 and an infinity the largest number of the dtype."""

    components: tuple[str, ...] = PRODUCTS
    limit: Limit = "count"

    def __post_init__(self) -> None:
        known_components(self.components, PRODUCTS)
        require_one_of(self.limit, "limit", get_args(Limit))


@dataclass(frozen=True)
class Scrub:
    """Before each `every`-th pass all parameters are compared with the checksums of a fingerprint that is taken when
    the model is protected; what differs is located by it and put back (`aftershock.locate`)."""

    every: int = 1

    def __post_init__(self) -> None:
        require_kind(self.every, "every", int)
        require_finite(self.every, "every", 1)


@dataclass(frozen=True)
class Backup:
    """Copies of parameters, by name, are written back before every pass. Costs their memory once more, and a pass over
    them; nothing waits for the device. Buffers, as weights in integers are, can't be named."""

    parameters: tuple[str, ...]

    def __post_init__(self) -> None:
        require_names(self.parameters, "parameters")


@dataclass(frozen=True)
class Ecc:
    """Check words of parameters, by name, correct before every pass any single flipped bit of a code word of 64 and see
    any two, as ECC memory does (SEC-DED). Costs an eighth of their memory, a pass over them, and waits for the
    device. Buffers, as weights in integers are, can't be named."""

    parameters: tuple[str, ...]

    def __post_init__(self) -> None:
        require_names(self.parameters, "parameters")


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
        require_names(self.calibration, "texts of the calibration")


Protection = (
    Checksum
    | FusedChecksum
    | Duplication
    | RangeGuard
    | FirstTokenBounds
    | FiniteScreen
    | Scrub
    | Backup
    | Ecc
    | DualFirstToken
    | Int8
)

"""What to do about errors in tiles: the schemes that are compared, each a rule and a cost."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np

from aftershock.errors import InputError
from aftershock.hardware.critical import Booleans, CriticalRegion, matrix_sum_deviation
from aftershock.hardware.systolic import Dataflow
from aftershock.hardware.tiles import TileErrors

CHECKSUM_POWER: Mapping[Dataflow, float] = MappingProxyType({"weight-stationary": 0.0182, "output-stationary": 0.0179})
"""Power of checksum and statistical hardware relative to the array's (published: ReaLM, 256 x 256, 14 nm)."""

CHECKSUM_AREA: Mapping[Dataflow, float] = MappingProxyType({"weight-stationary": 0.0143, "output-stationary": 0.0142})
"""Its area relative to the array's (published, the same)."""


@dataclass(frozen=True)
class Scheme(ABC):
    """A rule that says which tiles are computed again at nominal voltage, and what the scheme costs besides.

    `overhead`: power of its hardware relative to the array's.
    """

    name: ClassVar[str]
    runs: ClassVar[int] = 1
    """How often every tile is computed at the lowered voltage."""
    replacement: ClassVar[Literal["clean", "zero"]] = "clean"
    """What takes a wrong result's place: the clean one in tiles that are computed again, or 0 wherever it is wrong."""

    overhead: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.overhead >= 0:
            raise InputError(
                f"{self.name} has an overhead of {self.overhead}: give a share of the array's power from 0"
            )

    @abstractmethod
    def recomputed(self, tiles: TileErrors) -> Booleans:
        """Which tiles are computed again, shape (tiles,)."""

    def share(self, tiles: TileErrors) -> float:
        """The share of tiles that is computed again."""
        return float(self.recomputed(tiles).mean())


@dataclass(frozen=True)
class Unprotected(Scheme):
    """Every result is used as it is."""

    name = "none"

    def recomputed(self, tiles: TileErrors) -> Booleans:
        """No tile."""
        return np.zeros_like(tiles.corrupted)


@dataclass(frozen=True)
class Zeroing(Scheme):
    """A faulty result is set to zero and used (ThunderVolt, which skips the multiplication that came too late).

    What finds it, flip-flops that sample twice, costs power that our sources don't print: 0 unless given.
    """

    name = "zeroing"
    replacement = "zero"

    def recomputed(self, tiles: TileErrors) -> Booleans:
        """No tile."""
        return np.zeros_like(tiles.corrupted)


@dataclass(frozen=True)
class Duplication(Scheme):
    """Every tile is computed twice at the lowered voltage, and again where the two differ (dual modular redundancy)."""

    name = "duplication"
    runs = 2

    def recomputed(self, tiles: TileErrors) -> Booleans:
        """Tiles that differ from a second run without errors."""
        return tiles.corrupted

    def share(self, tiles: TileErrors) -> float:
        """The share of tiles in which either run erred: 1 - (1 - s)^2, as errors strike both alike, independently."""
        return 1 - (1 - super().share(tiles)) ** 2


@dataclass(frozen=True)
class ClassicalABFT(Scheme):
    """Any difference between checksums means that the tile is computed again.

    The overhead is that published for the statistical hardware, weight-stationary; a little less would do.
    """

    name = "classical ABFT"
    overhead: float = field(default=CHECKSUM_POWER["weight-stationary"], kw_only=True)

    def recomputed(self, tiles: TileErrors) -> Booleans:
        """Tiles that alarm."""
        return tiles.alarms


@dataclass(frozen=True)
class ApproxABFT(Scheme):
    """Tiles are computed again from an MSD of `threshold` on (arXiv 2302.10469), however many errors it is the sum of.

    `threshold`: of absolute deviations (`matrix_sum_deviation`), above 0, for one tile. Overhead as `ClassicalABFT`.
    """

    name = "ApproxABFT"
    threshold: float
    overhead: float = field(default=CHECKSUM_POWER["weight-stationary"], kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold > 0:
            raise InputError(f"a threshold of {self.threshold} would recover clean tiles: give one above 0")

    def recomputed(self, tiles: TileErrors) -> Booleans:
        """Tiles whose MSD is not below the threshold."""
        return np.asarray(matrix_sum_deviation(tiles.differences) >= self.threshold)


@dataclass(frozen=True)
class StatisticalABFT(Scheme):
    """Tiles are computed again inside a critical region (ReaLM). `region` is for one tile: `CriticalRegion.scaled`."""

    name = "statistical ABFT"
    region: CriticalRegion
    overhead: float = field(default=CHECKSUM_POWER["weight-stationary"], kw_only=True)

    def recomputed(self, tiles: TileErrors) -> Booleans:
        """Tiles inside the region."""
        return self.region.recovers(tiles.differences)

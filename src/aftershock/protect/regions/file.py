"""Critical regions as a small file: JSON, with the points that they were fitted to and what was measured on what."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from aftershock.errors import InputError
from aftershock.files import replace_file
from aftershock.hardware import Dataflow
from aftershock.protect.regions.fitting import FittedRegion

VERSION: Literal[1] = 1


@dataclass(frozen=True)
class CriticalRegions:
    """Regions of a model's components, and how they were found.

    `model`, `arithmetic`: as `load` takes them; `model_hash`: of its words as they are without arithmetic; `text`:
    digest of the text (`text_digest`); `windows` of `length` tokens in each of `passes`; `accepted`: loss in
    perplexity; `dataflow`: of the array of 256 x 256 whose tiles were counted.
    """

    model: str
    arithmetic: str
    model_hash: str
    text: str
    passes: int
    windows: int
    length: int
    accepted: float
    seeds: int
    seed: int
    dataflow: Dataflow
    components: tuple[FittedRegion, ...]

    def of(self, component: str) -> FittedRegion:
        """The region of a component; InputError where there is none."""
        for fitted in self.components:
            if fitted.component == component:
                return fitted
        known = ", ".join(fitted.component for fitted in self.components)
        raise InputError(f"no region was fitted for {component}: there are regions for {known}")


class _File(BaseModel):
    # JSON has no infinities: a sensitive component's theta_freq is one.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    version: Literal[1]
    regions: CriticalRegions


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def save_regions(regions: CriticalRegions, path: Path) -> None:
    """Write regions to a file, whole or not at all. Raises InputError where it can't be written."""
    try:
        replace_file(path, _File(version=VERSION, regions=regions).model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise InputError(f"{path} can't be written ({error.strerror}): give another path") from error


def load_regions(path: Path) -> CriticalRegions:
    """Read regions. Raises InputError for a file that is missing, damaged or of another version."""
    try:
        return _FILE.validate_json(path.read_bytes()).regions
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): give a file that save_regions wrote") from error
    except (ValidationError, InputError) as error:
        raise InputError(f"{path} holds no critical regions of version {VERSION}: fit them again") from error


_FILE = TypeAdapter(_File)

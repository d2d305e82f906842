"""Where a fault strikes: the places in a model that it can name."""

from dataclasses import dataclass

from aftershock.errors import InputError
from aftershock.faults.moments import Entry, check_token
from aftershock.models import BY_CHANNEL, CachePart, HeadPart


@dataclass(frozen=True)
class WeightSite:
    """One element of a stored parameter. `index` has as many entries as the tensor has dimensions."""

    parameter: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"weight {self.parameter}[{','.join(map(str, self.index))}]"


@dataclass(frozen=True)
class ActivationSite:
    """One channel of a module's output; the trigger says at which token, or in which passes at every token."""

    module: str
    channel: int

    def __str__(self) -> str:
        return f"activation {self.module}[{self.channel}]"


@dataclass(frozen=True)
class CachedSite:
    """One word of the key-value cache: of a key or value that an attention module keeps of a token.

    The trigger says in which passes the word is wrong for those that read it; it is written in the entry's own pass,
    and before that there is nothing to be wrong. A fault that lasts to the end is one of the stored word; one that ends
    is a wrong read.
    """

    part: CachePart
    module: str
    head: int
    channel: int
    entry: Entry

    def __str__(self) -> str:
        return f"{self.part} {self.module}[{self.head},{self.channel}] of {self.entry}"


@dataclass(frozen=True)
class HeadValueSite:
    """One value that a head of an attention module makes for the token that the trigger names, the query.

    `place` of a score, its sum or a probability is the key: an int counts from the row's first token, a float in [0, 1)
    is the share of the tokens that the query sees before it. Of a head's output, or its sum, it is the channel. Raises
    InputError for a place that none has.
    """

    part: HeadPart
    module: str
    head: int
    place: int | float

    def __post_init__(self) -> None:
        if self.part in BY_CHANNEL and not isinstance(self.place, int):
            raise InputError(f"channel {self.place} of a head's output does not exist: give a number from 0")
        check_token(self.place)

    def __str__(self) -> str:
        return f"{self.part} {self.module}[{self.head},{self.place!r}]"


@dataclass(frozen=True)
class StoredWordSite:
    """One word of the packed format that a parameter is stored in: word `number` of a `field` (quant, scale, ...) along
    a row, which is a channel of its module's output."""

    parameter: str
    field: str
    row: int
    number: int

    def __str__(self) -> str:
        return f"stored {self.parameter}.{self.field}[{self.row},{self.number}]"


@dataclass(frozen=True)
class Scatter:
    """How a scattered set is drawn. `amount`: of type float the chance of each place on its own, of type int the exact
    number of them. A place is one of the corruption's bits in one value, or a value where it changes all of it. `key`
    decides the draw: the same key, amount and site give the same places. Raises InputError for an amount or a key that
    nothing can be drawn by.
    """

    amount: int | float
    key: int

    def __post_init__(self) -> None:
        if isinstance(self.amount, float) and not 0 < self.amount < 1:
            raise InputError(f"rate {self.amount} is no chance: give a number between 0 and 1")
        if isinstance(self.amount, int) and self.amount < 1:
            raise InputError(f"count {self.amount} strikes nothing: give a number from 1")
        if not 0 <= self.key < 2**63:
            raise InputError(f"key {self.key} can't be used: give a number from 0, below 2^63")

    def __str__(self) -> str:
        return f"{'rate' if isinstance(self.amount, float) else 'count'} {self.amount!r} key {self.key}"


@dataclass(frozen=True)
class ScatteredWeights:
    """Words all over one stored parameter; where several components share it (fused projections), over the share of
    `component`."""

    parameter: str
    component: str | None
    scatter: Scatter

    def __str__(self) -> str:
        return f"scattered weight {_share(self.parameter, self.component)} {self.scatter}"


@dataclass(frozen=True)
class ScatteredOutput:
    """Values all over one module's output, in every pass that the trigger covers; where several components share it,
    over the share of `component`.

    With a rate each place is drawn on its own; a count is that of each pass of a row: of its prefill tokens together,
    and of every later token.
    """

    module: str
    component: str | None
    scatter: Scatter

    def __str__(self) -> str:
        return f"scattered activation {_share(self.module, self.component)} {self.scatter}"


def _share(name: str, component: str | None) -> str:
    return name if component is None else f"{name} of {component}"


Site = WeightSite | ActivationSite | CachedSite | HeadValueSite | StoredWordSite | ScatteredWeights | ScatteredOutput

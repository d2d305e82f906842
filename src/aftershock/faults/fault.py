"""A fault: which value (site), what happens to it (corruption), and when (trigger).

Every part is an immutable value. `str(fault)` is one line and `parse_fault` gives an equal fault back.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from aftershock.errors import InputError
from aftershock.models import FIRST_TOKEN, PREFILL, CachePart, HeadPart, decode


@dataclass(frozen=True)
class WeightSite:
    """One element of a stored parameter. `index` has as many entries as the tensor has dimensions."""

    parameter: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"weight {self.parameter}[{','.join(map(str, self.index))}]"


@dataclass(frozen=True)
class ActivationSite:
    """One channel of a module's output; the trigger says at which token."""

    module: str
    channel: int

    def __str__(self) -> str:
        return f"activation {self.module}[{self.channel}]"


@dataclass(frozen=True)
class Entry:
    """One token of each row, whose entry in the key-value cache or whose activation is meant: the pass that it runs in
    and, in prefill, `token` as `Trigger` takes it. Raises InputError for a token outside prefill, or that is none of
    its tokens."""

    number: int
    token: int | float | None = None

    def __post_init__(self) -> None:
        if self.number < PREFILL:
            raise InputError(f"pass {self.number} does not exist: they are counted from {PREFILL}")
        if (self.number == PREFILL) != (self.token is not None):
            raise InputError("prefill has many tokens and the other passes one: write 'prefill:0.5', 'decode:3'")
        _check_token(self.token)

    def place(self, context_length: int) -> int | None:
        """The token's number in a row, counted from the first of its context, which has one token less in prefill than
        in all; None where prefill has no such token."""
        tokens = context_length - 1
        if self.token is None:
            return tokens + self.number - FIRST_TOKEN
        place = self.token if isinstance(self.token, int) else int(self.token * tokens)
        return place if place < tokens else None

    def __str__(self) -> str:
        return pass_name(self.number) + ("" if self.token is None else f":{self.token!r}")


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

    `place` of a score or probability is the key: an int counts from the row's first token, a float in [0, 1) is the
    share of the tokens that the query sees before it. Of a head's output it is the channel. Raises InputError for a
    place that none has.
    """

    part: HeadPart
    module: str
    head: int
    place: int | float

    def __post_init__(self) -> None:
        if self.part == "head_output" and not isinstance(self.place, int):
            raise InputError(f"channel {self.place} of a head's output does not exist: give a number from 0")
        _check_token(self.place)

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


Site = WeightSite | ActivationSite | CachedSite | HeadValueSite | StoredWordSite


@dataclass(frozen=True)
class Flip:
    """Invert the bits given (ascending positions, 0 the least significant)."""

    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_bits(self.bits)

    def __str__(self) -> str:
        return f"flip {','.join(map(str, self.bits))}"


@dataclass(frozen=True)
class StuckAt:
    """Force the bits given (ascending) to `level`; a bit that has it already stays as it is."""

    bits: tuple[int, ...]
    level: Literal[0, 1]

    def __post_init__(self) -> None:
        _check_bits(self.bits)

    def __str__(self) -> str:
        return f"stuck-at-{self.level} {','.join(map(str, self.bits))}"


@dataclass(frozen=True)
class Replace:
    """Put a value (rounded to the format that holds it) in place of the old one."""

    value: float

    def __post_init__(self) -> None:
        _one_nan(self, "value", self.value)

    def __reduce__(self) -> tuple[type["Replace"], tuple[float]]:
        return Replace, (self.value,)

    def __str__(self) -> str:
        return f"replace {self.value!r}"


@dataclass(frozen=True)
class Add:
    """Add an amount to the old value, in fp64, and round to the format that holds it."""

    amount: float

    def __post_init__(self) -> None:
        _one_nan(self, "amount", self.amount)

    def __reduce__(self) -> tuple[type["Add"], tuple[float]]:
        return Add, (self.amount,)

    def __str__(self) -> str:
        return f"add {self.amount!r}"


Corruption = Flip | StuckAt | Replace | Add


def _check_bits(bits: tuple[int, ...]) -> None:
    if not bits or bits[0] < 0 or any(low >= high for low, high in pairwise(bits)):
        raise InputError(f"bits {list(bits)} can't be struck: give one or more, each once, ascending from 0")


def _one_nan(value: object, field: str, number: float) -> None:
    # Two NaN objects are unequal; one shared object lets a parsed fault, and a pickled one, equal the original.
    if math.isnan(number):
        object.__setattr__(value, field, math.nan)


@dataclass(frozen=True)
class Trigger:
    """The passes [first, end) in which the fault is present; `end` None means until the trial ends.

    Passes are numbered as in `aftershock.models`: 0 prefill, 1 first_token, n + 1 decode n. `token` picks
    the token of an activation fault in prefill: an int counts from the prompt's first token, a float in
    [0, 1) is the share of the prefill tokens before it, whatever the prompt's length. Raises InputError for
    an interval without a pass and for a token that is not one of prefill.
    """

    first: int = PREFILL
    end: int | None = None
    token: int | float | None = None

    def __post_init__(self) -> None:
        if self.first < PREFILL or (self.end is not None and self.end <= self.first):
            raise InputError(f"passes [{self.first}, {self.end}) hold none: the end comes after the beginning")
        if self.token is not None:
            if (self.first, self.end) != (PREFILL, FIRST_TOKEN):
                raise InputError(f"token {self.token} has no meaning outside prefill: use it with 'at prefill' only")
            _check_token(self.token)

    @property
    def transient(self) -> bool:
        """Whether the fault is present in one pass only."""
        return self.end == self.first + 1

    @property
    def boundaries(self) -> frozenset[int]:
        """Pass numbers before which a run must be cut so that the fault can begin and end there."""
        return frozenset({self.first} | (set() if self.end is None else {self.end})) - {PREFILL}

    def covers(self, number: int) -> bool:
        """Whether the fault is present in a pass."""
        return self.first <= number and (self.end is None or number < self.end)

    def __str__(self) -> str:
        if self.transient:
            token = "" if self.token is None else f":{self.token!r}"
            return f"at {pass_name(self.first)}{token}"
        if self.end is None:
            return "always" if self.first == PREFILL else f"from {pass_name(self.first)}"
        return f"from {pass_name(self.first)} to {pass_name(self.end)}"


def _check_token(token: int | float | None) -> None:
    if token is not None and (token < 0 or (isinstance(token, float) and not token < 1)):
        raise InputError(f"token {token} does not exist: give a number from 0 or a share in [0, 1)")


ALWAYS = Trigger()


def pass_name(number: int) -> str:
    """`prefill`, `first_token` or `decode:n`."""
    if number == PREFILL:
        return "prefill"
    return "first_token" if number == FIRST_TOKEN else f"decode:{number - decode(0)}"


@dataclass(frozen=True)
class Fault:
    """One fault of a trial; a trial has one or several (a tuple of faults)."""

    site: Site
    corruption: Corruption
    trigger: Trigger = ALWAYS

    @property
    def first(self) -> int:
        """The first pass in which the fault is present: a word of the cache can't be wrong before it is written."""
        return max(self.trigger.first, self.site.entry.number if isinstance(self.site, CachedSite) else PREFILL)

    @property
    def entry(self) -> Entry:
        """The token whose word of the cache is struck, or for which what is struck is made; weights belong to none."""
        if isinstance(self.site, CachedSite):
            return self.site.entry
        assert isinstance(self.site, ActivationSite | HeadValueSite)
        return Entry(self.trigger.first, self.trigger.token)

    def __str__(self) -> str:
        return f"{self.site} {self.corruption} {self.trigger}"

"""When a fault is there: passes, tokens, and intervals of passes."""

from dataclasses import dataclass

from aftershock.errors import InputError
from aftershock.models import FIRST_TOKEN, PREFILL, decode


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
        check_token(self.token)

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
            check_token(self.token)

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


ALWAYS = Trigger()


def check_token(token: int | float | None) -> None:
    """Raise InputError unless it is a number from 0, or a share in [0, 1)."""
    if token is not None and (token < 0 or (isinstance(token, float) and not token < 1)):
        raise InputError(f"token {token} does not exist: give a number from 0 or a share in [0, 1)")


def pass_name(number: int) -> str:
    """`prefill`, `first_token` or `decode:n`."""
    if number == PREFILL:
        return "prefill"
    return "first_token" if number == FIRST_TOKEN else f"decode:{number - decode(0)}"

"""Read faults from text: one line a trial, several faults in it joined by ` & `, `#` begins a comment."""

import re
from pathlib import Path
from typing import get_args

from aftershock.errors import InputError
from aftershock.faults.corruption import Add, Corruption, Drawn, Flip, Replace, StuckAt
from aftershock.faults.fault import Fault
from aftershock.faults.moments import ALWAYS, Entry, Trigger
from aftershock.faults.sites import (
    ActivationSite,
    CachedSite,
    HeadValueSite,
    Scatter,
    ScatteredOutput,
    ScatteredWeights,
    Site,
    StoredWordSite,
    WeightSite,
)
from aftershock.models import BY_CHANNEL, FIRST_TOKEN, PREFILL, HeadPart, decode

_SHARE = r"(?:\d*\.\d+(?:e-?\d+)?|\d+e-\d+)"
_REST = r"(?P<corruption>flip|stuck-at-0|stuck-at-1|replace|add) (?P<amount>\S+)(?: (?P<trigger>\S.*))?"
_LINE = re.compile(
    rf"(?P<kind>weight|activation|key|value|{'|'.join(get_args(HeadPart))}|stored) "
    rf"(?P<name>[^\s\[\]]+)\[(?P<index>\d+(?:,\d+)*)(?:,(?P<share>{_SHARE}))?\] "
    r"(?:of (?P<entry>\S+) )?" + _REST
)
_SCATTERED = re.compile(
    r"scattered (?P<kind>weight|activation) (?P<name>[^\s\[\]]+) (?:of (?P<component>\S+) )?"
    r"(?P<measure>rate|count) (?P<many>\S+) key (?P<key>\d+) " + _REST
)
_PASS = r"(prefill|first_token|decode:\d+)"
_TOKEN = rf"prefill:(\d+|{_SHARE})"
_JOIN = " & "
_HEAD_PARTS: dict[str, HeadPart] = {part: part for part in get_args(HeadPart)}

_UNIFORM = re.compile(r"uniform\[([^\[\],]+),([^\[\],]+)\]")

GRAMMAR = """\
FAULT      = SITE CORRUPTION [TRIGGER]
SITE       = "weight" PARAMETER "[" i,j,... "]"  |  "activation" MODULE "[" channel "]"
           | ("key" | "value") ATTENTION "[" head,channel "] of" ENTRY
           | ("score" | "probability" | "qk_accumulator") ATTENTION "[" head,KEY "]"
           | ("head_output" | "sv_accumulator") ATTENTION "[" head,channel "]"
           | "stored" PARAMETER "." FIELD "[" row,number "]"   (FIELD: quant, scale, min, zero, block_scale, block_min)
           | "scattered" ("weight" PARAMETER | "activation" MODULE) ["of" COMPONENT] ("rate" CHANCE | "count" n) "key" n
ENTRY      = "prefill:" TOKEN | "first_token" | "decode:" n   (the token whose key or value it is)
CORRUPTION = "flip" BITS | "stuck-at-0" BITS | "stuck-at-1" BITS | "replace" NUMBER | "add" NUMBER
           | ("replace" | "add") "uniform[" NUMBER,NUMBER "]"   (of scattered sets: drawn anew for each value)
BITS       = b,b,... | b-b   (0 is the least significant)
TRIGGER    = "always" | "at" PASS | "at prefill:" TOKEN | "during" STAGE | "from" PASS ["to" PASS]
PASS       = "prefill" | "first_token" | "decode:" n   (n from 1)
STAGE      = "prefill" | "first_token" | "decode"
TOKEN      = n  (from the prompt's first token)  |  0.xx  (share of the prefill tokens before it)
KEY        = n  (from the prompt's first token)  |  0.xx  (share of the tokens that the one at PASS sees)
"""


LONGEST = 1000
"""Characters of the longest line of one fault."""


def parse_fault(text: str) -> Fault:
    """The fault that prints as `text`. Raises InputError that says which part can't be read."""
    line = " ".join(text.split())
    scattered = _SCATTERED.fullmatch(line)
    match = scattered or _LINE.fullmatch(line)
    if match is None or len(line) > LONGEST:
        raise InputError(
            f"fault {text.strip()!r} can't be read: write SITE CORRUPTION TRIGGER, for example "
            "'weight model.norm.weight[3] flip 14 always'"
        )
    site = _scattered_site(match, text) if scattered else _site(match, text)
    trigger = ALWAYS if match["trigger"] is None else parse_trigger(match["trigger"])
    return Fault(site, _corruption(match["corruption"], match["amount"], text), trigger)


def _scattered_site(match: re.Match[str], text: str) -> Site:
    try:
        amount = float(match["many"]) if match["measure"] == "rate" else int(match["many"])
    except ValueError:
        raise InputError(f"fault {text.strip()!r}: {match['measure']} {match['many']} is no number") from None
    kind = ScatteredWeights if match["kind"] == "weight" else ScatteredOutput
    return kind(match["name"], match["component"], Scatter(amount, int(match["key"])))


def _site(match: re.Match[str], text: str) -> Site:
    index = tuple(map(int, match["index"].split(",")))
    kind, name, entry, share = match["kind"], match["name"], match["entry"], match["share"]
    if kind in _HEAD_PARTS:
        place = float(share) if share else index[-1]
        if len(index) + bool(share) != 2 or entry is not None:
            second = "channel" if kind in BY_CHANNEL else "key"
            raise InputError(
                f"fault {text.strip()!r}: a {kind} has two indices, its head and its {second}, and its token in the "
                f"trigger: write '{kind} {name}[0,3] flip 14 at prefill:0.5'"
            )
        return HeadValueSite(_HEAD_PARTS[kind], name, index[0], place)
    if share:
        raise InputError(f"fault {text.strip()!r}: {share} names a key by its share: a {kind} has whole indices only")
    if kind in ("key", "value"):
        if len(index) != 2 or entry is None:
            raise InputError(
                f"fault {text.strip()!r}: a {kind} has two indices, its head and its channel, and a token: write "
                f"'{kind} {name}[0,3] of prefill:0.5'"
            )
        return CachedSite("key" if kind == "key" else "value", name, *index, _entry(entry))
    if entry is not None:
        raise InputError(f"fault {text.strip()!r}: 'of {entry}' names a token of the cache: use it with key and value")
    if kind == "weight":
        return WeightSite(name, index)
    if kind == "stored":
        parameter, _, field = name.rpartition(".")
        if len(index) != 2 or not parameter:
            raise InputError(
                f"fault {text.strip()!r}: a stored word is one of a field's, with its row and its number in it: write "
                "'stored model.layers.0.mlp.up_proj.weight.scale[3,0]'"
            )
        return StoredWordSite(parameter, field, *index)
    if len(index) > 1:
        raise InputError(f"fault {text.strip()!r}: an activation has one index, its channel")
    return ActivationSite(name, index[0])


def _corruption(name: str, amount: str, text: str) -> Corruption:
    whole_value = name in ("replace", "add")
    uniform = _UNIFORM.fullmatch(amount) if whole_value else None
    try:
        numbers = [float(number) for number in (uniform.groups() if uniform else [amount])] if whole_value else []
        bits = () if whole_value else tuple(sorted(bit for part in amount.split(",") for bit in _bits(part)))
    except ValueError:
        wanted = "a number" if whole_value else "bit positions such as 3,14"
        raise InputError(f"fault {text.strip()!r}: {name} takes {wanted}, not {amount!r}") from None
    if uniform:
        return Drawn("replace" if name == "replace" else "add", *numbers)
    if whole_value:
        return Replace(*numbers) if name == "replace" else Add(*numbers)
    if name == "flip":
        return Flip(bits)
    return StuckAt(bits, 1 if name.endswith("1") else 0)


def _bits(part: str) -> range:
    low, _, high = part.partition("-")
    if len(high or low) > 3:
        raise ValueError("no word has so many bits")
    return range(int(low), int(high or low) + 1)


def parse_trigger(text: str) -> Trigger:
    """The trigger that prints as `text`; `during STAGE` is read too. Raises InputError."""
    if text == "always":
        return ALWAYS
    if match := re.fullmatch(r"during (prefill|first_token|decode)", text):
        return {
            "prefill": Trigger(PREFILL, FIRST_TOKEN),
            "first_token": Trigger(FIRST_TOKEN, decode(1)),
            "decode": Trigger(decode(1)),
        }[match[1]]
    if match := re.fullmatch(f"at {_TOKEN}", text):
        return Trigger(PREFILL, FIRST_TOKEN, _token(match[1]))
    if match := re.fullmatch(f"at {_PASS}", text):
        first = _pass(match[1])
        return Trigger(first, first + 1)
    if match := re.fullmatch(f"from {_PASS}(?: to {_PASS})?", text):
        first, end = _pass(match[1]), None if match[2] is None else _pass(match[2])
        if end is None or first < end:
            return Trigger(first, end)
    raise InputError(
        f"trigger {text!r} can't be read: write 'always', 'at first_token', 'at decode:3', 'at prefill:0.5', "
        "'during decode', 'from decode:3' or 'from prefill to decode:3' (the end comes after the beginning)"
    )


def _entry(text: str) -> Entry:
    if match := re.fullmatch(_TOKEN, text):
        return Entry(PREFILL, _token(match[1]))
    if not re.fullmatch(_PASS, text) or text == "prefill":
        raise InputError(f"token {text!r} can't be read: write 'of prefill:0.5', 'of first_token' or 'of decode:3'")
    return Entry(_pass(text))


def _token(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def _pass(name: str) -> int:
    if name == "prefill":
        return PREFILL
    if name == "first_token":
        return FIRST_TOKEN
    step = int(name.removeprefix("decode:"))
    if step < 1:
        raise InputError("trigger decode:0 does not exist: decode steps are counted from 1")
    return decode(step)


def parse_faults(line: str) -> tuple[Fault, ...]:
    """The fault set of one line. Raises InputError."""
    return tuple(parse_fault(part) for part in line.split(_JOIN))


def format_faults(faults: tuple[Fault, ...]) -> str:
    """The one line that `parse_faults` reads back."""
    return _JOIN.join(map(str, faults))


def read_faults(path: Path) -> tuple[tuple[Fault, ...], ...]:
    """The fault sets of a file, one a line. Raises InputError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"fault list {path} can't be read ({error}): give a UTF-8 text file") from None
    trials = []
    for number, line in enumerate(lines, start=1):
        content = line.split("#", 1)[0].strip()
        if content:
            try:
                trials.append(parse_faults(content))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from None
    if not trials:
        raise InputError(f"fault list {path} holds no fault: write one a line, see docs/faults.md")
    return tuple(trials)

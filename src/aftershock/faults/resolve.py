"""Hold a fault against a model: does the model have what it names, and what is it there?"""

from dataclasses import astuple, dataclass
from difflib import get_close_matches

import numpy as np

from aftershock.errors import InputError
from aftershock.faults.fault import (
    ActivationSite,
    CachedSite,
    Entry,
    Fault,
    Flip,
    HeadValueSite,
    Replace,
    StoredWordSite,
    StuckAt,
    WeightSite,
)
from aftershock.models import (
    PREFILL,
    Block,
    CacheSite,
    ComponentMap,
    HeadSite,
    OutputSite,
    ParameterSite,
    StoredSite,
    stage_of,
)
from aftershock.numerics import INT32, NumberFormat

SEVERAL = "several"


@dataclass(frozen=True)
class Labels:
    """What a fault is, in the words reports group by; `several` (or None) where a set disagrees.

    `stage` is the stage of a transient fault, of the token for a word of the cache, else `persistent`.
    """

    site: str
    component: str
    layer: int | None
    bits: tuple[int, ...]
    bit_class: str
    stage: str


def parameter_site(fault: Fault, components: ComponentMap) -> ParameterSite:
    """The parameter share that a weight fault lies in. Raises InputError when the model has no such element."""
    site = fault.site
    assert isinstance(site, WeightSite)
    candidates = [part for part in components.parameters if part.name == site.parameter]
    if not candidates:
        raise InputError(
            f"fault '{fault}': {components.architecture} has no parameter {site.parameter}"
            + _suggestion(site.parameter, [part.name for part in components.parameters])
        )
    shape = candidates[0].stored_shape
    if len(site.index) != len(shape) or any(not 0 <= i < n for i, n in zip(site.index, shape, strict=True)):
        raise InputError(
            f"fault '{fault}': {site.parameter} has shape {list(shape)}, so index {list(site.index)} is outside it"
        )
    return next(part for part in candidates if part.rows.contains(np.array(site.index[part.dim])))


def output_site(fault: Fault, components: ComponentMap) -> OutputSite:
    """The output share that an activation fault lies in. Raises InputError when the model has no such channel."""
    site = fault.site
    assert isinstance(site, ActivationSite)
    known = (*components.outputs, *components.accumulators)
    candidates = [part for part in known if part.module == site.module]
    if not candidates:
        raise InputError(
            f"fault '{fault}': {components.architecture} has no mapped output {site.module}"
            + _suggestion(site.module, [part.module for part in known])
        )
    if not 0 <= site.channel < candidates[0].channels:
        raise InputError(f"fault '{fault}': {site.module} has {candidates[0].channels} channels, numbered from 0")
    return next(part for part in candidates if part.rows.contains(np.array(site.channel)))


def cache_site(fault: Fault, components: ComponentMap) -> CacheSite:
    """The cached keys or values that a fault lies in. Raises InputError when the model keeps no such word."""
    site = fault.site
    assert isinstance(site, CachedSite)
    found = {part.module: part for part in components.cached if part.part == site.part}
    if site.module not in found:
        raise InputError(
            f"fault '{fault}': {components.architecture} has no attention {site.module}"
            + _suggestion(site.module, list(found))
        )
    part = found[site.module]
    if not (0 <= site.head < part.heads and 0 <= site.channel < part.channels):
        raise InputError(
            f"fault '{fault}': {site.module} keeps {part.heads} heads of {part.channels} channels, numbered from 0"
        )
    return part


def head_site(fault: Fault, components: ComponentMap) -> HeadSite:
    """The heads that a fault lies in. Raises InputError when the model has no such value."""
    site = fault.site
    assert isinstance(site, HeadValueSite)
    attentions = {part.module: part for part in components.heads}
    if site.module not in attentions:
        raise InputError(
            f"fault '{fault}': {components.architecture} has no attention {site.module}"
            + _suggestion(site.module, list(attentions))
        )
    part = next((part for part in components.heads if (part.module, part.part) == (site.module, site.part)), None)
    if part is None:
        raise InputError(
            f"fault '{fault}': a fused attention kernel makes no {site.part} that could be struck: load the model with "
            'attention = "eager"'
        )
    channels = part.channels if site.part == "head_output" else None
    if not 0 <= site.head < part.heads or (channels is not None and not 0 <= site.place < channels):
        of_channels = "" if channels is None else f" of {channels} channels"
        raise InputError(f"fault '{fault}': {site.module} has {part.heads} heads{of_channels}, numbered from 0")
    return part


def key_of(site: HeadValueSite, seen: range) -> int | None:
    """The key that a score or probability belongs to, of the tokens that its query sees; None where it sees none
    such."""
    if isinstance(site.place, int):
        return site.place if site.place in seen else None
    return seen[int(site.place * len(seen))]


def stored_site(fault: Fault, components: ComponentMap) -> StoredSite:
    """The field of stored words that a fault lies in. Raises InputError when the model has no such word."""
    site = fault.site
    assert isinstance(site, StoredWordSite)
    fields = [part for part in components.stored if part.name == site.parameter]
    if not fields:
        raise InputError(
            f"fault '{fault}': {site.parameter} comes from no packed words: choose a GGUF model, or a storage under "
            "[model]" + _suggestion(site.parameter, sorted({part.name for part in components.stored}))
        )
    found = [part for part in fields if part.field == site.field]
    if not found:
        known = ", ".join(dict.fromkeys(part.field for part in fields))
        raise InputError(f"fault '{fault}': {site.parameter} is stored without a {site.field}: choose from {known}")
    rows, words = sum(part.rows for part in found), found[0].words
    if not (0 <= site.row < rows and 0 <= site.number < words):
        raise InputError(f"fault '{fault}': {rows} rows of {words} such words are stored, numbered from 0")
    # Experts one after the other are no rows of a fused projection.
    fused = len(found) > 1
    return next(part for part in found if not fused or part.parameter.rows.contains(np.array(site.row)))


def site_of(fault: Fault, components: ComponentMap) -> ParameterSite | OutputSite | CacheSite | HeadSite | StoredSite:
    """The part of the model that a fault lies in. Raises InputError when the model has no such place."""
    match fault.site:
        case WeightSite():
            return parameter_site(fault, components)
        case CachedSite():
            return cache_site(fault, components)
        case HeadValueSite():
            return head_site(fault, components)
        case StoredWordSite():
            return stored_site(fault, components)
        case ActivationSite():
            return output_site(fault, components)


def _suggestion(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else ": see the list in docs/models.md"


def check(fault: Fault, components: ComponentMap, number_format: NumberFormat) -> None:
    """Raise InputError unless the model has what the fault names and the fault can strike there."""
    part = site_of(fault, components)
    if isinstance(part, StoredSite):
        _check_stored(fault, part)
        return
    if isinstance(fault.site, WeightSite):
        if fault.trigger.token is not None:
            raise InputError(f"fault '{fault}': a weight has no token: write 'at prefill'")
    elif isinstance(fault.site, CachedSite):
        if fault.trigger.token is not None:
            raise InputError(f"fault '{fault}': the token of a key or value comes after 'of': write 'at prefill'")
        if fault.trigger.end is not None and fault.trigger.end <= fault.first:
            raise InputError(f"fault '{fault}' is over before the token is there: give it a later end")
    else:
        if not fault.trigger.transient:
            kind = site_kind(fault).replace("_", " ")
            raise InputError(
                f"fault '{fault}': {'an' if kind == 'activation' else 'a'} {kind} lives for one pass: give it a "
                "transient trigger such as 'at decode:3'"
            )
        if fault.trigger.first == PREFILL and fault.trigger.token is None:
            raise InputError(f"fault '{fault}': prefill has many tokens: say which, for example 'at prefill:0.5'")
        if fault.trigger.first == PREFILL and part.component == "lm_head":
            raise InputError(
                f"fault '{fault}': the output of lm_head is computed for answer tokens only: use first_token or decode"
            )
    summed = part in components.accumulators
    if isinstance(fault.corruption, Flip | StuckAt):
        try:
            for bit in fault.corruption.bits:
                (INT32 if summed else number_format).check_bit(bit)
        except InputError as error:
            raise InputError(f"fault '{fault}': {error}") from None
    elif summed:
        amount = fault.corruption.value if isinstance(fault.corruption, Replace) else fault.corruption.amount
        if not (amount.is_integer() and abs(amount) < 2**31):
            raise InputError(f"fault '{fault}': an accumulator holds whole numbers below 2^31: give one")


def _check_stored(fault: Fault, part: StoredSite) -> None:
    if fault.trigger.token is not None:
        raise InputError(f"fault '{fault}': a stored word has no token: write 'at prefill'")
    if not isinstance(fault.corruption, Flip | StuckAt):
        raise InputError(f"fault '{fault}': a stored word has bits: use flip, stuck-at-0 or stuck-at-1")
    if fault.corruption.bits[-1] >= part.bits:
        raise InputError(f"fault '{fault}': a {part.field} has bits 0 to {part.bits - 1}")


def labels(faults: tuple[Fault, ...], components: ComponentMap, number_format: NumberFormat) -> Labels:
    """The labels of a fault set (not empty)."""
    each = [_labels(fault, components, number_format) for fault in faults]
    disagreement = Labels(SEVERAL, SEVERAL, None, (), SEVERAL, SEVERAL)
    return Labels(
        *(
            values[0] if all(value == values[0] for value in values) else other
            for values, other in zip(zip(*map(astuple, each), strict=True), astuple(disagreement), strict=True)
        )
    )


def _labels(fault: Fault, components: ComponentMap, number_format: NumberFormat) -> Labels:
    part = site_of(fault, components)
    bits = fault.corruption.bits if isinstance(fault.corruption, Flip | StuckAt) else ()
    summed = part in components.accumulators
    classes = {_bit_class(bit, part, summed, number_format) for bit in bits}
    return Labels(
        site="accumulator" if summed else site_kind(fault),
        component=part.component,
        layer=part.layer,
        # Bits of a packed word are none of the model's own format.
        bits=() if isinstance(part, StoredSite) else bits,
        bit_class=classes.pop() if len(classes) == 1 else (SEVERAL if bits else "value"),
        stage=_stage(fault),
    )


def accumulator_bit_class(bit: int) -> str:
    """What a bit of an int32 sum is: `sign` or `integer`."""
    return "sign" if bit == INT32.bits - 1 else "integer"


def _bit_class(
    bit: int, part: ParameterSite | OutputSite | CacheSite | HeadSite | StoredSite, summed: bool, model: NumberFormat
) -> str:
    if isinstance(part, StoredSite):
        return part.bit_class(bit)
    if summed:
        return accumulator_bit_class(bit)
    return model.bit_class(bit)


def _stage(fault: Fault) -> str:
    if isinstance(fault.site, CachedSite):
        return stage_of(fault.site.entry.number)
    return stage_of(fault.trigger.first) if fault.trigger.transient else "persistent"


def site_kind(fault: Fault) -> str:
    """`weight`, `stored`, `activation` (accumulators too), `key`, `value`, `score`, `probability` or `head_output`."""
    match fault.site:
        case CachedSite() | HeadValueSite():
            return fault.site.part
        case StoredWordSite():
            return "stored"
        case WeightSite():
            return "weight"
        case ActivationSite():
            return "activation"


def splits(faults: tuple[Fault, ...]) -> frozenset[int]:
    """Pass numbers before which a run under these faults is cut.

    Weight faults that begin or end between two passes need the cut, and so do words of the cache that are wrong from
    later on than they are written; what is made for a token, and a word that is wrong from the start, is reached by its
    token wherever the cuts lie, and `first_token` needs none of the one pass that prefill shares with it.
    """
    return frozenset().union(*map(_splits, faults))


def _splits(fault: Fault) -> frozenset[int]:
    if isinstance(fault.site, WeightSite | StoredWordSite):
        return fault.trigger.boundaries
    if not isinstance(fault.site, CachedSite):
        return frozenset()
    late = fault.first > fault.site.entry.number
    return fault.trigger.boundaries if late else fault.trigger.boundaries - {fault.trigger.first}


def column_of(entry: Entry, block: Block, row: int) -> int | None:
    """Column of a block in which a row has a token; None where its context has no such token. A column past the row's
    answer, or the block, is that of a token not fed."""
    place = entry.place(block.context_lengths[row])
    return None if place is None else block.first_column(row) + place

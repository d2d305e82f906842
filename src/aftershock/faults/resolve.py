"""Hold a fault against a model: does the model have what it names, and what is it there?"""

from dataclasses import astuple, dataclass

from aftershock.errors import InputError
from aftershock.faults.corruption import Add, Drawn, Flip, Replace, StuckAt, bits_of
from aftershock.faults.experts import expert_of
from aftershock.faults.fault import Fault
from aftershock.faults.moments import Entry
from aftershock.faults.places import Place, site_of
from aftershock.faults.sites import (
    ActivationSite,
    CachedSite,
    HeadValueSite,
    ScatteredOutput,
    ScatteredWeights,
    StoredWordSite,
    WeightSite,
)
from aftershock.models import (
    BY_CHANNEL,
    FIRST_TOKEN,
    PREFILL,
    Block,
    ComponentMap,
    HeadSite,
    StoredSite,
    stage_of,
)
from aftershock.numerics import INT32, NumberFormat

SEVERAL = "several"


@dataclass(frozen=True)
class Labels:
    """What a fault is, in the words reports group by; `several` (or None) where a set disagrees.

    `stage` is the stage of a transient fault, of the token for a word of the cache, else `persistent`; `expert` the
    number of the expert whose weights are struck, in its layer.
    """

    site: str
    component: str
    layer: int | None
    bits: tuple[int, ...]
    bit_class: str
    stage: str
    expert: int | None = None


def check(fault: Fault, components: ComponentMap, number_format: NumberFormat) -> None:
    """Raise InputError unless the model has what the fault names and the fault can strike there."""
    part = site_of(fault, components)
    if isinstance(part, StoredSite):
        _check_stored(fault, part)
        return
    if fault.in_weights:
        if fault.trigger.token is not None:
            raise InputError(f"fault '{fault}': a weight has no token: write 'at prefill'")
    elif isinstance(fault.site, CachedSite):
        if fault.trigger.token is not None:
            raise InputError(f"fault '{fault}': the token of a key or value comes after 'of': write 'at prefill'")
        if fault.trigger.end is not None and fault.trigger.end <= fault.first:
            raise InputError(f"fault '{fault}' is over before the token is there: give it a later end")
    else:
        _check_moment(fault, part)
    if isinstance(fault.site, ScatteredWeights | ScatteredOutput):
        _check_scatter(fault, part)
    elif isinstance(fault.corruption, Drawn):
        raise InputError(f"fault '{fault}' strikes one value: give its number, or scatter it")
    _check_amount(fault, INT32 if part in components.accumulators else number_format)


def _check_moment(fault: Fault, part: Place) -> None:
    """What is made for tokens is struck at one of them or, but for heads, at all of some passes."""
    if isinstance(fault.site, HeadValueSite):
        kind = site_kind(fault).replace("_", " ")
        if not fault.trigger.transient:
            raise InputError(
                f"fault '{fault}': a {kind} lives for one pass: give it a transient trigger such as 'at decode:3'"
            )
        if fault.trigger.first == PREFILL and fault.trigger.token is None:
            raise InputError(f"fault '{fault}': prefill has many tokens: say which, for example 'at prefill:0.5'")
    if isinstance(fault.site, ScatteredOutput) and fault.trigger.token is not None:
        raise InputError(f"fault '{fault}': a scattered set lies in whole passes: write 'at prefill'")
    if part.component == "lm_head" and fault.trigger.end == FIRST_TOKEN:
        raise InputError(
            f"fault '{fault}': the output of lm_head is computed for answer tokens only: use first_token or decode"
        )


def _check_scatter(fault: Fault, part: Place) -> None:
    assert isinstance(fault.site, ScatteredWeights | ScatteredOutput)
    amount, places = fault.site.scatter.amount, part.numel * max(1, len(bits_of(fault.corruption)))
    # How many places prefill has, and how many keys a token sees, is the prompt's business.
    open_ended = isinstance(fault.site, ScatteredOutput) and (
        fault.trigger.end == FIRST_TOKEN or (isinstance(part, HeadSite) and part.part not in BY_CHANNEL)
    )
    if isinstance(amount, int) and amount > places and not open_ended:
        raise InputError(f"fault '{fault}': {places} places are all that there are: lower count")


def _check_amount(fault: Fault, number_format: NumberFormat) -> None:
    """Bits must be those of the words; what int32 sums are replaced by, or added, fits into them."""
    corruption = fault.corruption
    try:
        for bit in bits_of(corruption):
            number_format.check_bit(bit)
    except InputError as error:
        raise InputError(f"fault '{fault}': {error}") from None
    if number_format != INT32:
        return
    match corruption:
        case Replace(amount) | Add(amount):
            if not (amount.is_integer() and abs(amount) < 2**31):
                raise InputError(f"fault '{fault}': an accumulator holds whole numbers below 2^31: give one")
        case Drawn(_, low, high):
            if max(abs(low), abs(high)) >= 2**31:
                raise InputError(f"fault '{fault}': an accumulator holds numbers below 2^31: give such ones")


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
    bits = bits_of(fault.corruption)
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
        expert=expert_of(fault, part),
    )


def accumulator_bit_class(bit: int) -> str:
    """What a bit of an int32 sum is: `sign` or `integer`."""
    return "sign" if bit == INT32.bits - 1 else "integer"


def _bit_class(bit: int, part: Place, summed: bool, model: NumberFormat) -> str:
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
        case WeightSite() | ScatteredWeights():
            return "weight"
        case ActivationSite() | ScatteredOutput():
            return "activation"


def splits(faults: tuple[Fault, ...]) -> frozenset[int]:
    """Pass numbers before which a run under these faults is cut.

    Weight faults that begin or end between two passes need the cut, and so do words of the cache that are wrong from
    later on than they are written; what is made for a token, and a word that is wrong from the start, is reached by its
    token wherever the cuts lie, and `first_token` needs none of the one pass that prefill shares with it.
    """
    return frozenset().union(*map(_splits, faults))


def _splits(fault: Fault) -> frozenset[int]:
    if fault.in_weights or isinstance(fault.site, StoredWordSite):
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

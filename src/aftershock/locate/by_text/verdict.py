"""The verdict of a self-referential search, as it is printed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from aftershock.locate.by_text.branches import Damped
from aftershock.locate.by_text.packed import PackedWords
from aftershock.locate.by_text.recovery import Masked, applied, measure
from aftershock.locate.by_text.search import Found, Search, Tried
from aftershock.locate.by_text.suspects import PlainWords, layer_of
from aftershock.locate.by_text.text_loss import LAST, text_rows
from aftershock.models import LoadedModel, Progress, quiet
from aftershock.numerics import worth


class _Record(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")


class FlippedBit(_Record):
    """A bit that, flipped back, brings the loss down by `gain` nats a token (`error`: its standard error over
    rows of text).

    `element` is the index in the parameter of the word, or of the first value of its packed block; `stored` names
    field, word and bit in a packed block. `found` and `clean` are the word's values before and after, where it is a
    number of its own. `implausible` tells how much more plausible the word gets in its tensor, nats.
    """

    parameter: str
    component: str
    layer: int | None
    element: tuple[int, ...]
    stored: str | None
    bit: int
    found: float | None
    clean: float | None
    gain: float
    error: float
    implausible: float


class SuspectBranch(_Record):
    """A branch of the residual path whose scale alpha brings the loss down by `gain` nats a token."""

    branch: str
    alpha: float
    gain: float


class TextVerdict(_Record):
    """What the corrupted model and some text tell.

    `bits` are to be flipped back, in order; `branches` the five branches that the loss would rather do without (only
    where no bit was found); `measure` what was chosen instead. Losses are means in nats a token. `layers`: the most
    suspect places first ("before the layers", "layer 3", "behind the layers").
    """

    clean: bool
    bits: tuple[FlippedBit, ...]
    branches: tuple[SuspectBranch, ...]
    measure: str | None
    recovery: Literal["none needed", "bits flipped back", "row masked", "branch damped", "none found"]
    loss: float
    loss_after: float
    layers: tuple[str, ...]
    passes: float


def locate_by_text(
    model: LoadedModel, text: str, rows: int = 16, length: int = 128, progress: Progress = quiet
) -> TextVerdict:
    """Search a model with `rows` pieces of `length` tokens of some text; the model is left as it came.

    `progress` is told what is being tried.
    Raises InputError for a text that is too short.
    """
    search = Search(model, text_rows(model, text, rows, length), progress)
    try:
        return _verdict(model, search, search.run())
    finally:
        search.undo()


def mend_by_text(
    model: LoadedModel, text: str, rows: int = 16, length: int = 128, progress: Progress = quiet
) -> TextVerdict:
    """The same, but bits that were found stay flipped back, unless it ends in an exception."""
    search = Search(model, text_rows(model, text, rows, length), progress)
    try:
        return _verdict(model, search, search.run())
    except BaseException:
        search.undo()
        raise


def _verdict(model: LoadedModel, search: Search, found: Found) -> TextVerdict:
    chosen = measure(model, search.text, found)
    after = found.after
    if chosen is not None:
        with applied(model, chosen):
            after = search.text.after_change(None)
    recovery: Literal["none needed", "bits flipped back", "row masked", "branch damped", "none found"]
    if found.flips:
        recovery = "bits flipped back"
    elif isinstance(chosen, Masked):
        recovery = "row masked"
    elif isinstance(chosen, Damped):
        recovery = "branch damped"
    else:
        recovery = "none found" if found.corrupted else "none needed"
    return TextVerdict(
        clean=not found.corrupted,
        bits=tuple(_bit(search, one) for one in found.flips),
        branches=tuple(SuspectBranch(branch=str(one.branch), alpha=one.alpha, gain=one.gain) for one in _top(found)),
        measure=_named(chosen),
        recovery=recovery,
        loss=float(found.before.mean()),
        loss_after=float(after.mean()),
        layers=tuple(_place(layer) for layer in found.layers[:5]) if found.corrupted else (),
        passes=search.text.passes,
    )


def _top(found: Found) -> tuple[Damped, ...]:
    return tuple(one for one in found.branches if one.gain > 0)[:5]


def _named(chosen: Masked | Damped | None) -> str | None:
    if isinstance(chosen, Masked):
        return f"row {chosen.row} of {chosen.parameter} set to zero"
    return None if chosen is None else f"{chosen.branch} scaled by {chosen.alpha:g}"


def _place(layer: int | None) -> str:
    if layer is None:
        return "before the layers"
    return "behind the layers" if layer == LAST else f"layer {layer}"


def _bit(search: Search, one: Tried) -> FlippedBit:
    """A flip as it is printed; the model has it flipped back."""
    suspect, words = one.suspect, search.words[one.suspect.parameter]
    layer = layer_of(words.site)
    stored, found, clean = None, None, None
    if isinstance(words, PackedWords):
        stored, element = words.describe(suspect.place, suspect.bit), words.element(suspect.place)
    else:
        assert isinstance(words, PlainWords)
        element = words.element(suspect.place)
        word = words.word(suspect.place)
        found, clean = worth(words.form, word ^ (1 << suspect.bit)), worth(words.form, word)
    return FlippedBit(
        parameter=suspect.parameter,
        component=words.site.component,
        layer=None if layer == LAST else layer,
        element=element,
        stored=stored,
        bit=suspect.bit,
        found=found,
        clean=clean,
        gain=one.gain,
        error=one.error,
        implausible=suspect.likelier,
    )

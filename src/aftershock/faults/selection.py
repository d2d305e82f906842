"""Say which faults to draw: the `[faults]` table of a study file, and the population it selects."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aftershock.errors import InputError
from aftershock.faults.catalogue import CATALOGUE
from aftershock.faults.grammar import parse_trigger
from aftershock.faults.moments import Trigger
from aftershock.faults.patterns import Pattern, PatternName, pattern_of
from aftershock.models import (
    COMPONENTS,
    CacheSite,
    ComponentMap,
    HeadSite,
    OutputSite,
    ParameterSite,
    StoredSite,
)
from aftershock.numerics import BIT_CLASSES, INT32, BitClass, NumberFormat

SiteKind = Literal[
    "weight", "stored", "activation", "accumulator", "key", "value", "score", "probability", "head_output"
]
MAKES_SCORES: tuple[SiteKind, ...] = ("score", "probability")
"""Kinds of site that are there only where attention is computed step by step."""
StageName = Literal["prefill", "first_token", "decode"]
CorruptionName = Literal["flip", "stuck-at-0", "stuck-at-1", "replace", "add"]
Draw = Literal["uniform", "by_component", "by_tensor", "by_use"]

TRANSIENT, LASTING = "transient", "lasting"
"""Triggers whose pass is drawn from the stages selected: the only one of the fault, or its first one."""


class Selection(BaseModel):
    """Which faults a study draws.

    sites        kinds of site; each trial takes one of them with equal probability
    components   component names; none given: all
    layers       `0-3,28`, `last 4`, or `group 2/8` (the second of eight equal groups); none given: everything,
                 the tensors outside the layers included
    modules      regular expression that the parameter's or module's name must contain
    draw         `uniform`: every stored value is equally likely; `by_component`, `by_tensor`: first a component
                 (a tensor) with equal probability, then a value in it; `by_use`: weights of experts, each in
                 proportion to the share of the task's tokens that choose its expert
    corruption   what happens to the value
    bits         bit positions to draw from; or `bit_classes` (sign, exponent, mantissa); none given: every bit
    bits_per_word  how many different bits of the word; `bit_pattern`: `any` bits, or `adjacent` ones
    pattern      the values that one event strikes together: one `word`, `span` neighbours in a `row` or `column`, a
                 `block` of span x span, or span values of a row `stride` apart; span may be `all`. The bits of each
                 value are drawn on their own, but those that are stuck are the same in all
    fields       of stored words: which fields (quant, scale, min, zero, block_scale, block_min); none given: all,
                 each in proportion to its bits; with draw `uniform` every bit of the memory is as likely
    fault_model  a name of `CATALOGUE`, which stands for some of these keys
    value        for replace and add; or `uniform = [a, b]`
    count        faults per trial; or `rate`, the probability of each selected bit (of each value for replace
                 and add) on its own, in weights, or in activations or accumulators in every pass of the trigger; or
                 `per_pass`, how many of them are struck in each output in each pass of an answer
    activation_trigger  when faults in activations and accumulators are present, in the fault grammar, at every token of
                 those passes; or `transient`: one token of a pass (with rate or per_pass: one pass) drawn from `stages`
    weight_trigger  when weight faults are present, in the fault grammar (`always`, `from decode:3`, ...), or
                 `transient`: one pass drawn from `stages`, or `lasting`: from such a pass to the end
    cache_trigger  when a key or value is wrong: `always`, from its writing on, or `transient`: in one read of it, in a
                 pass drawn from its own to the last
    stages       stages that transient faults are drawn from, and the tokens whose keys and values are struck, with
                 equal probability
    tokens       prefill tokens whose activations, keys, values and heads faults may strike, as shares [from, to) of
                 the prompt; the key of a score or probability is any that the token sees, each as likely
    decode_steps decode steps [from, to] that faults are drawn from
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: tuple[SiteKind, ...] = Field(("weight", "activation"), min_length=1)
    components: tuple[str, ...] = ()
    layers: str = ""
    modules: str = ""
    draw: Draw = "by_component"
    corruption: CorruptionName = "flip"
    bits: tuple[int, ...] = ()
    bit_classes: tuple[BitClass, ...] = ()
    bits_per_word: int = Field(1, ge=1)
    bit_pattern: Literal["any", "adjacent"] = "any"
    pattern: PatternName = "word"
    span: int | Literal["all"] = 1
    stride: int = Field(1, ge=1)
    fields: tuple[str, ...] = ()
    fault_model: str | None = None
    value: float | None = None
    uniform: tuple[float, float] | None = None
    count: int = Field(1, ge=1)
    rate: float | None = Field(None, gt=0, lt=1)
    per_pass: int | None = Field(None, ge=1)
    weight_trigger: str = "always"
    activation_trigger: str = "transient"
    cache_trigger: Literal["always", "transient"] = "always"
    stages: tuple[StageName, ...] = Field(("prefill", "first_token", "decode"), min_length=1)
    tokens: tuple[float, float] = (0.0, 1.0)
    decode_steps: tuple[int, int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, keys: Any) -> Any:
        """The keys with those that the fault model stands for."""
        name = keys.get("fault_model") if isinstance(keys, dict) else None
        if not isinstance(name, str):
            return keys
        if name not in CATALOGUE:
            raise ValueError(f"unknown fault_model {name!r}: choose from {', '.join(CATALOGUE)}")
        known = CATALOGUE[name].keys
        for key in known.keys() & keys.keys():
            given = list(keys[key]) if isinstance(keys[key], tuple) else keys[key]
            if given != known[key]:
                raise ValueError(f"fault_model {name!r} sets {key} = {known[key]!r}: leave {key} out, or the model")
        return {**keys, **known}

    @model_validator(mode="after")
    def _consistent(self) -> "Selection":
        for component in self.components:
            if component not in COMPONENTS:
                raise ValueError(f"unknown component {component!r}: choose from {', '.join(COMPONENTS)}")
        try:
            re.compile(self.modules)
        except re.error as error:
            raise ValueError(f"modules = {self.modules!r} is not a regular expression ({error})") from None
        if self.bits and self.bit_classes:
            raise ValueError("give either bits or bit_classes, not both")
        takes_value = self.corruption in ("replace", "add")
        if takes_value == (self.value is None and self.uniform is None) or (
            self.value is not None and self.uniform is not None
        ):
            raise ValueError(
                "corruption replace and add take either value or uniform = [a, b]; the others take neither"
            )
        if takes_value and (self.bits or self.bit_classes or self.bits_per_word > 1):
            raise ValueError(f"corruption {self.corruption} changes the whole value: leave the bits out")
        if self.bit_pattern == "adjacent" and self.bits_per_word == 1:
            raise ValueError("adjacent bits are two or more of a word: raise bits_per_word")
        if isinstance(self.span, int) and self.span < 1:
            raise ValueError(f"span = {self.span}: give a number from 1, or 'all'")
        if self.pattern == "word" and (self.span, self.stride) != (1, 1):
            raise ValueError('span and stride belong to a pattern: add pattern = "row", or leave them out')
        if self.pattern != "word" and self.span == 1:
            raise ValueError("a pattern strikes several values: give their number as span, or 'all'")
        if self.pattern != "stride" and self.stride != 1:
            raise ValueError('stride belongs to pattern = "stride": leave it out')
        if self.pattern != "word" and (self.count > 1 or self.scatters):
            raise ValueError("a pattern is one event a trial: leave count, rate and per_pass out")
        if self.fields and "stored" not in self.sites:
            raise ValueError('fields are those of stored words: set sites = ["stored"], or leave fields out')
        if "stored" in self.sites:
            self._check_stored()
        if "accumulator" in self.sites:
            self._check_accumulators()
        if self.draw == "by_use" and (self.sites, self.components) != (("weight",), ("expert",)):
            raise ValueError('draw = "by_use" is for weights of experts: sites = ["weight"], components = ["expert"]')
        if self.scatters:
            self._check_scatter()
        if self.weight_trigger not in (TRANSIENT, LASTING) and parse_trigger(self.weight_trigger).token is not None:
            raise ValueError(f"weight_trigger = {self.weight_trigger!r}: a weight has no token: write 'at prefill'")
        if self.lasting_outputs is not None and self.lasting_outputs.token is not None and self.scatters:
            raise ValueError(
                f"activation_trigger = {self.activation_trigger!r}: scattered faults lie in whole passes: write "
                "'at prefill'"
            )
        if not 0 <= self.tokens[0] < self.tokens[1] <= 1:
            raise ValueError("tokens are shares of the prompt: 0 <= from < to <= 1")
        if self.decode_steps and not 1 <= self.decode_steps[0] <= self.decode_steps[1]:
            raise ValueError("decode_steps are counted from 1: 1 <= from <= to")
        return self

    def _check_scatter(self) -> None:
        if self.rate is not None and self.per_pass is not None:
            raise ValueError("give either rate or per_pass, not both")
        places = ("activation", "accumulator", *(() if self.rate is None else ("weight",)))
        if len(set(self.sites)) > 1 or self.sites[0] not in places:
            one = " or ".join(f'["{place}"]' for place in sorted(places))
            raise ValueError(f"rate and per_pass scatter faults over one kind of site: set sites = {one}, or use count")
        if self.draw != "uniform" or self.count != 1 or self.bits_per_word != 1:
            raise ValueError('rate and per_pass need draw = "uniform" and replace count and bits_per_word')

    def _check_stored(self) -> None:
        if self.sites != ("stored",):
            raise ValueError("stored words are drawn bit by bit and other sites value by value: study them apart")
        if self.corruption in ("replace", "add") or self.bit_classes:
            raise ValueError("a stored word is an integer or a scale: give fields and bits, and flip or stuck-at")
        if self.pattern != "word":
            raise ValueError("a pattern strikes values: leave it out, or strike weights")
        if self.count > 1 and self.bits_per_word > 1:
            raise ValueError("several stored words are struck in one bit each: give count or bits_per_word")

    def _check_accumulators(self) -> None:
        if self.sites != ("accumulator",) or self.bit_classes:
            raise ValueError("accumulators are 32-bit integers: study them apart from other sites, and give bits")
        amounts = [*(self.uniform or ()), *(() if self.value is None else (self.value,))]
        if not all(amount.is_integer() and abs(amount) < 2**31 for amount in amounts):
            raise ValueError("accumulators hold whole numbers below 2^31: give such ones as value or uniform")

    @property
    def scatters(self) -> bool:
        """Whether faults are scattered over whole tensors or outputs."""
        return self.rate is not None or self.per_pass is not None

    @property
    def strikes_one_value(self) -> bool:
        """Whether a trial has one fault, in one value (of a token)."""
        return self.count == 1 and not self.scatters and self.pattern == "word"

    @property
    def spreads_over_tokens(self) -> bool:
        """Whether a fault in an activation or accumulator strikes every token of its passes, or some at a rate."""
        return self.scatters or self.lasting_outputs is not None

    @property
    def lasts_in_channels(self) -> bool:
        """Whether a fault in an activation or accumulator strikes one channel at every token of its passes."""
        return self.lasting_outputs is not None and not self.scatters

    @property
    def lasting_outputs(self) -> Trigger | None:
        """When faults in outputs are present, where that is not drawn."""
        return None if self.activation_trigger == TRANSIENT else parse_trigger(self.activation_trigger)

    @property
    def struck_together(self) -> Pattern:
        """The values that one event strikes."""
        return pattern_of(self.pattern, self.span, self.stride)

    def bit_positions(self, model_format: NumberFormat) -> tuple[int, ...]:
        """The bit positions to draw from: of the words of a model's format, or of accumulators. Raises InputError for a
        bit that they don't have."""
        number_format = INT32 if "accumulator" in self.sites else model_format
        if self.bits:
            for bit in self.bits:
                number_format.check_bit(bit)
            return tuple(sorted(set(self.bits)))
        classes = self.bit_classes or BIT_CLASSES
        return tuple(sorted(bit for name in classes for bit in number_format.bits_of(name)))


PopulationSite = ParameterSite | OutputSite | CacheSite | HeadSite | StoredSite


@dataclass(frozen=True)
class Population:
    """What a selection leaves of a component map, in its order; of the kinds of site that it names."""

    parameters: tuple[ParameterSite, ...] = ()
    outputs: tuple[OutputSite, ...] = ()
    cached: tuple[CacheSite, ...] = ()
    heads: tuple[HeadSite, ...] = ()
    stored: tuple[StoredSite, ...] = ()
    accumulators: tuple[OutputSite | HeadSite, ...] = ()

    @property
    def sites(self) -> tuple[PopulationSite, ...]:
        """All of them."""
        return (*self.parameters, *self.outputs, *self.cached, *self.heads, *self.stored, *self.accumulators)

    def of(self, kind: SiteKind) -> tuple[PopulationSite, ...]:
        """Those of one kind."""
        if kind == "weight":
            return self.parameters
        if kind == "activation":
            return self.outputs
        if kind == "stored":
            return self.stored
        if kind == "accumulator":
            return self.accumulators
        return tuple(site for site in self.cached if site.part == kind) + tuple(
            site for site in self.heads if site.part == kind
        )

    def where(self, wanted: Callable[[PopulationSite], bool]) -> "Population":
        """Those that are wanted."""
        return Population(
            tuple(filter(wanted, self.parameters)),
            tuple(filter(wanted, self.outputs)),
            tuple(filter(wanted, self.cached)),
            tuple(filter(wanted, self.heads)),
            tuple(filter(wanted, self.stored)),
            tuple(filter(wanted, self.accumulators)),
        )


def select(selection: Selection, components: ComponentMap) -> Population:
    """The population of a selection. Raises InputError when a kind of site asked for has nothing left."""
    layers = parse_layers(selection.layers, components.layers)
    pattern = re.compile(selection.modules)

    def wanted(site: PopulationSite) -> bool:
        return (
            selection.struck_together.placements(site.shape) > 0
            and (not selection.components or site.component in selection.components)
            and (layers is None or site.layer in layers)
            and pattern.search(site.name if isinstance(site, ParameterSite | StoredSite) else site.module) is not None
            and (not selection.fields or (isinstance(site, StoredSite) and site.field in selection.fields))
            # A sum of attention's products has no channel that a fault could stay in.
            and not (isinstance(site, HeadSite) and site in components.accumulators and selection.lasts_in_channels)
        )

    every = Population(
        components.parameters,
        components.outputs,
        components.cached,
        components.heads,
        components.stored,
        components.accumulators,
    )
    left = every.where(wanted)
    for kind in selection.sites:
        if not every.of(kind):
            how = {"stored": "a storage, or choose a GGUF model", "accumulator": 'arithmetic = "w8a8"'}.get(
                kind, 'attention = "eager"'
            )
            raise InputError(
                f"{components.architecture} has no {kind} here that a fault could strike: load it with {how}"
            )
        if not left.of(kind):
            fields = f", fields {list(selection.fields)}" if selection.fields else ""
            raise InputError(
                f"the selection (components {list(selection.components) or 'all'}, layers "
                f"{selection.layers or 'all'!r}, modules {selection.modules or 'all'!r}, pattern {selection.pattern}, "
                f"span {selection.span}{fields}) leaves no {kind} of {components.architecture} to put a fault in: "
                "widen it"
            )
    words = [site.bits for site in left.stored] if "stored" in selection.sites else []
    for bit in selection.bits if words else ():
        if not 0 <= bit < max(words):
            raise InputError(f"bits: bit {bit} is in none of the stored words selected, which have up to {max(words)}")
    chosen = {site for kind in selection.sites for site in left.of(kind)}
    return left.where(chosen.__contains__)


def parse_layers(text: str, layers: int) -> frozenset[int] | None:
    """The layer numbers of `0-3,28`, `last 4` or `group 2/8`; None (all, and what lies outside) for ``.

    Raises InputError when the text can't be read or names a layer that the model does not have.
    """
    text = text.strip()
    if not text:
        return None
    if match := re.fullmatch(r"last (\d+)", text):
        spans = [range(layers - int(match[1]), layers)]
    elif match := re.fullmatch(r"group (\d+)/(\d+)", text):
        number, groups = int(match[1]), int(match[2])
        if not 1 <= number <= groups <= layers:
            raise InputError(f"layers {text!r}: the model has {layers} layers, groups are numbered from 1")
        spans = [range((number - 1) * layers // groups, number * layers // groups)]
    elif re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        bounds = [(part.split("-")[0], part.split("-")[-1]) for part in text.split(",")]
        spans = [range(int(low), int(high) + 1) for low, high in bounds]
    else:
        raise InputError(f"layers {text!r} can't be read: write '0-3,28', 'last 4' or 'group 2/8'")
    if not all(span and span[0] >= 0 and span[-1] < layers for span in spans):
        raise InputError(f"layers {text!r}: the model has layers 0 to {layers - 1}")
    return frozenset().union(*spans)

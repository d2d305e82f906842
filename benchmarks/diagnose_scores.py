"""What a diagnosis of a planted error is worth: pure functions from cases and diagnoses to figures. Part of
`benchmarks.diagnose`.

Ekka (arXiv 2606.04594) names up to five suspected components: pass@1, pass@5. The same is counted here, and besides
whether the first finding's cause, and its parameter where a case asks for one, are right too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aftershock.diagnose import Diagnosis, Finding
from aftershock.stats import exact
from benchmarks.plants.cases import Case, Expected

EKKA = {"pass@1": 0.80, "pass@5": 0.88, "n": 17}
"""What Ekka reports for 17 real errors, with a language model in the loop (its authors' figures)."""

NAMED = 5


@dataclass(frozen=True)
class Named:
    """What a diagnosis names at one rank: a component in some layers, and a cause where there is one."""

    component: str
    layers: tuple[int, ...]
    finding: Finding | None


@dataclass(frozen=True)
class Score:
    """One case: `component_1` and `component_5` as Ekka counts them; `cause` and `parameter` of the first finding;
    `also` whether a second, separate error was found (None where there is none)."""

    case: str
    author: str
    engine: str
    control: bool
    in_vocabulary: bool
    detectable: bool
    divergent: bool
    component_1: bool
    component_5: bool
    cause: bool
    cause_5: bool
    parameter: bool | None
    also: bool | None
    said: str
    seconds: float


def score(case: Case, found: Diagnosis, seconds: float) -> Score:
    """Hold a diagnosis against what was planted."""
    names = named(found)
    first = names[0] if names else None
    wanted = case.expected
    return Score(
        case=case.name,
        author=case.author,
        engine=case.engine,
        control=case.is_control,
        in_vocabulary=wanted.causes != {"unknown"},
        detectable=case.detectable,
        divergent=found.divergent,
        component_1=first is not None and places(wanted, first),
        component_5=any(places(wanted, one) for one in names[:NAMED]),
        cause=first is not None and explains(wanted, first),
        cause_5=any(explains(wanted, one) for one in names[:NAMED]),
        parameter=None if wanted.parameter is None else first is not None and measures(wanted, first),
        also=None if case.also is None else any(explains(case.also, one) for one in names),
        said=found.verdict,
        seconds=seconds,
    )


def missed(case: Case, why: str, seconds: float) -> Score:
    """The score of a case that ended without a diagnosis, for a reason. A control that ended so is a false alarm."""
    return Score(
        case=case.name,
        author=case.author,
        engine=case.engine,
        control=case.is_control,
        in_vocabulary=case.expected.causes != {"unknown"},
        detectable=case.detectable,
        divergent=case.is_control,
        component_1=False,
        component_5=False,
        cause=False,
        cause_5=False,
        parameter=None if case.expected.parameter is None else False,
        also=None if case.also is None else False,
        said=f"no diagnosis: {why}",
        seconds=seconds,
    )


def named(found: Diagnosis) -> list[Named]:
    """What a diagnosis names, the most suspect first: its findings, then components that are suspected without one."""
    names = [Named(one.component, one.layers, one) for one in found.findings]
    known = {one.component for one in names}
    return names + [Named(one.component, one.layers, None) for one in found.suspects if one.component not in known]


def places(wanted: Expected, one: Named) -> bool:
    """Whether a component is the right one, in a layer where it is wrong."""
    if one.component not in wanted.component:
        return False
    return wanted.layers in ("all", ()) or not one.layers or bool(set(one.layers) & set(wanted.layers))


def explains(wanted: Expected, one: Named) -> bool:
    """Whether a finding has the right component and an accepted cause."""
    return places(wanted, one) and one.finding is not None and one.finding.cause in wanted.causes


def measures(wanted: Expected, one: Named) -> bool:
    """Whether a finding has the right parameter too."""
    if wanted.parameter is None or one.finding is None or not explains(wanted, one):
        return False
    value = one.finding.found
    if isinstance(value, str | None):
        return False
    return abs(value - wanted.parameter.value) <= wanted.parameter.tolerance * abs(wanted.parameter.value)


_FIGURES: Mapping[str, Callable[[Score], bool | None]] = {
    "noticed": lambda one: one.divergent,
    "component@1": lambda one: one.component_1,
    "component@5": lambda one: one.component_5,
    "pass@1": lambda one: one.cause,
    "pass@5": lambda one: one.cause_5,
    "parameter": lambda one: one.parameter,
    "second error": lambda one: one.also,
}


def figures(scores: Sequence[Score]) -> dict[str, Any]:
    """Shares with exact intervals over the detectable errors: of all, and of each author, engine, and side of the
    vocabulary; false alarms over the controls; what is beneath the noise, and noticed all the same."""
    planted = [one for one in scores if not one.control and one.detectable]
    controls = [one for one in scores if one.control]
    hidden = [one for one in scores if not one.control and not one.detectable]
    found: dict[str, Any] = {name: _shares(group) for name, group in _groups(planted) if group}
    if controls:
        found["controls"] = {"false alarms": asdict(exact(sum(one.divergent for one in controls), len(controls)))}
    if hidden:
        found["beneath the noise"] = {"n": len(hidden), "noticed": sum(one.divergent for one in hidden)}
    return found


def _groups(planted: Sequence[Score]) -> Iterator[tuple[str, list[Score]]]:
    yield "all", list(planted)
    for author in ("independent", "builder"):
        own = [one for one in planted if one.author == author]
        yield author, own
        yield f"{author}, in the vocabulary", [one for one in own if one.in_vocabulary]
        yield f"{author}, outside the vocabulary", [one for one in own if not one.in_vocabulary]
    for engine in dict.fromkeys(one.engine for one in planted):
        yield engine, [one for one in planted if one.engine == engine]


def _shares(group: Sequence[Score]) -> dict[str, Any]:
    found = {}
    for name, figure in _FIGURES.items():
        known = [value for value in map(figure, group) if value is not None]
        if known:
            found[name] = asdict(exact(sum(known), len(known)))
    return found

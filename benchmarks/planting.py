"""Show that a planted error does what its case says. `python -m benchmarks.planting CASE ... [--record]`

CASE is a file of `benchmarks/diagnose_cases`, or its name; none: all. One JSON object a case: the error's effect on
the logits (planted against clean, both in float32) over the noise of the case's dtype (clean in that dtype against
clean in the next wider one): of all tokens, and the largest of one token over the largest of one token; for errors in
prompts and samplers the share of prompts whose tokens differ. A control is compared in its own dtype; an engine in
which nothing is planted, with transformers. A case is detectable where one of the two is 1 or more, or some tokens
differ; of a control that is not asked. `--record` writes this into the files. Exits with 1 where a case fails.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from aftershock.capture import CaptureRequest, capture
from aftershock.errors import ContractError, InputError
from benchmarks.plants.building import clean_target, planted_target
from benchmarks.plants.cases import FOLDER, Case, Measured, all_cases, read_case
from benchmarks.plants.operations import BY_ENGINE, IN_OPTIONS, IN_REQUESTS
from benchmarks.plants.running import generate, logits_of
from benchmarks.plants.runs import clean_request, suspect_request

LEVEL = 1.0
"""Effect over noise from which an error is called detectable."""

_WIDER = {"bfloat16": torch.float32, "float16": torch.float32, "float32": torch.float64}


class Engines:
    """Captures of engines, clean ones once for all cases that share one."""

    def __init__(self) -> None:
        self._clean: dict[str, tuple[_Run, ...]] = {}

    def measure(self, case: Case) -> Measured:
        """The planted error's effect. Raises ContractError where the clean engine does not equal itself."""
        if case.engine == "transformers":
            return _in_transformers(case)
        asked = case.model_dump_json(include={"engine", "model", "dtype", "prompts", "sampling", "options"})
        if asked not in self._clean:
            self._clean[asked] = tuple(_captured(case, clean_request) for _ in range(2))
        clean, again = self._clean[asked]
        if not torch.equal(clean.logits, again.logits):
            raise ContractError(f"{case.name}: two clean captures differ")
        if case.plant:
            return _in_engine(case, clean, _captured(case, suspect_request))
        logits = torch.cat(logits_of(clean_target(case)))[clean.rows]
        return _in_engine(case, replace(clean, logits=logits), clean)


@dataclass(frozen=True)
class _Run:
    """Logits of the tokens whose numbers are `rows`, and each request's prompt and answer."""

    logits: torch.Tensor
    rows: torch.Tensor
    answers: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def _captured(case: Case, request_of: Callable[[Case, Path], CaptureRequest]) -> _Run:
    with TemporaryDirectory() as folder:
        request = request_of(case, Path(folder)).model_copy(update={"record": ("logits",)})
        bundle = capture(case.engine, request, Path(folder) / "bundle")
        logits, told = bundle.logits, bundle.manifest
        if logits is None or told.logits is None:
            raise ContractError(f"{case.name}: the capture has no logits")
        answers = tuple((one.tokens[: one.prompt_tokens], one.sampled) for one in told.requests)
        return _Run(logits.clone(), torch.tensor(told.tokens_of(told.logits.span)), answers)


def _in_transformers(case: Case) -> Measured:
    clean = clean_target(case)
    again = clean_target(case)
    low = logits_of(clean)
    if clean.prompts != again.prompts or not all(map(torch.equal, low, logits_of(again))):
        raise ContractError(f"{case.name}: two clean runs differ")
    suspect = planted_target(again, case.plant)
    if any(plant.operation in IN_REQUESTS and plant.operation != "run_with" for plant in case.plant):
        steps = case.prompts.new_tokens
        return _changed(
            zip(clean.prompts, generate(clean, steps), strict=True),
            zip(suspect.prompts, generate(suspect, steps), strict=True),
        )
    if case.is_control:
        return _over_noise(_difference(logits_of(suspect), low), _noise(case, low))
    wide = clean_target(case, torch.float32)
    right = logits_of(wide)
    return _over_noise(_difference(logits_of(planted_target(wide, case.plant)), right), _noise(case, low))


def _in_engine(case: Case, clean: _Run, suspect: _Run) -> Measured:
    """The same from captures; the noise is that of transformers, at the tokens whose logits the engine gives. Where
    the prompts' own tokens differ there is nothing else to compare."""
    asked = [[prompt for prompt, _ in run.answers] for run in (clean, suspect)]
    in_requests = any(plant.operation in IN_REQUESTS and plant.operation != "run_with" for plant in case.plant)
    if in_requests or asked[0] != asked[1]:
        return _changed(clean.answers, suspect.answers)
    noise = _noise(case, logits_of(clean_target(case)))[clean.rows]
    measured = _over_noise(_difference([suspect.logits], [clean.logits]), noise)
    elsewhere = BY_ENGINE["transformers"] - set(IN_OPTIONS)
    if not case.plant or any(plant.operation not in elsewhere for plant in case.plant):
        return measured
    same = torch.cat(logits_of(planted_target(clean_target(case), case.plant)))[clean.rows]
    apart = _over_noise(_difference([suspect.logits], [same]), noise)
    return measured.model_copy(update={"apart_from_transformers": apart.effect_over_noise})


def _noise(case: Case, low: list[torch.Tensor]) -> torch.Tensor:
    """Difference of a clean model's logits in the case's dtype, or in what its kernels round to, from those in the next
    wider one, token by token."""
    if case.rounds_to is not None:
        low = logits_of(clean_target(case, getattr(torch, case.rounds_to)))
    return _difference(low, logits_of(clean_target(case, _WIDER[case.rounds_to or case.dtype])))


def _over_noise(effect: torch.Tensor, noise: torch.Tensor) -> Measured:
    effect = effect.nan_to_num(nan=torch.inf)
    return Measured(
        effect_over_noise=_rounded(effect.square().mean().sqrt() / noise.square().mean().sqrt()),
        largest_over_noise=_rounded(effect.max() / noise.max()),
    )


def _changed(clean: Iterable[object], suspect: Iterable[object]) -> Measured:
    """Share of the prompts that are fed, or continued, with other tokens."""
    differ = [one != other for one, other in zip(clean, suspect, strict=True)]
    return Measured(tokens_changed=round(sum(differ) / len(differ), 4))


def is_detectable(measured: Measured) -> bool:
    """Whether an error of that effect can be told from noise."""
    effects = measured.effect_over_noise or 0.0, measured.largest_over_noise or 0.0
    return bool(measured.tokens_changed) or max(effects) >= LEVEL


def _difference(some: list[torch.Tensor], others: list[torch.Tensor]) -> torch.Tensor:
    """Norm of each token's difference, shape (tokens of all prompts,)."""
    pairs = zip(some, others, strict=True)
    return torch.cat([torch.linalg.vector_norm(one.double() - other.double(), dim=-1) for one, other in pairs])


def _rounded(value: torch.Tensor) -> float:
    """Three digits, so that a file stays the same from one run to the next where little changes."""
    digits: str = f"{value.item():.3g}"
    return float(digits)


def recorded(text: str, measured: Measured, detectable: bool) -> str:
    """A case file's text with what was measured, in place of what it said before."""
    kept = re.sub(r"^detectable = \w+\n", "", text.split("\n[measured]")[0], flags=re.MULTILINE).rstrip("\n")
    if not detectable:
        kept = re.sub(r"^dtype = .*$", r"\g<0>\ndetectable = false", kept, count=1, flags=re.MULTILINE)
    found = measured.model_dump(exclude_none=True)
    return "\n".join([kept, "", "[measured]", *(f"{name} = {value}" for name, value in found.items()), ""])


def _file(name: str) -> Path:
    path = Path(name)
    return path if path.suffix == ".toml" else FOLDER / f"{name}.toml"


def main() -> None:
    """Measure the cases, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--record", action="store_true", help="write what was measured into the files")
    arguments = parser.parse_args()
    try:
        cases = {path: read_case(path) for path in map(_file, arguments.cases)} or all_cases()
    except InputError as error:
        parser.error(str(error))
    engines = Engines()
    failed = 0
    for path, case in cases.items():
        try:
            measured = engines.measure(case)
        except (InputError, ContractError) as error:
            print(json.dumps({"case": case.name, "engine": case.engine, "error": str(error)}), flush=True)
            failed += 1
            continue
        detectable = case.is_control or is_detectable(measured)
        if arguments.record:
            path.write_text(recorded(path.read_text(encoding="utf-8"), measured, detectable), encoding="utf-8")
        says = {"case": case.name, "engine": case.engine, **measured.model_dump(exclude_none=True)}
        print(json.dumps({**says, "detectable": detectable}), flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

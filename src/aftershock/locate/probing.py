"""Locate a fault in a live model whose modules can be called, though its weights can't be read.

Clean input goes in, and what comes out is compared with what a clean module gives: the inputs recorded in a clean run,
to every module at once; or inputs made so that each output is one stored word.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from aftershock.capture import forcing, forward, watching
from aftershock.errors import InputError
from aftershock.locate.by_activations import ActivationFinding
from aftershock.locate.live import LiveSuspect
from aftershock.numerics import words

Run = Callable[[torch.Tensor], torch.Tensor]
"""A module's call: inputs of shape (probes, features) to outputs of shape (probes, channels)."""

_LARGE = 2.0**10
"""Size of a norm's probes: its square is exact in fp32, and the norm's epsilon vanishes beside it."""

_AT_ONCE = 4096
"""Rows of a table that are read in one go."""


@dataclass(frozen=True)
class ProbedWord:
    """A word that differs: output channel (row), input feature (column), and what the two modules answer to its probe:
    the stored words' own values where the module does nothing but multiply (the sign of zero aside)."""

    row: int
    column: int
    clean: float
    found: float


@dataclass(frozen=True)
class ProbeFinding:
    """What probes tell: words that differ, and rows that differ in no word that could be told, since a NaN or several
    infinities in a row hide all of it; `bias` are the channels whose answer to a zero input differs."""

    words: tuple[ProbedWord, ...]
    rows: tuple[int, ...]
    bias: tuple[int, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing differs that probes can see."""
        return not (self.words or self.rows or self.bias)


def locate_forced(suspect: LiveSuspect) -> tuple[ActivationFinding, ...]:
    """All modules that return other words than recorded when they are given the recorded inputs, in call order.

    One pass for each of the recording's, in which every module gets clean input whatever the others did, so that any
    number of faulty tensors is found at once. Experts whose router answers otherwise are not judged: it sends them
    other tokens. What is computed between modules, as attention is, is not looked at.
    """
    pieces: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for batch in suspect.batches:
        rows = suspect.rows(batch)

        def give(path: str, rows: torch.Tensor = rows) -> torch.Tensor:
            return suspect.clean[path, "input"][rows]

        def see(path: str, place: str, values: torch.Tensor, rows: torch.Tensor = rows) -> None:
            module = suspect.modules[path]
            if place == "output" and module.parameters:
                own = module.flat(values, len(rows)).to("cpu")
                if not suspect.agrees(path, "output", rows, own):
                    pieces.setdefault(path, []).append((rows, own.clone()))

        with forcing(suspect.modules, give), watching(suspect.modules, see):
            forward(suspect.model, batch)
    misled = {path.rpartition(".")[0] for path in pieces if "router" in _components(suspect, path)}
    return tuple(
        suspect.finding(path, "output", pieces[path])
        for path in suspect.modules
        if path in pieces and not (_is_sent_tokens(suspect, path) and path.rpartition(".")[0] in misled)
    )


def _components(suspect: LiveSuspect, path: str) -> set[str]:
    return {site.component for site in suspect.modules[path].sites}


def _is_sent_tokens(suspect: LiveSuspect, path: str) -> bool:
    return "expert" in _components(suspect, path) and suspect.modules[path].operation == "other"


@torch.no_grad()
def probe_module(
    suspect: Run,
    reference: Run,
    features: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    scale: float = 1.0,
    chunk: int = 256,
) -> ProbeFinding:
    """Read a linear map word by word: the answer to `scale` at one feature and zeros elsewhere is `scale` times one
    word of each row, all other products being zero.

    Where the map adds a bias, which would round the answer, take as `scale` a power of two so large that the bias
    vanishes beside the products. A row with a NaN or an infinity answers NaN to nearly every probe. Its one
    infinite word is found by ceil(log2(features)) + 1 probes of +1 and -1, by the bits of the feature's number: the
    signs of the infinite answers spell the number; the word's own probe then confirms it. Not told apart are 0.0 and
    -0.0, nor subnormal words on hardware that flushes them.

    `features` inputs in chunks of `chunk`. Raises InputError where the two maps answer in unlike shapes.
    """
    silent = torch.zeros(1, features, dtype=dtype, device=device)
    bias = _differs(reference(silent), suspect(silent))[0]
    found: list[ProbedWord] = []
    lost: torch.Tensor | None = None
    for begin in range(0, features, chunk):
        probes = torch.eye(min(chunk, features - begin), features, dtype=dtype, device=device).roll(begin, 1) * scale
        clean, own = reference(probes), suspect(probes)
        hidden = own.isnan().any(0) & ~clean.isnan().any(0)
        lost = hidden if lost is None else lost | hidden
        for probe, row in (_differs(clean, own) & ~own.isnan()).nonzero().tolist():
            values = float(clean[probe, row]) / scale, float(own[probe, row]) / scale
            found.append(ProbedWord(row, begin + probe, *values))
    if lost is None:
        raise InputError("a linear map without features can't be probed: give the number of its inputs")
    hidden_rows = set(lost.nonzero()[:, 0].tolist())
    infinite = _infinite_columns(suspect, features, dtype, device) if hidden_rows else {}
    # In a row with a non-finite word, that one's own probe alone is to be believed.
    found = [word for word in found if word.row not in hidden_rows or word.column == infinite.get(word.row)]
    # A row whose bias alone differs answers with it to every probe.
    counts = Counter(word.row for word in found)
    shifted = set(bias.nonzero()[:, 0].tolist()) - hidden_rows
    return ProbeFinding(
        tuple(word for word in found if word.row not in shifted or counts[word.row] < features),
        tuple(sorted(hidden_rows - counts.keys())),
        tuple(sorted(shifted)),
    )


def _infinite_columns(suspect: Run, features: int, dtype: torch.dtype, device: torch.device | str) -> dict[int, int]:
    """For each row with an infinite answer to all sign patterns, the feature that their signs spell."""
    numbers = torch.arange(features, device=device)
    bits = max(1, (features - 1).bit_length())
    patterns = torch.stack([torch.ones_like(numbers), *(2 * (numbers >> bit & 1) - 1 for bit in range(bits))])
    answers = suspect(patterns.to(dtype))
    rows = answers.isinf().all(0).nonzero()[:, 0]
    signs = answers[:, rows].sign()
    spelt = ((signs[1:] == signs[0]).long() << torch.arange(bits, device=device)[:, None]).sum(0)
    return dict(zip(rows.tolist(), spelt.tolist(), strict=True))


@torch.no_grad()
def probe_table(suspect: Run, reference: Run, rows: int, device: torch.device | str = "cpu") -> ProbeFinding:
    """Read a table, row by row, that takes int64 row numbers of shape (n,) and answers (n, channels): `row` and
    `column` are the table's own."""
    found: list[ProbedWord] = []
    for begin in range(0, rows, _AT_ONCE):
        numbers = torch.arange(begin, min(begin + _AT_ONCE, rows), device=device)
        clean, own = reference(numbers), suspect(numbers)
        for place, column in _differs(clean, own).nonzero().tolist():
            found.append(ProbedWord(begin + place, column, float(clean[place, column]), float(own[place, column])))
    return ProbeFinding(tuple(found), ())


@torch.no_grad()
def probe_norm(
    suspect: Run, reference: Run, channels: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> ProbeFinding:
    """Read the weight and bias of a norm: `words` have the channel as their row and column 0.

    An input of +-2^10 in turn is normalised to +-1, in RMSNorm and in LayerNorm (for an even number of channels), one
    of equal values to 0 in LayerNorm, which leaves the bias; a channel whose bias differs is named for that alone.
    """
    turns = torch.where(torch.arange(channels, device=device) % 2 == 0, _LARGE, -_LARGE).to(dtype)[None]
    level = torch.full_like(turns, _LARGE)
    clean, own = reference(turns), suspect(turns)
    # RMSNorm answers to equal values with its weight, LayerNorm with its bias.
    centred = bool((reference(level).abs() != clean.abs()).any())
    bias = _differs(reference(level), suspect(level))[0] if centred else torch.zeros_like(clean[0], dtype=torch.bool)
    weight = _differs(clean, own)[0] & ~bias
    signs = turns[0].sign()
    found = [
        ProbedWord(row, 0, float(clean[0, row] * signs[row]), float(own[0, row] * signs[row]))
        for row in weight.nonzero()[:, 0].tolist()
    ]
    return ProbeFinding(tuple(found), (), tuple(bias.nonzero()[:, 0].tolist()))


def _differs(clean: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    if (clean.shape, clean.dtype) != (own.shape, own.dtype):
        raise InputError(
            f"the suspect answers with {own.dtype} of shape {tuple(own.shape)}, the reference with {clean.dtype} of "
            f"shape {tuple(clean.shape)}: probe two copies of one module"
        )
    return words(clean.contiguous()) != words(own.contiguous())

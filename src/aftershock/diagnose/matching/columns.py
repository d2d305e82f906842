"""Which channels of a wider, or differently ordered, tensor are a point's: found by comparing columns."""

import torch

PROBES = 16
"""Columns that are looked for before all are."""

_ENTRIES = 1 << 24
"""Products of columns that are held at once."""

_LEAST_ROWS = 3


def channels_of(wanted: torch.Tensor, offered: torch.Tensor, tolerance: float) -> tuple[range, ...] | None:
    """The columns of `offered`, shape (rows, D), that are those of `wanted`, shape (rows, C): a few ranges one after
    another, None where they are not or can't be told. Both are `directions`, so that factors don't matter.

    `tolerance` is the relative deviation of healthy values.
    """
    count = wanted.shape[-1]
    if len(wanted) < _LEAST_ROWS or offered.shape[-1] < count:
        return None
    # Of two unit vectors that differ by e the cosine is 1 - e^2 / 2.
    bound = max(8 * tolerance**2, 1e-6)
    probes = torch.linspace(0, count - 1, min(PROBES, count)).long()
    _, known = _nearest(wanted[:, probes], offered, bound)
    if known.float().mean() < 0.5:
        return None
    columns, known = _nearest(wanted, offered, bound)
    return ranges_of(columns, known, offered.shape[-1])


def directions(values: torch.Tensor) -> torch.Tensor:
    """Columns divided by their norms; 0 where they are 0 or not finite."""
    norms = torch.linalg.vector_norm(values, dim=0)
    return torch.where(torch.isfinite(norms) & (norms > 0), values / norms, 0.0)


def _nearest(wanted: torch.Tensor, offered: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
    """For each wanted column the nearest offered one, and whether it is near and no other is about as near."""
    columns, known = [], []
    parts = -(-wanted.shape[-1] * offered.shape[-1] // _ENTRIES)
    for part in torch.tensor_split(wanted, parts, dim=1):
        products = (part.T @ offered).abs()
        nearest = products.topk(min(2, products.shape[-1]), -1)
        first, second = 1 - nearest.values[:, 0], 1 - nearest.values[:, -1]
        columns.append(nearest.indices[:, 0])
        alone = first < 0.25 * second if products.shape[-1] > 1 else torch.ones_like(first, dtype=torch.bool)
        known.append((first < bound) & alone)
    return torch.cat(columns), torch.cat(known)


def ranges_of(columns: torch.Tensor, known: torch.Tensor, width: int) -> tuple[range, ...] | None:
    """Columns, int64, of a tensor of this width as few ranges of one step, those that are not known (bool, the same
    shape) filled in from the ones beside them. None where that can't be."""
    count = len(columns)
    places = known.nonzero()[:, 0]
    if len(places) < max(2, 0.75 * count):
        return (range(int(columns[0]), int(columns[0]) + 1),) if count == 1 and len(places) == 1 else None
    apart = (columns[places].diff() / places.diff()).double()
    step = float(apart.mode().values)
    if step == 0 or step != int(step):
        return None
    begins = torch.cat([places[:1], places[1:][apart != step]]).tolist()
    if len(begins) > max(1, count // 2):
        return None
    ends = [*begins[1:], count]
    firsts = columns[begins].tolist()
    # What is not known before the first known column belongs to the first range.
    firsts[0] -= int(step) * begins[0]
    begins[0] = 0
    found = tuple(
        range(first, first + int(step) * (end - begin), int(step))
        for first, begin, end in zip(firsts, begins, ends, strict=True)
    )
    used = torch.cat([torch.tensor(list(own)) for own in found])
    if used.min() < 0 or used.max() >= width or len(set(used.tolist())) < count:
        return None
    return found

"""What can be wrong with the rows of a linear map's weight: their order, their scale, their words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from aftershock.diagnose.hypotheses.changes import Change, with_tensor
from aftershock.diagnose.hypotheses.place import Candidate, Hypothesis, Place, listed
from aftershock.diagnose.points import LINEAR
from aftershock.diagnose.signatures import touched
from aftershock.diagnose.weights import Part

SHARDS = (2, 4, 8)
"""Into how many parts tensors may have been cut."""

BLOCKS = (32, 64, 128)
"""Inputs that may share a scale or zero point."""

WORDS = 4
"""Wrong words that are looked for in a row."""

SIBLINGS = {
    "q": ("q", "k", "v"),
    "k": ("k", "q", "v"),
    "v": ("v", "q", "k"),
    "gate": ("gate", "up"),
    "up": ("up", "gate"),
}
"""Maps whose tensors are often kept in one, itself first."""

PAIRS = 10**8
"""Rows times rows that are compared at most."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """The wrong rows of a weight, int64, and what is known of them. `weight` fp64, shape (outputs, inputs); `found` and
    `expected` are what the wrong rows give and should give, the bias taken off, fp64, shape (tokens, wrong rows);
    `inputs` of shape (tokens, inputs)."""

    numbers: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    found: torch.Tensor
    expected: torch.Tensor
    inputs: torch.Tensor

    def replaced(self, kind: str, rows: torch.Tensor) -> Change:
        """These rows, shape (wrong rows, inputs), in place of the wrong ones."""
        numbers = self.numbers
        return with_tensor(kind, lambda weight: weight.double().index_copy(0, numbers, rows))


def _rows(place: Place) -> _Rows | None:
    """None where the map's own values are not shown as they come out of it."""
    architecture = place.replica.architecture
    bent = place.kind == "logits" and (architecture.logit_softcap is not None or architecture.logit_multiplier != 1)
    weight = place.replica.weights[Part(place.kind, place.layer)].double()
    if not place.direct or bent or weight.dim() != 2:
        return None
    numbers = touched(place.wrong.channel_ratios).nonzero()[:, 0]
    bias = place.replica.weights.get(Part(place.kind, place.layer, "bias"), torch.zeros(len(weight))).double()
    return _Rows(
        numbers=numbers,
        weight=weight,
        bias=bias,
        found=place.values[:, numbers] - bias[numbers],
        expected=place.expected[:, numbers] - bias[numbers],
        inputs=place.inputs[0][place.rows],
    )


def row_order(place: Place) -> Iterator[Candidate]:
    """Each wrong row one of the right ones, of this map or of one that is kept in the same tensor."""
    rows = _rows(place)
    if rows is None or not len(rows.numbers):
        return
    known = place.replica.weights
    parts = [Part(kind, place.layer) for kind in SIBLINGS.get(place.kind, (place.kind,))]
    weights = [known[part].double() for part in parts if part in known]
    count = sum(map(len, weights))
    if len(rows.numbers) * count > PAIRS:
        return
    given = torch.cat([rows.inputs @ weight.T for weight in weights], -1)
    apart = given.square().sum(0) - 2 * rows.found.T @ given
    nearest = apart.argmin(-1)
    order = torch.arange(len(rows.weight)).index_copy(0, rows.numbers, nearest)
    head = place.replica.architecture.layers[place.layer].attention.channels if place.kind in ("q", "k", "v") else None
    change = rows.replaced(place.kind, torch.cat(weights)[nearest])
    for cause, found in _order_named(order, head):
        yield Candidate(cause, change, "order of the rows", found)


def _order_named(order: torch.Tensor, head: int | None) -> Iterator[tuple[str, str]]:
    """What rows in this order are called; numbers beyond their count are rows of other maps."""
    count = len(order)
    elsewhere = int((order != torch.arange(count)).sum())
    if int(order.max()) >= count:
        yield "shard_order", f"{elsewhere} rows are of other maps"
        return
    if len(set(order.tolist())) < count:
        yield from _shards_named(order)
        yield "weight_rows_wrong", f"{elsewhere} rows are those of other places, some of them twice"
        return
    if head is not None:
        if (blocks := _blocks(order, count // head)) is not None:
            yield "weight_heads_permuted", f"heads {listed(blocks)}"
        within = order.view(-1, head) % head
        halves = torch.arange(head).view(2, -1).T.flatten()
        if bool((within == within[0]).all()) and bool((order // head == torch.arange(count) // head).all()):
            if within[0].equal(halves) or within[0].equal(halves.argsort()):
                yield "weight_rows_permuted", "halves of each head interleaved, or the other way round"
            else:
                yield "weight_rows_permuted", f"in each head {listed(within[0].tolist())}"
    yield from _shards_named(order)
    moved = (order != torch.arange(count)).nonzero()[:, 0]
    yield "weight_rows_permuted", f"rows {listed(moved.tolist())} are {listed(order[moved].tolist())}"


def _shards_named(order: torch.Tensor) -> Iterator[tuple[str, str]]:
    for shards in SHARDS:
        if len(order) % shards == 0 and (blocks := _blocks(order, shards)) is not None:
            yield "shard_order", f"{shards} shards in the order {listed(blocks)}"


def _blocks(order: torch.Tensor, count: int) -> Sequence[int] | None:
    """The order of blocks of rows, where rows keep theirs within them."""
    if len(order) % count:
        return None
    blocks = order.view(count, -1)
    whole = bool((blocks - blocks[:, :1] == torch.arange(blocks.shape[1])).all())
    starts = blocks[:, 0]
    if not whole or bool((starts % blocks.shape[1]).any()):
        return None
    found: list[int] = (starts // blocks.shape[1]).tolist()
    return found


def input_order(place: Place) -> Iterator[Candidate]:
    """The inputs' heads or shards in another order than the weight's columns: which block of columns meets which block
    of inputs follows by least squares over all pairs."""
    rows = _rows(place)
    if rows is None:
        return
    inputs = rows.weight.shape[1]
    heads = place.replica.architecture.layers[place.layer].attention.heads if place.kind == "o" else None
    for count in dict.fromkeys((*(() if heads is None else (heads,)), *SHARDS)):
        if inputs % count:
            continue
        fed, columns = rows.inputs.view(-1, count, inputs // count), rows.weight.view(-1, count, inputs // count)
        given = torch.einsum("tai,obi->abto", fed, columns).flatten(2).flatten(0, 1)
        target = (place.values - rows.bias).flatten()
        shares = torch.linalg.lstsq(given @ given.T, (given @ target)[:, None]).solution.view(count, count)
        order = shares.argmax(-1)
        if order.equal(torch.arange(count)):
            continue
        change = _columns(place.kind, order)
        cause = "weight_heads_permuted" if count == heads else "shard_order"
        yield Candidate(cause, change, "order of the inputs", listed(order.tolist()))


def _columns(kind: str, order: torch.Tensor) -> Change:
    def edit(weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(len(weight), len(order), -1)[:, order].reshape(weight.shape)

    return with_tensor(kind, edit)


def row_scales(place: Place) -> Iterator[Candidate]:
    """Each wrong row times a factor of its own; 0 is a row that is missing."""
    rows = _rows(place)
    if rows is None:
        return
    factors = (rows.found * rows.expected).sum(0) / rows.expected.square().sum(0)
    wrong = rows.weight[rows.numbers]
    named = f"rows {listed(rows.numbers.tolist())} times {listed([round(f, 3) for f in factors.tolist()])}"
    cause = "weight_rows_wrong" if float(factors.abs().max()) < 1e-2 else "weight_scale"
    yield Candidate(cause, rows.replaced(place.kind, wrong * factors[:, None]), "factor", named, 1.0)


def block_scales(place: Place) -> Iterator[Candidate]:
    """Each block of inputs of each wrong row times a factor of its own."""
    rows = _rows(place)
    if rows is None:
        return
    for block in (own for own in BLOCKS if rows.weight.shape[1] % own == 0 and rows.weight.shape[1] > own):
        count = rows.weight.shape[1] // block
        if 2 * count > len(rows.inputs):
            continue
        wrong = rows.weight[rows.numbers].view(len(rows.numbers), count, block)
        given = torch.einsum("tbi,rbi->rtb", rows.inputs.view(-1, count, block), wrong)
        factors = torch.linalg.lstsq(given, rows.found.T[..., None]).solution
        change = rows.replaced(place.kind, (wrong * factors).flatten(1))
        touched = sorted({round(own, 3) for own in factors.flatten().tolist() if abs(own - 1) > 1e-2})
        named = f"blocks of {block} inputs times {listed(touched)}"
        yield Candidate("weight_scale", change, "factor", named, 1.0)


def zero_points(place: Place) -> Iterator[Candidate]:
    """A constant added to the words of each wrong row, or of each block of its inputs."""
    rows = _rows(place)
    if rows is None:
        return
    inputs = rows.weight.shape[1]
    for block in (inputs, *(own for own in BLOCKS if inputs % own == 0 and inputs > own)):
        sums = rows.inputs.view(-1, inputs // block, block).sum(-1)
        if 2 * sums.shape[1] > len(sums):
            continue
        added = torch.linalg.lstsq(sums, rows.found - rows.expected).solution.T
        change = rows.replaced(place.kind, rows.weight[rows.numbers] + added.repeat_interleave(block, -1))
        yield Candidate("weight_zero_point", change, "added to the words", listed([round(float(added.mean()), 5)]), 0.0)


def words_wrong(place: Place) -> Iterator[Candidate]:
    """A few wrong words in each wrong row: the inputs that what is left over follows, one by one."""
    rows = _rows(place)
    if rows is None or not len(rows.numbers):
        return
    left = rows.found - rows.expected
    chosen = torch.zeros(len(rows.numbers), 0, dtype=torch.int64)
    sizes = rows.inputs.square().sum(0).sqrt().clamp(min=1e-30)
    given = torch.zeros(0)
    added = torch.zeros(len(rows.numbers), 0, 1, dtype=torch.float64)
    for _ in range(min(WORDS, len(rows.inputs) // 2)):
        best = (left.T @ (rows.inputs / sizes)).abs().argmax(-1)
        chosen = torch.cat((chosen, best[:, None]), -1)
        given = rows.inputs.T[chosen].transpose(1, 2)
        added = torch.linalg.lstsq(given, (rows.found - rows.expected).T[..., None]).solution
        left = (rows.found - rows.expected) - (given @ added)[..., 0].T
        words = torch.zeros_like(rows.weight[rows.numbers]).scatter_add(1, chosen, added[..., 0])
        change = rows.replaced(place.kind, rows.weight[rows.numbers] + words)
        named = f"{chosen.shape[1]} words of rows {listed(rows.numbers.tolist())}"
        yield Candidate("weight_rows_wrong", change, "rows", named)


def rows_wrong(place: Place) -> Iterator[Candidate]:
    """Wrong rows of any words, where there are tokens enough to tell them and to check."""
    rows = _rows(place)
    if rows is None or len(rows.inputs) <= rows.weight.shape[1]:
        return
    words = torch.linalg.lstsq(rows.inputs, rows.found).solution.T
    change = rows.replaced(place.kind, words)
    yield Candidate("weight_rows_wrong", change, "rows", f"rows {listed(rows.numbers.tolist())}")


HYPOTHESES = (
    Hypothesis(LINEAR, "structure", row_order, same_for_all=True),
    Hypothesis(LINEAR, "structure", input_order, same_for_all=True),
    Hypothesis(LINEAR, "structure", row_scales, same_for_all=True),
    Hypothesis(LINEAR, "structure", zero_points, same_for_all=True),
    Hypothesis(LINEAR, "free", words_wrong, same_for_all=True),
    Hypothesis(LINEAR, "free", block_scales, same_for_all=True),
    Hypothesis(LINEAR, "free", rows_wrong, same_for_all=True),
)
"""What can be wrong with the rows of a weight."""

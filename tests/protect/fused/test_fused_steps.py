"""Kernels of a decoder's steps: the same values and the same checks as torch's own operations, on a GPU."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from aftershock.detect import LinearChecksum, linear_checksum, rounding_of
from aftershock.numerics import generator
from aftershock.protect.fused import plain_steps
from aftershock.protect.fused.decoder_block import steps_on
from aftershock.protect.fused.row_parts import (
    SLOTS,
    UNSEEN,
    Bound,
    GateChecks,
    Kept,
    Made,
    NormChecks,
    Predicted,
    Summed,
    bound,
)

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DTYPES = (torch.bfloat16, torch.float16)
HIDDEN, HEADS, KEY_HEADS, HEAD = 96, 6, 2, 16


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    values = generator(seed, 0, "values of steps").standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values).to(DEVICE, dtype)


def fresh() -> Bound:
    return Bound(torch.full((SLOTS,), UNSEEN, device=DEVICE), 1e-3, 1e-2, 1e-3, 1e-4, 1e3, 0.0, 0.5)


def renewed(checks: NormChecks) -> NormChecks:
    """The same checks, keeping what they find elsewhere."""
    delta = None if checks.delta is None else replace(checks.delta, bound=fresh())
    earlier = checks.earlier and Summed(replace(checks.earlier.predicted, bound=fresh()), checks.earlier.sums)
    return replace(checks, delta=delta, earlier=earlier)


def strains(checked: Made | Predicted | Summed) -> torch.Tensor:
    return (checked.predicted if isinstance(checked, Summed) else checked).bound.strains


def parts(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.sum(1)


def close(first: torch.Tensor, second: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal but for few last places of numbers of the size that goes in: sums may be smaller."""
    torch.testing.assert_close(first, second, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [(2, 3), (1, 1), (3, 700)], ids=str)
def test_norms_agree(rows: Sequence[int], dtype: torch.dtype):
    residual, delta = (drawn(*rows, HIDDEN, dtype=dtype, seed=seed) for seed in (0, 1))
    weight, inputs = drawn(HIDDEN, dtype=dtype, seed=2), drawn(*rows, 80, dtype=dtype, seed=3)
    count = rows[0] * rows[1]
    checksum, own = (drawn(size, dtype=torch.float32, seed=4) for size in (HIDDEN, 80))
    predicted, sums = (drawn(count, many, 2, dtype=torch.float32, seed=many).abs() for many in (3, 5))
    earlier = Summed(Predicted(fresh(), predicted), sums)
    for checks in (
        NormChecks(),
        NormChecks(Made(fresh(), inputs, own), None, checksum),
        NormChecks(Predicted(fresh(), predicted), earlier, checksum),
        NormChecks(Made(fresh(), inputs, own), earlier),
    ):
        expected, found = renewed(checks), renewed(checks)
        first = plain_steps.add_norm(residual, delta, weight, 1e-5, expected)
        second = steps_on(DEVICE).add_norm(residual, delta, weight, 1e-5, found)
        assert torch.equal(first[0], second[0])
        close(second[1], first[1], dtype)
        if checks.next is not None:
            torch.testing.assert_close(parts(second[2]), parts(first[2]), rtol=0.02, atol=0.1)
        for one, other in ((expected.delta, found.delta), (expected.earlier, found.earlier)):
            if one is not None and other is not None:
                torch.testing.assert_close(strains(other), strains(one), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_agree(dtype: torch.dtype):
    both = drawn(2, 3, 10_000, dtype=dtype, seed=0)
    checks = GateChecks(True, drawn(5000, dtype=torch.float32, seed=1))
    first = plain_steps.gate(*both.chunk(2, -1), checks)
    second = steps_on(DEVICE).gate(*both.chunk(2, -1), checks)
    close(second[0], first[0], dtype)
    torch.testing.assert_close(parts(second[1]), parts(first[1]), rtol=0.02, atol=0.5)
    torch.testing.assert_close(parts(second[2]), parts(first[2]), rtol=1e-4, atol=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cached", [True, False])
def test_rotations_agree(cached: bool, dtype: torch.dtype):
    made = drawn(2, 3, (HEADS + 2 * KEY_HEADS) * HEAD, dtype=dtype, seed=0)
    sizes = [HEADS * HEAD, KEY_HEADS * HEAD, KEY_HEADS * HEAD]
    turns = torch.linspace(0, 7, 3 * HEAD // 2, device=DEVICE).view(1, 3, HEAD // 2).repeat(1, 1, 2)
    angles = (turns.cos().to(dtype), turns.sin().to(dtype))
    found = []
    for steps in (plain_steps, steps_on(DEVICE)):
        room = torch.zeros(2, 2, KEY_HEADS, 9, HEAD, dtype=dtype, device=DEVICE)
        kept = Kept(room[0], room[1], torch.tensor(4, device=DEVICE)) if cached else None
        queries, keys, values = made.split(sizes, -1)
        found.append(steps.rotate(queries, keys, values, angles, HEAD, kept, True))
    for first, second in zip(*[one[:2] for one in found], strict=True):
        # A compiler may leave out that products are rounded before they are added.
        close(second, first, dtype)
    assert torch.equal(found[0][2], found[1][2])
    torch.testing.assert_close(parts(found[1][3]), parts(found[0][3]), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_are_checked(dtype: torch.dtype):
    inputs, weight = drawn(5, HIDDEN, dtype=dtype, seed=0), drawn(20_000, HIDDEN, dtype=dtype, seed=1)
    checksum = linear_checksum(weight)
    outputs = torch.nn.functional.linear(inputs, weight)
    for wrong in (False, True):
        own = bound(checksum, rounding_of(dtype, "cuda"))
        if wrong:
            outputs[3, 7] = 30_000.0
        steps_on(DEVICE).check_outputs(outputs, Predicted(own, prediction(inputs, checksum)))
        assert (own.strains > 1).nonzero().flatten().tolist() == ([3] if wrong else [])


def prediction(inputs: torch.Tensor, checksum: LinearChecksum) -> torch.Tensor:
    wide = inputs.float()
    return torch.stack([wide @ checksum.sums, wide.square().sum(-1)], -1).unsqueeze(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_that_cancel_are_seen(dtype: torch.dtype):
    inputs, weight = drawn(5, HIDDEN, dtype=dtype, seed=0), drawn(128, HIDDEN, dtype=dtype, seed=1)
    checksum, rounding = linear_checksum(weight), rounding_of(dtype, "cuda")
    outputs = torch.nn.functional.linear(inputs, weight)
    outputs[3, 7:9] = torch.tensor([30_000.0, -30_000.0])
    wide = outputs.float()
    sums = torch.stack([wide.sum(-1), wide.square().sum(-1)], -1).unsqueeze(1)
    bounds = [bound(checksum, rounding) for _ in range(4)]
    made = Made(bounds[0], inputs, checksum.sums)
    predicted = [Predicted(own, prediction(inputs, checksum)) for own in bounds[1:]]
    steps, ones = steps_on(DEVICE), torch.ones_like(outputs[0])
    steps.add_norm(outputs, outputs, ones, 1e-5, NormChecks(made))
    steps.add_norm(outputs, outputs, ones, 1e-5, NormChecks(predicted[0], Summed(predicted[1], sums)))
    steps.check_outputs(outputs, predicted[2])
    for own in bounds:
        assert own.strains[3] == torch.inf
        assert (own.strains > 1).sum() == 1

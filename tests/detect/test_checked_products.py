"""Checks of products: never an alarm on clean rows, always one on errors above the threshold."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import DEVICES, DTYPES, SHAPES, hard_operands, normal

from aftershock.detect import (
    RowCheck,
    check_both_sides,
    check_columns,
    check_product,
    check_rows,
    linear_checksum,
    rounding_of,
    tolerance,
)
from aftershock.errors import InputError
from aftershock.numerics import generator, words

linear = torch.nn.functional.linear


def strain(check: RowCheck) -> float:
    return float((check.deviation.abs() / check.threshold).max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clean_rows_never_alarm(shape, dtype, device):
    for rows in (1, 3, 32):
        for name, values, weight, bias in hard_operands(*shape, rows):
            inputs, weight, bias = (one.to(device, dtype) for one in (values, weight, bias))
            outputs = linear(inputs, weight, bias)
            check = check_rows(inputs, outputs, linear_checksum(weight, bias), rounding_of(dtype, device))
            assert outputs.isfinite().all()
            assert not check.wrong.any(), (name, rows, strain(check))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_thresholds_are_within_ten_times_the_largest_clean_deviation(shape, dtype, device):
    random = generator(0, 0, "ordinary rows")
    inputs = normal(random, 512, shape[0]).to(device, dtype)
    weight = (normal(random, shape[1], shape[0]) * 0.02).to(device, dtype)
    check = check_rows(inputs, linear(inputs, weight), linear_checksum(weight), rounding_of(dtype, device))
    assert 0.1 < strain(check) < 0.7


@settings(max_examples=60)
@given(
    st.sampled_from(DTYPES),
    st.integers(1, 9),
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(-12, 2),
    st.integers(0, 2**32),
)
def test_clean_rows_of_any_shape_and_scale_never_alarm(dtype, rows, inputs, outputs, scale, seed):
    random = generator(seed, 0, "operands")
    left = (normal(random, rows, inputs) * 10**scale + random.normal()).to(dtype)
    weight, bias = (normal(random, outputs, inputs) + random.normal()).to(dtype), normal(random, outputs).to(dtype)
    check = check_rows(left, linear(left, weight, bias), linear_checksum(weight, bias), rounding_of(dtype, "cpu"))
    assert not check.wrong.any()
    product = check_both_sides(left, weight.T, left @ weight.T, rounding_of(dtype, "cpu"))
    assert not product.rows.wrong.any()
    assert not product.columns.wrong.any()


@given(st.sampled_from(DTYPES), st.integers(0, 4), st.integers(0, 79), st.sampled_from([-1, 1]), st.integers(0, 99))
def test_errors_beyond_twice_the_threshold_are_always_seen(dtype, row, column, sign, seed):
    random = generator(seed, 0, "operands")
    inputs, weight = normal(random, 5, 64).to(dtype), normal(random, 80, 64).to(dtype)
    outputs, checksum, rounding = linear(inputs, weight), linear_checksum(weight), rounding_of(dtype, "cpu")
    clean = check_rows(inputs, outputs, checksum, rounding)
    outputs[row, column] += sign * 2.2 * clean.threshold[row].to(dtype)
    found = check_rows(inputs, outputs, checksum, rounding)
    assert found.wrong.tolist() == [one == row for one in range(5)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_wrong(value):
    inputs, weight = torch.ones(3, 8), torch.eye(8)
    outputs = linear(inputs, weight)
    outputs[1, 2] = value
    rounding = rounding_of(torch.float32, "cpu")
    assert check_rows(inputs, outputs, linear_checksum(weight), rounding).wrong.tolist() == [False, True, False]
    assert check_product(inputs, weight, outputs, rounding).wrong.tolist() == [False, True, False]


@pytest.mark.parametrize("other", [-1.00e9, -1.01e9])
def test_large_errors_that_cancel_are_seen_by_their_size(other):
    random = generator(0, 0, "two errors")
    inputs, weight = normal(random, 4, 64).bfloat16(), normal(random, 96, 64).bfloat16()
    outputs, checksum, rounding = linear(inputs, weight), linear_checksum(weight), rounding_of(torch.bfloat16, "cpu")
    outputs[1, 5], outputs[1, 70] = 1.00e9, other
    assert check_rows(inputs, outputs, checksum, rounding).wrong.tolist() == [False, True, False, False]
    assert check_product(inputs, weight.T, outputs, rounding).wrong.tolist() == [False, True, False, False]


def test_errors_that_cancel_do_not_widen_their_own_threshold():
    random = generator(0, 0, "two errors")
    inputs, weight = normal(random, 4, 64).bfloat16(), normal(random, 96, 64).bfloat16()
    outputs, checksum, rounding = linear(inputs, weight), linear_checksum(weight), rounding_of(torch.bfloat16, "cpu")
    thresholds = []
    for size in (8192.0, 65536.0):
        # Small enough to be added up without a loss: the sum is the clean one.
        outputs[1, 5], outputs[1, 70] = size, -size
        for found in (
            check_rows(inputs, outputs, checksum, rounding),
            check_product(inputs, weight.T, outputs, rounding),
        ):
            assert found.wrong.tolist() == [False, True, False, False]
            assert (found.deviation.abs() < found.threshold).all()
            thresholds.append(float(found.threshold[1]))
    assert thresholds[:2] == thresholds[2:]


def test_inputs_too_small_to_be_squared_are_clean():
    random = generator(0, 0, "small rows")
    inputs, weight = normal(random, 4, 64) * 1e-25, normal(random, 96, 64) * 1e5
    outputs, rounding = linear(inputs, weight), rounding_of(torch.float32, "cpu")
    assert outputs.any()
    assert not check_rows(inputs, outputs, linear_checksum(weight), rounding).wrong.any()


def test_sums_that_tensor_cores_cut_off_are_clean():
    random = generator(0, 0, "sums of one sign")
    inputs, weight = normal(random, 2, 4096).abs(), normal(random, 1024, 4096).abs()
    # A share of each sum is lost for each of its addends.
    outputs = linear(inputs, weight) * (1 - 2.0**-27 * 4096)
    for device, wrong in (("cuda", False), ("cpu", True)):
        rounding = rounding_of(torch.bfloat16, device).unstored
        assert check_rows(inputs, outputs, linear_checksum(weight), rounding).wrong.tolist() == [wrong, wrong]


def test_a_bias_adds_to_the_floor_what_sums_that_begin_at_it_lose():
    random = generator(0, 0, "a bias")
    weight, bias = normal(random, 24, 16), normal(random, 24)
    rounding = rounding_of(torch.bfloat16, "cuda")
    plain, biased = (tolerance(linear_checksum(weight, one), rounding) for one in (None, bias))
    deviations = rounding.sigmas / 3**0.5
    lost = deviations * rounding.accumulation * 16**0.5 * bias.norm() + plain.expected * bias.sum().abs()
    torch.testing.assert_close(biased.floor - plain.floor, lost, rtol=1e-4, atol=0)
    assert float(biased.offset) == pytest.approx(float(bias.norm()))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_outputs_are_stored_within_their_unit_roundoff(dtype):
    unit = rounding_of(dtype, "cpu").output
    below, above = (1 + torch.tensor([0.99, 1.01]) * unit).to(dtype).tolist()
    assert below == 1
    assert above > 1


def test_an_output_too_large_to_be_squared_is_wrong():
    inputs, weight = torch.ones(2, 8, dtype=torch.bfloat16), torch.eye(8, dtype=torch.bfloat16)
    outputs = linear(inputs, weight)
    words(outputs)[0, 3] ^= 1 << 14
    assert float(outputs[0, 3].abs()) > 1e38
    check = check_rows(inputs, outputs, linear_checksum(weight), rounding_of(torch.bfloat16, "cpu"))
    assert check.wrong.tolist() == [True, False]


def test_a_weight_that_changed_after_its_checksum_is_seen():
    random = generator(0, 0, "a weight")
    inputs, weight = normal(random, 6, 64).bfloat16(), normal(random, 32, 64).bfloat16()
    checksum, rounding = linear_checksum(weight), rounding_of(torch.bfloat16, "cpu")
    weight[3, 5] += 100
    check = check_rows(inputs, linear(inputs, weight), checksum, rounding)
    assert check.wrong.all()
    of_operands = check_product(inputs, weight.T, linear(inputs, weight), rounding)
    assert not of_operands.wrong.any()  # whose checksum is made of the damaged weight


def test_checksums_are_sums_of_stored_words():
    weight = torch.tensor([[1.0, -2.0], [0.5, 4.0], [8.0, 0.25]], dtype=torch.float16)
    checksum = linear_checksum(weight, torch.tensor([1.0, 2.0, 4.0], dtype=torch.float16))
    assert checksum.sums.tolist() == [9.5, 2.25]
    assert float(checksum.bias_sum) == 7.0
    assert float(checksum.norm) == pytest.approx(float(weight.float().norm()))
    assert float(checksum.sums_norm) == pytest.approx((9.5**2 + 2.25**2) ** 0.5)
    assert checksum.outputs == 3
    assert checksum.signs is None


def test_the_threshold_is_that_of_the_tolerance():
    random = generator(0, 0, "rows")
    inputs, weight = normal(random, 2, 3, 16).half(), normal(random, 24, 16).half()
    outputs, checksum, rounding = linear(inputs, weight), linear_checksum(weight), rounding_of(torch.float16, "cpu")
    check, allowed = check_rows(inputs, outputs, checksum, rounding), tolerance(checksum, rounding)
    assert (allowed.norm, allowed.offset) == (checksum.norm, checksum.bias_norm)
    assert check.deviation.shape == check.threshold.shape == check.wrong.shape == (2, 3)
    expected = inputs.float() @ checksum.sums
    threshold = allowed.inputs * inputs.float().norm(dim=-1) + allowed.outputs * outputs.float().norm(dim=-1)
    torch.testing.assert_close(check.threshold, threshold + allowed.expected * expected.abs() + allowed.floor)
    torch.testing.assert_close(check.deviation, expected - outputs.float().sum(-1), rtol=0, atol=1e-4)


def test_rows_that_are_alike_are_added_up_with_signs():
    random = generator(0, 0, "tokens that were never trained")
    inputs, common = normal(random, 200, 64), normal(random, 1, 64)
    weight = (common + normal(random, 5000, 64) * 1e-3).bfloat16()
    rows = inputs.bfloat16()
    outputs, rounding = linear(rows, weight), rounding_of(torch.bfloat16, "cpu")
    checksum = linear_checksum(weight)
    assert checksum.signs is not None
    assert checksum.signs.abs().unique().tolist() == [1]
    assert not check_rows(rows, outputs, checksum, rounding).wrong.any()
    # Added up as they are they err together, far more than rows of independent ones would.
    plain = replace(checksum, signs=None, sums=weight.double().sum(0).float())
    assert check_rows(rows, outputs, plain, rounding).wrong.any()


def test_rows_of_zeros_are_not_alike():
    weight = normal(generator(0, 0, "padding"), 200, 64)
    weight[100:] = 0
    assert linear_checksum(weight).signs is None


def test_errors_are_seen_through_signs_too():
    random = generator(0, 0, "alike")
    weight = (torch.ones(100, 64) + normal(random, 100, 64) * 1e-3).bfloat16()
    inputs, checksum = normal(random, 4, 64).bfloat16(), linear_checksum(weight)
    outputs = linear(inputs, weight)
    for column in (0, 1, 2, 50):
        broken = outputs.clone()
        words(broken)[2, column] ^= 1 << 14
        found = check_rows(inputs, broken, checksum, rounding_of(torch.bfloat16, "cpu"))
        assert found.wrong.tolist() == [False, False, True, False]


def test_checks_trace_into_one_graph_and_run_in_inference_mode():
    random = generator(0, 0, "a graph")
    inputs, weight = normal(random, 4, 16).bfloat16(), normal(random, 24, 16).bfloat16()
    checksum, rounding = linear_checksum(weight), rounding_of(torch.bfloat16, "cpu")

    def wrong(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = linear(inputs, weight)
        rows = check_rows(inputs, outputs, checksum, rounding).wrong
        return rows, check_product(inputs, weight.T, outputs, rounding).wrong

    traced = torch.compile(wrong, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for rows in (*wrong(inputs), *traced(inputs)):
            assert rows.tolist() == [False] * 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_sides_say_where_a_wrong_element_of_a_product_is(dtype):
    random = generator(0, 0, "attention")
    left, right = normal(random, 2, 3, 20, 16).to(dtype), normal(random, 2, 3, 16, 24).to(dtype)
    product, rounding = left @ right, rounding_of(dtype, "cpu")
    assert not check_both_sides(left, right, product, rounding).wrong.any()
    product[1, 2, 7, 11] += 8
    found = check_both_sides(left, right, product, rounding)
    assert found.wrong.nonzero().tolist() == [[1, 2, 7, 11]]
    assert check_columns(left, right, product, rounding).deviation.shape == (2, 3, 24)
    torch.testing.assert_close(found.rows.deviation[1, 2, 7], torch.tensor(-8.0), atol=0.2, rtol=0)


def test_probabilities_times_values_are_checked_with_masked_columns():
    random = generator(0, 0, "attention")
    scores = normal(random, 4, 20, 20).masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    values, rounding = normal(random, 4, 20, 8).bfloat16(), rounding_of(torch.bfloat16, "cpu")
    probabilities = scores.softmax(-1).bfloat16()
    assert not check_product(probabilities, values, probabilities @ values, rounding).wrong.any()


def test_sums_that_are_not_stored_yet_bear_less():
    random = generator(0, 0, "accumulators")
    inputs, weight = normal(random, 256, 512).bfloat16(), normal(random, 256, 512).bfloat16()
    accumulators = linear(inputs.float(), weight.float())
    rounding = rounding_of(torch.bfloat16, "cpu")
    fused = check_rows(inputs, accumulators, linear_checksum(weight), rounding.unstored)
    stored = check_rows(inputs, accumulators.bfloat16(), linear_checksum(weight), rounding)
    assert not fused.wrong.any()
    assert not stored.wrong.any()
    assert float((stored.threshold / fused.threshold).min()) > 100


@pytest.mark.parametrize(
    ("dtype", "device", "said"),
    [
        (torch.float8_e4m3fn, "cuda", "float8_e4m3fn have no rounding threshold"),
        (torch.float64, "cpu", "float64 have no rounding threshold"),
        (torch.bfloat16, "mps", "was not calibrated"),
    ],
)
def test_kernels_without_constants_are_refused(dtype, device, said):
    with pytest.raises(InputError, match=said):
        rounding_of(dtype, device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_float32_in_fewer_bits_is_refused(device):
    before = torch.get_float32_matmul_precision()
    assert rounding_of(torch.float32, device).output == 0
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(InputError, match="have no rounding threshold"):
            rounding_of(torch.float32, device)
    finally:
        torch.set_float32_matmul_precision(before)

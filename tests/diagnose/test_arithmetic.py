"""What healthy values may deviate by, as an engine declares its arithmetic."""

from dataclasses import replace

import pytest
import torch

from aftershock.diagnose.architecture import Attention
from aftershock.diagnose.arithmetic import TRUTH, Arithmetic
from aftershock.diagnose.functions import Tokens
from aftershock.numerics import generator

ATTENTION = Attention(heads=4, kv_heads=2, channels=8, scale=8**-0.5, reads=(0, 0, 1, 1), rotation=None)
TOKENS = Tokens(torch.arange(30), torch.arange(30), lengths=(20, 10))


def made(arithmetic: Arithmetic) -> torch.Tensor:
    values = torch.from_numpy(generator(0, 0, "attention").standard_normal((30, 64)))
    q, k, v = values.to(arithmetic.dtype).split((32, 16, 16), -1)
    return arithmetic.attended(q, k, v, ATTENTION, TOKENS).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_rounding_that_is_declared_is_done(dtype: torch.dtype) -> None:
    plain = Arithmetic(dtype)
    apart = [
        float((made(own) - made(replace(TRUTH, dtype=torch.float64))).norm())
        for own in (plain, replace(plain, cache=torch.float8_e4m3fn), replace(plain, attention=torch.float8_e4m3fn))
    ]
    assert apart[0] < min(apart[1:])
    assert float((made(replace(plain, sums=torch.float16)) - made(plain)).abs().max()) < 0.02


def test_a_scale_is_shared_by_as_many_inputs_as_the_weights_format_has() -> None:
    values = torch.ones(1, 512)
    values[0, 0] = 127.0
    arithmetic = Arithmetic(torch.float32, activation_bits=8, super_blocks=frozenset({"o"}))
    small = torch.full((1, 512), 0.3)
    small[0, 0] = 127.0
    lost = {kind: int((arithmetic.fed(kind, small) == 0).sum()) for kind in ("o", "q")}
    assert lost == {"o": 255, "q": 31}
    assert torch.equal(arithmetic.fed("o", values), values)

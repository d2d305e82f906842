import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aftershock.models import ParameterSite, Rows


@st.composite
def fused_rows(draw):
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    part = draw(st.integers(0, len(lengths) - 1))
    return Rows(sum(lengths[:part]), lengths[part], sum(lengths)), draw(st.integers(1, 5))


@given(fused_rows())
def test_rows_locate_exactly_the_rows_they_contain(case):
    rows, blocks = case
    located = rows.locate(np.arange(rows.length * blocks))
    contained = np.flatnonzero(rows.contains(np.arange(rows.period * blocks)))
    assert located.tolist() == contained.tolist()


@given(fused_rows(), st.integers(0, 1), st.integers(1, 4))
def test_a_share_locates_the_values_of_its_rows_in_order(case, dim, other):
    rows, blocks = case
    stored = [other, other]
    stored[dim] = rows.period * blocks
    shape = [other, other]
    shape[dim] = rows.length * blocks
    site = ParameterSite("w", "q", 0, tuple(shape), tuple(stored), dim, rows)
    values = np.arange(stored[0] * stored[1]).reshape(stored)
    share = np.compress(rows.contains(np.arange(stored[dim])), values, axis=dim)
    assert site.locate(np.arange(site.numel)).tolist() == share.ravel().tolist()

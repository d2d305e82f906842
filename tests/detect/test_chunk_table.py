"""Where the chunks of tensors begin and end."""

from hypothesis import given
from hypothesis import strategies as st

from aftershock.detect.chunk_table import CHUNK, chunk_table


@given(st.lists(st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 40]), max_size=6))
def test_chunks_cover_each_tensor_in_order(sizes):
    rows = [
        (owner, place, min(CHUNK, size - place * CHUNK))
        for owner, size in enumerate(sizes)
        for place in range(-(-size // CHUNK))
    ]
    table = chunk_table(sizes)
    assert table.shape == (len(rows), 3)
    assert [tuple(row) for row in table.tolist()] == rows

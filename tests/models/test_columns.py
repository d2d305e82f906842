"""Keys and values in fixed columns."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aftershock.models import ColumnCache


class CopiesApart(TorchDispatchMode):
    """Refuses copies within one storage: where the two places overlap, they are right by chance."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            assert args[0].untyped_storage().data_ptr() != args[1].untyped_storage().data_ptr()
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def test_a_window_that_moves_back_keeps_its_columns() -> None:
    """The window is longer than the way it moves, so that its old and new place overlap."""
    cpu, columns = torch.device("cpu"), 100
    own = torch.arange(2.0 * 2 * 3 * columns * 4).reshape(2, 2, 3, columns, 4)
    cache = ColumnCache.of_prefixes([cpu, cpu], [(own,)], columns)
    expected = own[..., 1:, :]
    while cache.start >= columns:
        # Each call writes one column and sees so many that end with it.
        column = torch.full((1, 3, 1, 4), float(cache.start))
        for layer in (0, 1):
            seen = torch.stack([states[0] for states in cache.write(layer, column, -column)])
            assert torch.equal(seen[:, :, :-1], expected[layer])
        written = torch.stack([column[0], -column[0]]).expand(2, 2, 3, 1, 4)
        expected = torch.cat([expected, written], dim=3)[..., 1:, :]
        with CopiesApart():
            cache.step()
    for layer in (0, 1):
        seen = torch.stack([states[0] for states in cache.write(layer, column, column)])
        assert torch.equal(seen[:, :, :-1], expected[layer])

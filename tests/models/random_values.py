"""Random tensors, the same ones every time."""

import numpy as np
import torch

from aftershock.numerics import generator


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal fp32 values; a seed and a shape always give the same."""
    return torch.from_numpy(generator(seed, 0, "integers").standard_normal(shape).astype(np.float32))

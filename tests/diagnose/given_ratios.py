"""Deviations of given ratios."""

import torch

from aftershock.diagnose.points import Point
from aftershock.diagnose.replay import Deviation


def deviation(rows: torch.Tensor, channels: torch.Tensor, shown: torch.Tensor | None = None) -> Deviation:
    """A deviation with these ratios of rows and of channels, noise and size all 1; `shown` are the rows' tokens."""
    return Deviation(
        point=Point("q", 0),
        error=rows.double().square(),
        noise=torch.ones(len(rows), dtype=torch.float64),
        size=torch.ones(len(rows), dtype=torch.float64),
        channel_error=channels.double().square(),
        channel_noise=torch.ones(len(channels), dtype=torch.float64),
        channel_size=torch.ones(len(channels), dtype=torch.float64),
        least=0.0,
        rows=shown,
    )

"""What ReaLM reports to have saved (arXiv 2503.24053, DAC'25, table II), to set own figures beside."""

from dataclasses import dataclass

from aftershock.hardware.voltage import NOMINAL


@dataclass(frozen=True)
class PublishedPoint:
    """Best voltage of a component, in volts, and the energy saved against the best prior art there, as a share."""

    model: str
    component: str
    voltage: float
    saving: float

    @property
    def prior_energy(self) -> float:
        """Energy of that prior art relative to nominal voltage; inferred, (V / 0.9)^2 / (1 - saving), not printed."""
        return (self.voltage / NOMINAL) ** 2 / (1 - self.saving)


TABLE_II = (
    PublishedPoint("OPT-1.3B", "q", 0.70, 0.2868),
    PublishedPoint("OPT-1.3B", "k", 0.72, 0.2311),
    PublishedPoint("OPT-1.3B", "v", 0.65, 0.3583),
    PublishedPoint("OPT-1.3B", "qk", 0.67, 0.3354),
    PublishedPoint("OPT-1.3B", "sv", 0.75, 0.1744),
    PublishedPoint("OPT-1.3B", "o", 0.82, 0.0338),
    PublishedPoint("OPT-1.3B", "fc1", 0.75, 0.1501),
    PublishedPoint("OPT-1.3B", "fc2", 0.83, 0.0314),
    PublishedPoint("LLaMA-3-8B", "q", 0.71, 0.2426),
    PublishedPoint("LLaMA-3-8B", "k", 0.72, 0.2417),
    PublishedPoint("LLaMA-3-8B", "v", 0.70, 0.2467),
    PublishedPoint("LLaMA-3-8B", "qk", 0.73, 0.1946),
    PublishedPoint("LLaMA-3-8B", "sv", 0.66, 0.3446),
    PublishedPoint("LLaMA-3-8B", "o", 0.83, 0.0240),
    PublishedPoint("LLaMA-3-8B", "gate", 0.78, 0.1021),
    PublishedPoint("LLaMA-3-8B", "up", 0.77, 0.1656),
    PublishedPoint("LLaMA-3-8B", "down", 0.83, 0.0312),
)
"""Components in aftershock's words. OPT-1.3B on WikiText-2, LLaMA-3-8B on HellaSwag."""

"""LLMFI's seventeen takeaways, held against studies."""

from aftershock.study.takeaways.check import takeaways
from aftershock.study.takeaways.records import Effect, LeftOut, Takeaway

__all__ = ["Effect", "LeftOut", "Takeaway", "takeaways"]

"""Arm faults on a live model, prove that they fired, undo them."""

from aftershock.inject.corrupt import corrupt
from aftershock.inject.injection import Injection, Struck

__all__ = ["Injection", "Struck", "corrupt"]

"""Arm faults on a live model, prove that they fired, undo them."""

from aftershock.inject.corrupt import corrupt
from aftershock.inject.injection import Injection, Struck
from aftershock.inject.rows import changes_one_channel, row_faults

__all__ = ["Injection", "Struck", "changes_one_channel", "corrupt", "row_faults"]

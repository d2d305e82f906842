"""Arm faults on a live model, prove that they fired, undo them."""

from aftershock.inject.corrupt import corrupt
from aftershock.inject.injection import Injection
from aftershock.inject.rows import changes_one_channel, row_faults
from aftershock.inject.struck import Struck, StruckSet

__all__ = ["Injection", "Struck", "StruckSet", "changes_one_channel", "corrupt", "row_faults"]

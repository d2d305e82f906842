"""The rungs of the ladder, one file each: pure functions from what was captured to what was found."""

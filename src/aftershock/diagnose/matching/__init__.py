"""Which tensor of a target holds the values of which point: by the values themselves, not by names."""

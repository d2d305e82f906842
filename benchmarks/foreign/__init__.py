"""Trials by tools that aftershock is compared with; each module runs in that tool's own environment."""

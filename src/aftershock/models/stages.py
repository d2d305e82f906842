"""The three stages of an inference, numbered so that they can be ordered and cut.

Pass 0 is `prefill` (every prompt token but the last), pass 1 is `first_token` (the last prompt token, whose
logits give the first answer token), pass n + 1 is `decode` n (n >= 1, the pass that consumes answer token n).
"""

PREFILL = 0
FIRST_TOKEN = 1


def decode(step: int) -> int:
    """Number of the pass that consumes answer token `step` (counted from 1)."""
    return FIRST_TOKEN + step


def stage_of(number: int) -> str:
    """Stage name of a pass number: `prefill`, `first_token` or `decode`."""
    return ("prefill", "first_token", "decode")[min(number, 2)]

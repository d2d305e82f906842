"""The mark of tests that need this machine to isolate programs."""

import pytest

from aftershock.tasks.programs import isolation_gap

needs_sandbox = pytest.mark.skipif(
    isolation_gap() is not None, reason=f"this machine can't isolate programs ({isolation_gap()})"
)

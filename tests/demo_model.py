"""The demo model, for the tests that want real weights."""

import pytest

from aftershock.models import demo_models
from aftershock.models.cache import cache_folder

SPEC = f"demo:{demo_models()[0].name}"

FILE = cache_folder() / "demo" / f"{demo_models()[0].name}.gguf"

needs_demo_model = pytest.mark.skipif(
    not FILE.is_file(), reason=f"{SPEC} is not in the cache: aftershock models pull {demo_models()[0].name}"
)

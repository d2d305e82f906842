"""Settings and fixtures that several rooms' tests share."""

import os
from pathlib import Path

# Read by torch and transformers when they are imported. One thread: two fight when anything else runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# And by Ray: nothing is reported, and everything stays on the loopback address.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import hypothesis
import pytest

# The same examples in every run, and no deadline: `--hypothesis-profile default` looks for new ones.
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of evaluation data: AFTERSHOCK_DATA, or `shared/data` beside the checkout."""
    named = os.environ.get("AFTERSHOCK_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"no evaluation data at {folder}: set AFTERSHOCK_DATA")
    return folder

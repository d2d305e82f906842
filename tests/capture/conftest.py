"""Capturing scripts run by path, so that their folder is where their imports begin: here too."""

import sys
from pathlib import Path

import aftershock.capture

sys.path.append(str(Path(aftershock.capture.__file__).parent / "engines"))

"""What an engine computed, token by token and module by module: the format, its reader and writer, a recorder."""

from aftershock.capture.bundle import Bundle, read_bundle, write_bundle
from aftershock.capture.hooks import Batch, Place, Watched, batches, forcing, forward, watched, watching
from aftershock.capture.manifest import (
    BUNDLE_VERSION,
    Engine,
    Logits,
    Manifest,
    Parameter,
    Record,
    Request,
    Share,
    Stored,
)
from aftershock.capture.recorder import ENGINE, record, settings_of

__all__ = [
    "BUNDLE_VERSION",
    "ENGINE",
    "Batch",
    "Bundle",
    "Engine",
    "Logits",
    "Manifest",
    "Parameter",
    "Place",
    "Record",
    "Request",
    "Share",
    "Stored",
    "Watched",
    "batches",
    "forcing",
    "forward",
    "read_bundle",
    "record",
    "settings_of",
    "watched",
    "watching",
    "write_bundle",
]

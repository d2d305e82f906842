"""What an engine computed, token by token and module by module: the format, its reader and writer, a recorder."""

from aftershock.capture.asking import CaptureRequest, Message, Prompt, read_prompts
from aftershock.capture.bundle import Bundle, read_bundle, write_bundle
from aftershock.capture.capturing import ENGINES, capture, engine_model, engine_python
from aftershock.capture.entries import Engine, Logits, Parameter, Record, Request, Share, Stored, Weight
from aftershock.capture.hooks import Batch, Place, Watched, batches, forcing, forward, watched, watching
from aftershock.capture.manifest import BUNDLE_VERSION, Manifest
from aftershock.capture.recorder import ENGINE, record, settings_of

__all__ = [
    "BUNDLE_VERSION",
    "ENGINE",
    "ENGINES",
    "Batch",
    "Bundle",
    "CaptureRequest",
    "Engine",
    "Logits",
    "Manifest",
    "Message",
    "Parameter",
    "Place",
    "Prompt",
    "Record",
    "Request",
    "Share",
    "Stored",
    "Watched",
    "Weight",
    "batches",
    "capture",
    "engine_model",
    "engine_python",
    "forcing",
    "forward",
    "read_bundle",
    "read_prompts",
    "record",
    "settings_of",
    "watched",
    "watching",
    "write_bundle",
]

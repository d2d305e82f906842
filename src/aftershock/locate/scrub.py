"""Check a resident model little by little while it serves, and put back what broke between its passes."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import torch

from aftershock.detect import Fingerprint, TensorPrint, checksums, seed_of
from aftershock.errors import InputError
from aftershock.locate.by_fingerprint import locate_in_tensor
from aftershock.locate.changes import Ambiguous, WordChanges
from aftershock.locate.gate import Gate
from aftershock.locate.live_repair import mend_in_module
from aftershock.models import live_words


@dataclass(frozen=True, eq=False)
class Corruption:
    """A tensor that a scrubber found changed: its changed words or why they can't be told, and whether they were put
    back."""

    tensor: str
    found: WordChanges | Ambiguous
    repaired: bool


OnEvent = Callable[[Corruption], None]
"""Called on the scrubber's thread with each corruption; while a tensor stays as it was found, once."""


class Scrubber:
    """Checks the tensors of a live module one by one, again and again, in a thread of its own.

    `share` is the share of the time in which it works, in (0, 1]: after work of t seconds the thread sleeps
    t (1 - share) / share. Meanwhile it uses as many threads as torch has (`torch.set_num_threads`), or the CUDA device.

    With `repair` the changed words are put back between forward passes: the passes of `module` itself wait meanwhile,
    and it waits for those that run. What can't be put back, such as a memory cell that is stuck, is left as it was.

    A context manager: starts on entry, stops on exit. What went wrong in the thread, an error of `on_event` among it,
    ends it (`running` tells) and is raised by `stop`. Raises InputError for a share out of range, for a fingerprint of
    files, and for a key that is missing or not wanted.

    Tensors are checked by their checksum (what it can't see is told in docs/fingerprints.md); what is put back is
    proved by the digest. Not waited for are passes that began before the start or don't go through `module.forward`.
    A pass must not wait for one of another thread. One scrubber at a time for a module.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        fingerprint: Fingerprint,
        on_event: OnEvent,
        share: float = 0.05,
        repair: bool = True,
        key: bytes | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise InputError(f"a share of {share} can't be scrubbed with: give one above 0 and up to 1")
        if fingerprint.kind != "module":
            raise InputError("the fingerprint is of files: take one of the live module")
        if fingerprint.keyed != (key is not None):
            raise InputError("give the key that the fingerprint was taken with, and none where it was taken without")
        self._module, self._fingerprint, self._on_event = module, fingerprint, on_event
        self._words, self._share, self._key = live_words(module), share, key
        self._repairs = repair
        self._gate = Gate()
        self._gated = ExitStack()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        # The checksum that each tensor had when it was checked last.
        self._last: dict[str, tuple[int, int]] = {}
        self.rounds = 0
        """How often all tensors have been checked."""

    @property
    def running(self) -> bool:
        """Whether tensors are being checked: from start to stop, or until something goes wrong in the thread."""
        return self._thread is not None and self._thread.is_alive() and not self._done.is_set()

    def start(self) -> "Scrubber":
        """Begin, unless it runs. Raises what went wrong before, if no `stop` did."""
        if self.running:
            return self
        self.stop()
        self._done.clear()
        self._last.clear()
        self._gated.enter_context(self._gate.around(self._module))
        self._thread = threading.Thread(target=self._run, name="scrubber", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End after the tensor at hand; words that wait for passes to end are not put back any more. Raises what went
        wrong in the thread. From `on_event` it only asks for the end, for which another `stop` can wait."""
        self._done.set()
        self._gate.wake()
        if self._thread is None or self._thread is threading.current_thread():
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "Scrubber":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with self._gated:
                while True:
                    for tensor in self._fingerprint.tensors:
                        begin = time.perf_counter()
                        self._check(tensor)
                        spent = time.perf_counter() - begin
                        if self._done.wait(spent * (1 - self._share) / self._share):
                            return
                    self.rounds += 1
        except BaseException as error:  # raised again by stop
            self._error = error

    def _check(self, tensor: TensorPrint) -> None:
        name, now = tensor.tensor.name, self._checksum(tensor)
        last, self._last[name] = self._last.get(name), now
        if now in (tensor.checksum, last):
            return
        found = locate_in_tensor(self._words, tensor, self._fingerprint.signatures[name], self._key)
        repaired = self._repairs and isinstance(found, WordChanges) and self._put_back(found)
        if repaired:
            self._last[name] = tensor.checksum
        self._on_event(Corruption(name, found, repaired))

    def _checksum(self, tensor: TensorPrint) -> tuple[int, int]:
        (found,) = checksums([self._words.tensor(tensor.tensor.name)], seed_of(self._key))
        return found

    def _put_back(self, found: WordChanges) -> bool:
        """Whether the clean words are there now; else all is as it was."""
        with self._gate.closed(self._done.is_set) as is_free:
            if not is_free:
                return False
            self._settle()
            return mend_in_module(self._module, found, self._fingerprint, self._key)

    def _settle(self) -> None:
        """Let the kernels of passes that returned come to their end."""
        for device in {parameter.device for parameter in self._module.parameters()}:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

"""Check a resident model little by little while it serves, and put back what broke between its passes."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType

import torch

from aftershock.detect import Fingerprint, TensorPrint, checksums, seed_of
from aftershock.errors import InputError
from aftershock.locate.by_fingerprint import locate_in_tensor
from aftershock.locate.changes import Ambiguous, Located, WordChanges
from aftershock.locate.repair import repair_module
from aftershock.models import live_words


@dataclass(frozen=True, eq=False)
class Corruption:
    """A tensor that a scrubber found changed: its changed words or why they can't be told, and whether they were put
    back."""

    tensor: str
    found: WordChanges | Ambiguous
    repaired: bool


OnEvent = Callable[[Corruption], None]
"""Called on the scrubber's thread with each corruption, once for each state in which a tensor is found."""


class Scrubber:
    """Checks the tensors of a live module one by one, again and again, in a thread of its own.

    `share` is the share of one core's time, and so of the memory bandwidth that one core draws, in (0, 1]: after work
    of t seconds the thread sleeps t (1 - share) / share. With `repair` the changed words are put back between forward
    passes: the passes of `module` itself wait meanwhile, and it waits for those that run.

    A context manager: starts on entry, stops on exit. What went wrong in the thread, an error of `on_event` among it,
    is raised by `stop`. Raises InputError for a share out of range, for a fingerprint of files, and for a key that is
    missing or not wanted.

    Tensors are checked by their checksum (what it can't see is told in docs/fingerprints.md); what is put back is
    proved by the digest first. Passes that don't go through `module`'s own call are not waited for.
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
        self._words, self._prints, self._signatures = live_words(module), fingerprint.tensors, fingerprint.signatures
        self._module, self._on_event, self._share, self._key = module, on_event, share, key
        self._repairs = repair
        self._gate = _Gate()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._known: dict[str, tuple[int, int]] = {}
        self._hooks = ExitStack()
        self.rounds = 0
        """How often all tensors have been checked."""

    def start(self) -> "Scrubber":
        """Begin."""
        enter, leave = self._gate.enter, self._gate.leave
        before = self._module.register_forward_pre_hook(lambda *_: enter(), prepend=True)
        after = self._module.register_forward_hook(lambda *_: leave(), always_call=True)
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        self._done.clear()
        self._thread = threading.Thread(target=self._run, name="scrubber", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End after the tensor at hand. Raises what went wrong in the thread."""
        if self._thread is None:
            return
        self._done.set()
        self._thread.join()
        self._thread = None
        self._hooks.close()
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
            while True:
                for tensor in self._prints:
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
        if now in (tensor.checksum, self._known.get(name)):
            return
        found = locate_in_tensor(self._words, tensor, self._signatures[name], self._key)
        repaired = False
        if self._repairs and isinstance(found, WordChanges):
            with self._gate.closed():
                self._settle()
                repair_module(self._module, Located((found,), ()))
                repaired = self._checksum(tensor) == tensor.checksum
        if not repaired:
            self._known[name] = now
        self._on_event(Corruption(name, found, repaired))

    def _checksum(self, tensor: TensorPrint) -> tuple[int, int]:
        (found,) = checksums([self._words.tensor(tensor.tensor.name)], seed_of(self._key))
        return found

    def _settle(self) -> None:
        """Let the kernels of passes that returned come to their end."""
        for device in {parameter.device for parameter in self._module.parameters()}:
            if device.type == "cuda":
                torch.cuda.synchronize(device)


class _Gate:
    """Many passes at a time, or one repair."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passes: Counter[int] = Counter()
        self._is_closed = False

    def enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._passes[threading.get_ident()] += 1

    def leave(self) -> None:
        with self._changed:
            # A pass that began before the gate was there ends without having entered.
            self._passes -= Counter([threading.get_ident()])
            self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Wait until no pass runs, and let none begin."""
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._passes)
        try:
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()

"""Workers as processes on this machine."""

import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from aftershock.models import share_gpus
from aftershock.study.worker import Duty, Lost, Message, Orders, Task, Worker

_CONTEXT = multiprocessing.get_context("spawn")  # a forked process can't use CUDA, nor threads that were there before


@dataclass(frozen=True)
class _Employed:
    process: SpawnProcess
    connection: Connection


class Processes:
    """A team of `size` processes. Where the device is `cuda`, they share the machine's GPUs."""

    def __init__(self, orders: Orders, size: int) -> None:
        self._orders, self._size = orders, size
        self._employed: dict[int, _Employed] = {}

    def start(self) -> int:
        """The number of processes there will be."""
        return self._size

    def hire(self, place: int) -> None:
        """Start a worker, in place of the one before it."""
        if place in self._employed:
            _end(self._employed.pop(place))
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_serve, args=(theirs, self._orders, place, self._size), daemon=True)
        # Ctrl-C is for the study, which ends its workers itself: they inherit that it is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        self._employed[place] = _Employed(process, ours)

    def give(self, place: int, duty: Duty, tasks: Sequence[Task]) -> None:
        """Give work to a worker that is free. That it is gone shows when it is listened to."""
        with suppress(OSError):
            self._employed[place].connection.send((duty, tasks))

    def hear(self) -> Sequence[tuple[int, Message]]:
        """Wait until some worker says something, or is gone."""
        ready = wait([one.connection for one in self._employed.values()])
        return [(place, _said(one)) for place, one in self._employed.items() if one.connection in ready]

    def dismiss(self) -> None:
        """End all workers at once."""
        for one in self._employed.values():
            one.process.kill()
        while self._employed:
            _end(self._employed.popitem()[1])


def _said(one: _Employed) -> Message:
    try:
        message: Message = one.connection.recv()
    except (EOFError, OSError):
        one.process.join()
        return Lost(f"its process ended with {one.process.exitcode}")
    return message


def _end(one: _Employed) -> None:
    one.process.kill()
    one.process.join()
    one.connection.close()


def _serve(connection: Connection, orders: Orders, place: int, size: int) -> None:
    """A worker's life: until the other end is closed, or the process is killed."""
    if orders.settings.model.device == "cuda":
        share_gpus(place, size)
    worker = Worker(orders)
    with suppress(EOFError, OSError):
        for message in worker.load():
            connection.send(message)
        while True:
            duty, tasks = connection.recv()
            for message in worker.work(duty, tasks):
                connection.send(message)

"""Workers as actors of a Ray cluster. Needs the extra `ray`; `hiring` says so where it is not there."""

import atexit
import shutil
import socket
import tempfile
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from aftershock.errors import InputError
from aftershock.study.worker import Duty, Lost, Message, Orders, Task, Worker

LOCAL = "local"
"""The address of a cluster of this machine alone, made for one study and taken down after it."""

_ANSWER = 10.0  # seconds that the head of a cluster has to answer
_OBJECTS = 128 * 2**20  # bytes of a local cluster's object store: records are small


class RayTeam:
    """A team of actors, each with `threads` CPUs and `gpus` GPUs to itself; `workers` of them, or as many as fit."""

    def __init__(self, orders: Orders, address: str, workers: int | None, threads: int, gpus: int) -> None:
        self._orders, self._address, self._workers = orders, address, workers
        self._needs = {"CPU": threads, "GPU": gpus}
        self._actors: dict[int, ActorHandle] = {}
        self._news: dict[ray.ObjectRefGenerator, int] = {}
        self._folder: str | None = None
        self._connected = False

    def start(self) -> int:
        """Connect to the cluster (not where this process is connected already); the number of workers there will be."""
        if not ray.is_initialized():
            self._connect()
        there = ray.cluster_resources()
        fits = min(int(there.get(name, 0) // need) for name, need in self._needs.items() if need)
        if not fits:
            needs = " and ".join(f"{need} {name}" for name, need in self._needs.items() if need)
            raise InputError(
                f"the Ray cluster at {self._address} has no {needs} for even one worker: add nodes, or choose fewer "
                "threads or another device"
            )
        return self._workers or fits

    def _connect(self) -> None:
        self._connected = True
        own: dict[str, Any] = {}
        if self._address == LOCAL:
            # Paths of sockets must be short, so not where TMPDIR may say. What Ray ends only as this process ends may
            # still write there after `dismiss`.
            self._folder = tempfile.mkdtemp(prefix="aftershock-", dir="/tmp")
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
            own = {
                "include_dashboard": False,
                "object_store_memory": _OBJECTS,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": self._folder,
            }
        try:
            _require_listener(self._address)
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # Ray raises whatever comes
            problem = str(error).partition("\n")[0]
            raise InputError(
                f"no Ray cluster at {self._address} ({problem}): give HOST:PORT of its head, auto, or local for one of "
                "this machine alone, and see that no machine is too busy to answer"
            ) from error

    def hire(self, place: int) -> None:
        """Start a worker, in place of the one before it; it begins as soon as the cluster has room."""
        self._let_go(place)
        options = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs["GPU"]}
        self._actors[place] = ray.remote(Worker).options(**options).remote(self._orders)
        self._news[self._actors[place].load.options(num_returns="streaming").remote()] = place

    def give(self, place: int, duty: Duty, tasks: Sequence[Task]) -> None:
        """Give work to a worker that is free. That it is gone shows when it is listened to."""
        self._news[self._actors[place].work.options(num_returns="streaming").remote(duty, tasks)] = place

    def hear(self) -> Sequence[tuple[int, Message]]:
        """Wait until some worker says something, or is gone."""
        said: list[tuple[int, Message]] = []
        ready, _ = ray.wait(list(self._news), num_returns=1)
        for news in ready:
            try:
                said.append((self._news[news], ray.get(next(news))))
            except StopIteration:
                del self._news[news]
            except RayError as error:
                said.append((self._news.pop(news), Lost(str(error).strip().rpartition("\n")[2].strip())))
        return said

    def dismiss(self) -> None:
        """End all workers at once, and the cluster where it was made for this study."""
        for place in list(self._actors):
            self._let_go(place)
        if self._connected:
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _let_go(self, place: int) -> None:
        if place in self._actors:
            ray.kill(self._actors.pop(place))
        for news in [news for news, of in self._news.items() if of == place]:
            del self._news[news]


def _require_listener(address: str) -> None:
    """Raise OSError unless something listens at an address HOST:PORT: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()

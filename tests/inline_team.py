"""A team whose workers live in this process and speak, or are lost, in the order that a list of numbers says."""

from collections.abc import Callable, Iterator, Sequence

from aftershock.study.worker import Duty, Lost, Message, Task, Worker

LOSS = -1
"""In the script: whoever would speak next is lost."""


class Inline:
    """`script` picks who speaks next, one number each time, round and round."""

    def __init__(self, make: Callable[[], Worker], size: int, script: Sequence[int] = (0,)) -> None:
        self._make, self._size, self._script = make, size, list(script)
        self._workers: dict[int, Worker] = {}
        self._news: dict[int, Iterator[Message]] = {}
        self.given: list[tuple[int, Duty, Sequence[Task]]] = []
        self.hired: list[int] = []
        self.dismissed = False

    def start(self) -> int:
        return self._size

    def hire(self, place: int) -> None:
        self.hired.append(place)
        self._workers[place] = self._make()
        self._news[place] = self._workers[place].load()

    def give(self, place: int, duty: Duty, tasks: Sequence[Task]) -> None:
        self.given.append((place, duty, tasks))
        self._news[place] = self._workers[place].work(duty, tasks)

    def hear(self) -> Sequence[tuple[int, Message]]:
        while self._news:
            said = self._script.pop(0)
            self._script.append(said if said != LOSS else 0)
            place = sorted(self._news)[said % len(self._news)]
            if said == LOSS:
                del self._news[place]
                return [(place, Lost("its time had come"))]
            message = next(self._news[place], None)
            if message is not None:
                return [(place, message)]
            del self._news[place]
        raise AssertionError("the crew waits for workers that have nothing to say")

    def dismiss(self) -> None:
        self.dismissed = True

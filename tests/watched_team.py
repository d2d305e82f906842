"""What tests see of a real team."""

from typing import Any

from aftershock.study.worker import Free, Lost


class Watched:
    """Before a team's class: lets the work begin when all workers are there, and keeps what was said of losses."""

    waiting: set[int]
    lost: list[Lost]

    def start(self) -> int:
        team: Any = super()
        self.waiting, self.lost = set(range(team.start())), []
        return len(self.waiting)

    def hear(self) -> list[Any]:
        team: Any = super()
        said = list(team.hear())
        while self.waiting - {place for place, message in said if message == Free()}:
            said += team.hear()
        self.waiting = set()
        self.lost += [message for _, message in said if isinstance(message, Lost)]
        return said

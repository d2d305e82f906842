"""Workers as a study asks for them: on this machine, or in a Ray cluster."""

import os
from importlib.util import find_spec

from aftershock.errors import InputError
from aftershock.models import devices_of
from aftershock.study.crew import Crew
from aftershock.study.dealing import Dealt
from aftershock.study.plan import Plan, Say
from aftershock.study.processes import Processes
from aftershock.study.worker import ExecutorName, orders_of


def process_crew(plan: Plan, workers: int, executor: ExecutorName = "fast", say: Say = lambda _: None) -> Crew:
    """`workers` processes on this machine. `say` is told where they are more than its cores can carry."""
    threads, cores = plan.environment.threads, len(os.sched_getaffinity(0))
    if plan.model.device.type == "cpu" and workers * threads > cores:
        say(
            f"note: {workers} workers x {threads} threads on {cores} cores get in each other's way; results are the "
            "same, but fewer workers, or fewer threads in [run], are faster"
        )
    return Dealt(plan, Processes(orders_of(plan, executor), workers))


def ray_crew(plan: Plan, address: str, workers: int | None = None, executor: ExecutorName = "fast") -> Crew:
    """Actors of the Ray cluster at `address` (HOST:PORT, `auto`, or `local` for one of this machine alone): `workers`
    of them, or as many as the cluster has room for.

    Raises InputError where Ray is not installed.
    """
    require_ray()
    # Ray reads both when it is imported. It sends no usage statistics, and a cluster of this machine alone is not to be
    # reached from others, for which Ray has this switch.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from aftershock.study.cluster import RayTeam

    gpus = sum(device.type == "cuda" for device in devices_of(plan.settings.model.device))
    return Dealt(plan, RayTeam(orders_of(plan, executor), address, workers, plan.environment.threads, gpus))


def require_ray() -> None:
    """Raise InputError unless Ray is installed."""
    if find_spec("ray") is None:
        raise InputError("--ray needs Ray, which is not installed here: install aftershock[ray], or use --workers")

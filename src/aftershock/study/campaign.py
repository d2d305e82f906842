"""Run the studies of a campaign, and tell which of them ran."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from pathlib import Path
from threading import Thread
from typing import Literal

import torch
from pydantic import ValidationError

from aftershock.errors import ContractError, InputError
from aftershock.models import share_gpus
from aftershock.study.plan import Say, make_plan
from aftershock.study.records import Environment, Record
from aftershock.study.run import run_study
from aftershock.study.settings import StudySettings
from aftershock.study.store import FILE as STORE
from aftershock.study.store import StoredStudy, load_study
from aftershock.study.summary import Summary, summarise
from aftershock.study.takeaways import Takeaway, takeaways

FILE = "campaign.json"

_SPAWNED = get_context("spawn")  # a forked process can't use CUDA, nor threads that were there before


@dataclass(frozen=True)
class Member:
    """One study of a campaign; its records lie in the folder `name` of the campaign's."""

    name: str
    settings: StudySettings


class MemberState(Record):
    """What became of a member; `why` says it where it could not run, or where a contract failed."""

    name: str
    outcome: Literal["done", "refused", "contract failed"]
    why: str = ""


class Campaign(Record):
    """What a campaign's folder says of itself: all members in their order, and the state of those that are done."""

    members: tuple[str, ...]
    done: tuple[MemberState, ...] = ()


def run_campaign(
    members: Sequence[Member], folder: Path, *, resume: bool = False, workers: int = 1, say: Say = lambda _: None
) -> Iterator[MemberState]:
    """Run every member into its folder, `workers` at a time in processes of their own; each as it is done.

    A member that can't run (its task or model is not there, its format gives NaN without a fault, the GPU's memory does
    not suffice) says why and holds no other up, nor does one whose contract failed. Raises InputError when `folder`
    holds another campaign, or this one and `resume` is not said.
    """
    campaign = _opened(members, folder, resume)
    if workers == 1:
        finished: Iterator[MemberState] = (_state(member, folder, say) for member in members)
    else:
        finished = _at_once(members, folder, workers)
    for state in finished:
        campaign = campaign.model_copy(update={"done": (*campaign.done, state)})
        _write(folder, campaign)
        yield state


def _opened(members: Sequence[Member], folder: Path, resume: bool) -> Campaign:
    campaign = Campaign(members=tuple(member.name for member in members))
    if (folder / FILE).exists() or (folder / STORE).exists():
        if not resume:
            raise InputError(
                f"{folder} holds studies already: add --resume to go on with them, or choose another --out"
            )
        if not (folder / FILE).exists():
            raise InputError(f"{folder} holds a single study: choose another --out")
        if load_campaign(folder).members != campaign.members:
            raise InputError(
                f"{folder} holds another campaign: resume with the file that made it, or choose another --out"
            )
    _write(folder, campaign)
    return campaign


def _write(folder: Path, campaign: Campaign) -> None:
    beside = folder / f".{FILE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside.write_text(campaign.model_dump_json(indent=1), encoding="utf-8")
        beside.replace(folder / FILE)
    except OSError as error:
        raise InputError(
            f"{folder / FILE} can't be written ({error.strerror}): check the folder and its rights"
        ) from None


def _state(member: Member, folder: Path, say: Say = lambda _: None) -> MemberState:
    """Run one member, what of it is not stored yet."""
    own, threads = folder / member.name, torch.get_num_threads()
    try:
        stored = run_study(make_plan(member.settings, say), own, resume=(own / STORE).is_file())
    except InputError as error:
        return MemberState(name=member.name, outcome="refused", why=str(error))
    except ContractError as error:
        return MemberState(name=member.name, outcome="contract failed", why=str(error))
    except torch.OutOfMemoryError:
        why = "the GPU's memory does not suffice: take fewer workers or a smaller batch_items, and go on with --resume"
        return MemberState(name=member.name, outcome="refused", why=why)
    finally:
        # What this study cached on a GPU must not be in the way of others there; without one a no-op.
        torch.cuda.empty_cache()
        # A member's number of threads is its own.
        torch.set_num_threads(threads)
    wrong = sum(not agrees for agrees in stored.audits.values())
    if wrong:
        why = f"{wrong} of {len(stored.audits)} audited trials differ from the reference executor's"
        return MemberState(name=member.name, outcome="contract failed", why=why)
    return MemberState(name=member.name, outcome="done")


def _at_once(members: Sequence[Member], folder: Path, workers: int) -> Iterator[MemberState]:
    places: Queue[int] = _SPAWNED.Queue()
    for place in range(workers):
        places.put(place)
    with ProcessPoolExecutor(workers, _SPAWNED, _take_place, (places, workers)) as pool:
        futures: list[Future[MemberState]] = [pool.submit(_state, member, folder) for member in members]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BrokenProcessPool:
            raise InputError(
                "a process of the campaign was lost: see that memory suffices for so many models, take fewer workers, "
                "and go on with --resume"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _take_place(places: "Queue[int]", workers: int) -> None:
    """A worker's first deed. It ends with the process that started it, however that ended: were it to go on, a campaign
    that is resumed would have two writers in one folder."""
    share_gpus(places.get(), workers)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def is_campaign_folder(folder: Path) -> bool:
    """Whether a folder holds a campaign."""
    return (folder / FILE).is_file()


def load_campaign(folder: Path) -> Campaign:
    """The campaign in a folder. Raises InputError when there is none, or it is damaged."""
    path = folder / FILE
    try:
        return Campaign.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): give the --out folder of a campaign") from None
    except (ValidationError, UnicodeDecodeError):
        raise InputError(
            f"{path} is damaged: remove it and run the campaign again into this folder; its studies are kept"
        ) from None


class MemberSummary(Record):
    """A member's summary, and on what it ran; `packed` are the storage and arithmetic of its weights where they are not
    the dtype's own."""

    name: str
    environment: Environment
    packed: tuple[str, ...]
    summary: Summary


class CampaignSummary(Record):
    """What `--json` prints of a campaign: the members that have records, those that did not come to their end and why,
    and those that are still to run; what published takeaways are worth on all of them together."""

    studies: tuple[MemberSummary, ...]
    failed: tuple[MemberState, ...]
    missing: tuple[str, ...]
    takeaways: tuple[Takeaway, ...]


def summarise_campaign(folder: Path) -> CampaignSummary:
    """The summary of the campaign in a folder, complete or not. Raises InputError when it can't be read."""
    campaign = load_campaign(folder)
    failed = tuple(state for state in campaign.done if state.outcome != "done")
    members = load_members(folder)
    studies = tuple(_summary(name, stored) for name, stored in members)
    seen = {study.name for study in studies} | {state.name for state in failed}
    return CampaignSummary(
        studies=studies,
        failed=failed,
        missing=tuple(name for name in campaign.members if name not in seen),
        takeaways=takeaways([stored for _, stored in members]),
    )


def _summary(name: str, stored: StoredStudy) -> MemberSummary:
    model = stored.settings.model
    packed = tuple(kind for kind in (model.storage, model.arithmetic) if kind is not None)
    return MemberSummary(name=name, environment=stored.environment, packed=packed, summary=summarise(stored))


def load_members(folder: Path) -> tuple[tuple[str, StoredStudy], ...]:
    """Name and records of every member that has any, in the campaign's order."""
    names = load_campaign(folder).members
    return tuple((name, load_study(folder / name)) for name in names if (folder / name / STORE).is_file())

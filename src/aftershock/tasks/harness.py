"""Tasks of lm-evaluation-harness as items: one document, one item. Needs the extra `lm-eval`."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from importlib.metadata import version
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from aftershock.errors import InputError
from aftershock.tasks.document import Document
from aftershock.tasks.items import Item

PLACES = frozenset({"dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata"})
"""Keys of a task's configuration that say where its documents are; what those hold counts itself."""

GREEDY = frozenset({"do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks"})
"""Generation arguments that are heeded, or mean nothing where the likeliest token is always taken."""


def harness_items(spec: str, limit: int | None) -> tuple[str, tuple[Item, ...]]:
    """Name and items of a task: one that the harness knows by name, or a `.yaml` file. `limit` keeps the first
    documents.

    Documents, prompts and few-shot examples are those of the harness's `simple_evaluate` with its own seeds.

    Raises InputError for a task that is unknown, that the harness can't load, or that can't be asked here.
    """
    try:
        # Its progress bars would run through ours.
        with _seeded(), redirect_stderr(StringIO()):
            task = _task(spec)
            _check(spec, task)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
            task.build_all_requests(limit=limit)
        requests = sorted(task.instances, key=lambda request: (request.doc_id, request.idx))
        configuration = _configuration(task)
        items = tuple(
            _item(spec, task, tuple(own), configuration)
            for _, own in groupby(requests, key=lambda request: request.doc_id)
        )
        return str(task.config.task), items
    except InputError:
        raise
    except Exception as error:
        # Task files run the harness's code and their own, which may raise anything.
        first = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(
            f"lm-evaluation-harness can't make requests of task {spec!r} ({type(error).__name__}: {first}): check its "
            "file, and that its data are on this machine or can be reached"
        ) from error


@contextmanager
def _seeded() -> Iterator[None]:
    """Python's and numpy's own generators as `simple_evaluate` sets them, which some tasks shuffle options with.

    The harness takes no generator of ours, so these are lent to it and put back as they were.
    """
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


def _task(spec: str) -> Any:
    path = Path(spec).expanduser()
    is_file = path.suffix in (".yaml", ".yml")
    if is_file and not path.is_file():
        raise InputError(f"task file {spec} can't be read: check the path")
    # The harness reads thousands of files to know its own tasks by name.
    manager = TaskManager(include_defaults=not is_file)
    if not is_file and spec not in manager.task_index:
        close = get_close_matches(spec, manager.all_subtasks, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "give one of its names, or the path of a .yaml file"
        raise InputError(f"lm-evaluation-harness {version('lm_eval')} knows no task {spec!r}: {hint}")
    if spec in (*manager.all_groups, *manager.all_tags):
        raise InputError(f"lm_eval:{spec} stands for several tasks of the harness: give one of them")
    found = manager.load(str(path) if is_file else spec)
    if found["groups"]:
        raise InputError(f"{spec} stands for several tasks of the harness: give one of them")
    (task,) = found["tasks"].values()
    return task


def _check(spec: str, task: Any) -> None:
    """Raise InputError for a task whose scores don't come from the likelihood or the text of one model alone."""
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"task {spec!r} asks about images or sound: choose one of text alone")
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(f"task {spec!r} runs the programs that the model writes: choose another task")
    if "acc_mutual_info" in task.aggregation():
        raise InputError(
            f"task {spec!r} scores by mutual information, which asks every option twice: leave acc_mutual_info out of "
            "its metric_list"
        )


def _configuration(task: Any) -> str:
    """What decides a task's prompts and scores besides its documents, as JSON: the sources of functions, no places."""
    fields = {key: value for key, value in task.dump_config().items() if key not in PLACES}
    return json.dumps([version("lm_eval"), task.VERSION, fields], sort_keys=True, default=_name)


def _name(value: object) -> str:
    """What JSON has no word for, without its place in memory."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _item(spec: str, task: Any, requests: Sequence[Any], configuration: str) -> Item:
    """The item of one document's requests."""
    first, output = requests[0], task.OUTPUT_TYPE
    document = json.dumps(first.doc, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{configuration}\n{document}".encode()).hexdigest()
    name = f"{task.config.task}-{first.doc_id}"
    common: dict[str, Any] = {
        "id": name,
        "group": str(task.config.task),
        "rules": Document(name, task, tuple(requests), digest),
    }
    arguments = [request.args for request in requests]
    if output == "multiple_choice":
        if len(requests) < 2:
            raise InputError(f"document {name} of task {spec!r} has one option only: give it two or more")
        contexts, continuations = zip(*arguments, strict=True)
        return Item(
            kind="choice",
            contexts=contexts,
            continuations=continuations,
            answer=_right_option(task, first.doc),
            **common,
        )
    if len(requests) > 1 or first.request_type != output:
        kinds = ", ".join(sorted({request.request_type for request in requests}))
        raise InputError(
            f"task {spec!r} makes {len(requests)} requests ({kinds}) of one document, and only multiple_choice may "
            "make several: choose another task"
        )
    if output == "loglikelihood":
        ((context, continuation),) = arguments
        return Item(kind="cloze", contexts=(context,), continuations=(continuation,), answer=continuation, **common)
    if output == "loglikelihood_rolling":
        return Item(kind="lm", contexts=("",), continuations=arguments[0], **common)
    ((context, wanted),) = arguments
    settings = normalize_gen_kwargs(wanted)
    _check_greedy(spec, settings)
    return Item(
        kind="generation",
        contexts=(context,),
        answer=_reference(task, first.doc),
        max_new_tokens=settings["max_gen_toks"],
        stop=tuple(filter(None, handle_stop_sequences(settings["until"], eos=None))),
        **common,
    )


def _check_greedy(spec: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError for generation arguments that would take another token than the likeliest."""
    others = [key for key, value in settings.items() if key not in GREEDY and (key, value) != ("num_beams", 1)]
    if settings["do_sample"]:
        others.append("do_sample or a temperature")
    if others:
        raise InputError(
            f"task {spec!r} decodes with {', '.join(others)}, but answers here are greedy: leave that out of its "
            "generation_kwargs"
        )


def _right_option(task: Any, document: Any) -> int | None:
    """Index of the right option; None where there are several."""
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    if isinstance(right, str):
        return choices.index(right) if right in choices else None
    return right if isinstance(right, int) and 0 <= right < len(choices) else None


def _reference(task: Any, document: Any) -> str:
    """The reference answer as the harness gives it, several of them apart."""
    target = task.doc_to_target(document)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        target = task.doc_to_choice(document)[target]
    return " | ".join(map(str, target)) if isinstance(target, list) else str(target)

"""What the model is asked, and what its answers are worth."""

from aftershock.tasks.asking import Answers, Asking
from aftershock.tasks.encode import encode, windows
from aftershock.tasks.items import Answer, Item, Kind, Program, Row, RowResult, Tokenizer
from aftershock.tasks.judge import judge, matches, perplexity, rouge1
from aftershock.tasks.load import Task, absolute_spec, load_task, probe_items, text_items
from aftershock.tasks.outcomes import (
    OUTCOMES,
    Distortion,
    Outcome,
    classify,
    distortion,
    is_sdc,
    score_change,
)

__all__ = [
    "OUTCOMES",
    "Answer",
    "Answers",
    "Asking",
    "Distortion",
    "Item",
    "Kind",
    "Outcome",
    "Program",
    "Row",
    "RowResult",
    "Task",
    "Tokenizer",
    "absolute_spec",
    "classify",
    "distortion",
    "encode",
    "is_sdc",
    "judge",
    "load_task",
    "matches",
    "perplexity",
    "probe_items",
    "rouge1",
    "score_change",
    "text_items",
    "windows",
]

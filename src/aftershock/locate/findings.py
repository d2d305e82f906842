"""What was found, as one record to print."""

from collections.abc import Mapping

from pydantic import BaseModel

from aftershock.locate.by_words import Comparison
from aftershock.locate.changes import Located
from aftershock.locate.places import ChangedWord, describe


class Unclear(BaseModel):
    """A tensor that differs, but not known where: rows and columns of words among which its changed words lie."""

    tensor: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    why: str


class Findings(BaseModel):
    """Everything that was found, as it is printed.

    `words` lists the changed words, `ambiguous` the tensors whose can't be told. With a reference `differing` counts
    the differing words of each tensor, of which `words` has the first 10,000, and `missing` to `retyped` name what
    can't be compared.
    """

    clean: bool
    words: tuple[ChangedWord, ...]
    ambiguous: tuple[Unclear, ...]
    differing: Mapping[str, int] = {}
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()


def findings(located: Located, comparison: Comparison | None = None) -> Findings:
    """What was found, with what a comparison tells besides where there was one."""
    unclear = (
        Unclear(tensor=one.tensor.name, rows=one.rows, columns=one.columns, why=one.why) for one in located.ambiguous
    )
    found = Findings(
        clean=located.clean,
        words=tuple(word for changes in located.changes for word in describe(changes)),
        ambiguous=tuple(unclear),
    )
    if comparison is None:
        return found
    apart = {name: getattr(comparison, name) for name in ("differing", "missing", "extra", "reshaped", "retyped")}
    return found.model_copy(update={"clean": comparison.equal, **apart})

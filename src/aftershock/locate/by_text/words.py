"""The words behind the parameters of a model that runs: plain numbers, or packed ones."""

from aftershock.locate.by_text.packed import PackedWords
from aftershock.locate.by_text.suspects import PlainWords, WordsInUse
from aftershock.models import LoadedModel


def words_in_use(model: LoadedModel) -> dict[str, WordsInUse]:
    """The words behind every parameter, by its name: those that are in memory where the model is kept."""
    packed = frozenset(model.stored.forms if model.stored else ())
    found: dict[str, WordsInUse] = {}
    for site in model.components.parameters:
        if site.name not in found:
            found[site.name] = (PackedWords if site.name in packed else PlainWords)(model, site)
    return found

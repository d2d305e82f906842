"""Find a corruption with nothing but the corrupted model and some text.

Here are the parts for whoever runs a search by themselves; the search as a whole is in `aftershock.locate`.
"""

from aftershock.locate.by_text.packed import PackedWords
from aftershock.locate.by_text.search import Search
from aftershock.locate.by_text.suspects import PlainWords, layer_of
from aftershock.locate.by_text.text_loss import TextLoss, text_rows

__all__ = ["PackedWords", "PlainWords", "Search", "TextLoss", "layer_of", "text_rows"]

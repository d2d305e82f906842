"""A few items of every kind; with the tiny tokenizer a character is a token."""

from aftershock.tasks import Item


def choice(name: str, context: str, options: tuple[str, ...]) -> Item:
    return Item(name, "choice", "test", (context,) * len(options), options, 0)


def cloze(name: str, context: str, answer: str) -> Item:
    return Item(name, "cloze", "test", (context,), (answer,), answer)


def lm(name: str, context: str, text: str) -> Item:
    return Item(name, "lm", "test", (context,), (text,))


def generation(name: str, context: str, tokens: int, stop: tuple[str, ...] = ()) -> Item:
    return Item(name, "generation", "test", (context,), answer=None, max_new_tokens=tokens, stop=stop)


ITEMS: tuple[Item, ...] = (
    choice("letters", "Which? Answer: ", ("A", "B", "C", "D")),
    choice("words", "The sky is ", ("blue", "made of cheese")),
    choice("short", "Go", ("on", "off")),
    cloze("cloze", "one two three", " four"),
    lm("lm", "T", "he text whose loss is taken"),
    lm("other lm", "A", "nother one"),
    generation("free", "Say something", 6),
    generation("brief", "Hi", 3),
    generation("one", "A question:", 1),
    generation("long", "x", 9),
)

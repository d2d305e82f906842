"""From text to token rows."""

from aftershock.errors import InputError
from aftershock.tasks.items import Item, Row, Tokenizer


def encode(item: Item, tokenizer: Tokenizer) -> tuple[Row, ...]:
    """One row per context of the item, or the rows that its own rules make.

    The context carries the tokenizer's own special tokens and has at least one token: an empty context
    becomes BOS, or EOS where the tokenizer has no BOS. Spaces at the end of a context belong to the
    continuation, since byte-pair tokenizers join a space to the word after it. Where the tokens of the
    context are the first tokens of the whole text, the continuation is the rest of them; otherwise (a merge
    across the border) the two are tokenised apart.

    Raises InputError when a continuation has no token, or a context has none and no BOS or EOS exists.
    """
    if item.rules is not None:
        return item.rules.rows(item, tokenizer)
    if item.kind == "generation":
        return tuple(Row(_context(text, tokenizer, item), ()) for text in item.contexts)
    pairs = zip(item.contexts, item.continuations, strict=True)
    return tuple(_pair(context, continuation, tokenizer, item) for context, continuation in pairs)


def windows(text: str, tokenizer: Tokenizer, length: int = 2048) -> tuple[Row, ...]:
    """The whole text as consecutive windows of `length` tokens, the last one shorter.

    This is the usual layout for a published perplexity (WikiText-2): no special token is added and windows do
    not overlap. The first token of each window is its context, the others are predicted, so a window of n
    tokens gives n - 1 losses.
    """
    if length < 2:
        raise InputError(f"a window of {length} tokens predicts nothing: choose 2 tokens or more")
    tokens = tokenizer.encode(text, add_special_tokens=False)
    starts = range(0, len(tokens) - 1, length)
    return tuple(Row((tokens[start],), tuple(tokens[start + 1 : start + length])) for start in starts)


def _context(text: str, tokenizer: Tokenizer, item: Item) -> tuple[int, ...]:
    tokens = tokenizer.encode(text, add_special_tokens=True)
    if tokens:
        return tuple(tokens)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise InputError(
            f"item {item.id!r} has an empty context and the tokenizer has neither BOS nor EOS to start from: "
            "give the item a context"
        )
    return (start,)


def _pair(context: str, continuation: str, tokenizer: Tokenizer, item: Item) -> Row:
    stem = context.rstrip(" ")
    continuation = context[len(stem) :] + continuation
    head = _context(stem, tokenizer, item)
    whole = tuple(tokenizer.encode(stem + continuation, add_special_tokens=True))
    if stem and whole[: len(head)] == head:
        tail = whole[len(head) :]
    else:
        tail = tuple(tokenizer.encode(continuation, add_special_tokens=False))
    if not tail:
        raise InputError(f"item {item.id!r} has a continuation without tokens: give each continuation a text")
    return Row(head, tail)

"""A tokenizer for tests: one token per character, its code point; words may be merged by hand."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Letters:
    """Token ids are code points; each text in `merges` is one token, 0x110000 and upwards.

    `prefix` are the special tokens that `add_special_tokens` puts first.
    """

    merges: tuple[str, ...] = ()
    prefix: tuple[int, ...] = ()
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokens = list(self.prefix) if add_special_tokens else []
        while text:
            merge = next((merge for merge in self.merges if text.startswith(merge)), None)
            tokens.append(ord(text[0]) if merge is None else 0x110000 + self.merges.index(merge))
            text = text[1 if merge is None else len(merge) :]
        return tokens

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(i) if i < 0x110000 else self.merges[i - 0x110000] for i in token_ids)

"""What a changed word is: where it lies in the model, which of its bits changed, and what it stood for."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
from pydantic import BaseModel, ConfigDict

from aftershock.errors import InputError
from aftershock.locate.changes import WordChanges
from aftershock.models import TensorWords
from aftershock.numerics import GGUF_FORMATS, BlockFormat, NumberFormat, format_of, storage_format, worth

_ROLES: Mapping[str, str] = MappingProxyType(
    {
        r"ffn_gate_inp(_shexp)?|(mlp|block_sparse_moe)\.gate|router|shared_expert_gate": "router",
        r"experts|shared_expert|ffn_\w+_(exps|shexp)": "expert",
        r"(attn_)?[qk]_norm": "qk_norm",
        r"\w*norm\w*|ln_\w+": "norm",
        r"embed_positions|wpe|position_embd": "position",
        r"embed_tokens|embed_in|wte|token_embd": "embedding",
        r"lm_head|embed_out|output": "lm_head",
        r"qkv_proj|c_attn|query_key_value|attn_qkv": "q+k+v",
        r"q_proj|attn_q": "q",
        r"k_proj|attn_k": "k",
        r"v_proj|attn_v": "v",
        r"o_proj|out_proj|attn\.c_proj|attention\.dense|attn_output": "o",
        r"gate_up_proj": "gate+up",
        r"gate_proj|ffn_gate": "gate",
        r"up_proj|ffn_up": "up",
        r"down_proj|ffn_down": "down",
        r"fc1|c_fc|dense_h_to_4h": "fc1",
        r"fc2|mlp\.c_proj|dense_4h_to_h": "fc2",
    }
)
"""Component by a part of a tensor's name, as safetensors of transformers and GGUF files have it; the first counts."""


class ChangedWord(BaseModel):
    """One changed word.

    `row`, `column`: in the matrix of words that the tensor is read as. `element`: index in the tensor, where an element
    is one or more words; `stored`: which field of which block each flipped bit belongs to, where words are packed.
    `file`, `offset`: first byte, for files. `found`, `clean`: the word as it is and as it should be;
    `found_value`, `clean_value`: what it stands for, where it is a floating-point number.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    tensor: str
    component: str | None
    layer: int | None
    format: str
    row: int
    column: int
    element: tuple[int, ...] | None
    stored: str | None
    file: str | None
    offset: int | None
    bits: tuple[int, ...]
    found: int
    clean: int
    found_value: float | None
    clean_value: float | None


def component_of(name: str) -> tuple[str | None, int | None]:
    """Component and layer that a tensor's name tells; None where it tells none."""
    stem = re.sub(r"\.(weight|bias)$", "", name)
    layer = re.search(r"(?:^|\.)(?:layers|h|blk|blocks)\.(\d+)\.", stem)
    roles = (role for part, role in _ROLES.items() if re.search(rf"(^|\.)({part})($|\.)", stem))
    return next(roles, None), int(layer[1]) if layer else None


def describe(changes: WordChanges) -> Iterator[ChangedWord]:
    """Each changed word of a tensor, in the order of its places."""
    tensor = changes.tensor
    component, layer = component_of(tensor.name) if tensor.is_tensor else (None, None)
    packed, number = _blocks(tensor), _number(tensor)
    columns = (changes.rows, changes.columns, changes.found, changes.clean)
    for row, column, found, clean, bits in zip(*(array.tolist() for array in columns), changes.bits, strict=True):
        place = row * tensor.columns + column
        file, offset = tensor.place(row, column) if tensor.extents else (None, None)
        stored, scale = _stored(packed, tensor, place, bits) if packed else (None, None)
        form = scale or number
        yield ChangedWord(
            tensor=tensor.name,
            component=component,
            layer=layer,
            format=tensor.format,
            row=row,
            column=column,
            element=_element(tensor, place) if tensor.is_tensor and not packed else None,
            stored=stored,
            file=file,
            offset=offset,
            bits=bits,
            found=found,
            clean=clean,
            found_value=worth(form, found) if form else None,
            clean_value=worth(form, clean) if form else None,
        )


def _number(tensor: TensorWords) -> NumberFormat | None:
    """The format of words that are floating-point numbers by themselves."""
    name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(tensor.format, tensor.format)
    try:
        return format_of(name)
    except InputError:
        return None


def _blocks(tensor: TensorWords) -> BlockFormat | None:
    """The format of words that are packed in blocks."""
    name = tensor.format.lower()
    return storage_format(name, tensor.shape[-1]) if name in GGUF_FORMATS else None


def _element(tensor: TensorWords, place: int) -> tuple[int, ...]:
    size = tensor.size // max(1, int(np.prod(tensor.shape)))
    return tuple(int(index) for index in np.unravel_index(place * tensor.width // size, tensor.shape or (1,)))


def _stored(
    form: BlockFormat, tensor: TensorWords, place: int, bits: tuple[int, ...]
) -> tuple[str, NumberFormat | None]:
    """Name of each flipped bit of a packed word, and the number's format where the word is one whole number."""
    parts: dict[str, list[str]] = {}
    number = None
    for bit in bits:
        block, inside = divmod(8 * place * tensor.width + bit, 8 * form.size)
        row, block = divmod(block, tensor.shape[-1] // form.elements)
        for name, field in form.fields.items():
            for word, own in np.argwhere(field.places == inside):
                numbered = f"{name} {word}" if field.words > 1 else name
                parts.setdefault(f"row {row}, block {block}", []).append(f"{numbered} bit {own}")
                if np.array_equal(field.places[word], inside - bit + np.arange(8 * tensor.width)):
                    number = field.number
    return "; ".join(f"{where}: {', '.join(names)}" for where, names in parts.items()), number

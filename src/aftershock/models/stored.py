"""The packed words that a model's weights come from: those of a GGUF file, or of a format that they are rounded to."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from aftershock.models.cache import Progress, cache_folder, file_sha256, staged
from aftershock.models.components import ComponentMap, ParameterSite, StoredSite
from aftershock.numerics import GGUF_FORMATS, BlockFormat, storage_format

_KEPT_APART = ("norm", "qk_norm", "router", "residual")
"""Components in decoder layers whose weights such formats leave as they are."""


@dataclass(frozen=True, eq=False)
class StoredRow:
    """The blocks of one row, uint8 of shape (blocks, bytes a block); words of a field are counted along the row."""

    form: BlockFormat
    blocks: np.ndarray

    def values(self) -> np.ndarray:
        """What the row is in numbers: float32, shape (columns,)."""
        return self.form.dequantise(self.blocks).reshape(-1)

    def word(self, field: str, number: int) -> int:
        """A stored word, as an unsigned integer."""
        block, inside = divmod(number, self.form.fields[field].words)
        return self.form.word(self.blocks[block], field, inside)

    def with_word(self, field: str, number: int, word: int) -> "StoredRow":
        """The row with another word in the place of one."""
        block, inside = divmod(number, self.form.fields[field].words)
        blocks = self.blocks.copy()
        blocks[block] = self.form.with_word(blocks[block], field, inside, word)
        return StoredRow(self.form, blocks)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """The blocks behind one parameter.

    `blocks`: uint8 of shape (rows, blocks, bytes a block). Row r is channel r of the module's output, those of one
    expert after another's. `shape` is the parameter's; `transposed` tells that it has its channels last.
    """

    form: BlockFormat
    blocks: np.ndarray
    shape: tuple[int, ...]
    transposed: bool

    def row(self, row: int) -> StoredRow:
        """One row's blocks."""
        return StoredRow(self.form, np.array(self.blocks[row]))

    def element(self, row: int, column: int) -> tuple[int, ...]:
        """Index in the parameter."""
        if self.transposed:
            return column, row
        return (*(int(part) for part in np.unravel_index(row, self.shape[:-1])), column)


@dataclass(frozen=True, eq=False)
class StoredWords:
    """The blocks of parameters by their names: the format, and how to get them (`StoredTensor.blocks`).

    `offsets` tells where in the file each of a parameter's rows begins, int64, shape (rows,); None where blocks come
    from no file.
    """

    forms: Mapping[str, BlockFormat]
    blocks: Callable[[str], np.ndarray]
    offsets: Callable[[str], np.ndarray] | None = None

    def tensor(self, site: ParameterSite) -> StoredTensor:
        """The blocks behind a parameter that has some."""
        return StoredTensor(self.forms[site.name], self.blocks(site.name), site.stored_shape, site.dim == 1)

    def sites(self, components: ComponentMap) -> Iterator[StoredSite]:
        """The fields of each parameter share, in the map's order."""
        for share in components.parameters:
            if share.name in self.forms:
                form = self.forms[share.name]
                columns = share.stored_shape[0] if share.dim == 1 else share.stored_shape[-1]
                for name, field in form.fields.items():
                    yield StoredSite(share, name, columns // form.elements * field.words, field.bits, field.number)


def rounded(module: torch.nn.Module, components: ComponentMap, storage: str) -> StoredWords:
    """Round the weights of the projections in decoder layers to a storage format, in place, and keep the words.

    Each weight becomes what its word stands for, rounded to the model's own dtype, as it is when a kernel dequantises
    on the fly. Raises InputError for rows that the format's blocks don't fill.
    """
    forms: dict[str, BlockFormat] = {}
    blocks: dict[str, np.ndarray] = {}
    for site in components.parameters:
        if site.layer is None or site.component in _KEPT_APART or len(site.stored_shape) < 2 or site.name in forms:
            continue
        parameter = module.get_parameter(site.name)
        rows = parameter.detach().T if site.dim == 1 else parameter.detach().flatten(0, -2)
        form = storage_format(storage, rows.shape[1])
        packed = form.quantise(rows.float().cpu().numpy().reshape(-1, form.elements))
        values = torch.from_numpy(form.dequantise(packed)).view(rows.shape)
        rows.copy_(values.to(rows.device))
        forms[site.name], blocks[site.name] = form, packed.reshape(len(rows), -1, form.size)
    return StoredWords(forms, blocks.__getitem__)


def words_of_file(path: Path, folder: Path, progress: Progress) -> StoredWords:
    """The words of a GGUF file behind the parameters of the folder that it was converted to.

    The file is indexed once; the index is kept in the cache under its SHA-256. A tensor is in it where every row of the
    parameter is, to the bit, what dequantisation makes of a row of the file, and its format is one with a table.
    """
    target = cache_folder() / "stored" / f"{file_sha256(path)}.json"
    if not target.is_file():
        progress(f"indexing the packed words of {path.name} (once)")
        with staged(target) as file:
            file.write_text(json.dumps(dict(_index(path, folder))), encoding="utf-8")
    index = json.loads(target.read_text(encoding="utf-8"))

    def blocks(name: str) -> np.ndarray:
        entry = index[name]
        shape = (entry["rows"], entry["columns"] // forms[name].elements, forms[name].size)
        found = np.memmap(path, np.uint8, "r", entry["offset"], shape)
        return found if entry["order"] is None else found[entry["order"]]

    def offsets(name: str) -> np.ndarray:
        entry, form = index[name], forms[name]
        order = np.array(range(entry["rows"]) if entry["order"] is None else entry["order"], np.int64)
        row_bytes = int(entry["columns"]) // form.elements * form.size
        return int(entry["offset"]) + row_bytes * order

    forms = {name: storage_format(entry["format"], entry["columns"]) for name, entry in index.items()}
    return StoredWords(forms, blocks, offsets)


def _index(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each parameter that comes from packed words: their format, their place in the file, and the rows' order."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    architecture = reader.fields["general.architecture"].contents()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = reader.fields[f"{architecture}.block_count"].contents()
    names = gguf.get_tensor_name_map(kinds[architecture], layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as parameters:
            for name in list(parameters.keys()):
                tensor = tensors.get(names.get_name(name, (".weight", ".bias")) or "")
                if tensor is None or tensor.tensor_type.name.lower() not in GGUF_FORMATS:
                    continue
                values = parameters.get_tensor(name)
                found = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
                if values.dtype == np.float32 and (order := _order(values, found)) is not None:
                    yield (
                        name,
                        {
                            "format": tensor.tensor_type.name.lower(),
                            "offset": int(tensor.data_offset),
                            "rows": len(values),
                            "columns": values.shape[1],
                            "order": None if order == list(range(len(values))) else order,
                        },
                    )


def _order(values: np.ndarray, found: np.ndarray) -> list[int] | None:
    """Which row of `found` each row of `values` is; None where some is none."""
    if values.shape != found.shape:
        return None
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(found):
        places.setdefault(row.tobytes(), []).append(place)
    order = []
    for row in values:
        left = places.get(row.tobytes())
        if not left:
            return None
        order.append(left.pop(0))
    return order

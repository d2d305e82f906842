"""Make a bundle (docs/bundles.md) of the passes that a capturing script wrote: `python assembly.py FOLDER`.

Tokens of several passes are put where they belong; what was computed twice counts as it was computed last. The
standard library and numpy, nothing else.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import numpy.typing as npt

from wire import DTYPES, HEADER, LOGITS, PARTS, REQUESTS

TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class Piece:
    """Some tokens of one value, as one pass computed them: `tokens` are their numbers among all tokens."""

    file: Path
    start: int
    dtype: str
    shape: tuple[int, ...]
    tokens: tuple[int, ...]
    digest: str

    def read(self) -> npt.NDArray[Any]:
        """The words."""
        count = int(np.prod(self.shape))
        words = np.fromfile(self.file, dtype=DTYPES[self.dtype], count=count, offset=self.start)
        return words.reshape(self.shape)


@dataclass(frozen=True)
class Tensor:
    """All tokens of one value that were computed, in ascending order."""

    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Numbers of the tokens."""
        return tuple(sorted({token for piece in self.pieces for token in piece.tokens}))

    @property
    def dtype(self) -> str:
        """Type, as safetensors names it."""
        return self.pieces[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, tokens first."""
        return len(self.tokens), *self.pieces[0].shape[1:]

    @property
    def same_as(self) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...], str], ...]:
        """Equal for tensors that hold the same words of the same tokens."""
        return tuple((piece.dtype, piece.shape, piece.tokens, piece.digest) for piece in self.pieces)

    def data(self) -> bytes:
        """The words, little-endian."""
        place = {token: row for row, token in enumerate(self.tokens)}
        words = np.empty(self.shape, dtype=DTYPES[self.dtype])
        for piece in self.pieces:
            words[[place[token] for token in piece.tokens]] = piece.read()
        return words.tobytes()


def assemble(folder: Path) -> None:
    """Write manifest and tensors of what lies in `folder/parts`, and remove that."""
    parts = folder / PARTS
    header = _read(parts / HEADER)
    passes = [(path.with_suffix(".bin"), _read(path)) for path in sorted(parts.glob("[0-9]*.json"))]
    complete = (parts / REQUESTS).exists()
    requests = _requests([one["rows"] for _, one in passes], _read(parts / REQUESTS) if complete else [])
    if not requests:
        raise ValueError("not one pass was complete")
    number = _numbers(requests)
    values: dict[str, Mapping[str, Any]] = {}
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for file, one in passes:
        tokens = [number[row["request"], row["index"]] for row in one["rows"]]
        for entry in one["entries"]:
            name = _name(entry["value"])
            values.setdefault(name, entry["value"])
            own = tokens if entry["places"] is None else [tokens[place] for place in entry["places"]]
            shape = tuple(entry["shape"])
            pieces[name].append(Piece(file, entry["start"], entry["dtype"], shape, tuple(own), entry["digest"]))
    spans = _Spans(requests)
    records, logits, tensors = _records(values, pieces, spans)
    _write_tensors(folder / TENSORS, tensors)
    manifest = {
        "format": "aftershock-bundle",
        "version": 2,
        **{key: header[key] for key in ("engine", "model", "dtype", "settings")},
        "complete": complete,
        "requests": list(requests.values()),
        "rows": spans.rows,
        "passes": [[number[row["request"], row["index"]] for row in one["rows"]] for _, one in passes],
        "records": records,
        "logits": logits,
        "weights": header["weights"],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    rmtree(parts)


def _requests(passes: Sequence[Any], known: Sequence[Any]) -> dict[int, dict[str, Any]]:
    """The requests by number: tokens and positions as they were fed; where they were not, as the prompt has them."""
    fed: dict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
    for rows in passes:
        for row in rows:
            fed[row["request"]][row["index"]] = row["token"], row["position"]
    found = {}
    for request in sorted(fed.keys() | range(len(known))):
        own = known[request] if request < len(known) else {}
        tokens = dict(enumerate((token, index) for index, token in enumerate(own.get("prompt", ())))) | fed[request]
        entry = {
            "id": str(request),
            "tokens": [tokens[index][0] for index in sorted(tokens)],
            "positions": [tokens[index][1] for index in sorted(tokens)],
            "sampled": own.get("sampled", []),
        }
        if own.get("text") is not None:
            entry["text"] = own["text"]
        if own:
            entry["prompt_tokens"] = len(own["prompt"])
        found[request] = entry
    return found


def _numbers(requests: Mapping[int, Mapping[str, Any]]) -> dict[tuple[int, int], int]:
    """Number of a token among all tokens, by request and index in it."""
    places = [(request, index) for request, entry in requests.items() for index in range(len(entry["tokens"]))]
    return {place: number for number, place in enumerate(places)}


class _Spans:
    """Names for sets of tokens."""

    def __init__(self, requests: Mapping[int, Mapping[str, Any]]) -> None:
        lengths = [len(entry["tokens"]) for entry in requests.values()]
        ends = np.cumsum(lengths)
        self._names = {tuple(range(int(ends[-1]))): "all"}
        self._names.setdefault(tuple(int(end) - 1 for end in ends), "last")
        self.rows: dict[str, list[int]] = {}

    def name(self, tokens: tuple[int, ...]) -> str:
        if tokens not in self._names:
            self._names[tokens] = f"computed-{len(self.rows)}"
            self.rows[self._names[tokens]] = list(tokens)
        return self._names[tokens]


def _records(
    values: Mapping[str, Mapping[str, Any]], pieces: Mapping[str, Sequence[Piece]], spans: _Spans
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, dict[str, Tensor]]:
    """The manifest's records and logits, and the tensors by key, each once."""
    keys: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    found = {}
    for name in values:
        tensor = Tensor(tuple(pieces[name]))
        key = keys.setdefault(tensor.same_as, name)
        tensors.setdefault(key, tensor)
        place = {"file": TENSORS, "key": key, "dtype": tensor.dtype, "shape": list(tensor.shape)}
        found[name] = place, spans.name(tensor.tokens)
    records = []
    for name, value in values.items():
        if value["module"] == LOGITS or (value["point"] == "input" and not value["shares"]):
            continue
        entry = {key: content for key, content in value.items() if content not in (None, [], ())}
        entry["output"], entry["span"] = found[name]
        inputs = found.get(_name({**value, "point": "input"}))
        if inputs is not None and value["point"] == "output" and inputs[1] == entry["span"]:
            entry["input"] = inputs[0]
        records.append(entry)
    logits = found.get(LOGITS)
    return records, None if logits is None else {"stored": logits[0], "span": logits[1]}, tensors


def _name(value: Mapping[str, Any]) -> str:
    call = f"#{value['call']}" if value["call"] else ""
    point = "" if value["point"] == "output" else f":{value['point']}"
    return f"{value['module']}{call}{point}"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file: length of the header, header, words."""

    def entries() -> Iterator[tuple[str, dict[str, Any]]]:
        start = 0
        for key, tensor in tensors.items():
            end = start + int(np.prod(tensor.shape)) * np.dtype(DTYPES[tensor.dtype]).itemsize
            yield key, {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
            start = end

    header = json.dumps(dict(entries())).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for tensor in tensors.values():
            file.write(tensor.data())


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))

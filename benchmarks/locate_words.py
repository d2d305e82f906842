"""Faults in the stored words of SmolLM2-135M, found by fingerprint and by a clean copy. Part of `benchmarks.locate`.

Five formats: fp32, fp16 and bf16 live, the projections as live int8 words with one fp32 scale a row, and the file as it
comes (GGUF, Q4_1). In each, by both profiles: single bits, one tensor after the other, word and bit uniform; sets of 2,
8 and 64 bits, uniform over all words; the cases that hardware and attackers make. A fault counts as located where
exactly the words that it changed come out, each with exactly its bits, and as undone where each struck tensor has its
first digest again. Checks of clean models count false alarms.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from aftershock.detect import (
    Fingerprint,
    Profile,
    blocks_of,
    correctable,
    save_fingerprint,
    take_fingerprint,
    tensor_digest,
    verify,
)
from aftershock.locate import clean_digests, locate_by_fingerprint, locate_by_words, repair_files, repair_module
from aftershock.models import FileWords, LiveWords, TensorWords
from aftershock.models.words import as_matrix
from aftershock.numerics import generator
from aftershock.stats import exact
from benchmarks.locate_faults import FORMATS, THREATS, Fault, Suspect, as_fault, several, single, suspect

PROFILES: tuple[Profile, ...] = ("exact", "small")
SETS = (2, 8, 64)
WHOLE_FILE_EVERY = 20
"""One in so many single faults in a file is undone by `repair_files`, which proves the whole file."""

PUBLISHED_DETECTION = {"LM-Fix (ICCD'25, arXiv 2511.02866), 10 models, TVL 200": (0.911, 0.998)}

Row = dict[str, Any]


def measure(counts: tuple[int, int, int], seed: int) -> dict[str, Any]:
    """All figures: `counts` single faults, sets of each size (threats too) and clean checks a format and profile."""
    singles, sets, checks = counts
    rows: list[Row] = []
    sizes = []
    for form in FORMATS:
        with suspect(form) as one:
            for number, profile in enumerate(PROFILES):
                taken = take_fingerprint(one.words, profile)
                sizes.append({"model": f"SmolLM2-135M {form}", "profile": profile, **_stored_size(one, taken)})
                run = _Run(one, form, profile, taken)
                for index in range(singles):
                    draw = generator(seed, index, f"single {form} {profile}")
                    fault = single(one.weights, number * singles + index, draw)
                    rows.append(run.row("single", fault, index % WHOLE_FILE_EVERY == 0))
                for count in SETS:
                    for index in range(sets):
                        draw = generator(seed, index, f"{count} flips {form} {profile}")
                        rows.append(run.row(f"{count} flips", several(one.weights, count, draw)))
                for name, make in THREATS.get(form, {}).items():
                    for index in range(sets):
                        draw = generator(seed, index, f"{name} {form} {profile}")
                        tensor = one.matrices[int(draw.integers(len(one.matrices)))]
                        rows.append(run.row(name, make(one, tensor, draw)))
                rows += [run.check() for _ in range(checks)]
    return {
        "n": len(rows),
        "cells": list(_cells(rows)),
        "over_all": _over_all(rows),
        "sizes": [*sizes, *_sizes_of_8b(sizes)],
        "published_detection": PUBLISHED_DETECTION,
    }


class _Run:
    """One format and profile."""

    def __init__(self, suspect: Suspect, form: str, profile: Profile, fingerprint: Fingerprint) -> None:
        self.suspect, self.fingerprint = suspect, fingerprint
        self.names = {"format": form, "profile": profile}
        self.digests = {one.tensor.name: one.digest for one in fingerprint.tensors}

    def row(self, kind: str, fault: Fault, whole_file: bool = False) -> Row:
        """One fault: put in, looked for in both ways, undone by what the fingerprint told."""
        words, fingerprint = self.suspect.words, self.fingerprint
        self.suspect.strike(fault)
        located = locate_by_fingerprint(words, fingerprint)
        by_words = locate_by_words(words, self.suspect.clean)
        found = as_fault(located)
        undone = found == fault and not located.ambiguous
        if undone:
            if isinstance(words, LiveWords):
                repair_module(words.module, located, fingerprint)
            elif whole_file:
                repair_files(words, located, clean_digests(words, fingerprint))
            else:
                self.suspect.strike(found)
            undone = self._is_clean(fault)
        else:
            self.suspect.strike(fault)
        told = {one.tensor.name for one in located.changes} | {one.tensor.name for one in located.ambiguous}
        return {
            **self.names,
            "kind": kind,
            "detected": told == set(fault),
            "located": found == fault,
            "undone": undone,
            "wrong": any(fault.get(name) != changes for name, changes in found.items()),
            "by_words": as_fault(by_words.located) == fault,
        }

    def check(self) -> Row:
        """One check of the clean model, by fingerprint and word by word."""
        clean = verify(self.suspect.words, self.fingerprint).clean
        equal = locate_by_words(self.suspect.words, self.suspect.clean).equal
        return {**self.names, "kind": "clean", "alarm": not (clean and equal)}

    def _is_clean(self, fault: Fault) -> bool:
        tensors = {tensor.name: tensor for tensor in self.suspect.words.tensors}
        return all(tensor_digest(self.suspect.words, tensors[name]) == self.digests[name] for name in fault)


def _cells(rows: list[Row]) -> Iterator[Row]:
    """Shares by format, profile and kind."""
    keys = ("format", "profile", "kind")
    for names in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in keys) == names]
        yield {**dict(zip(keys, names, strict=True)), "n": len(own), **_shares(own)}


def _over_all(rows: list[Row]) -> dict[str, Any]:
    """Shares by kind, over all formats and profiles."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    return {kind: _shares([row for row in rows if row["kind"] == kind]) for kind in kinds}


def _shares(rows: list[Row]) -> dict[str, Any]:
    figures = [key for key, value in rows[0].items() if isinstance(value, bool)]
    return {key: asdict(exact(sum(row[key] for row in rows), len(rows))) for key in figures}


def _stored_size(one: Suspect, taken: Fingerprint) -> dict[str, Any]:
    """Bytes of a fingerprint's file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.print"
        save_fingerprint(taken, path)
        size = path.stat().st_size
    of = sum(one.words.files.values()) if isinstance(one.words, FileWords) else _total(one.words.tensors)
    numbers = sum(_number_bytes(tensor, taken.profile) for tensor in one.words.tensors)
    beside = (size - numbers) / len(one.words.tensors)
    return {"bytes": size, "of": of, "percent": 100 * size / of, "beside_numbers": beside}


def _total(tensors: tuple[TensorWords, ...]) -> int:
    return sum(tensor.size for tensor in tensors)


def _number_bytes(tensor: TensorWords, profile: Profile) -> int:
    """Bytes of a tensor's sums (two of 8 bytes a line) or syndromes (2t of 4 bytes a block)."""
    if profile == "exact":
        return 16 * (tensor.rows + tensor.columns)
    return 8 * correctable(tensor) * (len(blocks_of(tensor)) - 1)


def llama_8b() -> tuple[TensorWords, ...]:
    """How a live bf16 model with the shapes of Llama-3.1-8B is read."""
    hidden, inner, keys, vocabulary = 4096, 14336, 1024, 128_256
    layer: list[tuple[int, ...]] = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    layer += [(inner, hidden), (inner, hidden), (hidden, inner), (hidden,), (hidden,)]
    shapes = [(vocabulary, hidden), *32 * layer, (hidden,), (vocabulary, hidden)]
    return tuple(
        as_matrix(str(number), "bfloat16", shape, 2 * int(np.prod(shape)), 2) for number, shape in enumerate(shapes)
    )


def _sizes_of_8b(measured: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of an 8B model, from its shapes: the numbers, and beside them for each tensor what SmolLM2 in bf16 has."""
    tensors = llama_8b()
    of = _total(tensors)
    for profile in PROFILES:
        (beside,) = (
            one["beside_numbers"]
            for one in measured
            if one["profile"] == profile and one["model"] == "SmolLM2-135M bfloat16"
        )
        size = round(sum(_number_bytes(tensor, profile) + beside for tensor in tensors))
        yield {
            "model": "Llama-3.1-8B shapes bfloat16",
            "profile": profile,
            "bytes": size,
            "of": of,
            "percent": 100 * size / of,
        }

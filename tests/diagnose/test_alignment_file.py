"""An alignment as a file: written, read, written by hand, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_like import bundle_of, named, replica_of, tokens_of, values_of
from rich.console import Console

from aftershock.diagnose import alignment_with, diagnose
from aftershock.diagnose.alignment import Alignment, align, load_alignment
from aftershock.diagnose.layouts import Layout, Transposed
from aftershock.diagnose.points import Point
from aftershock.diagnose.sources import Match, Place, Source
from aftershock.errors import InputError
from tiny_models import tiny_loaded

ALIGNMENT = Alignment(
    matches={
        Point("embedding"): Match(Source((Place("wte"),), Layout(scale=4.0)), "value", 1e-7),
        Point("q", 0): Match(Source((Place("qkv"),), Layout((range(0, 8, 2), range(1, 9, 2)))), "next value", 0.5),
        Point("attention", 0): Match(Source((Place("o", "input"),)), "other layers", 0.25),
        Point("v", 0): Match(Source((Place("v"),), Layout(transposed=Transposed(2, "request"))), "place", 0.1),
        Point("residual", 0): Match(Source((Place("hidden"), Place("residual"))), "value", 0.0),
    },
    unmatched_points=(Point("k", 0), Point("logits")),
    unmatched_values=(Place("noise"), Place("o"), Place("noise", "input")),
    disagreements=("layer 1 gate is elsewhere",),
    order=(1, 0, 2),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    ALIGNMENT.save(tmp_path / "map.json")
    found = load_alignment(tmp_path / "map.json")
    assert list(found.matches.items()) == list(ALIGNMENT.matches.items())
    assert found.unmatched_points == ALIGNMENT.unmatched_points
    assert found.unmatched_values == ALIGNMENT.unmatched_values
    assert found.disagreements == ALIGNMENT.disagreements
    assert found.order == ALIGNMENT.order


def test_a_few_points_written_by_hand_win(tmp_path: Path) -> None:
    replica = replica_of(tiny_loaded("llama"))
    values = named(values_of(replica))
    records = {**values, "h.0.q": values["h.0.q"].flip(0), "elsewhere": values["h.0.q"]}
    bundle = bundle_of(records)
    found = align(replica, tokens_of(bundle.manifest.requests), bundle)
    by_hand = write(tmp_path, [{"point": "q", "layer": 0, "records": ["h.0.q"]}])
    alignment = found.overridden(load_alignment(by_hand))
    assert alignment.matches[Point("q", 0)] == Match(
        Source((Place("h.0.q"),)), "user", pytest.approx(nan_ok=True, expected=float("nan"))
    )
    assert alignment.matches[Point("k", 0)] == found.matches[Point("k", 0)]
    assert Place("h.0.q") not in alignment.unmatched_values
    assert torch.equal(alignment.target(bundle)[Point("q", 0)].values, records["h.0.q"])


def test_a_bundle_that_lacks_a_tensor_is_refused() -> None:
    replica = replica_of(tiny_loaded("llama"))
    records = named(values_of(replica))
    bundle = bundle_of(records)
    found = align(replica, tokens_of(bundle.manifest.requests), bundle)
    with pytest.raises(InputError, match=r"the bundle lacks h\.1\.q, where the alignment has layer 1 q"):
        found.target(bundle_of({name: own for name, own in records.items() if name != "h.1.q"}))
    wide = found.overridden(
        Alignment({Point("k", 0): Match(Source((Place("h.0.k"),), Layout((range(8, 40),))), "user", 0.0)})
    )
    with pytest.raises(InputError, match="channels 8:40"):
        wide.target(bundle)


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"channels": "0:8"}, "layer 0 q of 8 channels .*, the reference of 32: name the record and the channels"),
        ({"records": ["h.0.k"]}, r"layer 0 q of 16 channels \(h\.0\.k\), the reference of 32"),
        ({"heads_first": 7}, "7 heads for layer 0 q, into which the 32 channels of h.0.q can't be divided"),
        ({"layer": 9}, "the map has layer 9 q, which the reference has not: leave it out"),
        ({"point": "q_norm"}, "the map has layer 0 q_norm, which the reference has not: leave it out"),
        ({"records": ["nowhere"]}, "the bundle lacks nowhere, where the alignment has layer 0 q"),
    ],
)
def test_a_point_that_does_not_fit_the_reference_is_refused(tmp_path: Path, point: dict[str, Any], said: str) -> None:
    reference = tiny_loaded("llama")
    bundle = bundle_of(named(values_of(replica_of(reference))))
    known = load_alignment(write(tmp_path, [{"point": "q", "layer": 0, "records": ["h.0.q"], **point}]))
    with pytest.raises(InputError, match=said):
        alignment_with(reference, bundle, known)
    with pytest.raises(InputError, match=said):
        diagnose(reference, bundle, known=known)


@pytest.mark.parametrize("order", [[0, 1], [0] * 60, list(range(1, 61))])
def test_an_order_that_is_none_is_refused(tmp_path: Path, order: list[int]) -> None:
    reference = tiny_loaded("llama")
    bundle = bundle_of(named(values_of(replica_of(reference))))
    known = load_alignment(write(tmp_path, [], order=order))
    with pytest.raises(InputError, match="order is none of the bundle's 60 tokens: write each number from 0 to 59"):
        alignment_with(reference, bundle, known)


def test_a_map_that_was_saved_fits(tmp_path: Path) -> None:
    reference = tiny_loaded("llama")
    bundle = bundle_of(named(values_of(replica_of(reference))))
    alignment_with(reference, bundle).save(tmp_path / "map.json")
    known = load_alignment(tmp_path / "map.json")
    assert alignment_with(reference, bundle, known).matches.keys() == known.matches.keys()


def test_people_get_a_table() -> None:
    console = Console(width=120, record=True)
    console.print(ALIGNMENT.table())
    shown = console.export_text()
    assert "layer 0 q" in shown
    assert "qkv, channels 0:8:2, 1:9:2" in shown
    assert "hidden + residual" in shown


def write(folder: Path, points: list[dict[str, Any]], **more: Any) -> Path:
    path = folder / "by-hand.json"
    path.write_text(json.dumps({"format": "aftershock-alignment", "version": 1, "points": points, **more}))
    return path


@pytest.mark.parametrize(
    ("points", "more", "said"),
    [
        ([{"point": "query", "layer": 0, "records": ["q"]}], {}, "'query' is no kind of point"),
        ([{"point": "q", "records": ["q"]}], {}, "q needs the layer it is in"),
        ([{"point": "logits", "layer": 3, "records": ["q"]}], {}, "logits lies in no layer"),
        ([{"point": "q", "layer": 0, "records": []}], {}, "records"),
        ([{"point": "q", "layer": 0, "records": ["a", "b"], "sides": ["input"]}], {}, "2 records and 1 sides"),
        ([{"point": "q", "layer": 0, "records": ["q"], "channels": "8:0"}], {}, "channels that no tensor has"),
        ([{"point": "q", "layer": 0, "records": ["q"], "channels": "all"}], {}, "channels"),
        ([{"point": "q", "layer": 0, "record": "q"}], {}, "record"),
        ([{"point": "q", "layer": 0, "records": ["q"], "scale": float("nan")}], {}, "finite"),
        ([], {"version": 2}, "newer aftershock"),
        ([], {"format": "a list"}, "no alignment"),
    ],
)
def test_what_is_no_alignment_is_refused(
    tmp_path: Path, points: list[dict[str, Any]], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load_alignment(write(tmp_path, points, **more))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"map\.json"):
        load_alignment(path)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the file of an alignment"):
        load_alignment(tmp_path / "none.json")
    with pytest.raises(InputError, match="choose another file"):
        ALIGNMENT.save(tmp_path / "none" / "map.json")

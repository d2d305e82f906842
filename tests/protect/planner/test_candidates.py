"""What a planner is offered for a model whose products share modules."""

from pathlib import Path

from aftershock.cli import run
from aftershock.protect import RangeGuard
from aftershock.protect.planner.candidates import candidates
from aftershock.study import load_study, make_plan, to_toml
from tiny_study import tiny_settings


def test_protections_of_products_that_share_a_module_name_all_of_them(tmp_path: Path) -> None:
    run_table = {"trials": 4, "items_per_fault": 1, "traced": 0, "audit": 0.0}
    settings = tiny_settings(tmp_path, "phi3", run=run_table, faults={"sites": ("weight",), "bits": (30,)})
    (tmp_path / "study.toml").write_text(to_toml(settings), encoding="utf-8")
    assert run(["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "study"), "--json"]) == 0
    study = load_study(tmp_path / "study")
    offered = {one.name: one.protection for one in candidates(make_plan(study.settings), study, 0)}
    for kind in ("checksum of", "range guard on"):
        names = {name.removeprefix(f"{kind} ") for name in offered if name.startswith(kind)}
        assert names == {"q, k, v", "o", "gate, up", "down", "lm_head"}
    guard = offered["range guard on q, k, v"]
    assert isinstance(guard, RangeGuard)
    assert set(guard.bounds) == {f"model.layers.{layer}.self_attn.qkv_proj" for layer in range(2)}

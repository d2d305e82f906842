"""Does everything hold on a GPU? Tiny models of every family, then a study of the model given, each dtype.

    python -m benchmarks.cuda_check --json [--quick] [--model SPEC] [--devices 2]

For each family and dtype: a study of a tiny random model on the device must be bit-identical when run again without
faults, strike exactly what it names, leave the model as it was, and give the same records twice. Then a study of the
model given in each dtype.

With `--devices N` (N GPUs of one kind) besides: the same studies with each model's layers spread over all N, and with a
worker process on each of them, must give the records of one GPU.
"""

import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from aftershock.models import load
from aftershock.study import StoredStudy, check_settings, make_plan, process_crew, run_study, summarise
from benchmarks.arguments import parser

DTYPES = ("float32", "bfloat16", "float16")
SITES = ("weight", "activation", "key", "value")


def study(tables: dict[str, Any], folder: Path) -> StoredStudy:
    """Run a study; a contract that fails raises."""
    return run_study(make_plan(check_settings(tables, "cuda check")), folder)


def tiny(device: str, folder: Path, trials: int, families: int) -> list[dict[str, Any]]:
    """One row for each tiny model and dtype: whether two studies agree, and the A/A disagreements."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from tiny_models import FAMILIES
    from tiny_study import tiny_tables

    rows = []
    for family in FAMILIES[:families]:
        for dtype in DTYPES:
            tables = tiny_tables(folder, family, model={"spec": str(folder / family)}, run={"trials": trials})
            tables["model"] |= {"dtype": dtype, "device": device}
            tables["faults"] = {"sites": SITES}
            first, second = (study(tables, folder / f"{family}-{dtype}-{n}") for n in range(2))
            rows.append(
                {
                    "family": family,
                    "dtype": dtype,
                    "same_records": first.records_digest == second.records_digest,
                    "aa_disagreements": first.aa_disagreements,
                    "trials": len(first.trials),
                    "audited": len(first.audits),
                    "audit_disagreements": sum(not agrees for agrees in first.audits.values()),
                }
            )
    return rows


def real(spec: str, device: str, folder: Path, trials: int) -> list[dict[str, Any]]:
    """One row for each dtype of the model given."""
    rows = []
    for dtype in DTYPES:
        tables = {
            "model": {"spec": spec, "dtype": dtype, "device": device},
            "run": {"trials": trials, "noise": 2, "traced": 2},
            "task": {"limit": 64, "max_new_tokens": 12},
        }
        begin = time.perf_counter()
        done = study(tables, folder / f"real-{dtype}")
        summary = summarise(done)
        rows.append(
            {
                "dtype": dtype,
                "device": done.environment.device,
                "trials": len(done.trials),
                "seconds": round(time.perf_counter() - begin, 1),
                "seconds_per_trial": round(done.seconds / len(done.trials), 4),
                "golden": summary.golden.model_dump(),
                "sdc_rate": summary.sdc_rate.model_dump(),
                "noise_floor": summary.noise_floor.model_dump(),
                "due_rate": summary.due_rate.model_dump(),
                "audited": len(done.audits),
                "audit_disagreements": sum(not agrees for agrees in done.audits.values()),
            }
        )
    return rows


def shared(spec: str, folder: Path, devices: int, trials: int, families: int) -> list[dict[str, Any]]:
    """One row for each tiny model and dtype, and for the model given in each dtype: the records of one GPU, of all GPUs
    that share the layers, and of a worker on each GPU."""
    from tiny_models import FAMILIES
    from tiny_study import tiny_tables

    studies = {
        f"{family} {dtype}": tiny_tables(
            folder, family, model={"spec": str(folder / family), "dtype": dtype}, run={"trials": trials}
        )
        for family in FAMILIES[:families]
        for dtype in DTYPES
    }
    for dtype in DTYPES:
        studies[f"{spec} {dtype}"] = {
            "model": {"spec": spec, "dtype": dtype},
            "run": {"trials": trials, "noise": 2, "traced": 2},
            "task": {"limit": 32, "max_new_tokens": 12},
        }
    spread = ",".join(f"cuda:{number}" for number in range(devices))
    rows: list[dict[str, Any]] = []
    for name, tables in studies.items():
        place = folder / f"shared-{len(rows)}"
        one = study({**tables, "model": {**tables["model"], "device": "cuda"}}, place / "one")
        split = study({**tables, "model": {**tables["model"], "device": spread}}, place / "split")
        plan = make_plan(check_settings({**tables, "model": {**tables["model"], "device": "cuda"}}, "cuda check"))
        workers = run_study(plan, place / "workers", crew=process_crew(plan, devices))
        module = load(tables["model"]["spec"], tables["model"]["dtype"], spread).module
        rows.append(
            {
                "study": name,
                "devices_used": sorted({str(parameter.device) for parameter in module.parameters()}),
                "spread_same_records": split.records_digest == one.records_digest,
                "spread_audit_disagreements": sum(not agrees for agrees in split.audits.values()),
                "workers_same_records": workers.records_digest == one.records_digest,
                "trials": len(one.trials),
                "seconds": [round(found.seconds, 2) for found in (one, split, workers)],
            }
        )
    return rows


def main() -> None:
    """Print one JSON object on the last line."""
    options = parser(__doc__, "fewer trials")
    options.add_argument("--model", default="demo:smollm2-135m")
    options.add_argument("--device", default="cuda")
    options.add_argument("--devices", type=int, default=1, help="GPUs to share models and work among")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = tiny(arguments.device, Path(name), 6, 4 if arguments.quick else 99)
        measured = real(arguments.model, arguments.device, Path(name), 20 if arguments.quick else 200)
        together = (
            shared(arguments.model, Path(name), arguments.devices, 12, 2 if arguments.quick else 99)
            if arguments.devices > 1
            else []
        )
    bad = sum(not row["same_records"] for row in rows)
    moved = sum(row["aa_disagreements"] for row in rows) + sum(row["golden"]["aa_disagreements"] for row in measured)
    audit = sum(row["audit_disagreements"] for row in (*rows, *measured))
    audit += sum(row["spread_audit_disagreements"] for row in together)
    apart = sum(not row["spread_same_records"] for row in together)
    dealt = sum(not row["workers_same_records"] for row in together)
    on_one = sum(len(row["devices_used"]) < 2 for row in together)
    checks = [
        {
            "name": "audited trials that differ from the reference executor's",
            "value": audit,
            "target": 0,
            "unit": "trials",
        },
        {"name": "tiny studies whose records differ when run again", "value": bad, "target": 0, "unit": "studies"},
        {"name": "items that are not bit-identical when run again", "value": moved, "target": 0, "unit": "items"},
    ]
    if together:
        checks += [
            {"name": "models spread over GPUs with other records", "value": apart, "target": 0, "unit": "studies"},
            {"name": "models that stayed on one GPU", "value": on_one, "target": 0, "unit": "studies"},
            {"name": "workers on GPUs with other records", "value": dealt, "target": 0, "unit": "studies"},
        ]
    print(
        json.dumps(
            {
                "benchmark": "cuda_check",
                "machine": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "n": len(rows),
                "tiny": rows,
                "real": measured,
                "shared": together,
                "checks": [{**check, "met": check["value"] == check["target"]} for check in checks],
            }
        )
    )


if __name__ == "__main__":
    main()

"""How often does the top exponent bit of a weight, when flipped, change an answer? A first study, in under a minute.

Run it with `python examples/first_study.py`; the records and the report go to `first-study` in the current folder.
"""

from pathlib import Path

import aftershock

settings = aftershock.StudySettings.model_validate(
    {
        "model": {"spec": "demo:smollm2-135m"},
        "task": {"spec": "probe", "limit": 8, "max_new_tokens": 4},
        "faults": {"sites": ["weight"], "bits": [30]},
        "run": {"trials": 6, "items_per_fault": 4, "batch_items": 4, "noise": 2, "traced": 2},
    }
)

plan = aftershock.make_plan(settings)
print(f"plan {plan.digest[:12]}: {plan.trials} trials, the first one is {plan.faults_of(0)[0]}")

study = aftershock.run_study(plan, Path("first-study"))
print(aftershock.summarise(study).text())
print(f"report: {aftershock.write_report(study, Path('first-study'))}")

# Any trial can be repeated alone, and must come out the same, bit for bit.
again = aftershock.replay_trial(Path("first-study"), 3)
print(f"trial 3 repeated: {'equal' if again.equal else 'different'}")

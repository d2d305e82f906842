"""A diagnosis made up for tests of its page: one with two findings, one without any."""

import math

from aftershock.diagnose import CurvePoint, Diagnosis, Finding, Picture, Rung, Subject, Suspect

COMMAND = "aftershock diagnose --reference demo:smollm2-135m --target bundle"
POINTS = tuple(
    f"layer {layer} {kind}" for layer in range(30) for kind in ("q", "k", "q_rope", "attention", "o", "down")
)


def local(point: str) -> float:
    return math.inf if point == "layer 3 q_rope" else 40.0 if point.endswith("q_rope") else 0.95


def divergent(verdict: str = "q_rope is wrong in all layers: rope_theta is 500000, not 10000") -> Diagnosis:
    columns = tuple(
        f"{request}: {start}-{start + 7}" for request, length in ((0, 64), (1, 160)) for start in range(0, length, 8)
    )
    shown = POINTS[:18]
    return Diagnosis(
        verdict=verdict,
        divergent=True,
        understood=True,
        subject=Subject(target="m in e 1", reference="m in t 2", dtype="bfloat16", requests=2, tokens=224),
        findings=(
            Finding(
                component="q_rope",
                cause="rope_theta",
                evidence="<b>queries</b> turn by other angles",
                layers=tuple(range(30)),
                parameter="rope_theta",
                found=500000.0,
                reference=10000.0,
                before=40.1,
                after=0.98,
                runner_up="rope_scaling",
                runner_up_after=7.5,
            ),
            Finding(component="sampler", cause="top_k", evidence="said, not shown", confirmed=False),
        ),
        suspects=(Suspect(component="q_rope", layers=(0, 1, 2, 7), ratio=40.1, where="grows with the position"),),
        rungs=(
            Rung(name="tokens", state="agrees", said="ids are the reference's"),
            Rung(name="weights", state="not checked", said="can't be read"),
            Rung(name="activations", state="differs", said="q_rope"),
        ),
        threshold=2.0,
        curve=tuple(
            CurvePoint(point=point, local=local(point), free=None if "k" in point else 1.0 + n / 10)
            for n, point in enumerate(POINTS)
        ),
        picture=Picture(
            points=shown,
            columns=columns,
            ratios=tuple(
                tuple(None if place == 4 else local(point) * (1 + place / 4) for place in range(len(columns)))
                for point in shown
            ),
        ),
        alignment="180 points by value",
        unmatched=tuple(f"model.extra.{number}" for number in range(50)),
        reproduce="request 0, from token 1 on",
        invisible=("a window of 4,096 tokens: the longest prompt has 160",),
    )


def clean() -> Diagnosis:
    return divergent("no divergence: look at the stop logic").model_copy(
        update={"divergent": False, "findings": (), "suspects": (), "curve": (), "picture": None, "unmatched": ()}
    )

"""Figures of the papers whose studies `studies/realm.toml` and `studies/fragile.toml` repeat, by study and combination.

ReaLM (arXiv 2503.24053): read off its figures by eye where no number is printed. "Specified Backup for Fragile Parts of
LLM" (Morumpalle et al., 2024): as its tables have them. Their models and tasks are not ours.
"""

from collections.abc import Mapping

OPT = "OPT-1.3B, LAMBADA accuracy %, clean about 74"
LLAMA = "LLaMA-2-7B, X-Sum ROUGE-1, clean about 31.7"
MISTRAL = "Mistral-7B, two subjects of MMLU, 1 shot"

_RATES = ("1e-07", "1e-06", "1e-05", "0.0001", "0.001")
_SENSITIVE = ("about 62", "about 15", "about 0", "about 0", "about 0")
_FC1 = ("unharmed", "unharmed", "unharmed", "about 69", "about 12")
COMPONENT = {
    f"components = {name}, rate = {rate}": f"{OPT}: {value}"
    for name, row in {"o": _SENSITIVE, "down": _SENSITIVE, "up": _FC1}.items()
    for rate, value in zip(_RATES, row, strict=True)
} | {f"components = {name}, rate = 0.001": f"{OPT}: about 72" for name in ("q", "k", "v", "sv")}
"""FC1 of OPT stands beside `up`, its FC2 beside `down`."""

BIT = {
    f"components = {name}, bits = {bit}, rate = {rate}": f"{name.upper()} of OPT-1.3B: {said}"
    for name, row in {
        "k": {"10": "no harm", "14": "mild", "22": "as bit 30", "30": "as bit 22"},
        "o": {"10": "no harm", "14": "hurts from 1e-5 on", "22": "close to bit 30", "30": "worst"},
    }.items()
    for bit, said in row.items()
    for rate in ("1e-05", "0.001")
}
LAYER = {
    f"layers = {layer}": f"{OPT}, layer {min(layer, 23)} of 24: {value}"
    for layer, value in {0: 4, 6: 24, 12: 52, 18: 65, 24: 73}.items()
}
STAGE = {
    f"activation_trigger = {trigger}, rate = {rate}": f"{LLAMA}: {value}"
    for trigger, row in {
        "during decode": (31.69, 31.62, 31.23, 29.53),
        "from prefill to decode:1": (31.51, 29.61, 14.38, 6.93),
        "always": (31.59, 15.01, 14.58, 7.21),
    }.items()
    for rate, value in zip(("1e-08", "1e-07", "1e-06", "1e-05"), row, strict=True)
}
DEPTH = {
    f"layers = group {group}/6, rate = {rate}": f"{MISTRAL}, groups of 4 layers of 32: {said}"
    for group in range(1, 7)
    for rate, said in {
        "0.0001": "guessing, whichever group (1e-6: no loss in any; 1e-5: later groups lose less)",
    }.items()
}
VALUE = {
    f"components = {name}": f"{MISTRAL}: AWRCL {by_rate} over rate, {by_errors} over errors, half lost at {half}"
    for name, (by_rate, by_errors, half) in {
        "embedding+lm_head": (
            "0.4167 (embedding), 0.2797 (head)",
            "0.5905, 0.6042",
            "1e-5 or 1,342 errors, 1e-3 or 134,218",
        ),
        "q k v o": ("0.4897", "0.5820", "1e-5 or 13,422 errors"),
        "gate up down": ("0.4532", "0.5370", "1e-5 or 56,371 errors"),
        "norm": ("0.0651", "0.0193", "1e-1 or 26,624 errors"),
    }.items()
}
"""Of curves: over nine rates from 1e-9 to 1e-1, with weights that the paper leaves open."""

PUBLISHED: Mapping[str, Mapping[str, str]] = {
    "component": COMPONENT,
    "bit": BIT,
    "layer": LAYER,
    "stage": STAGE,
    "value": VALUE,
    "value-depth": DEPTH,
}
"""By the name of the study, then by that of the combination or curve."""

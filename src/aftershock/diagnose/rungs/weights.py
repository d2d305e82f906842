"""Rung: are the words that the engine holds the reference's?

Digests tell where they can be compared. A difference is a lead: what the linear maps and norms compute, in the replay,
decides whether it matters.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

import torch

from aftershock.capture import Weight
from aftershock.diagnose.diagnosis import Finding, Rung
from aftershock.diagnose.weights import Part, Weights
from aftershock.numerics import words

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_KINDS: Mapping[str, tuple[str, ...]] = {
    "norm": ("attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm", "final_norm"),
    "qk_norm": ("q_norm", "k_norm"),
    "lm_head": ("logits",),
    "fc1": ("up",),
    "fc2": ("down",),
}
"""Kinds of points that a component's word of a bundle stands for, where they are not the word itself."""


def weights_rung(held: Sequence[Weight], weights: Weights) -> Rung:
    """Compare the digests of what the target holds with those of the reference's tensors, rounded to the same type."""
    if not held:
        return Rung(
            name="weights", state="not checked", said="the target's weights can't be read: the replay probes them"
        )
    known = digests(weights, {entry.dtype for entry in held})
    shapes = {part: tuple(tensor.shape) for part, tensor in weights.items()}
    equal, findings = 0, list[Finding]()
    for entry in held:
        wanted = [part for part in parts_of(entry) if shapes.get(part) == entry.shape]
        if not wanted or entry.dtype not in _DTYPES:
            continue
        found = known.get(entry.digest, ())
        if set(found) & set(wanted):
            equal += 1
        else:
            findings.append(_finding(entry, wanted[0], found))
    left = len(held) - equal - len(findings)
    if not equal + len(findings):
        why = f"none of {len(held)} tensors has a shape of the reference's"
        return Rung(name="weights", state="not checked", said=why)
    rest = f", {left} can't be compared" if left else ""
    if not findings:
        said = f"{equal} tensors hold the reference's words{rest}"
        return Rung(name="weights", state="agrees", said=said)
    said = f"{len(findings)} tensors hold other words than the reference's, {equal} the same{rest}"
    return Rung(name="weights", state="differs", said=said, findings=tuple(findings))


def digests(weights: Weights, dtypes: set[str]) -> dict[str, list[Part]]:
    """The parts that have a digest, rounded to each of some types (by the names of safetensors)."""
    found: dict[str, list[Part]] = {}
    for name in sorted(dtypes & _DTYPES.keys()):
        for part, tensor in weights.items():
            found.setdefault(_digest(tensor.to(_DTYPES[name])), []).append(part)
    return found


def _digest(tensor: torch.Tensor) -> str:
    stored = words(tensor.cpu().contiguous()).numpy()
    return blake2b(stored.data, digest_size=16).hexdigest()


def parts_of(entry: Weight) -> Iterator[Part]:
    """The reference's tensors that an engine's tensor may be, by its component and layer."""
    role = "bias" if entry.name.endswith("bias") else "weight"
    layer = -1 if entry.layer is None else entry.layer
    for component in (entry.component or "").split("+"):
        for kind in _KINDS.get(component, (component,)):
            yield Part(kind, layer, "bias" if role == "bias" else "weight")


def _finding(entry: Weight, wanted: Part, found: Sequence[Part]) -> Finding:
    other = next(iter(found), None)
    where = f"{entry.name} (rows from {entry.offset})" if entry.offset else entry.name
    swapped = other is not None and {other.kind, wanted.kind} == {"gate", "up"}
    if other is None:
        cause, said = "weight_rows_wrong", "words that no tensor of the reference has"
    else:
        cause = "gate_up_swapped" if swapped else "weight_of_other_layer"
        said = f"the words of {other.kind}{f' of layer {other.layer}' if other.layer >= 0 else ''}"
    return Finding(
        component=wanted.kind,
        cause=cause,
        evidence=f"{where} holds {said}",
        layers=() if entry.layer is None else (entry.layer,),
        confirmed=False,
    )

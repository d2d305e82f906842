"""What checks and searches by fingerprint cost. Part of `benchmarks.locate`.

On the CPU: `verify` of live SmolLM2-135M (bf16) beside the plain sum of the same bytes by torch, tensor by tensor and
as one buffer, as 64-bit integers. On CUDA: `checksums` of tensors with the shapes of an 8B model beside a copy of them,
both in bytes moved a second. All in turns, so that a machine's moods strike each alike; ratios are of one turn.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from aftershock.detect import checksums, take_fingerprint, verify
from aftershock.locate import locate_by_fingerprint
from aftershock.models import live_words, load
from aftershock.numerics import generator
from aftershock.stats import bootstrap_interval
from benchmarks.locate_faults import SPEC, Suspect, single
from benchmarks.locate_words import PROFILES, llama_8b

WARM = 3
Timed = dict[str, Callable[[], object]]


def measure(device: str, turns: int, seed: int) -> dict[str, Any]:
    """`turns` of everything."""
    found = _on_cpu(turns, seed)
    if torch.device(device).type == "cuda":
        found |= _on_cuda(torch.device(device), turns)
    return found


def _on_cpu(turns: int, seed: int) -> dict[str, Any]:
    words = live_words(load(SPEC, "bfloat16").module)
    tensors = [words.tensor(tensor.name).detach() for tensor in words.tensors]
    whole = [one.view(-1).view(torch.int64) for one in tensors if one.nbytes % 8 == 0]
    buffer = torch.cat(whole)
    taken = {profile: take_fingerprint(words, profile) for profile in PROFILES}
    timed: Timed = {
        "verify": lambda: verify(words, taken["exact"]),
        "sum of each tensor": lambda: [one.sum() for one in whole],
        "sum of one buffer": lambda: buffer.sum(),
    }
    seconds = in_turns(timed, turns)
    struck = Suspect(words, words)
    slow: Timed = {}
    for profile in PROFILES:
        slow[f"fingerprint {profile}"] = partial(take_fingerprint, words, profile)
        slow[f"locate {profile}"] = partial(locate_by_fingerprint, words, taken[profile])
    fault = single(words.tensors, 0, generator(seed, 0, "timed fault"))
    struck.strike(fault)
    slow_seconds = in_turns(slow, max(3, turns // 10))
    struck.strike(fault)
    return {
        "n": turns,
        "bytes": sum(one.nbytes for one in tensors),
        "summed_bytes": buffer.nbytes,
        "verify_over_sum_of_each": ratio(seconds["sum of each tensor"], seconds["verify"]),
        "verify_over_sum_of_buffer": ratio(seconds["sum of one buffer"], seconds["verify"]),
        "seconds": {name: spread(own) for name, own in (seconds | slow_seconds).items()},
    }


def _on_cuda(device: torch.device, turns: int) -> dict[str, Any]:
    tensors = [torch.randint(2**31, (tensor.size // 4,), dtype=torch.int32, device=device) for tensor in llama_8b()]
    largest = max(tensors, key=len)
    target = torch.empty_like(largest)
    total = sum(one.nbytes for one in tensors)

    def copy() -> None:
        for one in tensors:
            target[: len(one)].copy_(one)
        torch.cuda.synchronize(device)

    seconds = in_turns({"checksums": lambda: checksums(tensors), "copy": copy}, turns)
    return {
        "cuda": {
            "machine": torch.cuda.get_device_name(device),
            "bytes": total,
            # A copy reads and writes each byte.
            "checksum_over_copy_bandwidth": ratio([own / 2 for own in seconds["copy"]], seconds["checksums"]),
            "seconds": {name: spread(own) for name, own in seconds.items()},
        }
    }


def in_turns(timed: Timed, turns: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other, `turns` times, after a few that don't count."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(WARM + turns):
        for name, call in timed.items():
            begin = time.perf_counter()
            call()
            if turn >= WARM:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(first: list[float], second: list[float]) -> dict[str, Any]:
    """Median over turns of first over second, with its interval."""
    shares = np.array(first) / np.array(second)
    return asdict(bootstrap_interval(shares, lambda samples: np.median(samples, axis=1), 0))


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {"median": float(middle), "lower_quartile": float(low), "upper_quartile": float(high)}

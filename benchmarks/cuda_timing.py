"""Steps as CUDA graphs, and their times on the device, in turns."""

from collections.abc import Callable, Mapping
from typing import Any

import torch


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """A step as a CUDA graph, after runs that compile what there is to compile; a call replays it."""
    # torch gives its streams no types.
    cuda: Any = torch.cuda
    aside = cuda.Stream()
    aside.wait_stream(cuda.current_stream())
    with cuda.stream(aside):
        for _ in range(3):
            step()
    cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def milliseconds(runs: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Time of each on the device, one after the other, `turns` times, after one turn that does not count."""
    # torch gives its events no types.
    cuda: Any = torch.cuda
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + turns):
        for name, run in runs.items():
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            if turn:
                found[name].append(begin.elapsed_time(end))
    return found

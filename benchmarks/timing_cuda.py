"""How the GPU benchmarks time: CUDA graphs, weights that no cache can serve, medians.

A call is captured once for each of several copies of its weights, 256 MB or more in all, so that
the L2 cache (50 to 60 MB) never serves them; a replay runs all copies in turn, and the median
replay divided by the number of calls is the time of one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

COLD_BYTES = 256 << 20


def copies_for(nbytes: int, least: int = 8, most: int = 200) -> int:
    """Copies of `nbytes` that together are too large for any cache."""
    return max(least, min(most, -(-COLD_BYTES // max(1, nbytes))))


def time_calls(calls: list[Callable[[], object]], replays: int = 15) -> float:
    """Median microseconds of one call; `calls` differ in the weights that they read."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for replay in range(replays + 3):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def time_eagerly(calls: list[Callable[[], object]], rounds: int = 3) -> float:
    """Median microseconds of one of `calls` that wait for the GPU, which no graph can hold."""
    calls[0]()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for call in calls * rounds:
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }

"""What a gradient costs: seconds and peak memory of the run's rule, beside backprop's on the same
batch.

The two take turns, and each time is the median of several. Peak memory is the most that is held at
once beyond what was there before, as CUDA's allocator counts it, or on a processor torch's profiler
(elsewhere it is left out). Such numbers differ from run to run, so they go to the stage's timing
file and not into its table.
"""

import os
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import accumulate
from statistics import median

import torch
from pydantic import Field
from torch.profiler import ProfilerActivity, profile

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot
from lmlab.model import noise
from lmlab.model.models.base import next_token_loss


class Options(Params):
    """Options of the probe."""

    repeats: int = Field(ge=1, le=100_000)


class Cost(Probe):
    """`seconds` and `peak_bytes` of `rule` and `backprop`, and their `ratio`; in training mode, at
    the first snapshot.
    """

    timed = True

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.repeats, self.is_measured = options.repeats, False

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        if self.is_measured:
            return
        self.is_measured = True
        model, rule = deepcopy(snapshot.model).train(), deepcopy(snapshot.rule)

        def by_rule() -> None:
            rule.assign_gradients(model, batch.tokens, batch.targets)

        def by_backprop() -> None:
            torch.autograd.backward(next_token_loss(model(batch.tokens), batch.targets))

        device = batch.tokens.device
        measures = {"seconds": seconds, "peak_bytes": peak_bytes}
        if device.type not in ("cpu", "cuda"):
            del measures["peak_bytes"]
        for measure, measured in measures.items():
            found: dict[str, list[float]] = {"rule": [], "backprop": []}
            with noise.forked():
                for turn in range(1 + self.repeats):
                    for way, run in (("rule", by_rule), ("backprop", by_backprop)):
                        model.zero_grad()
                        rule.zero_grad()
                        value = measured(run, device)
                        if turn:  # the first one warms up
                            found[way].append(value)
            middle = {way: median(values) for way, values in found.items()}
            for where, value in {**middle, "ratio": middle["rule"] / middle["backprop"]}.items():
                yield Reading(measure, where, value)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """How long it takes."""
    _finish(device)
    started = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - started


def peak_bytes(run: Callable[[], None], device: torch.device) -> float:
    """The most that is allocated at once while it runs, beyond what was before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return float(torch.cuda.max_memory_allocated() - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler tells when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted(
        (event for event in events if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    return float(max(accumulate((event.nbytes() for event in changes), initial=0)))


def _finish(device: torch.device) -> None:
    """Wait for a device that works on its own time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()

"""What a gradient costs: seconds and peak memory by the run's rule and by backprop.

Both compute it on the same batch. They take turns, and each result is the median of several. Peak
memory is the most that is allocated at once beyond what was before, as counted by CUDA's allocator,
or on a CPU by torch's profiler (on other devices it is left out). Such numbers differ from run to
run, so they go to the stage's timing file and not into its table.
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

Meter = Callable[[Callable[[], None], torch.device], float]
"""Measures a call on a device."""


class Options(Params):
    """Options of the probe."""

    repeats: int = Field(ge=1, le=100_000)


class Cost(Probe):
    """`seconds` and `peak_bytes` of `rule` and `backprop`, and their `ratio`.

    They are measured in training mode, at the first snapshot only.
    """

    reading = (
        "Seconds and peak memory of one gradient by the run's rule, by backprop, and their ratio: 1"
        " for backprop itself, above 1 where the rule costs more. Seconds vary by some percent from"
        " run to run."
    )
    timed = True
    remembers = True

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

        def measured(meter: Meter, gradient: Callable[[], None]) -> float:
            model.zero_grad()
            rule.zero_grad()
            return meter(gradient, batch.tokens.device)

        meters: dict[str, Meter] = {"seconds": seconds}
        if batch.tokens.device.type in ("cpu", "cuda"):
            meters["peak_bytes"] = peak_bytes
        for measure, meter in meters.items():
            of_rule, of_backprop = [], []
            with noise.forked():
                for _ in range(1 + self.repeats):
                    of_rule.append(measured(meter, by_rule))
                    of_backprop.append(measured(meter, by_backprop))
            # the first turn is a warm-up
            rule_median, backprop_median = median(of_rule[1:]), median(of_backprop[1:])
            yield Reading(measure, "rule", rule_median)
            yield Reading(measure, "backprop", backprop_median)
            yield Reading(measure, "ratio", rule_median / backprop_median)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """How long a call takes, all work on the device included."""
    _synchronize(device)
    started = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - started


def peak_bytes(run: Callable[[], None], device: torch.device) -> float:
    """The most that is allocated at once during a call, beyond what was allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return float(torch.cuda.max_memory_allocated() - before)
    # otherwise the profiler prints when it starts and stops
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    allocations = [event for event in events if event.name() == "[memory]"]
    allocations.sort(key=lambda event: event.start_ns())
    return float(max(accumulate((event.nbytes() for event in allocations), initial=0)))


def _synchronize(device: torch.device) -> None:
    """Wait for a device that works asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()

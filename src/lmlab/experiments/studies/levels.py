"""When the runs of a study come back to the level of the run that some of them went on from."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from lmlab.experiments.studies.records import ArmRecord, Result


class Spent(NamedTuple):
    """What a run had spent when it was first at a level; infinite where it never was."""

    bytes: float
    """That it read itself."""
    flops: float
    """Of its own, and of the run that it went on from."""


def by_seed(arms: Mapping[str, ArmRecord], within: float) -> dict[int, float]:
    """The level of each seed, in bits per byte: `within` above what the first run ended with."""
    return {
        point.seed: point.result.bits_per_byte_before + within
        for record in arms.values()
        for point in record.reported
        if point.result.bits_per_byte_before is not None
    }


def spent_to(result: Result, level: float) -> Spent:
    """What a run had spent when it was first at a level, between validations in proportion.

    Its curve begins with what it was before its first step, where it went on from another run.
    """
    steps_before = result.steps - result.own_steps if result.own_steps else 0
    flops_before = result.flops - result.own_flops if result.own_steps else 0
    own_steps = result.steps - steps_before
    bytes_per_step = (result.own_bytes or result.bytes) / own_steps
    flops_per_step = (result.flops - flops_before) / own_steps
    last: tuple[float, float] | None = None
    for step, nats in result.curve:
        at, bits = step - steps_before, nats / math.log(2) / result.bytes_per_token
        if bits <= level:
            if last is not None:
                share = (last[1] - level) / (last[1] - bits)
                at = last[0] + share * (at - last[0])
            return Spent(at * bytes_per_step, flops_before + at * flops_per_step)
        last = at, bits
    return Spent(math.inf, math.inf)

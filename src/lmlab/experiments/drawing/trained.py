"""The pictures of a run: its model, and its learning rule at work at the last snapshot."""

from copy import deepcopy
from typing import Any

from lmlab.evaluation.probes.base import Batch, Snapshot
from lmlab.evaluation.signals import signals
from lmlab.experiments.drawing import model, rule
from lmlab.model import noise
from lmlab.training.interventions.base import Intervention


def pictures(snapshot: Snapshot, batch: Batch) -> dict[str, Any]:
    """`model` and `rule`, each the JSON of a Picture.

    The rule is watched in double precision, without the interventions around it.
    """
    of_run = deepcopy(snapshot.model).cpu().double()
    inner = snapshot.rule
    while isinstance(inner, Intervention):
        inner = inner.rule
    inner = deepcopy(inner).cpu().double()
    with noise.forked(seed=0):
        seen = signals(inner, of_run, batch.tokens.cpu(), batch.targets.cpu())
    when = f"at step {snapshot.step + 1:,} of training, on validation text"
    drawn = {
        "model": model.drawn(snapshot.model),
        "rule": rule.drawn(inner, snapshot.name, seen, when),
    }
    return {name: picture.model_dump() for name, picture in drawn.items()}

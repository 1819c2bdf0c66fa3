"""Any combination of parts trains, or is refused before it starts, in one line that says why:
drawn, as all are too many.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import small
import torch
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import changed, section
from lmlab.experiments import preflight
from lmlab.training import step as stepping
from lmlab.training.step import Diverged, TrainParams

SEEDS = range(300)
VOCABULARY, CONTEXT = 12, 8
SMALL = {
    "train.context": CONTEXT,
    "train.batch": 4,
    "train.steps": 3,
    "train.threads": 1,
    "evaluate.stride": 4,
    "learning_rules.node_perturbation.samples": 1,
    "learning_rules.activity_forward_gradient.samples": 1,
}
POPULATIONS = {"population": 2, "directions": 2, "chunk": 3, "state": 4, "kernel": 3}


def choosers() -> Iterator[tuple[str, str]]:
    """Every key that names a part of what is trained, and the kind it names."""
    yield from ((f"train.{key}", kind) for key, kind in registry.marked(TrainParams))
    for kind in registry.kinds():
        for name in registry.names(kind):
            _, options = registry.find(kind, name)
            yield from ((f"{kind}.{name}.{key}", inner) for key, inner in registry.marked(options))


CHOOSERS = dict(choosers())
SLOTS = [key for key, kind in CHOOSERS.items() if kind == "interventions"]
ALSO: dict[str, list[Any]] = {
    "models.transformer.tied": [False, True],
    "models.transformer.dropout": [0.0, 0.2],
    "models.transformer.logit_soft_cap": [0.0, 5.0],
    "layers.embedding.n_gram.row_width": [0, 4],
    "layers.embedding.n_gram.dropout": [0.0, 0.3],
    "layers.residual.hyper.dynamic": [False, True],
    "learning_rules.frozen.embedding": [False, True],
    "learning_rules.block_local.similarity": [0.0, 0.5, 1.0],
    "learning_rules.node_perturbation.maps_at_once": [0, 1, 2],
    "learning_rules.activity_forward_gradient.maps_at_once": [0, 1],
    "learning_rules.synthetic_gradients.targets": [False, True],
    "train.precision": ["float32", "float32", "bfloat16"],
    "train.gradient_accumulation": [1, 1, 2],
}
"""Further choices that decide what works with what, each at one of its values."""


def drawn(seed: int) -> dict[str, Any]:
    """A combination: each part at random, more often than not a transformer and not all
    interventions at once.
    """
    rng = Random(seed)
    values: dict[str, Any] = {
        key: rng.choice(registry.names(kind)) for key, kind in CHOOSERS.items()
    }
    values |= {key: rng.choice(among) for key, among in ALSO.items()}
    if rng.random() < 0.4:
        values["train.model"] = "transformer"
    values |= {slot: "identity" for slot in SLOTS if rng.random() < 0.4}
    if rng.random() < 0.5:
        values["train.parametrisation"] = "standard"
    if values["train.optimizer"] == "schedule_free":
        values["train.schedule"] = "constant"
    if rng.random() < 0.1:
        values |= {
            "train.step_in_backward": True,
            "train.clip": 0.0,
            "train.gradient_accumulation": 1,
        }
    return values


class Fixed:
    """The same random batch at every step."""

    def __init__(self, batch: int) -> None:
        both = small.tokens(batch, CONTEXT + 1, vocabulary_size=VOCABULARY - 1)
        self.tokens, self.targets = both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        return self.tokens, self.targets


def train(tree: Any) -> None:
    """Two steps, whose losses are numbers; a run that diverges has said so."""
    params = section(tree, "train", TrainParams)
    chosen = registry.choices(tree, "train", params)
    run = stepping.begin(params, chosen, VOCABULARY, torch.device("cpu"))
    schedule, batches = chosen["schedule"].build(params.steps), Fixed(run.params.batch)
    before = torch.get_rng_state()
    for _ in range(2):
        loss, norm, _ = stepping.take_step(run, schedule, batches)  # type: ignore[arg-type]
        assert math.isfinite(loss) and math.isfinite(norm)  # noqa: PT018
        run.step += 1
    assert torch.equal(torch.get_rng_state(), before), "a step draws by its key alone"


@pytest.fixture(scope="module")
def outcomes() -> dict[int, str]:
    """For each seed why the combination was refused; empty where it has trained."""
    found = {}
    base = changed(small.tree(**POPULATIONS), SMALL)
    for seed in SEEDS:
        values = drawn(seed)
        tree = changed(base, values)
        try:
            preflight.check(tree)
        except UserError as refused:
            found[seed] = str(refused)
            continue
        try:
            train(tree)
        except Diverged:
            pass
        except Exception as fault:
            raise AssertionError(
                f"accepted, but then {type(fault).__name__}: {fault}, with {values}"
            ) from fault
        found[seed] = ""
    return found


def test_what_is_accepted_trains_and_what_is_refused_is_told_why_in_one_line(
    outcomes: dict[int, str],
) -> None:
    for seed, refused in outcomes.items():
        if not refused:
            continue
        values = drawn(seed)
        assert "\n" not in refused
        assert refused.startswith("params.yaml: ")
        assert any(word in refused for word in ("; ", ", so ", ", or ")), (
            f"no advice in {refused!r}"
        )
        named = refused.split(": ")[1].split(" ")[0]
        chosen = {str(value) for value in values.values()} | {
            name for key in values for name in key.split(".")
        }
        assert chosen & set(named.split(".")), f"{refused!r} names nothing that was chosen"


def test_most_refusals_are_few_reasons_and_most_combinations_train(
    outcomes: dict[int, str],
) -> None:
    """A guard: refusing more than before would pass the test above."""
    trained = sum(not refused for refused in outcomes.values())
    assert trained > 0.45 * len(outcomes)
    reasons = Counter(
        "backward pass"
        if "backward pass" in refused
        else "final gradients"
        if "step_in_backward" in refused
        else "other"
        for refused in outcomes.values()
        if refused
    )
    assert reasons["other"] < 0.3 * len(outcomes)


def test_every_pair_of_a_rule_and_another_part_of_a_model_or_a_slot_is_likely_to_be_drawn() -> None:
    combinations = [drawn(seed) for seed in range(2000)]
    for one, other in itertools.combinations(
        ("train.learning_rule", "train.model", SLOTS[0], "train.optimizer"), 2
    ):
        seen = {(values[one], values[other]) for values in combinations}
        assert len(seen) > 0.95 * len(registry.names(CHOOSERS[one])) * len(
            registry.names(CHOOSERS[other])
        )

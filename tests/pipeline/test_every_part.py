"""Every part is trained by the stages as a user would choose it; a new one needs its file and its
params alone.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML
from small import PROJECT

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.experiments import preflight

pytestmark = pytest.mark.pipeline

STAGES = ("start", "download", "tokenizer", "shard", "train", "evaluate", "probe", "report")
TREE = params.read(PROJECT / "params.yaml")
NO_NETWORK = ["grammar", "markov"]  # the other corpora have tests of their own


def choosers() -> Iterator[tuple[str, str]]:
    """Every key of params.yaml that names a part, and the kind it names."""
    for name, section in preflight.SECTIONS.items():
        yield from ((f"{name}.{key}", kind) for key, kind in registry.marked(section))
    for kind in registry.kinds():
        for name in registry.names(kind):
            _, options = registry.find(kind, name)
            yield from ((f"{kind}.{name}.{key}", inner) for key, inner in registry.marked(options))


OF_A_START = {"migrations", "growths"}
NEEDS_A_START = {
    name
    for name in registry.names("learning_rules")
    if registry.find("learning_rules", name)[0].needs_teacher
}
"""Kinds that need a run to go on from: test_migrating.py and test_growing.py train with each."""
KEYS = {
    key: kind
    for key, kind in choosers()
    if kind not in OF_A_START and not key.startswith(("models.hybrid.", "corpora.mixture."))
}
SLOTS = [key for key, kind in KEYS.items() if kind == "interventions"]
INSIDE = {
    key: kind
    for key, kind in KEYS.items()
    if key not in ("train.model", "train.learning_rule", *SLOTS)
}
EVERY_PROBE = "[" + ",".join(registry.names("probes")) + "]"
EVERY_MEASURE = "[" + ",".join(registry.names("measures")) + "]"


def covering() -> list[dict[str, str]]:
    """Choices that between them hold every part of every kind: those of the transformer together,
    then every learning rule.

    A rule comes with another model, optimizer and intervention each time, or the next of them that
    it can work with.
    """
    known = {
        key: NO_NETWORK if kind == "corpora" else registry.names(kind)
        for key, kind in INSIDE.items()
    }
    expert = "layers.feed_forward.mixture_of_experts.expert"
    known[expert] = [name for name in known[expert] if name != "mixture_of_experts"]
    around = registry.names("interventions")
    chosen = []
    for run in range(max(map(len, known.values()))):
        values = {key: names[run % len(names)] for key, names in known.items()}
        if (
            values["models.transformer.attention"] == "linear"
            and values["models.transformer.position"] == "alibi"
        ):
            values["models.transformer.position"] = (
                "rotary"  # linear attention has no scores for a bias to be added to
            )
        slots = {
            slot: around[(len(SLOTS) * run + number) % len(around)]
            for number, slot in enumerate(SLOTS)
        }
        chosen.append(
            {"train.model": "transformer", "train.learning_rule": "backprop", **values, **slots}
        )
    chosen[0]["probe.probes"] = (
        EVERY_PROBE  # not with linear attention, where the probe `attention` finds nothing
    )
    assert chosen[0]["models.transformer.attention"] != "linear"
    chosen[0] |= {"evaluate.measures": EVERY_MEASURE, "measures.blimp.folder": "blimp"}
    chosen[0]["probes.sparse_autoencoder.place"] = "blocks.0.output"
    models = registry.names("models")
    rules = [name for name in registry.names("learning_rules") if name not in NEEDS_A_START]
    for run, rule in enumerate(rules):
        small = {
            key: names[run % len(names)]
            for key, names in known.items()
            if key.startswith(("train.", "tokenizer."))
        }
        tries = (
            {
                "train.model": models[(run + more) % len(models)],
                "train.learning_rule": rule,
                **small,
                SLOTS[0]: intervention,
            }
            for more in range(len(models))
            for intervention in (around[run % len(around)], "identity")
        )
        chosen.append(next(values for values in tries if _works(values)))
    return chosen


def _works(values: dict[str, str]) -> bool:
    try:
        preflight.check(params.changed(TREE, values))
    except UserError:
        return False
    return True


COVERING = covering()


def test_the_runs_below_cover_every_part() -> None:
    seen = {
        (KEYS[key], value) for values in COVERING for key, value in values.items() if key in KEYS
    }
    if any(values.get("probe.probes") == EVERY_PROBE for values in COVERING):
        seen |= {("probes", name) for name in registry.names("probes")}
    if any(values.get("evaluate.measures") == EVERY_MEASURE for values in COVERING):
        seen |= {("measures", name) for name in registry.names("measures")}
    kinds = set(registry.kinds()) - OF_A_START
    every = {(kind, name) for kind in kinds for name in registry.names(kind)}
    every -= {("learning_rules", name) for name in NEEDS_A_START}
    assert {part for part in every - seen if part[0] != "corpora"} == set()


def run_with(inside: Any, values: dict[str, Any], *stages: str) -> None:
    inside.workspace.set(values, must_change=False)
    inside.run(*stages)


@pytest.mark.parametrize(
    "values",
    COVERING,
    ids=lambda values: (
        "-".join(dict.fromkeys(values.values()))
        .replace(EVERY_PROBE, "probes")
        .replace(EVERY_MEASURE, "measures")
    ),
)
def test_every_part_is_trained_measured_and_looked_at(inside: Any, values: dict[str, str]) -> None:
    # what measures and probes do with every model and rule is tested in files of their own
    chosen: dict[str, Any] = {
        "evaluate.measures": ["learning_curve"],
        "probe.probes": ["gradient_norm"],
        **values,
    }
    if "measures.blimp.folder" in values:
        sentences = {"sentence_good": "the dogs sleep.", "sentence_bad": "the dogs sleeps."}
        pair = json.dumps({**sentences, "linguistics_term": "agreement"})
        Path("blimp").mkdir()
        Path("blimp/agreement.jsonl").write_text(pair + "\n")
    for key in ("probe.probes", "evaluate.measures"):
        if key in values:
            chosen[key] = registry.names(key.partition(".")[2])
    run_with(inside, chosen, *STAGES[: len(STAGES) if "measures.blimp.folder" in values else -1])
    saved = inside.workspace.json("data/model/model.json")["model"]
    assert saved["name"] == values["train.model"]
    for key, inner in saved["inner"].items():
        assert inner["name"] == values.get(f"models.{saved['name']}.{key}", inner["name"])
    metrics = inside.workspace.json("results/metrics.json")
    assert 0 < metrics["validation"]["bits_per_byte"] < 20


@pytest.mark.parametrize(
    "values",
    COVERING,
    ids=lambda values: values["train.learning_rule"] + "-" + values["train.model"],
)
def test_dvc_is_told_of_the_files_and_params_of_every_part(values: dict[str, str]) -> None:
    """What `${...}` in dvc.yaml comes to with these choices: files that are there, and blocks of
    params.yaml.
    """
    tree = params.changed(TREE, {key: value for key, value in values.items() if key in KEYS})
    stages = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]

    def filled(line: str) -> str:
        return re.sub(r"\$\{(.+?)\}", lambda found: str(at(tree, found[1])), line)

    for name, stage in stages.items():
        code = [
            filled(line)
            for line in stage["deps"]
            if line.startswith(("src/", "pipeline/", "texts"))
        ]
        assert [path for path in code if not (PROJECT / path).exists()] == []
        for line in stage["params"]:
            assert isinstance(at(tree, filled(line)), dict), f"{name}: {line}"
        assert f"src/lmlab/model/models/{values['train.model']}.py" in code or name not in (
            "train",
            "evaluate",
            "probe",
        )


def at(tree: Any, dotted: str) -> Any:
    node = tree
    for key in dotted.split("."):
        node = node[key]
    return node


def test_a_part_of_each_kind_is_added_by_its_file_and_its_params_alone(workspace: Any) -> None:
    """docs/parts.md's four rules, once for every kind: a twin of the part in use under another name
    gives the same weights.
    """
    before = workspace.path("data/model/weights.safetensors").read_bytes()
    yaml = YAML()
    with workspace.path("params.yaml").open() as file:
        tree = yaml.load(file)
    at(tree, "train")["model"] = (
        "lstm"  # a model that names no others: one that does adds a line for each to dvc.yaml
    )
    keys = [key for key in KEYS if key.count(".") == 1 or key.startswith("models.transformer.")]
    listed = {
        "probe.probes": "probes",
        "evaluate.measures": "measures",
    }  # the keys that list parts: the first of each
    kinds = {**{key: KEYS[key] for key in keys}, **listed}
    for key, kind in kinds.items():
        block, _, name = key.rpartition(".")
        old = at(tree, block)[name][0] if key in listed else at(tree, block)[name]
        source = workspace.path(f"src/lmlab/{registry.folder(kind)}/{old}.py")
        text = source.read_text()
        class_name = next(
            found
            for found in re.findall(r"^class (\w+)", text, re.M)
            if found.lower() == old.replace("_", "")
        )
        source.with_name("twin.py").write_text(re.sub(rf"(?<![.\w]){class_name}\b", "Twin", text))
        at(tree, kind)["twin"] = json.loads(
            json.dumps(at(tree, f"{kind}.{old}") or {})
        )  # a copy without comments
    assert set(kinds.values()) == set(registry.kinds()) - OF_A_START
    at(tree, "train")["model"] = "transformer"
    with workspace.path("params.yaml").open("w") as file:
        yaml.dump(tree, file)
    listing = (
        "import pipeline; from lmlab.experiments import catalogue; print(*(list(names) for names in"
        " catalogue.parts().values()))"
    )
    assert workspace.run("python", "-c", listing).stdout.count("'twin'") == len(
        set(kinds.values())
    )  # as `lmlab parts` has it
    # cheap stages depend on whole folders, or show all params in use; nothing is trained again
    assert workspace.status() == {"evaluate", "probe", "report"}

    def weights_of(*stages: str, **changes: Any) -> bytes:
        """What the stages come to in a process of its own, which runs the workspace's code."""
        workspace.set(
            {key.replace("__", "."): value for key, value in changes.items()}, must_change=False
        )
        script = (
            f"import importlib, pipeline\nfor name in {stages!r}:\n    module ="
            " importlib.import_module('pipeline.' + name)"
        )
        workspace.run("python", "-c", f"{script}\n    pipeline.staged(getattr(module, name))()")
        data: bytes = workspace.path("data/model/weights.safetensors").read_bytes()
        return data

    twins: dict[str, Any] = {key.replace(".", "__"): "twin" for key in keys if key != "train.model"}
    assert (
        weights_of(*STAGES, **twins, **{key.replace(".", "__"): ["twin"] for key in listed})
        == before
    )
    assert "twin" in workspace.json("results/measures.json")
    assert set(
        pq.read_table(workspace.path("data/probes/probes.parquet")).column("probe").to_pylist()
    ) == {"twin"}
    inner = workspace.json("data/model/model.json")["model"]["inner"]
    assert {choice["name"] for choice in inner.values()} == {"twin"}
    assert "train" in workspace.status()
    assert weights_of("train", train__model="lstm") == weights_of("train", train__model="twin")

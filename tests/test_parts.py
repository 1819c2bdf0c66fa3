import json
from pathlib import Path

import pytest
from small import PROJECT

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree

PARTS = [(kind, name) for kind in registry.kinds() for name in registry.names(kind)]
every_part = pytest.mark.parametrize(("kind", "name"), PARTS)


def test_the_kinds_of_the_design_are_found() -> None:
    assert {
        "corpora",
        "tokenizers",
        "models",
        "learning_rules",
        "optimizers",
        "layers.attention",
    } <= set(registry.kinds())
    assert all(registry.names(kind) for kind in registry.kinds())


@every_part
def test_a_part_has_its_class_its_options_and_a_line_of_documentation(kind: str, name: str) -> None:
    cls, options = registry.find(kind, name)
    assert cls.__name__.lower() == name.replace("_", "")
    assert options.__module__ == cls.__module__
    for documented in (cls, options):
        assert "__doc__" in vars(documented)
        assert (documented.__doc__ or "").strip().split("\n\n")[0].endswith((".", ":"))
    assert not cls.__subclasses__()


@every_part
def test_params_yaml_gives_exactly_the_options_of_a_part(kind: str, name: str, tree: Tree) -> None:
    assert name in params.block(tree, kind)
    _, options = registry.find(kind, name)
    assert list(params.block(tree, f"{kind}.{name}")) == list(options.model_fields)
    params.section(tree, f"{kind}.{name}", options)


@pytest.mark.parametrize("kind", registry.kinds())
def test_params_yaml_has_no_block_that_is_no_part(kind: str, tree: Tree) -> None:
    assert set(params.block(tree, kind)) <= set(registry.names(kind))


@every_part
def test_a_choice_survives_being_recorded_as_json(kind: str, name: str, tree: Tree) -> None:
    choice = registry.choose(tree, kind, name)
    assert registry.recall(kind, json.loads(json.dumps(choice.record()))) == choice


@pytest.mark.parametrize("kind", registry.kinds())
def test_an_unknown_part_is_refused_with_the_nearest(kind: str, tree: Tree) -> None:
    known = registry.names(kind)[0]
    with pytest.raises(
        UserError, match=f"train.key: there is no '{known}x' in {kind}; did you mean {known}"
    ):
        registry.choose(tree, kind, f"{known}x", "train.key")
    for name in ("base", "__init__", "", "../params"):
        with pytest.raises(UserError, match="there is no"):
            registry.find(kind, name)


def test_the_parts_that_options_name_are_chosen_with_theirs(tree: Tree) -> None:
    choice = registry.choose(tree, "models", "transformer")
    assert choice.inner["attention"].name == params.block(tree, "models.transformer")["attention"]
    assert choice.inner["attention"].options.model_dump() == params.block(
        tree, "layers.attention.multi_head"
    )


def test_an_unknown_part_among_the_options_names_the_key(tree: Tree) -> None:
    wrong = {
        **tree,
        "models": {"transformer": {**tree["models"]["transformer"], "position": "rotery"}},
    }
    with pytest.raises(
        UserError, match=r"models\.transformer\.position: there is no 'rotery'.*did you mean rotary"
    ):
        registry.choose(wrong, "models", "transformer")


@pytest.mark.parametrize("key", ["first", "second"])
def test_a_part_built_from_itself_is_refused(key: str, tree: Tree) -> None:
    wrong = {
        **tree,
        "models": {**tree["models"], "hybrid": {**tree["models"]["hybrid"], key: "hybrid"}},
    }
    with pytest.raises(
        UserError,
        match=rf"models\.hybrid\.{key}: 'hybrid' cannot be built from itself; name another",
    ):
        registry.choose(wrong, "models", "hybrid")
    assert registry.choose(wrong, "models", "transformer")  # which has nothing to do with it


def test_a_recorded_choice_whose_options_changed_is_refused(tree: Tree) -> None:
    record = registry.choose(tree, "models", "transformer").record()
    record["options"]["widht"] = record["options"].pop("width")
    with pytest.raises(UserError, match="widht"):
        registry.recall("models", record)


def test_every_value_in_params_yaml_has_a_comment_or_stood_with_one_before() -> None:
    """A key's comment stands behind it, or behind the same key of an earlier part of the same kind.

    The items of a list are explained by the key above them.
    """
    explained: set[str] = set()
    key = ""
    for line in (PROJECT / "params.yaml").read_text(encoding="utf-8").splitlines():
        code, _, comment = line.partition("#")
        item = code.strip().startswith("- ")
        if not item:
            key, _, value = code.strip().partition(":")
        if key and comment.strip():
            explained.add(key)
        if item or value.strip() not in ("", "{}"):
            assert key in explained, line


def test_finding_names_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = tmp_path / "face" / "noses"
    kind.mkdir(parents=True)
    for helper in ("base.py", "_nostrils.py"):
        (kind / helper).write_text("")
    (kind / "broken.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    assert registry.kinds() == ["noses"]
    assert registry.names("noses") == ["broken"]

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Params, Tree


class Section(Params):
    learning_rate: float = Field(gt=0)
    steps: int = Field(ge=0)
    name: str
    split: Literal["tail", "document"] = "tail"

    @model_validator(mode="after")
    def _possible(self) -> "Section":
        if self.name == "impossible":
            raise ValueError("this cannot be")
        return self


GOOD = {"learning_rate": 0.5, "steps": 3, "name": "a"}


def read(tmp_path: Path, text: str) -> Tree:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return params.read(path)


def refused(block: Any) -> str:
    with pytest.raises(UserError) as caught:
        params.section({"train": block}, "train", Section)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("params.yaml: train")
    return message


def test_a_good_section_is_frozen_and_typed() -> None:
    section = params.section({"train": GOOD}, "train", Section)
    assert section.steps == 3
    with pytest.raises(ValueError, match="frozen"):
        section.steps = 4  # type: ignore[misc]


def test_a_typo_names_the_key_and_the_nearest_right_one() -> None:
    message = refused({"learning_rat": 0.5, "steps": 3, "name": "a"})
    assert (
        message == "params.yaml: train.learning_rat is not a known key; did you mean learning_rate?"
    )


def test_an_unknown_key_like_no_other_lists_what_there_is() -> None:
    assert "known here: learning_rate, name, split, steps" in refused({**GOOD, "zzz": 1})


@pytest.mark.parametrize("key", [1, True, 2.5])
def test_a_key_that_is_not_text_is_an_unknown_key(key: object) -> None:
    assert f"train.{key} is not a known key" in refused({**GOOD, key: 1})


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("steps", "3", "integer"),
        ("steps", 3.0, "integer"),
        ("steps", True, "integer"),
        ("steps", -1, "greater than or equal to 0"),
        ("steps", None, "integer"),
        ("learning_rate", "fast", "number"),
        ("learning_rate", 0.0, "greater than 0"),
        ("learning_rate", float("nan"), "finite"),
        ("learning_rate", float("inf"), "finite"),
        ("name", 3, "string"),
        ("split", "tial", "'tail' or 'document'"),
    ],
)
def test_a_wrong_value_names_the_key_what_is_asked_and_what_was_found(
    key: str, value: object, hint: str
) -> None:
    message = refused({**GOOD, key: value})
    assert message.startswith(f"params.yaml: train.{key} should be ")
    assert hint in message
    assert repr(value) in message


def test_a_missing_key_is_named() -> None:
    assert "train.steps is missing" in refused({"learning_rate": 0.5, "name": "a"})


def test_a_missing_section_names_its_first_key() -> None:
    with pytest.raises(UserError, match=r"train\.learning_rate is missing.*2 more"):
        params.section({}, "train", Section)


def test_of_several_wrong_values_the_first_is_named_and_the_others_are_counted() -> None:
    class Switches(Params):
        first: bool
        second: bool
        third: bool

    with pytest.raises(UserError, match=r"train\.first should be .*\(and 2 more\)"):
        params.section(
            {"train": {"first": "perhaps", "second": [], "third": "no way"}}, "train", Switches
        )


def test_an_impossible_combination_names_the_section() -> None:
    assert "train: this cannot be" in refused({**GOOD, "name": "impossible"})


@pytest.mark.parametrize("scalar", [3, "text", [1, 2]])
def test_a_section_that_is_no_block_says_so(scalar: object) -> None:
    assert "train should be a block of keys" in refused(scalar)


def test_a_block_below_a_scalar_names_the_scalar() -> None:
    with pytest.raises(UserError, match="layers should be a block of keys, not 3"):
        params.block({"layers": 3}, "layers.attention.multi_head")


def test_an_integer_is_a_number_but_no_number_is_an_integer() -> None:
    assert (
        params.section({"train": {**GOOD, "learning_rate": 1}}, "train", Section).learning_rate
        == 1.0
    )


def test_the_file_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    tree = read(tmp_path, "train:\n  learning_rate: 3e-4\n  steps: 0o7\n  name: on\n")
    assert tree["train"] == {"learning_rate": 3e-4, "steps": 7, "name": "on"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty or a list"),
        ("# only a comment\n", "empty or a list"),
        ("- a\n- b\n", "empty or a list"),
        ("train:\n  steps: 1\n  steps: 2\n", 'line 3: .*duplicate key "steps"'),
        ("train:\n\tsteps: 1\n", "line 2: "),
        ("train: {steps: 1\n", "line"),
        ("train: *unknown\n", "line 1: found undefined alias"),
        ("train: !!python/name:os.system\n", "line 1: "),
        ("train: 2020-13-45\n", "month"),
        ("a: 1\n---\nb: 2\n", "document"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(
    tmp_path: Path, text: str, hint: str
) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        read(tmp_path, text)
    assert "params.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match="missing"):
        params.read(path)
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match="not valid YAML"):
        params.read(path)


@pytest.mark.parametrize(
    "value", [2**63, -(2**63), 2**64, 99999999999999999999, [2**63], {"a": [2**63]}]
)
def test_a_whole_number_that_torch_cannot_hold_is_refused_by_its_key(value: object) -> None:
    class Open(Params):
        seed: Any

    with pytest.raises(UserError) as caught:
        params.section({"train": {"seed": value}}, "train", Open)
    assert str(caught.value).startswith("params.yaml: train.seed: ")
    assert str(caught.value).endswith(
        "whole numbers lie between -9223372036854775807 and 9223372036854775807"
    )
    assert params.section({"train": {"seed": 2**63 - 1}}, "train", Open).seed == 2**63 - 1


TEN = "[{}]".format(",".join(["{}"] * 10))
BLOCKS = zip("abcde", "bcdef", strict=True)
LAUGHS = "\n".join(f"{name}: &{name} " + TEN.format(*[f"*{below}"] * 10) for below, name in BLOCKS)


@pytest.mark.parametrize("text", ["a: &a\n  b: *a\n", "a: &a\n- *a\n", f"a: &a 1\n{LAUGHS}\n"])
def test_aliases_that_never_end_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"more than 100,000 values.*aliases"):
        read(tmp_path, text)
    assert read(tmp_path, "a: &a [1, 2]\nb: *a\n") == {"a": [1, 2], "b": [1, 2]}


def test_a_long_value_is_cut_where_it_is_told() -> None:
    assert len(refused({**GOOD, "steps": "x" * 10_000})) < 400
    assert "a number of very many digits" in refused(16**5000)

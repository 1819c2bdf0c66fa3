"""Files that are there whole or not at all: what stands in their place, and what was changed since,
is told in one line.
"""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from small import PROJECT

from lmlab.core.errors import UserError
from lmlab.core.files import (
    check_folder,
    checked,
    output,
    read_json,
    seal,
    vouched,
    whole_file,
    whole_folder,
    write_json,
    write_sums,
)
from lmlab.experiments.compare.run import workspace_run


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fill(folder: Path) -> None:
    with whole_folder(folder) as made:
        (made / "new").write_text("new")


def test_a_file_in_the_place_of_a_folder_is_refused_and_left() -> None:
    Path("data").mkdir()
    Path("data/model").write_text("mine")
    with pytest.raises(UserError, match=r"^data/model is a file, .* move it away"):
        fill(Path("data/model"))
    with pytest.raises(UserError, match=r"^data/model is a file"):
        check_folder(Path("data/model/below/deeper"))
    assert Path("data/model").read_text() == "mine"
    Path("data/nowhere").symlink_to("gone")
    with pytest.raises(UserError, match="a link to nowhere"):
        fill(Path("data/nowhere"))
    check_folder(Path("data/not/yet"))


def test_an_error_in_writing_is_told_of_the_file_that_was_asked_for(tmp_path: Path) -> None:
    """Not of the hidden one beside it, which becomes that file when all is written."""
    long = tmp_path / ("n" * 250)  # it fits, but not with what the hidden one adds
    with pytest.raises(OSError, match="name too long") as error, whole_file(long) as partial:
        partial.write_text("some")
    assert error.value.filename == str(long)
    folder = tmp_path / "folder"
    with pytest.raises(FileNotFoundError) as error, whole_folder(folder) as partial:
        (partial / "none" / "file").write_text("some")
    assert error.value.filename == str(folder / "none" / "file")
    with pytest.raises(FileNotFoundError) as error, whole_file(tmp_path / "file"):
        (tmp_path / "another").read_text()
    assert error.value.filename == str(tmp_path / "another")
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_folder_gives_way_and_what_it_leads_to_stays() -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/old").write_text("old")
    Path("model").symlink_to("elsewhere")
    fill(Path("model"))
    assert sorted(path.name for path in Path("model").iterdir()) == ["SHA256SUMS", "new"]
    assert Path("elsewhere/old").read_text() == "old"


def test_what_is_missing_is_told_with_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dvc.yaml").touch()
    Path("below/deeper").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^data/a is missing; run `dvc repro train` to make it$"):
        checked(Path("data/a"), made_by="train")
    top = Path.cwd()
    monkeypatch.chdir("below/deeper")
    with pytest.raises(UserError, match=rf"in the project's top folder, {top}, which this is not"):
        read_json(Path("data/a.json"), made_by="train")
    (top / "dvc.yaml").unlink()
    with pytest.raises(
        UserError, match=r"in the project's top folder which this is not: it has no dvc.yaml"
    ):
        checked(Path("data/a"), made_by="train")


@pytest.mark.parametrize("spoil", ["flip", "cut"])
def test_a_sealed_file_is_what_was_written_or_refused(spoil: str) -> None:
    value = {"numbers": [1.5, 2], "name": "é"}
    write_json(Path("a.json"), seal(value))
    assert read_json(Path("a.json"), made_by="arm") == value
    text = Path("a.json").read_text(encoding="utf-8")
    Path("a.json").write_text(
        text.replace("1.5", "1.4") if spoil == "flip" else text[:-20], encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"^a.json is damaged"):
        read_json(Path("a.json"), made_by="arm")
    write_json(Path("b.json"), value)  # one without a seal
    assert read_json(Path("b.json"), made_by="arm") == value


@pytest.mark.parametrize(
    "name", ["results/metrics.json", "results/training.csv", "data/probes/probes.parquet"]
)
@pytest.mark.parametrize("spoil", ["flip", "cut"])
def test_what_a_report_reads_is_what_was_written_or_refused(name: str, spoil: str) -> None:
    Path("params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    for folder in ("results", "data/probes"):
        Path(folder).mkdir(parents=True)
    Path("results/metrics.json").write_text(json.dumps({"validation": {"bits_per_byte": 2.5}}))
    pd.DataFrame({"step": [1], "train_nats": [2.5]}).to_csv("results/training.csv", index=False)
    Path("data/probes/probes.parquet").write_bytes(b"some 2.5 bytes")
    for folder in ("results", "data/probes"):
        write_sums(Path(folder))

    def read() -> None:
        run = workspace_run()
        assert run.measures == {"validation.bits_per_byte": 2.5}
        assert run.curves["training"]["train_nats"].tolist() == [2.5]
        assert run.open("data/probes/probes.parquet") == b"some 2.5 bytes"
        assert run.open("data/probes/none") is None

    read()
    content = Path(name).read_bytes()
    Path(name).write_bytes(content.replace(b"2.5", b"2.4") if spoil == "flip" else content[:-1])
    stage = "probe" if "probes" in name else "evaluate"
    with pytest.raises(UserError, match=rf"{name} is damaged; run `dvc repro --force {stage}`"):
        read()
    Path(name).with_name("SHA256SUMS").unlink()
    assert vouched(Path(name), stage) == Path(name)  # of an earlier version, which had none
    Path(name).with_name("SHA256SUMS").mkdir()
    with pytest.raises(UserError, match="SHA256SUMS, which vouches for"):
        read()


@pytest.mark.parametrize(
    "spoil", ["pipe", "link to a pipe", "folder", "nothing", "below a file", "another file"]
)
def test_nothing_but_a_file_of_its_kind_is_written_over(spoil: str) -> None:
    target = Path("out.json")
    if spoil == "pipe":
        os.mkfifo(target)
    elif spoil == "link to a pipe":
        os.mkfifo("pipe")
        target.symlink_to("pipe")
    elif spoil == "folder":
        target.mkdir()
    elif spoil == "nothing":
        target = Path()
    else:
        Path("params.yaml").write_text("mine")
        target = Path("params.yaml") if spoil == "another file" else Path("params.yaml/out.json")
    before = {path: path.lstat().st_mode for path in Path().rglob("*")}
    with pytest.raises(UserError):
        output(target, ".json")
    if spoil != "another file":
        with pytest.raises(UserError):
            write_json(target, 1)
    assert {path: path.lstat().st_mode for path in Path().rglob("*")} == before


def test_what_a_link_leads_to_is_written_where_a_person_named_the_link() -> None:
    Path("there").mkdir()
    Path("link.json").symlink_to("there/it.json")
    write_json(output(Path("link.json"), ".json"), 1)
    assert (Path("link.json").is_symlink(), Path("there/it.json").read_text().strip()) == (
        True,
        "1",
    )
    write_json(Path("link.json"), 2)  # a stage's output, which may be a link into DVC's cache
    assert (Path("link.json").is_symlink(), Path("there/it.json").read_text().strip()) == (
        False,
        "1",
    )

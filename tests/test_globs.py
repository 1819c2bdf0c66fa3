"""Files by pattern: real files once, whatever leads to them, and nothing passed over in silence."""

import glob
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.core.errors import UserError, printable
from lmlab.data import globs

SUFFIXES = (".txt", ".md.gz")


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def find(*patterns: Path | str) -> tuple[list[str], dict[str, int]]:
    files, passed_over = globs.find([str(pattern) for pattern in patterns], SUFFIXES, "the.key")
    return [str(path) for path in files], dict(passed_over)


def refused(*patterns: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        find(*patterns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


names = st.sampled_from(["a", "b.txt", "c.TXT", ".d.txt", "[e].txt", "f", "é.txt"])
trees = st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8)
steps = st.sampled_from(["**", "*", "*.txt", "?", "a", "f", "[!a]*", ".*", "b.txt", ".."])
patterns = st.lists(steps, min_size=1, max_size=4).map("/".join)


@settings(max_examples=150)
@given(trees, patterns)
def test_without_links_a_glob_finds_what_the_standard_library_finds(
    paths: list[str], pattern: str
) -> None:
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top, "1/2/3/4")  # so deep that no pattern leads out of it
        folder.mkdir(parents=True)
        _find_as_the_standard_library_does(folder, paths, pattern)


def _find_as_the_standard_library_does(folder: Path, paths: list[str], pattern: str) -> None:
    for path in paths:
        if not any((folder / parent).is_file() for parent in [Path(path), *Path(path).parents]):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / path).exists():
                (folder / path).write_text("x")
    expected = {
        Path(match)
        for match in glob.glob(str(folder / pattern), recursive=True)
        if Path(match).is_file()
    }
    real = {path.resolve() for path in expected}
    if os.path.isdir(folder / pattern):
        return  # a folder is another kind of pattern
    if any(not globs.has_suffix(path, SUFFIXES) for path in expected):
        with pytest.raises(UserError, match=r"only files that end in"):
            globs.find([str(folder / pattern)], SUFFIXES, "the.key")
        return
    files, _ = globs.find([str(folder / pattern)], SUFFIXES, "the.key")
    assert files == sorted(files)
    assert len(files) == len(real)
    assert {path.resolve() for path in files} == real


@pytest.mark.parametrize("target", [".", "..", "../loop", "deep"])
def test_a_link_that_leads_back_ends(tmp_path: Path, target: str) -> None:
    write(tmp_path / "loop", "a.txt", "deep/b.txt", "deep/er/c.txt")
    for number in range(40):  # each would multiply the names of a file by that of the others
        os.symlink(target, tmp_path / "loop" / f"{number:02}")
        os.symlink(
            "../../" if number % 2 else "..", tmp_path / "loop" / "deep" / "er" / f"{number:02}"
        )
    for pattern in ("loop/**/*.txt", "**/*.txt", "loop", "**/**/*.txt", "loop/**"):
        files, passed_over = find(pattern)
        assert files == ["loop/a.txt", "loop/deep/b.txt", "loop/deep/er/c.txt"], pattern
        assert passed_over[globs.FOLDER_AGAIN] >= 80


def test_every_file_is_found_once_by_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, "texts/b.txt", "texts/z/own.txt", "elsewhere/far.txt")
    os.link("texts/b.txt", "texts/c.txt")
    os.symlink("b.txt", "texts/a.txt")
    os.symlink("z", "texts/linked")
    os.symlink("../elsewhere", "texts/far")
    files = ["texts/b.txt", "texts/far/far.txt", "texts/z/own.txt"]
    assert find("texts") == (files, {globs.FILE_AGAIN: 2, globs.FOLDER_AGAIN: 1})
    assert find("texts/**/*.txt", "texts/b.txt", "texts/*/../c.txt", "texts/linked/own.txt") == (
        files,
        {globs.FILE_AGAIN: 5, globs.FOLDER_AGAIN: 1},
    )
    assert find("texts/a.txt") == (["texts/a.txt"], {})
    assert find("texts/b.txt", str(tmp_path / "texts" / "b.txt"))[1] == {globs.FILE_AGAIN: 1}


def test_in_a_folder_the_kinds_asked_for_are_read_and_others_counted(tmp_path: Path) -> None:
    write(
        tmp_path,
        "f/a.TXT",
        "f/b.md.gz",
        "f/c.csv",
        "f/d/e.csv",
        "f/d/none",
        "f/.hidden.txt",
        "f/.git/x.txt",
        "f/g.тхт",
    )
    (tmp_path / "f" / "folder.txt").mkdir()
    files = ["f/a.TXT", "f/b.md.gz"]
    others = {
        "files that end in .csv": 2,
        "files that end in .\\u0442\\u0445\\u0442": 1,
        "files without a suffix": 1,
    }
    for folder in ("f", "f/", tmp_path / "f"):
        found, passed_over = find(folder)
        assert [os.path.relpath(path) for path in found] == files
        assert passed_over == {**others, globs.NAMED_AS_FILES: 1}
    assert "f/c.csv: only files that end in .txt, .md.gz can be read" in refused("f/*.csv")
    assert "f/c.csv: only files" in refused("f/c.csv")


def test_names_that_look_like_patterns_are_names_first(tmp_path: Path) -> None:
    write(tmp_path, "data [1]/notes [2].txt", "data [1]/other.txt", "a*.txt", "ab.txt")
    assert find("data [1]/notes [2].txt")[0] == ["data [1]/notes [2].txt"]
    assert len(find("data [1]")[0]) == 2
    assert find("a*.txt")[0] == ["a*.txt"]
    assert find("data [[]1]/*.txt")[0] == ["data [1]/notes [2].txt", "data [1]/other.txt"]


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "nowhere/*.txt",
        "*.txt/*.txt",
        "a\0b",
        "x" * 300,
        "x" * 5000,
        "x" * 300 + "/*.txt",
        "[*.txt",
        "~nobody/*",
    ],
)
def test_what_matches_nothing_is_empty_whatever_it_is(pattern: str) -> None:
    assert find(pattern) == ([], {globs.NO_MATCH: 1} if pattern else {})


def test_what_is_no_file_is_refused_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write(folder, "fine.txt")
    for name, target in {
        "broken.txt": "nowhere",
        "itself.txt": "itself.txt",
        "in/two.txt": "../in/two.txt/x",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        os.symlink(target, folder / name)
        for pattern in ("f", "f/**/*.txt", f"f/{name}"):
            assert f"f/{name} is a link to nowhere" in refused(pattern)
        (folder / name).unlink()
    os.mkfifo(folder / "pipe.txt")
    assert "f/pipe.txt is neither file nor folder" in refused("f/*.txt")
    assert "neither file nor folder" in refused("/dev/null")


def test_names_of_any_bytes_are_found_and_shown_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.txt").write_text("x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("x")
    files, _ = find("*.txt")
    assert [printable(path) for path in files] == ["a\\nb.txt", "caf\\udce9.txt"]
    for path in files:
        printable(path).encode("utf-8")
    assert printable("é 中/\ud800") == "é 中/\\ud800"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "f/closed/a.txt")
    (tmp_path / "f" / "closed").chmod(0)
    with pytest.raises(PermissionError):
        find("f")
    (tmp_path / "f" / "closed").chmod(0o700)

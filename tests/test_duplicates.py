"""Documents that say the same as an earlier one are left out, counted and said; no others are."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_collecting import TAIL, WHOLE, build, splits

from lmlab.core.errors import UserError
from lmlab.data import duplicates
from lmlab.data.collect import DownloadParams
from lmlab.data.duplicates import Signatures, first_of_equal, first_of_near, on_disk

pytestmark = pytest.mark.usefixtures("own_scratch")

DROPS = {"duplicates": "equal"}
NEAR = {"duplicates": "near"}


def prose(words: int, seed: int) -> str:
    rng = random.Random(seed)
    lines = [" ".join(f"w{rng.randrange(4000)}" for _ in range(8)) for _ in range(words // 8)]
    return "\n".join(lines) + "\n"


def with_other_words(text: str, count: int, seed: int) -> str:
    """The text with so many words, spread over it, changed."""
    rng = random.Random(seed)
    words = text.split()
    for place in rng.sample(range(len(words)), count):
        words[place] = f"other{rng.randrange(10**9)}"
    return " ".join(words) + "\n"


def jaccard(one: str, other: str) -> float:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[first : first + 5]) for first in range(len(words) - 4)}

    return len(runs(one) & runs(other)) / len(runs(one) | runs(other))


@pytest.mark.parametrize("params", [TAIL, WHOLE])
def test_equal_documents_are_left_out_but_for_the_first(
    tmp_path: Path, params: DownloadParams
) -> None:
    texts = [prose(800, seed) for seed in range(6)]
    pieces = [[text] for text in [*texts, texts[2], texts[0], texts[2] + "more\n", texts[2]]]
    as_it_is = build(params, tmp_path / "keep", *pieces)
    assert "equal documents" not in as_it_is.left_out
    manifest = build(params.model_copy(update=DROPS), tmp_path / "equal", *pieces)
    assert manifest.left_out == {"equal documents": 3}
    wanted = [*texts, texts[2] + "more\n"]
    build(params, tmp_path / "without", *[[text] for text in wanted])
    assert splits(tmp_path / "equal") == splits(tmp_path / "without"), "as if they were not there"


def test_a_text_in_other_pieces_or_with_other_line_ends_is_equal(tmp_path: Path) -> None:
    text = prose(800, 1)
    pieces = [[text], [text[:100], text[100:]], [text.replace("\n", "\r\n")], [prose(800, 2)]]
    manifest = build(TAIL.model_copy(update=DROPS), tmp_path / "made", *pieces)
    assert manifest.left_out == {"equal documents": 2}


def test_near_duplicates_are_left_out_but_for_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [prose(1000, seed) for seed in range(8)]
    near = [with_other_words(text, 8, seed) for seed, text in enumerate(texts[:3])]
    far = [with_other_words(text, 120, seed) for seed, text in enumerate(texts[3:6])]
    assert all(jaccard(one, other) > 0.9 for one, other in zip(texts, near, strict=False))
    assert all(jaccard(one, other) < 0.45 for one, other in zip(texts[3:], far, strict=False))
    everything = [*texts, *near, *far, texts[7]]
    params = TAIL.model_copy(update=NEAR)
    manifest = build(params, tmp_path / "near", *[[text] for text in everything])
    assert manifest.left_out == {"equal documents": 1, "nearly equal documents": 3}
    build(TAIL, tmp_path / "wanted", *[[text] for text in [*texts, *far]])
    assert splits(tmp_path / "near") == splits(tmp_path / "wanted")
    assert "nearly equal documents: 3" in capsys.readouterr().out
    assert not [*(tmp_path / "near").glob("*.bin")]


def test_documents_shorter_than_a_run_of_words_are_near_only_if_equal(tmp_path: Path) -> None:
    short = ["yes indeed\n", "no\n", "yes  indeed\n", "one two three four five six\n", ""]
    pieces = [[text] for text in [prose(800, 1), *short, "no\n"]]
    manifest = build(TAIL.model_copy(update=NEAR), tmp_path / "made", *pieces)
    assert manifest.left_out["equal documents"] == 1
    assert manifest.left_out.get("nearly equal documents", 0) == 1  # but for its spaces


def test_alike_are_those_whose_words_are(tmp_path: Path) -> None:
    """The share of equal minima is the Jaccard similarity, within what chance does to it."""
    text = prose(2000, 0)
    signatures = Signatures()
    others = [with_other_words(text, count, count) for count in (0, 10, 40, 100, 200, 400)]
    for other in [text, *others]:
        for line in other.splitlines(keepends=True):
            signatures.add(line)  # in pieces: runs go on from line to line
        signatures.end()
    found = on_disk(tmp_path / "signatures", [signatures.taken()])
    for number, other in enumerate(others, start=1):
        share = float((found[0] == found[number]).mean())
        expected = jaccard(text, other)
        assert abs(share - expected) < 5 * max(0.02, (expected * (1 - expected) / 128) ** 0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 2**32))
def test_of_each_cluster_the_first_stays(groups: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(2**32, size=(4, duplicates.NUMBERS), dtype=np.uint32)
    signatures = centres[groups].copy()
    for row in signatures:  # a little noise, far within the similarity
        row[rng.integers(duplicates.NUMBERS, size=3)] += 1
    first = np.array([groups.index(group) == place for place, group in enumerate(groups)])
    everything = np.ones(len(groups), np.bool_)
    assert (first_of_near(signatures, 0.8, everything) == first).all()
    hashes = np.array([[group, 7] for group in groups], np.uint64)
    assert (first_of_equal(hashes) == first).all()


def test_without_its_library_near_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"near needs the package rensa: pip install"):
        build(TAIL.model_copy(update=NEAR), tmp_path / "made", ["text"])

"""What splits have in common, held against a slow search for the same."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.data import overlap
from lmlab.data.documents import SPLITS
from lmlab.data.splitting import write_splits

Texts = Sequence[str]


def found(
    folder: Path, train: Texts, validation: Texts, test: Texts = (), part: int = 1 << 20
) -> dict[str, Any]:
    """What `overlap` says of these documents, stored in parts of so many characters."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split, texts in zip(SPLITS, (train, validation, test), strict=True):
        for number, text in enumerate(texts):
            starts = range(0, len(text), part)
            rows += [
                (split, number, at, f"{number}", text[start : start + part])
                for at, start in enumerate(starts)
            ]
    sizes = write_splits(rows, folder)
    return shared(folder, {split: sizes[split].characters for split in SPLITS})


def shared(folder: Path, characters: dict[str, int]) -> dict[str, Any]:
    """What `overlap` says, as it is in the manifest."""
    equal_documents, verbatim = overlap.overlap(folder, characters)
    return {"equal_documents": equal_documents.record(), "verbatim": verbatim.record()}


def covered(held_out: Texts, train: Texts, run: int) -> int:
    """By definition: how many characters lie in some `run` characters of their document that stand
    in one of train.
    """
    count = 0
    for text in held_out:
        inside = set()
        for start in range(len(text) - run + 1):
            if any(text[start : start + run] in other for other in train):
                inside |= {*range(start, start + run)}
        count += len(inside)
    return count


documents = st.lists(st.text("ab\n", min_size=1, max_size=24), max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    documents,
    documents,
    documents,
    st.sampled_from([2, 4, 8]),
    st.integers(1, 9),
    st.integers(1, 30),
)
def test_the_runs_are_those_of_a_slow_search(
    tmp_path: Path, train: Texts, validation: Texts, test: Texts, run: int, part: int, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "RUN", run)
        patch.setattr(overlap, "AT_ONCE", at_once)
        verbatim = found(tmp_path / "corpus", train, validation, test, part)["verbatim"]
    assert verbatim == {
        "run_characters": run,
        "validation": {
            "characters": covered(validation, train, run),
            "checked": sum(map(len, validation)),
        },
        "test": {"characters": covered(test, train, run), "checked": sum(map(len, test))},
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    *[st.lists(st.sampled_from(["a", "b", "ab", "é\n", "x" * 30]), max_size=6)] * 3,
    st.integers(1, 9),
)
def test_equal_documents_are_counted_within_and_across(
    tmp_path: Path, train: Texts, validation: Texts, test: Texts, part: int
) -> None:
    equal = found(tmp_path / "corpus", train, validation, test, part)["equal_documents"]

    def counts(texts: Texts) -> dict[str, int]:
        return {"documents": len(texts), "characters": sum(map(len, texts))}

    for split, texts in (("train", train), ("validation", validation), ("test", test)):
        assert equal["within"][split] == counts(
            [text for at, text in enumerate(texts) if text in texts[:at]]
        )
    assert equal["across"] == {
        "validation in train": counts([text for text in validation if text in train]),
        "test in train": counts([text for text in test if text in train]),
        "test in validation": counts([text for text in test if text in validation]),
    }


def prose(characters: int, seed: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices("etaoin shrdlu\n", k=characters))


def test_a_planted_passage_is_found_to_the_character(tmp_path: Path) -> None:
    train, validation = prose(200_000, 0), prose(30_000, 1)
    copied = (
        train[70_000:70_500] + train[150_000:150_063]
    )  # the second is one character short of a run
    planted = [
        validation[:9000] + copied[:500] + "|" + validation[9000:] + "|" + copied[500:],
        train[:64],
        train[5:68],
    ]
    verbatim = found(tmp_path / "corpus", [train], planted)["verbatim"]
    assert verbatim["validation"] == {"characters": 500 + 64, "checked": len("".join(planted))}
    assert overlap.RUN == verbatim["run_characters"] == 64


def test_no_run_crosses_the_border_of_documents(tmp_path: Path) -> None:
    text = prose(128, 0)
    halves = [text[:60], text[60:]]
    assert found(tmp_path / "a", [text], halves)["verbatim"]["validation"]["characters"] == len(
        halves[1]
    )
    assert found(tmp_path / "b", halves, [text])["verbatim"]["validation"]["characters"] == len(
        halves[1]
    )
    short = [text[at : at + 32] for at in range(0, 128, 32)]
    assert found(tmp_path / "c", short, short)["verbatim"]["validation"]["characters"] == 0


def test_all_that_is_held_out_may_stand_in_train(tmp_path: Path) -> None:
    text = "hello world\n" * 400
    for train, validation in ((text * 9, text), (prose(9000, 0), prose(9000, 0))):
        verbatim = found(tmp_path / "corpus", [train], [validation], [validation[:100]])["verbatim"]
        for split, length in (("validation", len(validation)), ("test", 100)):
            assert verbatim[split] == {"characters": length, "checked": length}


def test_of_a_large_split_a_sample_is_looked_at_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    train = prose(150_000, 0)
    copied = [train[at : at + rng.randrange(500, 900)] for at in rng.choices(range(140_000), k=60)]
    texts = [
        text
        for number, copy in enumerate(copied)
        for text in (prose(rng.randrange(900, 1600), 1 + number), copy)
    ]
    whole = found(tmp_path / "whole", [train], texts, [train[:900]])["verbatim"]
    monkeypatch.setattr(overlap, "MOST_CHECKED", len("".join(texts)) // 3 + 1)
    monkeypatch.setattr(overlap, "STRETCH", 500)
    sampled = found(tmp_path / "sampled", [train], texts, [train[:900]])["verbatim"]
    of_one_text = found(tmp_path / "joined", [train], ["".join(texts)], [train[:900]], part=700)[
        "verbatim"
    ]
    exact = whole["validation"]["characters"] / whole["validation"]["checked"]
    assert whole["validation"]["checked"] == len("".join(texts))
    assert 0.2 < exact < 0.5
    for verbatim in (sampled, of_one_text):
        checked = verbatim["validation"]["checked"]
        assert checked == pytest.approx(len("".join(texts)) / 3, abs=overlap.STRETCH)
        assert verbatim["validation"]["characters"] / checked == pytest.approx(exact, abs=0.05)
        assert verbatim["test"] == whole["test"] == {"characters": 900, "checked": 900}


@given(
    st.lists(st.integers(0, 2**64 - 1)), st.lists(st.lists(st.integers(0, 2**64 - 1))), st.randoms()
)
def test_a_search_finds_what_was_met_and_nothing_else(
    wanted: list[int], streams: list[list[int]], rng: random.Random
) -> None:
    streams = [[*stream, *rng.choices(wanted, k=2)] if wanted else stream for stream in streams]
    search = overlap.Search([np.array(wanted, dtype=np.uint64)])
    for stream in streams:
        search.look_up(np.array(stream, dtype=np.uint64))
    met = set().union(*streams)
    assert search.found(np.array(wanted, dtype=np.uint64)).tolist() == [
        one in met for one in wanted
    ]


def test_hashes_of_windows_are_equal_where_the_windows_are() -> None:
    numbers = np.array(random.Random(0).choices(range(3), k=20_000), dtype=np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "RUN", 8)
        hashes = overlap.window_hashes(numbers).tolist()
        windows = [tuple(numbers[at : at + 8].tolist()) for at in range(len(numbers) - 7)]
        assert len(hashes) == len(windows)
        assert len(set(windows)) == len(set(hashes)) == len(set(zip(windows, hashes, strict=True)))
        for length in (7, 1):
            assert len(overlap.window_hashes(numbers[:length])) == 0


def test_the_factory_of_corpora_is_that_of_the_stage(corpus_of: Callable[..., Path]) -> None:
    folder = corpus_of(["one\n", "two\n"], ["two\n"])
    equal = shared(folder, {"train": 8, "validation": 4, "test": 0})["equal_documents"]
    assert equal["across"]["validation in train"] == {"documents": 1, "characters": 4}

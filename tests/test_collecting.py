import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.core.errors import UserError
from lmlab.data import cleaned, corpus_summary, documents
from lmlab.data import collect as collecting
from lmlab.data.cleaning import Cleaner
from lmlab.data.collect import DownloadParams
from lmlab.data.corpora.base import Corpus, Document
from lmlab.data.corpus_manifest import CorpusManifest
from lmlab.data.documents import SPLITS

pytestmark = pytest.mark.usefixtures("own_scratch")
TAIL = DownloadParams(
    corpus="here",
    ascii=True,
    most_dropped=0.02,
    duplicates="keep",
    similarity=0.8,
    split="tail",
    validation=0.1,
    test=0.05,
    split_seed=0,
)
WHOLE = TAIL.model_copy(update={"split": "document"})


class Here(Corpus):
    """Documents given as lists of pieces; an error among them is raised when it is reached."""

    source = "a test"
    licence = "none"

    def __init__(
        self,
        pieces: Sequence[Sequence[str] | BaseException],
        left_out: dict[str, int] | None = None,
    ) -> None:
        self.pieces, self.left_out = pieces, left_out

    def documents(self) -> Iterator[Document]:
        for number, pieces in enumerate(self.pieces):
            if isinstance(pieces, BaseException):
                raise pieces
            yield Document(f"text-{number}", iter(pieces))

    def facts(self) -> dict[str, Any]:
        return {"fact": 1, "left_out": self.left_out} if self.left_out else {"fact": 1}


def build(params: DownloadParams, folder: Path, *pieces: Sequence[str]) -> CorpusManifest:
    return collecting.build(params, Here(pieces), folder)


def splits(folder: Path) -> dict[str, dict[int, str]]:
    """Each split's documents by number, their parts joined; parts and documents come in order."""
    read: dict[str, dict[int, str]] = {}
    for split in SPLITS:
        joined: dict[int, str] = {}
        parts: dict[int, int] = {}
        for document, part, text in documents.read_parts(folder / f"{split}.parquet"):
            assert text
            assert part == parts.get(document, -1) + 1
            assert not joined or document >= max(joined)
            parts[document] = part
            joined[document] = joined.get(document, "") + text
        read[split] = joined
    return read


def prose(characters: int, seed: int = 0) -> str:
    """Text of so many characters in which no long run is likely to come twice."""
    return "".join(random.Random(seed).choices("etaoin shrdlu\n", k=characters))


def words(count: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(["to ", "be ", "or ", "not\n"]) for _ in range(count))


def test_the_ends_of_the_text_are_held_out_and_nothing_is_lost(tmp_path: Path) -> None:
    texts = [words(400, seed) for seed in range(5)]
    manifest = build(TAIL, tmp_path / "corpus", *([text] for text in texts))
    read = splits(tmp_path / "corpus")
    whole = "".join(texts)
    joined = {split: "".join(read[split].values()) for split in SPLITS}
    assert joined["test"] + joined["train"] + joined["validation"] == whole
    assert abs(len(joined["validation"]) - 0.1 * len(whole)) <= 1
    assert abs(len(joined["test"]) - 0.05 * len(whole)) <= 1
    for split in SPLITS:
        size = manifest.splits[split]
        assert size.documents == len(read[split])
        assert size.characters == len(joined[split])
        assert size.bytes == len(joined[split].encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    pieces=st.lists(st.lists(st.text("a\r\né", max_size=9), max_size=6), min_size=1, max_size=6),
    part=st.integers(1, 9),
    validation=st.sampled_from([0.01, 0.1, 0.5]),
    test=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_however_it_is_cut_the_text_is_whole(
    tmp_path: Path, pieces: list[list[str]], part: int, validation: float, test: float
) -> None:
    params = TAIL.model_copy(update={"ascii": False, "validation": validation, "test": test})
    whole = "".join(re.sub("\r\n?", "\n", "".join(document)) for document in pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleaned, "PART_CHARACTERS", part)
        patch.setattr(documents, "ROW_GROUP_BYTES", 3 * part)
        try:
            manifest = build(params, tmp_path / "corpus", *pieces)
        except UserError:
            assert len(whole) < 5  # too small to be split
            return
    read = splits(tmp_path / "corpus")
    assert (
        "".join("".join(read[split].values()) for split in ("test", "train", "validation")) == whole
    )
    assert sum(change.count for change in manifest.cleaned) == len(
        re.findall("\r\n?", "\0".join(map("".join, pieces)))
    )


def test_long_documents_come_in_parts_cut_behind_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaned, "PART_CHARACTERS", 100)
    text = words(2000) + "x" * 350 + "\n" + words(100)
    build(TAIL, tmp_path / "corpus", [text[:1234], text[1234:]])
    parts = [part for _, _, part in documents.read_parts(tmp_path / "corpus" / "train.parquet")]
    assert max(map(len, parts)) <= 100
    assert sum(not part.endswith("\n") for part in parts) <= 5  # the 350 letters, and the end


def test_the_manifest_says_what_cleaning_changed(tmp_path: Path) -> None:
    manifest = build(TAIL, tmp_path / "corpus", ["caf", "é\r", "\n" + "a" * 100])
    assert manifest.record()["cleaned"] == [
        {"character": "\r\n", "code_point": "U+000D U+000A", "became": "\n", "count": 1},
        {"character": "é", "code_point": "U+00E9", "became": "e", "count": 1},
    ]
    assert (manifest.corpus, manifest.source, manifest.licence, manifest.facts["fact"]) == (
        "here",
        "a test",
        "none",
        1,
    )


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines about the text, without those on progress."""
    lines = capsys.readouterr().out.splitlines()
    return [
        line
        for line in lines
        if not re.match("download: (cleaning|splitting|comparing splits):", line)
    ]


def test_what_cleaning_did_and_what_splits_share_is_said_even_where_it_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(TAIL, tmp_path / "corpus", [prose(3000)])
    assert told(capsys) == [
        "download: of 3,000 characters, cleaning dropped 0 (0 %) and replaced 0 (0 %)",
        "download: also in train: 0 documents and 0 % of validation, 0 documents and 0 % of test"
        " (equal documents;"
        " characters in equal runs of 64 or more)",
    ]


def test_what_was_dropped_replaced_emptied_and_left_out_is_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [
        [prose(3000)],
        ["é\r", "\nsoft\xadly 😀"],
        ["中\n文"],
        [],
        ["", ""],
        ["\ufeff"],
        [" \n"],
    ]
    corpus = Here(texts, {"rows without text (null)": 1234})
    manifest = collecting.build(TAIL, corpus, tmp_path / "corpus")
    assert manifest.record()["cleaning"] == {
        "characters": 3000 + 11 + 3 + 1 + 2,
        "replaced": 1,
        "invisible": 2,
        "dropped": 3,
        "emptied_documents": 2,
    }
    assert manifest.left_out == {"rows without text (null)": 1234, "empty documents": 2}
    assert told(capsys)[:2] == [
        "download: of 3,017 characters, cleaning dropped 3 (0.10 %) and replaced 1 (0.03 %); 2"
        " accents and invisible"
        " characters went too; it left nothing but white space of 2 document(s)",
        "download: left out: rows without text (null): 1,234; empty documents: 2",
    ]


@pytest.mark.parametrize("most", [0.0, 0.02, 0.5, 1.0])
def test_as_much_may_be_dropped_as_params_allow(tmp_path: Path, most: float) -> None:
    params = TAIL.model_copy(update={"most_dropped": most})
    dropped = round(1000 * most)
    kept = [prose(1000 - dropped) or "\r\n" * 9]
    manifest = build(params, tmp_path / "corpus", kept, ["中" * dropped])
    assert manifest.cleaning.dropped == dropped
    if most < 1:
        with pytest.raises(UserError, match=rf"download.most_dropped \({most}\)"):
            build(params, tmp_path / "corpus", kept, ["中" * (dropped + 1)])
        assert manifest == build(params, tmp_path / "corpus", kept, ["中" * dropped])
    free = build(
        params.model_copy(update={"ascii": False}), tmp_path / "corpus", kept, ["中" * 3000]
    )
    assert (free.cleaning.dropped, free.cleaning.replaced) == (0, 0)


def test_the_same_text_in_two_splits_is_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [[prose(200, seed)] for seed in [7, *range(8), 7, 8, 8, 4]]
    params = TAIL.model_copy(update={"validation": 4 / 13, "test": 1.5 / 13})
    manifest = build(params, tmp_path / "corpus", *texts)
    nothing = {"documents": 0, "characters": 0}
    # test has 7 and half of 0; train the rest of 0, then 1 to 7; validation 7, 8, 8, 4
    assert manifest.record()["equal_documents"] == {
        "within": {
            "train": nothing,
            "validation": {"documents": 1, "characters": 200},
            "test": nothing,
        },
        "across": {
            "validation in train": {"documents": 2, "characters": 400},
            "test in train": {"documents": 1, "characters": 200},
            "test in validation": {"documents": 1, "characters": 200},
        },
    }
    assert manifest.record()["verbatim"] == {
        "run_characters": 64,
        "validation": {"characters": 400, "checked": 800},
        "test": {"characters": 200, "checked": 300},
    }
    assert told(capsys)[1:] == [
        "download: copies of an earlier document of the same split: 1 in validation",
        "download: also in train: 2 documents and 50.00 % of validation, 1 documents and 66.67 %"
        " of test (equal documents;"
        " characters in equal runs of 64 or more); 1 documents of test are in validation",
        "download: much of validation and test is in train word for word: a loss there measures"
        " how well that is memorised",
    ]


def test_near_copies_show_where_whole_documents_are_held_out(tmp_path: Path) -> None:
    texts = [[prose(500, number // 2) + "ab"[number % 2]] for number in range(200)]
    manifest = build(WHOLE, tmp_path / "corpus", *texts)
    read = splits(tmp_path / "corpus")
    pairs_apart = [number for number in read["validation"] if number ^ 1 in read["train"]]
    assert len(pairs_apart) > 5
    assert manifest.equal_documents.across["validation in train"].documents == 0
    assert manifest.verbatim.validation.characters == 500 * len(pairs_apart)


@pytest.mark.parametrize(("text", "different"), [("\n", 1), ("ab", 2), ("acgt", 4), ("acgt\n", 5)])
def test_a_text_of_a_handful_of_characters_is_called_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, different: int
) -> None:
    manifest = build(TAIL, tmp_path / "corpus", [text * 300])
    assert {
        split: size.different_characters for split, size in manifest.splits.items()
    } == dict.fromkeys(SPLITS, different)
    lines = [line for line in told(capsys) if "different character" in line]
    expected = [
        f"download: {split} has only {different} different character(s): " for split in SPLITS
    ]
    assert [
        line[: len(start)] for line, start in zip(lines, expected, strict=different < 5)
    ] == expected[: len(lines)]
    assert len(lines) == (3 if different < 5 else 0)


@pytest.mark.parametrize(
    ("count", "whole", "said"),
    [
        (0, 5, "0 %"),
        (0, 0, "0 %"),
        (5, 5, "100 %"),
        (1, 10**9, "0.01 %"),
        (10**9 - 1, 10**9, "99.99 %"),
        (1, 8, "12.50 %"),
    ],
)
def test_a_share_is_never_rounded_to_nothing_or_all(count: int, whole: int, said: str) -> None:
    assert corpus_summary.share(count, whole) == said


def test_whole_documents_are_held_out_and_equal_ones_stay_together(tmp_path: Path) -> None:
    texts = [words(40, seed % 60) for seed in range(100)]  # 40 of them twice
    manifest = build(WHOLE, tmp_path / "corpus", *([text] for text in texts))
    read = splits(tmp_path / "corpus")
    assert sorted(number for split in SPLITS for number in read[split]) == list(range(100))
    held = {split: set(read[split].values()) for split in SPLITS}
    for split in SPLITS:
        assert all(texts[number] == text for number, text in read[split].items())
    assert not held["train"] & held["validation"]
    assert not held["train"] & held["test"]
    assert not held["validation"] & held["test"]
    total = sum(manifest.splits[split].characters for split in SPLITS)
    assert abs(manifest.splits["validation"].characters / total - 0.1) < 0.04
    assert abs(manifest.splits["test"].characters / total - 0.05) < 0.04


def test_another_split_seed_holds_out_others(tmp_path: Path) -> None:
    texts = [[words(40, seed)] for seed in range(40)]
    held = []
    for seed in (0, 0, 1, 2**64 - 1):
        build(WHOLE.model_copy(update={"split_seed": seed}), tmp_path / "corpus", *texts)
        held.append(sorted(splits(tmp_path / "corpus")["validation"]))
    assert held[0] == held[1]
    assert len({tuple(numbers) for numbers in held}) == 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lengths", [(10, 10, 10), (10, 10, 900), (300, 300, 400), (1, 1, 1, 997)])
def test_few_documents_give_each_split_one_and_train_the_largest(
    tmp_path: Path, seed: int, lengths: tuple[int, ...]
) -> None:
    texts = [[chr(97 + number) * length] for number, length in enumerate(lengths)]
    for validation, test in ((0.1, 0.05), (0.01, 0.01), (0.6, 0.3)):
        params = WHOLE.model_copy(
            update={"split_seed": seed, "validation": validation, "test": test}
        )
        build(params, tmp_path / "corpus", *texts)
        read = splits(tmp_path / "corpus")
        assert all(read[split] for split in SPLITS)
        assert max(lengths) in map(len, read["train"].values())


@pytest.mark.parametrize("params", [TAIL, WHOLE])
def test_no_test_split_leaves_the_rest(tmp_path: Path, params: DownloadParams) -> None:
    texts = [[words(40, seed)] for seed in range(20)]
    manifest = build(params.model_copy(update={"test": 0.0}), tmp_path / "corpus", *texts)
    assert manifest.splits["test"].documents == 0
    read = splits(tmp_path / "corpus")
    assert read["test"] == {}
    assert sum(len(text) for split in SPLITS for text in read[split].values()) == sum(
        len(text) for (text,) in texts
    )


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = [[words(400, seed), "é"] for seed in range(9)]
    for params in (TAIL, WHOLE):
        build(params, tmp_path / "one", *texts)
        build(params, tmp_path / "two", *texts)
        names = [path.name for path in sorted((tmp_path / "one").iterdir())]
        assert names == [
            "SHA256SUMS",
            "manifest.json",
            "test.parquet",
            "train.parquet",
            "validation.parquet",
        ]
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("params", "pieces", "hint"),
    [
        (TAIL, [], "the corpus here is empty"),
        (TAIL, [[], [""], ["\u00ad"]], "the corpus here is empty.*left out: empty documents: 2$"),
        (
            TAIL,
            [["fine\n" * 50], ["中" * 6]],
            r"download.ascii: true drops 6 \(2.34 %\) of 256 characters.*中.*false",
        ),
        (TAIL, [["中"]], r"download.ascii: true drops 1 \(100 %\) of 1 characters"),
        (TAIL, [["a"]], "too small to be split"),
        (WHOLE, [["one document only\n" * 50]], "1 different document.*download.split: tail"),
        (WHOLE, [["twice\n"], ["twice\n"], ["other\n"]], "2 different document"),
        (TAIL, [["fine\n" * 50], UserError("the source broke")], "the source broke"),
        (TAIL, [["fine\n" * 50], KeyboardInterrupt("Ctrl-C")], "Ctrl-C"),
    ],
)
def test_an_error_leaves_what_was_there(
    tmp_path: Path, params: DownloadParams, pieces: Any, hint: str
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "old").write_text("kept")
    with pytest.raises((UserError, KeyboardInterrupt), match=hint):
        collecting.build(
            params, Here([list(p) if isinstance(p, list) else p for p in pieces]), folder
        )
    assert {path.name for path in tmp_path.iterdir()} <= {"corpus", ".scratch"}
    assert [path.name for path in folder.iterdir()] == ["old"]


def test_splits_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing to train on"):
        DownloadParams(
            corpus="here",
            ascii=True,
            most_dropped=0.02,
            duplicates="keep",
            similarity=0.8,
            split="tail",
            validation=0.6,
            test=0.4,
            split_seed=0,
        )


def test_a_damaged_or_missing_split_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus" / "train.parquet"
    with pytest.raises(UserError, match=r"train\.parquet is missing; run `dvc repro download`"):
        list(documents.read_parts(path))
    build(TAIL, tmp_path / "corpus", [words(5000)])
    whole = path.read_bytes()
    middle = len(whole) // 2
    for spoilt in (
        whole[:middle],
        whole[:middle] + bytes(200) + whole[middle + 200 :],
        b"",
        b"PAR1 and no more",
    ):
        path.write_bytes(spoilt)
        with pytest.raises(
            UserError, match=r"train\.parquet is damaged; run `dvc repro --force download`"
        ):
            list(documents.read_parts(path))


def test_a_held_out_split_that_is_more_than_it_is_worth_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collecting, "MOST_HELD_OUT", 1500)
    build(TAIL, tmp_path / "made", [prose(20_000)])
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "the validation split has 2,000 bytes (download.validation: 0.1)" in warnings[0]


# ---------------------------------------------------------------- work that is stopped


class Cut(Exception):  # noqa: N818 (as if the process had been killed)
    pass


class Stopped(Here):
    """A source of which no more than so many pieces can be read."""

    def __init__(self, pieces: Sequence[Sequence[str]], most: int) -> None:
        super().__init__(pieces)
        self.left = most

    def documents(self) -> Iterator[Document]:
        for document in super().documents():
            yield Document(document.name, self._until_cut(document.pieces))

    def _until_cut(self, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            if not self.left:
                raise Cut
            self.left -= 1
            yield piece


LONG = "Of Ångström\u2019s \u201cruler\u201d \u2013 more.\r\n"
LONGEST = [f"{word} and " + LONG * 4 for word in ("this", "that", "these", "those", "them")]
TEXTS = [
    ["", "one\r", "\ntwo\n" * 9],
    [LONG * 3, LONG * 5, "\ud800 half a pair", LONG],
    [],
    ["∑∑∑"],
    ["one\r", "\ntwo\n" * 9],
    LONGEST,
    LONGEST,
    [*LONGEST, "and a little more\n"],
    ["one piece for a chunk of its own, " * 6],
    [LONG * 3, LONG * 5, "\ud800 half a pair", LONG + "again"],
    [" ", "\n"],
    ["long enough for a chunk of its own, " * 6, "∑"],
    ["the end of it all, and nothing but the end\n" * 4],
]
"""Documents of which some are empty, some are emptied, and some are equal or nearly so."""
PIECES = sum(map(len, TEXTS))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaned, "CHUNK_CHARACTERS", 150)
    monkeypatch.setattr(cleaned, "PART_CHARACTERS", 60)
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 100)


def cut_after(most: int, params: DownloadParams, folder: Path) -> None:
    with pytest.raises(Cut):
        collecting.build(params, Stopped(TEXTS, most), folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


KINDS = [
    {"duplicates": "keep"},
    {"duplicates": "keep", "ascii": False, "split": "tail"},
    {"duplicates": "equal"},
    {"duplicates": "near", "similarity": 0.5},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_stopped_after_any_piece_it_goes_on_to_the_same_bytes(
    kind: dict[str, Any], tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = WHOLE.model_copy(update={"most_dropped": 1.0, **kind})
    calls: list[str] = []
    clean = Cleaner.clean

    def counted(cleaner: Cleaner, text: str) -> str:
        calls.append(text)
        return clean(cleaner, text)

    monkeypatch.setattr(Cleaner, "clean", counted)
    build(params, tmp_path / "undisturbed", *TEXTS)
    expected, calls_needed = files_of(tmp_path / "undisturbed"), len(calls)
    for most in range(PIECES):
        cut_after(most, params, tmp_path / "corpus")
        calls.clear()
        build(params, tmp_path / "corpus", *TEXTS)
        assert files_of(tmp_path / "corpus") == expected
        if most > 6:  # the first chunk is full
            assert 0 < len(calls) < calls_needed
        assert not list(tmp_path.glob(".scratch/*"))


def test_stopped_again_and_again_it_comes_to_an_end(tmp_path: Path, small_chunks: None) -> None:
    """Each time it comes a little further, and at last to the same bytes."""
    params = WHOLE.model_copy(update={"most_dropped": 1.0, "duplicates": "near"})
    build(params, tmp_path / "undisturbed", *TEXTS)
    for most in range(PIECES):
        cut_after(most, params, tmp_path / "corpus")
    build(params, tmp_path / "corpus", *TEXTS)
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "undisturbed")


def test_stopped_while_it_is_split_the_text_is_not_cleaned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = WHOLE.model_copy(update={"most_dropped": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "overlap", lambda *_: (_ for _ in ()).throw(Cut()))
        with pytest.raises(Cut):
            build(params, tmp_path / "corpus", *TEXTS)
    monkeypatch.setattr(Cleaner, "clean", lambda *_: pytest.fail("cleaned again"))
    build(params, tmp_path / "corpus", *TEXTS)
    monkeypatch.undo()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    build(params, tmp_path / "undisturbed", *TEXTS)
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "undisturbed")


def test_a_document_that_was_renamed_is_another_one(
    tmp_path: Path, small_chunks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in its middle, so that its first parts have the old name."""

    class Renamed(Stopped):
        def documents(self) -> Iterator[Document]:
            for document in super().documents():
                yield document._replace(name=f"new-{document.name}")

    cut_after(17, WHOLE.model_copy(update={"most_dropped": 1.0}), tmp_path / "corpus")
    params = WHOLE.model_copy(update={"most_dropped": 1.0})
    collecting.build(params, Renamed(TEXTS, 9 * PIECES), tmp_path / "corpus")
    assert "the text is not what was cleaned before" in capsys.readouterr().out
    names = {row[0] for row in documents.read_rows(tmp_path / "corpus/train.parquet", ["name"])}
    assert all(name.startswith("new-") for name in names)


OTHERS = {
    "another piece": [["", "ONE\r", *TEXTS[0][2:]], *TEXTS[1:]],
    "another document before": [["new"], *TEXTS],
    "the same text in other documents": [TEXTS[0] + TEXTS[1], *TEXTS[2:]],
    "less text": TEXTS[:2],
}


@pytest.mark.parametrize("other", OTHERS)
def test_where_the_text_has_changed_it_begins_anew(
    other: str, tmp_path: Path, small_chunks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    params = WHOLE.model_copy(update={"most_dropped": 1.0, "split": "tail"})
    cut_after(15, params, tmp_path / "corpus")
    build(params, tmp_path / "corpus", *OTHERS[other])
    assert (
        "the text is not what was cleaned before: cleaning begins anew" in capsys.readouterr().out
    )
    build(params, tmp_path / "undisturbed", *OTHERS[other])
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("name", ["progress.json", "chunk-00001.parquet", "chunk-00000.npz"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_where_what_was_kept_is_damaged_it_begins_anew(
    name: str,
    damage: str,
    tmp_path: Path,
    small_chunks: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    params = WHOLE.model_copy(update={"most_dropped": 1.0, "duplicates": "near"})
    cut_after(20, params, tmp_path / "corpus")
    (kept,) = tmp_path.glob(f".scratch/download-*/{name}")
    held = bytearray(kept.read_bytes())
    if damage == "changed":
        held[len(held) // 2] ^= 1
        kept.write_bytes(held)
    elif damage == "cut":
        kept.write_bytes(held[: len(held) // 2])
    else:
        kept.unlink()
    capsys.readouterr()
    build(params, tmp_path / "corpus", *TEXTS)
    said = capsys.readouterr().out
    assert ("is damaged: cleaning begins anew" in said) == (
        (name, damage) != ("progress.json", "gone")
    )
    build(params, tmp_path / "undisturbed", *TEXTS)
    assert files_of(tmp_path / "corpus") == files_of(tmp_path / "undisturbed")

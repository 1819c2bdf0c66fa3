import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small import ShardsOf

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.files import write_sums
from lmlab.data import documents
from lmlab.data import shard as sharding
from lmlab.data.documents import SPLITS
from lmlab.data.shard import ShardParams
from lmlab.data.shards import ShardManifest, Shards, open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.evaluation import references

TEXTS = ["To be, or not to be.\n", "é ß 中 😀\n", "x", "that is the question:\n" * 50]


@pytest.fixture
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups and parts of a few characters, so that small texts have many."""
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 100)
    monkeypatch.setattr(documents, "PART_CHARACTERS", 40)


def tokenizer_file(shards: Shards) -> Path:
    return shards.folder.parent / "tokenizer" / "tokenizer.json"


def documents_of(ids: np.ndarray, document: int) -> list[np.ndarray]:
    """What stands between BOS tokens; the stream begins with one."""
    starts = np.flatnonzero(ids == document)
    assert len(ids) == 0 or starts[0] == 0
    return [piece[1:] for piece in np.split(ids, starts[1:])] if len(ids) else []


@pytest.mark.parametrize("tokenizer", registry.names("tokenizers"))
@pytest.mark.usefixtures("small_row_groups")
def test_what_is_read_back_is_the_text_and_the_counts_are_exact(
    shards_of: ShardsOf, tokenizer: str
) -> None:
    validation = ["unseen: жук\n", "seen: to be\n"]
    shards, fitted = shards_of(TEXTS, validation, tokenizer=tokenizer, megabytes=0.0005)
    for split, texts in zip(SPLITS, (TEXTS, validation, []), strict=True):
        ids = shards.stream(split)
        assert [fitted.decode(piece) for piece in documents_of(ids, shards.bos)] == texts
        assert shards.count(split, "documents") == len(texts)
        assert shards.count(split, "bytes") == sum(len(text.encode()) for text in texts)
        assert shards.count(split, "tokens") == len(ids) - len(texts)
        groups = shards.row_groups(split)
        assert [len(shards.read(group)) for group in groups] == [group.length for group in groups]
        assert sum(group.length for group in groups) == len(ids)
    assert (
        len(shards.row_groups("train"))
        > len({group.file for group in shards.row_groups("train")})
        > 1
    )
    assert shards.vocabulary_size == fitted.vocabulary_size


@pytest.mark.parametrize("name", registry.names("tokenizers"))
def test_shards_of_a_grown_tokenizer_have_the_document_token_among_the_others(
    name: str, tree: params.Tree, corpus_of: Callable[..., Path], tmp_path: Path
) -> None:
    train = ["Größe zählt, " * 9, "und die Süße auch: süß, süß!\n"]
    corpus, choice = corpus_of(train), registry.choose(tree, "tokenizers", name)
    grown = tokenizers.fit(choice, ["abc abc"]).grown(train, 30)
    assert grown.grows == (grown.bos < grown.vocabulary_size - 1)
    tokenizers.save(choice, grown, tmp_path / "tokenizer" / "tokenizer.json")
    shard = sharding.ShardParams(megabytes=64.0, processes=1)
    sharding.build(shard, corpus, tmp_path / "tokenizer", tmp_path / "shards")
    shards = open_shards(tmp_path / "shards", tmp_path / "tokenizer" / "tokenizer.json")
    ids = shards.stream("train")
    assert [grown.decode(piece) for piece in documents_of(ids, shards.bos)] == train
    assert grown.grows == (ids.max() > shards.bos)
    uniform = references.uniform(ids, shards.bos, shards.vocabulary_size)
    assert uniform == pytest.approx((len(ids) - 2) * np.log(grown.vocabulary_size - 1))


def test_an_empty_test_split_is_no_file_and_no_ids(shards_of: ShardsOf) -> None:
    shards, _ = shards_of("some text\n", "and more\n")
    assert shards.row_groups("test") == []
    assert len(shards.stream("test")) == 0
    assert not list(shards.folder.glob("test*"))


@pytest.mark.parametrize(
    ("characters", "stored", "read"),
    [
        (100, "uint8", np.uint8),
        (254, "uint8", np.uint8),
        (255, "uint8", np.uint16),
        (256, "uint16", np.uint16),
    ],
)
def test_ids_are_stored_in_the_smallest_type(
    shards_of: ShardsOf, characters: int, stored: str, read: type
) -> None:
    text = "".join(map(chr, range(256, 256 + characters)))
    shards, fitted = shards_of(text + text[::-1])
    table = pq.read_table(shards.row_groups("train")[0].file)
    assert str(table.schema.field("tokens").type.value_type) == stored == shards.manifest.type
    ids = shards.stream("train")
    assert ids.dtype == read
    assert ids[0] == shards.bos == characters + 1
    assert fitted.decode(ids) == text + text[::-1]


@pytest.mark.usefixtures("small_row_groups")
def test_a_shard_holds_each_parts_document_and_bytes(shards_of: ShardsOf) -> None:
    shards, _ = shards_of(TEXTS)
    rows = [
        row
        for group in shards.row_groups("train")[:1]
        for row in pq.read_table(group.file).to_pylist()
    ]
    assert [row["document"] for row in rows if row["part"] == 0] == [0, 1, 2, 3]
    for number, text in enumerate(TEXTS):
        parts = [row for row in rows if row["document"] == number]
        assert [row["part"] for row in parts] == list(range(len(parts)))
        assert sum(row["bytes"] for row in parts) == len(text.encode())


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("small_row_groups")
def test_any_number_of_processes_writes_the_same_bytes(
    shards_of: ShardsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[int] = []
    executor = sharding.ProcessPoolExecutor

    def counted(processes: int, *args: object, **kwargs: object) -> object:
        pools.append(processes)
        return executor(processes, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(sharding, "ProcessPoolExecutor", counted)
    texts = [f"{number} of a hundred\n" * 3 for number in range(100)]
    alone, _ = shards_of(texts, megabytes=0.002)
    assert pools == []
    together, _ = shards_of(texts, megabytes=0.002, processes=2)
    assert pools == [2]
    again, _ = shards_of(texts, megabytes=0.002)
    assert folder_bytes(alone.folder) == folder_bytes(together.folder) == folder_bytes(again.folder)
    assert len(folder_bytes(alone.folder)) > 3

    # what goes wrong in one of the processes is told as if there were only this one
    home = together.folder.parent
    corpus = home / "corpus" / "train.parquet"
    corpus.write_bytes(corpus.read_bytes()[:4] + bytes(500) + corpus.read_bytes()[504:])
    write_sums(home / "corpus")  # or it would be noticed before
    before = folder_bytes(together.folder)
    with pytest.raises(
        UserError, match=r"train\.parquet is damaged; run `dvc repro --force download`"
    ):
        sharding.build(
            ShardParams(megabytes=0.002, processes=2),
            home / "corpus",
            home / "tokenizer",
            together.folder,
        )
    assert pools == [2, 2]
    assert multiprocessing.active_children() == []
    assert folder_bytes(together.folder) == before
    assert not list(home.glob(".*"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def edit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "hint"),
    [
        ("shards/train-00000.parquet", truncate, "changed or cut short.*dvc repro --force shard"),
        ("shards/validation-00000.parquet", edit, "changed or cut short.*dvc repro --force shard"),
        (
            "shards/train-00000.parquet",
            Path.unlink,
            "train-00000.parquet is missing.*dvc repro shard",
        ),
        ("shards/manifest.json", Path.unlink, "manifest.json is missing.*dvc repro shard"),
        ("shards/manifest.json", truncate, "manifest.json is damaged"),
        ("shards/manifest.json", lambda path: path.write_text("{}"), "manifest.json is damaged"),
        ("shards/manifest.json", lambda path: path.write_text("[1]"), "manifest.json is damaged"),
        (
            "shards/manifest.json",
            lambda path: path.write_text('{"splits": [1]}'),
            "manifest.json is damaged",
        ),
        ("tokenizer/tokenizer.json", Path.unlink, "tokenizer.json is missing"),
        ("tokenizer/tokenizer.json", edit, "another tokenizer than"),
    ],
)
def test_shards_that_do_not_fit_are_refused_in_one_line(
    shards_of: ShardsOf, name: str, damage: Callable[[Path], object], hint: str
) -> None:
    shards, _ = shards_of(TEXTS)
    damage(shards.folder.parent / name)
    with pytest.raises(UserError, match=hint) as caught:
        open_shards(shards.folder, tokenizer_file(shards))
    assert "\n" not in str(caught.value)


def test_a_manifest_without_one_of_its_keys_is_refused(shards_of: ShardsOf) -> None:
    shards, _ = shards_of(TEXTS)
    for key in ShardManifest.model_fields:
        wrong = shards.manifest.record()
        del wrong[key]
        (shards.folder / "manifest.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"manifest\.json is damaged"):
            open_shards(shards.folder, tokenizer_file(shards))


def test_shards_damaged_after_they_were_opened_are_refused_when_read(shards_of: ShardsOf) -> None:
    shards, _ = shards_of(TEXTS, "another length\n")
    train, validation = shards.row_groups("train")[0], shards.row_groups("validation")[0]
    shutil.copy(validation.file, train.file)
    with pytest.raises(
        UserError, match=r"train-00000\.parquet is not the one its manifest describes"
    ):
        shards.read(train)
    truncate(validation.file)
    with pytest.raises(UserError, match=r"validation-00000\.parquet is missing or damaged"):
        shards.stream("validation")


def test_the_fingerprint_is_that_of_the_shards(shards_of: ShardsOf) -> None:
    one, other, same = (
        shards_of("some text\n")[0],
        shards_of("some texts\n")[0],
        shards_of("some text\n")[0],
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_a_corpus_that_cannot_be_read_leaves_the_old_shards(shards_of: ShardsOf) -> None:
    shards, _ = shards_of(TEXTS)
    home, before = shards.folder.parent, folder_bytes(shards.folder)
    truncate(home / "corpus" / "test.parquet")
    with pytest.raises(UserError, match=r"test\.parquet is damaged"):
        sharding.build(
            ShardParams(megabytes=1.0, processes=1),
            home / "corpus",
            home / "tokenizer",
            shards.folder,
        )
    assert folder_bytes(shards.folder) == before
    assert sorted(path.name for path in home.iterdir()) == ["corpus", "shards", "tokenizer"]


# ---------------------------------------------------------------- work that is stopped


@pytest.fixture
def many(
    tree: params.Tree, corpus_of: Callable[..., Path], tmp_path: Path, small_row_groups: None
) -> Callable[..., dict[str, bytes]]:
    """Shards of a few texts, again and again: `many(folder, executor)` gives their bytes."""
    corpus, choice = corpus_of(TEXTS, TEXTS[:1]), registry.choose(tree, "tokenizers", "byte")
    made = tokenizers.fit(choice, TEXTS)
    tokenizers.save(choice, made, tmp_path / "tokenizer" / "tokenizer.json")

    def build(name: str, executor: Executor | None = None) -> dict[str, bytes]:
        shard = sharding.ShardParams(megabytes=0.0005, processes=1)
        sharding.build(shard, corpus, tmp_path / "tokenizer", tmp_path / name, executor)
        return folder_bytes(tmp_path / name)

    return build


def test_work_that_was_stopped_goes_on_with_the_next_shard(
    many: Callable[..., dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    whole = many("whole")
    assert not [*Path(".scratch").iterdir()]
    count = len(whole) - 1 - ("SHA256SUMS" in whole)
    assert count > 3
    write, written = sharding._write, list[str]()

    def stops(work: Any) -> Any:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(work.target.name)
        return write(work)

    with monkeypatch.context() as patched:
        patched.setattr(sharding, "_write", stops)
        with pytest.raises(KeyboardInterrupt):
            many("stopped")
    damaged = next(path for path in Path(".scratch").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again: list[str] = []
    monkeypatch.setattr(
        sharding, "_write", lambda work: (again.append(work.target.name), write(work))[1]
    )
    assert many("stopped") == whole
    assert len(again) == count - 3 + 1
    assert damaged.name in again
    assert not [*Path(".scratch").iterdir()]


def test_any_executor_writes_the_same_bytes(
    many: Callable[..., dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        assert many("by threads", pool) == many("here")


@pytest.mark.parametrize("other", ["twice", "elsewhere"])
def test_of_two_at_once_the_second_waits(
    other: str,
    many: Callable[..., dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = many("whole")
    write, begun = sharding._write, threading.Event()

    def slowly(work: Any) -> Any:
        begun.set()
        time.sleep(0.05)
        return write(work)

    monkeypatch.setattr(sharding, "_write", slowly)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(many, "twice")
        begun.wait()
        rest = [pool.submit(many, name) for name in (other, other, "twice")]
        assert all(one.result() == whole for one in [first, *rest])
    assert "another process is making these shards; waiting" in capsys.readouterr().out
    assert not [*tmp_path.glob("twice/.*")]

import gzip
import itertools
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.data.corpora import bible, local
from lmlab.data.corpora.base import Corpus
from lmlab.data.corpora.grammar import Grammar
from lmlab.data.corpora.grammar import Options as GrammarOptions
from lmlab.data.corpora.markov import ALPHABET, Markov
from lmlab.data.corpora.markov import Options as MarkovOptions
from lmlab.data.corpora.shakespeare import script
from lmlab.data.corpora.tinystories import Options as StoryOptions
from lmlab.data.corpora.tinystories import TinyStories
from lmlab.data.corpus_manifest import CorpusManifest


def texts(corpus: Corpus) -> dict[str, str]:
    return {document.name: "".join(document.pieces) for document in corpus.documents()}


def _source(name: str) -> str:
    return registry.file("corpora", name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", registry.names("corpora"))
def test_every_corpus_is_built_without_fetching_and_says_where_it_is_from(
    name: str, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    corpus = registry.choose(tree, "corpora", name).build()
    assert isinstance(corpus, Corpus)
    assert corpus.source
    assert corpus.licence
    assert not (tmp_path / "cache").exists()


ELSEWHERE = {"local", *(name for name in registry.names("corpora") if "url(" in _source(name))}
"""Corpora whose text is not on this machine: yours, and what is fetched by URL."""


@pytest.mark.parametrize("name", [n for n in registry.names("corpora") if n not in ELSEWHERE])
def test_every_corpus_gives_the_same_documents_each_time_and_facts_of_its_own(
    name: str, tree: Tree
) -> None:
    corpus, again = (registry.choose(tree, "corpora", name).build() for _ in range(2))
    documents = texts(corpus)
    assert documents
    assert all(documents.values())
    assert documents == texts(corpus) == texts(again)
    read = [len("".join(document.pieces)) for document in corpus.documents()]
    assert len(documents) == len(read)  # no name occurs twice
    facts = corpus.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert not facts.keys() & (CorpusManifest.model_fields.keys() - {"left_out"})


# ------------------------------------------------------------------ built-in texts


def test_a_play_becomes_its_speeches() -> None:
    markdown = (
        "# The Play\n\n## ACT I\n\n_Enter two clowns._\n\nA line before anybody speaks.\n\n"
        "**First Clown**\nOne line,  \nand another\\! _[Aside]_\n\n"
        "a paragraph that goes on — with the speech.\n\n"
        "\\[They fight.]\n\n"
        "**Second Clown**  \n_Exit._\n\n"
        "### SCENE II\n\n"
        "**King [Lear]**\n\\[Rising\\] Blow, _winds_\n   \n*Exeunt, with\ndrums.*\n\nand crack.\n"
    )
    assert script(markdown) == (
        "First Clown:\nOne line,\nand another!\na paragraph that goes on — with the speech.\n\n"
        "King Lear:\nBlow,\nand crack.\n\n"
    )


def test_a_bible_is_read_from_source_that_is_never_run() -> None:
    source = (
        "raise SystemExit\nimport nowhere\nbible = Bible(Version.X, r'''\\1:1\\In"
        " the\\2:13\\beginning\\.''', {})\n"
    )
    assert bible.second_argument(source) == "\\1:1\\In the\\2:13\\beginning\\."
    with pytest.raises(UserError, match="does not hold the text"):
        bible.second_argument("bible = Bible(1)\nother = Bible(1, 2)\n")


def test_a_bible_is_cleaned() -> None:
    assert (
        bible.clean("\\1:1\\ In the [old]\\2:13\\beginning,    God`s\\ word.\n\n")
        == "In the old beginning, God's word.\n"
    )


def test_stories_are_cut_at_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stories.txt"
    path.write_text(
        "\nOne day.\n\nThe end.\n<|endoftext|>\n\n<|endoftext|>\nTwo.\n<|endoftext|>\nThree\n"
    )
    monkeypatch.setattr("lmlab.data.fetching.url", lambda *_: path)
    assert texts(TinyStories(StoryOptions(file="valid"))) == {
        "story-0": "One day.\n\nThe end.\n",
        "story-1": "Two.\n",
        "story-2": "Three\n",
    }


# ------------------------------------------------------------------ local files


def local_files(
    files: Path | str | list[str], column: str = "text", skip_missing: bool = False
) -> local.Local:
    named = files if isinstance(files, list) else str(files)
    return local.Local(local.Options(files=named, column=column, skip_missing=skip_missing))


def read(files: Path | str | list[str], column: str = "text") -> dict[str, str]:
    return texts(local_files(files, column))


def skipped(files: Path | str, column: str = "text") -> tuple[list[str], dict[str, int]]:
    """The texts that are left where rows without text are left out, and what was, by reason."""
    corpus = local_files(files, column, skip_missing=True)
    return list(texts(corpus).values()), corpus.facts()["left_out"]


def refused(files: Path | str | list[str], column: str = "text", skip_missing: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        texts(local_files(files, column, skip_missing))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_files_are_documents_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_bytes("two\r\nlines é".encode())
    (tmp_path / "a.TXT").write_text("\ufeffone", encoding="utf-8")
    (tmp_path / "deep" / "c.txt").write_text("")
    (tmp_path / "deep" / "README.md").write_text("# a text as well")
    (tmp_path / "e.v2.txt.gz").write_bytes(
        gzip.compress(b"packed ") + gzip.compress("é\r".encode())
    )
    (tmp_path / "f.MD.GZ").write_bytes(gzip.compress("\ufeff# packed".encode()))
    (tmp_path / "d.txt").mkdir()
    expected = {
        "a": "one",
        "b": "two\r\nlines é",
        "README": "# a text as well",
        "c": "",
        "e.v2": "packed é\r",
        "f": "# packed",
    }
    for pattern in (
        tmp_path / "**" / "*",
        tmp_path,
        [str(tmp_path / "**" / "*"), str(tmp_path), str(tmp_path / "b.txt")],
    ):
        assert list(read(pattern).items()) == list(expected.items())
    assert local_files(tmp_path).facts()["left_out"] == {"folders that are named like files": 1}


def test_a_file_with_many_names_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("once")
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "b.txt").symlink_to("a.txt")
    (tmp_path / "c.txt").hardlink_to(tmp_path / "a.txt")
    corpus = local_files(tmp_path / "**" / "*.txt")
    assert texts(corpus) == {"a": "once"}
    facts = corpus.facts()
    assert [file["path"] for file in facts["files"]] == [str(tmp_path / "a.txt")]
    assert sum(facts["left_out"].values()) == 3


def test_the_projects_note_on_its_folder_is_no_text_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts" / "mine").mkdir(parents=True)
    (tmp_path / "texts" / "README.md").write_text("put your text here")
    assert "no file matches 'texts'" in refused("texts")
    assert "texts/README.md" in refused("texts")
    (tmp_path / "texts" / "mine" / "README.md").write_text("mine")
    corpus = local_files("texts")
    assert texts(corpus) == {"README": "mine"}
    assert corpus.facts()["left_out"] == {"texts/README.md, which is the project's own": 1}


def test_a_long_text_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PIECE_CHARACTERS", 7)
    (tmp_path / "a.txt").write_text("é" * 50, encoding="utf-8")
    (document,) = local_files(tmp_path / "a.txt").documents()
    pieces = list(document.pieces)
    assert max(map(len, pieces)) == 7
    assert "".join(pieces) == "é" * 50


def test_jsonl_and_parquet_give_a_document_a_row(tmp_path: Path) -> None:
    rows = ["one\n", "", "zwei \u2028 é"]
    lines = "\n\n".join(json.dumps({"id": 1, "body": row}, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    pq.write_table(
        pa.table({"id": [1, 2, 3], "body": pa.array(rows).dictionary_encode()}),
        tmp_path / "b.parquet",
    )
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read(tmp_path / "*", "body") == {
        **{f"a-{2 * number + 1}": row for number, row in enumerate(rows)},
        **{f"b-{number + 1}": row for number, row in enumerate(rows)},
        **{f"c-{2 * number + 1}": row for number, row in enumerate(rows)},
    }


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["one", "zwei é"], pa.large_string()),
        pa.array(["one", "zwei é"], pa.string_view()),
        pa.array([b"one", "zwei é".encode()]),
        pa.array([b"one", "zwei é".encode()]).dictionary_encode(),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(["one", "zwei é"])),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_of_text_is_read_however_parquet_keeps_it(
    tmp_path: Path, column: pa.Array
) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert list(read(tmp_path / "a.parquet").values()) == ["one", "zwei é"]
    pq.write_table(
        pa.table({"in": pa.StructArray.from_arrays([column], ["side"])}), tmp_path / "a.parquet"
    )
    assert list(read(tmp_path / "a.parquet", "in.side").values()) == ["one", "zwei é"]


def test_a_dotted_name_leads_into_what_is_nested(tmp_path: Path) -> None:
    rows = [
        {"meta": {"text": f"in {n}", "more": {"text": f"deep {n}"}}, "a.b": {"c.d": f"dots {n}"}}
        for n in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for file in ("a.jsonl", "a.parquet"):
        assert list(read(tmp_path / file, "meta.text").values()) == ["in 0", "in 1", "in 2"]
        assert list(read(tmp_path / file, "meta.more.text").values()) == [
            "deep 0",
            "deep 1",
            "deep 2",
        ]
        assert list(read(tmp_path / file, "a.b.c.d").values()) == ["dots 0", "dots 1", "dots 2"]
        for wrong in ("meta.txt", "meta.text.more", "a.b.c", ".", ""):
            assert re.search(
                f"no (key|column) '{re.escape(wrong)}'; it has .*meta",
                refused(tmp_path / file, wrong),
            )
    (tmp_path / "b.jsonl").write_text('{"meta.text": "as it stands", "meta": {"text": "within"}}')
    pq.write_table(
        pa.table({"meta": [{"text": "within"}], "meta.text": ["as it stands"]}),
        tmp_path / "b.parquet",
    )
    for file in ("b.jsonl", "b.parquet"):
        assert list(read(tmp_path / file, "meta.text").values()) == ["as it stands"]


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path / "*.txt")
    assert "corpora.local.files" in message
    assert "*.txt" in message
    assert "corpora.local.files: no file matches an empty list" in refused([])


def test_a_pattern_that_matches_nothing_beside_others_and_a_file_without_a_row_are_counted(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text("\n\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    corpus = local_files([str(tmp_path / "*"), str(tmp_path / "nowhere*")])
    assert list(texts(corpus).values()) == ["text"]
    assert corpus.facts()["left_out"] == {
        "patterns that match nothing": 1,
        "files without a row": 2,
    }


# ------------------------------------------------------------------ rows without text

NO_TEXT = {
    '{"text": null}': ("'text' is null", "null"),
    '{"text": 12}': ("'text' is not text but a number", "a number"),
    '{"text": ' + "1" * 5000 + "}": ("'text' is not text but a number", "a number"),
    '{"text": NaN}': ("'text' is not text but a number", "a number"),
    '{"text": false}': ("'text' is not text but true or false", "true or false"),
    '{"text": ["x"]}': ("'text' is not text but a list", "a list"),
    '{"text": {"x": "x"}}': ("'text' is not text but an object", "an object"),
    '{"other": "x", "Text": ""}': (
        "the object has no key 'text'; it has other, Text",
        "no such key",
    ),
    "{}": ("the object has no key 'text'; it has none", "no such key"),
    '["text"]': ("not a JSON object with the key 'text', but a list", "no JSON object"),
    "null": ("not a JSON object with the key 'text', but null", "no JSON object"),
    "1" * 5000: ("not a JSON object with the key 'text', but a number", "no JSON object"),
}


@pytest.mark.parametrize(("row", "told"), NO_TEXT.items(), ids=[row[:30] for row in NO_TEXT])
def test_a_row_of_jsonl_without_text_is_named_or_counted(
    tmp_path: Path, row: str, told: tuple[str, str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n{row}\n{{"text": "two"}}\n{row}\n')
    message, reason = told
    assert (
        refused(path) == f"{path}, line 2: {message}; to leave out rows without text set"
        " corpora.local.skip_missing: true"
    )
    assert skipped(path) == (["one", "two"], {f"rows without text ({reason})": 2})


def test_nulls_in_parquet_are_named_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    long = ["x"] * 300
    for column in (
        pa.array([*long, None, "y", None]),
        pa.array([*long, None, "y", None]).dictionary_encode(),
    ):
        pq.write_table(pa.table({"text": column}), path)
        assert f"{path}, row 301: 'text' is null" in refused(path)
        assert skipped(path) == ([*long, "y"], {"rows without text (null)": 2})
    rows = [{"meta": {"text": "x"}}, {"meta": None}, {"meta": {"text": None}}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in ("a.parquet", "a.jsonl"):
        assert re.search("(row|line) 2: 'meta.text' is null", refused(tmp_path / file, "meta.text"))
        assert skipped(tmp_path / file, "meta.text") == (["x"], {"rows without text (null)": 2})
    pq.write_table(pa.table({"text": pa.nulls(3)}), path)
    assert "row 1: 'text' is null" in refused(path)
    assert skipped(path) == ([], {"rows without text (null)": 3})


def test_what_is_counted_belongs_to_one_reading(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    corpus = local_files(tmp_path, skip_missing=True)
    for _ in range(2):
        assert texts(corpus) == {}
        assert corpus.facts()["left_out"] == {"rows without text (no such key)": 1}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1]),
        pa.array([["x"]]),
        pa.array([{"a": "x"}]),
        pa.array([[{"a": "x"}]]),
        pa.array([b"abcd"], pa.binary(4)),
        pa.array([1]).dictionary_encode(),
        pa.array([0], pa.timestamp("ms")),
        pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_is_no_text_is_refused_with_those_that_are(
    tmp_path: Path, column: pa.Array
) -> None:
    pq.write_table(
        pa.table({"text": column, "body": ["x"], "meta": [{"n": 1, "inner": "x"}]}),
        tmp_path / "a.parquet",
    )
    for skip_missing in (False, True):
        message = refused(tmp_path / "a.parquet", skip_missing=skip_missing)
        assert "the column 'text' is not text but " in message
        assert re.search(
            r"corpora.local.column to one that is: (text.a, )?body, meta.inner$", message
        )


def test_a_parquet_file_without_the_column_or_with_two_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    assert "no column 'text'; it has id, body" in refused(tmp_path / "a.parquet")
    pq.write_table(pa.table({f"c{number}": [1] for number in range(300)}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").endswith("c18, c19 and 280 more")
    pq.write_table(
        pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"]),
        tmp_path / "a.parquet",
    )
    assert "has 2 columns named 'text'" in refused(tmp_path / "a.parquet")
    pq.write_table(pa.table({}), tmp_path / "a.parquet")
    assert "no column 'text'; it has none" in refused(tmp_path / "a.parquet")


def test_bytes_that_are_no_text_are_named_by_their_row(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(
        2, pa.array([0, 2, 5], pa.int32()).buffers()[1], pa.py_buffer(b"okn\xe9e")
    )
    for column in (pa.array([b"ok", b"n\xe9e"]), bad):
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        for skip_missing in (False, True):
            message = refused(tmp_path / "a.parquet", skip_missing=skip_missing)
            assert "a.parquet, row 2: 'text' is not UTF-8 (byte 0xe9)" in message


# ------------------------------------------------------------------ files that are not what they
# should be


def encoded(text: str, encoding: str) -> bytes:
    return (text * 200).encode(encoding)


NOT_UTF8 = {
    "latin-1": (b"caf\xe9 au lait", "(byte 0xe9); find out its encoding"),
    "windows-1251": (encoded("Съешь же ещё. ", "cp1251"), "(byte 0xd1); find out its encoding"),
    "gb18030": (encoded("中文文本。\n", "gb18030"), "(byte 0xd6); find out its encoding"),
    "cut short": (
        "né".encode() * 9000 + b"\xc3",
        "at its end: it is cut short in the middle of a character",
    ),
    "utf-16": (encoded("hello é\n", "utf-16"), "`iconv -f utf-16 -t utf-8"),
    "utf-16 big": (b"\xfe\xff" + encoded("hello é\n", "utf-16be"), "`iconv -f utf-16 -t utf-8"),
    "utf-32": (encoded("hello é\n", "utf-32"), "`iconv -f utf-32 -t utf-8"),
    "utf-16 unmarked": (
        encoded("hello\n", "utf-16le"),
        "without a byte order mark; convert it with `iconv -f utf-16le",
    ),
    "utf-16 unmarked big": (
        encoded("hello\n", "utf-16be"),
        "without a byte order mark; convert it with `iconv -f utf-16be",
    ),
    "utf-16 unmarked Russian": (encoded("Съешь же ещё.\n", "utf-16le"), "`iconv -f utf-16le"),
    "utf-16 unmarked Chinese": (encoded("你好。世界天地玄黄\n", "utf-16be"), "`iconv -f utf-16be"),
    "binary": (random.Random(0).randbytes(9000), "seems to be binary"),
    "zeros": (bytes(5000), "seems to be binary"),
    "gzip": (gzip.compress(b"text"), "compressed by gzip; give it a name that ends in .gz"),
    "zip": (b"PK\x03\x04" + bytes(99), "a zip archive, as .docx"),
    "pdf": (b"%PDF-1.4\nall ASCII", "a PDF"),
}


@pytest.mark.parametrize(("content", "told"), NOT_UTF8.values(), ids=NOT_UTF8)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.md.gz"])
def test_a_file_that_is_not_utf8_is_named_with_what_it_is_and_what_to_do(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    message = refused(tmp_path / name)
    assert message.startswith(f"{tmp_path / name} is not UTF-8")
    assert told in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16le", "utf-16be"])
@pytest.mark.parametrize("text", ["hello é\n", "Съешь же ещё.\n", "你好。世界天地玄黄\n"])
def test_the_advice_for_unicode_gives_the_text(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(encoded(text, encoding))
    advised = re.search(r"iconv -f (\S+) -t utf-8", refused(path))
    assert advised
    path.write_text(path.read_bytes().decode(advised[1]), encoding="utf-8")
    assert read(path) == {"a": text * 200}


def test_a_zero_byte_here_and_there_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line \0 of text\n")
    assert read(tmp_path) == {"a": "a line \0 of text\n"}


def packed(content: bytes) -> bytes:
    """By gzip without the time of day, which would end in the test's name: every worker collects
    the same.
    """
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("a.csv", b"text\nhello\n", "only files that end in .txt, .txt.gz, .md"),
        ("a.gz", packed(b"text"), "only files that end in"),
        ("a.parquet.gz", packed(b"PAR1"), "only files that end in"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "cut', "line 2: not a JSON object"),
        ("a.jsonl", b'{"text": "first", "text": "second"}', "line 1: the key 'text' is repeated"),
        (
            "a.jsonl",
            b'{"text": "ok"}\n{"text": "ok", "meta": {"a": 1, "a": 2}}',
            "line 2: the key 'a' is repeated",
        ),
        ("a.jsonl", b"[\n", "line 1: not a JSON object"),
        ("a.jsonl", b'{"text": "a\0b"}', "line 1: not a JSON object"),
        (
            "a.jsonl",
            b'{"text": "ok"}\n' + b"[" * 200_000 + b"]" * 200_000,
            "line 2: nested too deeply",
        ),
        (
            "a.jsonl",
            b'{"text": "ok", "x": ' + b'{"x":' * 200_000 + b"1" + b"}" * 200_001,
            "line 1: nested too deeply",
        ),
        ("a.parquet", b"this is no Parquet", "not a Parquet file"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.parquet", b"PAR1" + b"\xff" * 60 + b"\x20\0\0\0PAR1", "not a Parquet file"),
        ("a.txt.gz", b"plain text", "is cut short, damaged or was not made by gzip"),
        ("a.txt.gz", packed(b"text" * 999)[:-9], "is cut short"),
        ("a.txt.gz", packed(b"text" * 999)[:5], "is cut short"),
        ("a.txt.gz", packed(b"text" * 999)[:-8] + bytes(8), "is cut short, damaged"),
        ("a.jsonl.gz", packed(b'{"text": "ok"}\n' * 9999)[:-40], "is cut short"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, hint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert message.startswith(str(tmp_path / name))
    assert re.search(hint, message)


def test_numbers_of_many_digits_beside_the_text_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": ' + "1" * 5000 + ', "text": "one", "x": 1e999}\n\ufeff{"text": "two"}\n'
    )
    assert list(read(tmp_path).values()) == ["one", "two"]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_parquet_is_told_in_one_line(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"row {number}\n" for number in range(600)]
    pq.write_table(
        pa.table({"id": range(600), "text": rows, "in": [{"t": row} for row in rows]}),
        path,
        row_group_size=200,
    )
    whole = path.read_bytes()
    chance = random.Random(seed)
    refusals = 0
    for _ in range(60):
        spoilt = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 8])):
            spoilt[chance.choice([1, -1]) * chance.randrange(1, 1500)] = chance.randrange(256)
        path.write_bytes(spoilt)
        try:
            read(path, chance.choice(["text", "in.t"]))
        except UserError as error:
            refusals += "\n" not in str(error)
    assert refusals > 10


def test_the_facts_name_every_file_with_its_hash(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (fact,) = local_files(tmp_path / "*.txt").facts()["files"]
    assert fact["path"] == str(tmp_path / "a.txt")
    assert fact["sha256"] == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


# ------------------------------------------------------------------ sources of known entropy


def markov(**options: object) -> Markov:
    given = {
        "order": 2,
        "letters": 4,
        "concentration": 0.3,
        "documents": 200,
        "characters": 500,
        "seed": 0,
    }
    return Markov(MarkovOptions(**{**given, **options}))  # type: ignore[arg-type]


def probability(source: Markov, text: str) -> float:
    """P(text), multiplied out from the start and the transitions."""
    order, letters = source.options.order, source.options.letters
    numbers = [ALPHABET.index(character) for character in text]

    def state(window: list[int]) -> int:
        return sum(number * letters**place for place, number in enumerate(reversed(window)))

    chance = float(source.start[state(numbers[:order])])
    for place in range(order, len(numbers)):
        chance *= float(source.transitions[state(numbers[place - order : place]), numbers[place]])
    return chance


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("concentration", [0.001, 0.3, 100.0])
def test_markov_entropy_is_that_of_the_distribution_over_all_texts(
    order: int, concentration: float
) -> None:
    source = markov(order=order, letters=3, concentration=concentration, characters=7)
    every_text = ["".join(letters) for letters in itertools.product(ALPHABET[:3], repeat=7)]
    chances = np.array([probability(source, text) for text in every_text])
    assert chances.sum() == pytest.approx(1)
    positive = chances[chances > 0]
    assert source.entropy() == pytest.approx(-(positive * np.log2(positive)).sum() / 7, rel=1e-9)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_markov_text_costs_what_the_entropy_says(order: int) -> None:
    source = markov(order=order)
    documents = list(texts(source).values())
    bits = np.array([-math.log2(probability(source, text[:200])) for text in documents]) / 200
    exact = markov(order=order, characters=200).entropy()
    assert abs(bits.mean() - exact) < 4 * bits.std() / math.sqrt(len(bits)) + 1e-12
    assert [len(text) for text in documents] == [500] * 200


def test_markov_starts_stationary_even_where_it_alternates() -> None:
    source = markov(order=1, letters=2, concentration=1.0)
    source.__dict__["transitions"] = np.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(source.start, [0.5, 0.5])
    assert source.entropy() == pytest.approx(1 / 500)  # only the first letter is news
    assert all(text in ("ab" * 250, "ba" * 250) for text in texts(source).values())


def test_markov_start_is_left_as_it_is_by_a_step() -> None:
    source = markov(order=3, letters=5)
    np.testing.assert_allclose(source.step(source.start), source.start, atol=1e-12)
    pairs: Counter[str] = Counter()
    for text in texts(source).values():
        pairs.update([text[:1], "~" + text[-1:]])
    first, last = (
        np.array([[pairs[mark + letter] for letter in ALPHABET[:5]] for mark in ("", "~")]) / 200
    )
    share = source.start.reshape(5, -1).sum(axis=1)
    assert np.abs(first - share).max() < 0.15
    assert np.abs(last - share).max() < 0.15


def test_markov_seeds_are_other_sources_and_the_same_seed_the_same_text() -> None:
    assert texts(markov()) == texts(markov())
    assert texts(markov(seed=1)) != texts(markov())
    assert markov(seed=1).entropy() != markov().entropy()


def test_markov_refuses_what_is_too_large() -> None:
    for options in (
        {"order": 9, "letters": 8},
        {"order": 10**6},
        {"order": 5, "characters": 4, "letters": 2},
    ):
        with pytest.raises(ValueError, match="order"):
            markov(**options)


def grammar(
    relative_clause: float = 0.3, documents: int = 20, sentences: int = 100, seed: int = 0
) -> Grammar:
    return Grammar(
        GrammarOptions(
            documents=documents, sentences=sentences, relative_clause=relative_clause, seed=seed
        )
    )


class Derivations:
    """Every way the rules give a text: how many there are, and their summed probability (top down,
    remembering).
    """

    def __init__(self, source: Grammar, text: str) -> None:
        self.rules, self.text = source.rules, text
        self.known: dict[tuple[str, int], list[tuple[int, int, float]]] = {}

    def of(self, symbol: str, start: int) -> list[tuple[int, int, float]]:
        """(end, number of derivations, probability) for each end that `symbol` reaches from
        `start`.
        """
        if symbol not in self.rules:
            return [(start + len(symbol), 1, 1.0)] if self.text.startswith(symbol, start) else []
        if (symbol, start) not in self.known:
            ends: dict[int, tuple[int, float]] = {}
            for chance, expansion in self.rules[symbol]:
                for end, count, share in self.sequence(expansion, start) if chance else []:
                    before = ends.get(end, (0, 0.0))
                    ends[end] = before[0] + count, before[1] + share * chance
            self.known[symbol, start] = [(end, *value) for end, value in ends.items()]
        return self.known[symbol, start]

    def sequence(self, symbols: tuple[str, ...], start: int) -> list[tuple[int, int, float]]:
        reached = [(start, 1, 1.0)]
        for symbol in symbols:
            reached = [
                (end, count * more, share * chance)
                for middle, count, share in reached
                for end, more, chance in self.of(symbol, middle)
            ]
        return reached

    def whole(self) -> tuple[int, float]:
        """How many derivations the whole text has as a sentence, and its probability."""
        found = [
            (count, share) for end, count, share in self.of("TEXT", 0) if end == len(self.text)
        ]
        return sum(count for count, _ in found), sum(share for _, share in found)


@pytest.mark.parametrize("relative_clause", [0.0, 0.3, 0.5])
def test_grammar_sentences_have_one_derivation_and_cost_what_the_entropy_says(
    relative_clause: float,
) -> None:
    source = grammar(relative_clause)
    sentences = "".join(texts(source).values()).splitlines(keepends=True)
    assert len(sentences) == 2000
    derivations = [Derivations(source, sentence).whole() for sentence in sentences]
    assert {count for count, _ in derivations} == {1}
    bits, characters = source.entropy()
    cost = np.array([-math.log2(chance) for _, chance in derivations])
    lengths = np.array([len(sentence) for sentence in sentences])
    assert abs(cost.mean() - bits) < 4 * cost.std() / math.sqrt(len(cost))
    assert abs(lengths.mean() - characters) < 4 * lengths.std() / math.sqrt(len(lengths))
    assert source.facts()["entropy_bits_per_byte"] == bits / characters


def every_sentence(source: Grammar, symbols: tuple[str, ...]) -> list[tuple[str, float]]:
    """All texts of some symbols with their probabilities; ends only where nothing recurs."""
    if not symbols:
        return [("", 1.0)]
    first, rest = symbols[0], every_sentence(source, symbols[1:])
    if first not in source.rules:
        return [(first + text, chance) for text, chance in rest]
    own = [
        (text, weight * chance)
        for weight, expansion in source.rules[first]
        if weight
        for text, chance in every_sentence(source, expansion)
    ]
    return [(a + b, p * q) for a, p in own for b, q in rest]


def test_grammar_entropy_is_that_of_the_distribution_over_all_sentences() -> None:
    source = grammar(relative_clause=0.0)
    chances: dict[str, float] = {}
    for text, chance in every_sentence(source, ("TEXT",)):
        assert text not in chances
        chances[text] = chance
    assert sum(chances.values()) == pytest.approx(1)
    bits, characters = source.entropy()
    assert bits == pytest.approx(-sum(chance * math.log2(chance) for chance in chances.values()))
    assert characters == pytest.approx(sum(chance * len(text) for text, chance in chances.items()))


def test_grammar_verbs_agree_across_clauses() -> None:
    every = "".join(texts(grammar(0.5)).values()).splitlines()
    assert any(sentence.count(" that ") > 1 for sentence in every)
    for sentence in every:
        assert re.fullmatch(r"[a-z ]+\.", sentence)
        assert "  " not in sentence
        noun, verb = re.findall(r"[a-z]+", sentence)[1:3]
        if verb != "that":
            assert verb.endswith("s") != (noun.endswith("s") or noun == "children")


def test_grammar_seeds() -> None:
    assert texts(grammar()) == texts(grammar())
    assert texts(grammar(seed=1)) != texts(grammar())
    assert grammar(seed=1).entropy() == grammar().entropy()


# ---------------------------------------------------------------- mixture


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_mixture_has_the_share_of_either_text_and_counts_the_rest(share: float) -> None:
    sizes = {"documents": 20, "characters": 100, "sentences": 3}
    tree = small.tree(first="markov", second="grammar", share=share, **sizes)
    mixed = registry.choose(tree, "corpora", "mixture").build()
    found = list(texts(mixed).items())
    assert list(texts(mixed).items()) == found
    longest = max(len(text) for _, text in found)
    read = {"markov": 0, "grammar": 0}
    for name, text in found:
        read[name.partition("/")[0]] += len(text)
        assert abs(read["grammar"] - share * sum(read.values())) <= longest
    whole = {name: texts(registry.choose(tree, "corpora", name).build()) for name in read}
    for name, own in whole.items():
        mixed_in = {full.partition("/")[2]: text for full, text in found if full.startswith(name)}
        assert list(mixed_in.items()) == list(own.items())[: len(mixed_in)]
    rest = {name: sum(map(len, own.values())) - read[name] for name, own in whole.items()}
    (ended,) = [name for name, left in rest.items() if not left]
    (other,) = set(read) - {ended}
    facts = mixed.facts()
    assert {name: facts["mixed"][name]["characters"] for name in read} == read
    assert facts["left_out"] == {f"characters of {other} when {ended} had ended": rest[other]}

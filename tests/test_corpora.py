import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab import parts
from lmlab.corpora import bible, local
from lmlab.corpora.base import Corpus
from lmlab.corpora.grammar import Grammar
from lmlab.corpora.grammar import Options as GrammarOptions
from lmlab.corpora.markov import ALPHABET, Markov
from lmlab.corpora.markov import Options as MarkovOptions
from lmlab.corpora.shakespeare import script
from lmlab.corpora.tinystories import Options as StoryOptions
from lmlab.corpora.tinystories import TinyStories
from lmlab.errors import UserError
from lmlab.params import Tree


def texts(corpus: Corpus) -> dict[str, str]:
    return {document.name: "".join(document.pieces) for document in corpus.documents()}


@pytest.mark.parametrize("name", parts.names("corpora"))
def test_every_corpus_is_built_without_fetching_and_says_where_it_is_from(
    name: str, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    corpus = parts.choose(tree, "corpora", name).build()
    assert isinstance(corpus, Corpus)
    assert corpus.source
    assert corpus.licence
    assert not (tmp_path / "cache").exists()


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
    source = "raise SystemExit\nimport nowhere\nbible = Bible(Version.X, r'''\\1:1\\In the\\2:13\\beginning\\.''', {})\n"
    assert bible.second_argument(source) == "\\1:1\\In the\\2:13\\beginning\\."
    with pytest.raises(UserError, match="does not hold the text"):
        bible.second_argument("bible = Bible(1)\nother = Bible(1, 2)\n")


def test_a_bible_is_cleaned() -> None:
    assert (
        bible.clean("\\1:1\\ In the [old]\\2:13\\beginning,    God`s\\ word.\n\n") == "In the old beginning, God's word.\n"
    )


def test_stories_are_cut_at_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("\nOne day.\n\nThe end.\n<|endoftext|>\n\n<|endoftext|>\nTwo.\n<|endoftext|>\nThree\n")
    monkeypatch.setattr("lmlab.fetching.url", lambda *_: path)
    assert texts(TinyStories(StoryOptions(file="valid"))) == {
        "story-0": "One day.\n\nThe end.\n",
        "story-1": "Two.\n",
        "story-2": "Three\n",
    }


# ------------------------------------------------------------------ local files


def read(pattern: Path | str, column: str = "text") -> dict[str, str]:
    return texts(local.Local(local.Options(files=str(pattern), column=column)))


def refused(pattern: Path | str, column: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        read(pattern, column)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_text_files_are_documents_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_bytes("two\r\nlines é".encode())
    (tmp_path / "a.TXT").write_text("\ufeffone", encoding="utf-8")
    (tmp_path / "deep" / "c.txt").write_text("")
    (tmp_path / "README.md").write_text("not a text")
    (tmp_path / "d.txt").mkdir()
    assert list(read(tmp_path / "**" / "*").items()) == [("a", "one"), ("b", "two\r\nlines é"), ("c", "")]


def test_a_long_text_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PIECE_CHARACTERS", 7)
    (tmp_path / "a.txt").write_text("é" * 50, encoding="utf-8")
    (document,) = local.Local(local.Options(files=str(tmp_path / "a.txt"), column="text")).documents()
    pieces = list(document.pieces)
    assert max(map(len, pieces)) == 7
    assert "".join(pieces) == "é" * 50


def test_jsonl_and_parquet_give_a_document_a_row(tmp_path: Path) -> None:
    rows = ["one\n", "", "zwei \u2028 é"]
    lines = "\n\n".join(json.dumps({"id": 1, "body": row}, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    pq.write_table(pa.table({"id": [1, 2, 3], "body": pa.array(rows).dictionary_encode()}), tmp_path / "b.parquet")
    assert read(tmp_path / "*", "body") == {
        **{f"a-{2 * number + 1}": row for number, row in enumerate(rows)},
        **{f"b-{number + 1}": row for number, row in enumerate(rows)},
    }


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path / "*.txt")
    assert "corpora.local.files" in message
    assert "*.txt" in message


def test_a_file_that_is_not_utf8_is_named_with_what_to_do(tmp_path: Path) -> None:
    for name, content in {"a.txt": b"caf\xe9 au lait", "b.jsonl": b'{"text": "caf\xe9"}', "c.txt": b"ends in \xc3"}.items():
        (tmp_path / name).write_bytes(content)
        message = refused(tmp_path / name)
        assert f"{tmp_path / name} is not UTF-8" in message
        assert "iconv" in message


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("a.csv", b"text\nhello\n", "only .txt, .jsonl and .parquet"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "cut', "line 2"),
        ("a.jsonl", b'\n{"other": "x"}\n', "line 2: .*'text'"),
        ("a.jsonl", b'["text"]\n', "line 1"),
        ("a.jsonl", b'{"text": null}\n', "'text' is not text"),
        ("a.jsonl", b"1" * 5000, "line 1"),
        ("a.parquet", b"this is no Parquet", "not a Parquet file"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.parquet", b"PAR1" + b"\xff" * 60 + b"\x20\0\0\0PAR1", "not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, hint: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert message.startswith(str(tmp_path / name))
    assert re.search(hint, message)


def test_a_parquet_file_without_the_column_or_with_another_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    assert "no column 'text'; it has id, body" in refused(tmp_path / "a.parquet")
    assert "row 1: 'id' is not text" in refused(tmp_path / "a.parquet", "id")


def test_the_facts_name_every_file_with_its_hash(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (fact,) = local.Local(local.Options(files=str(tmp_path / "*.txt"), column="text")).facts()["files"]
    assert fact["path"] == str(tmp_path / "a.txt")
    assert fact["sha256"] == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


# ------------------------------------------------------------------ sources of known entropy


def markov(**options: object) -> Markov:
    given = {"order": 2, "letters": 4, "concentration": 0.3, "documents": 200, "characters": 500, "seed": 0}
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
def test_markov_entropy_is_that_of_the_distribution_over_all_texts(order: int, concentration: float) -> None:
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
    first, last = np.array([[pairs[mark + letter] for letter in ALPHABET[:5]] for mark in ("", "~")]) / 200
    share = source.start.reshape(5, -1).sum(axis=1)
    assert np.abs(first - share).max() < 0.15
    assert np.abs(last - share).max() < 0.15


def test_markov_seeds_are_other_sources_and_the_same_seed_the_same_text() -> None:
    assert texts(markov()) == texts(markov())
    assert texts(markov(seed=1)) != texts(markov())
    assert markov(seed=1).entropy() != markov().entropy()


def test_markov_refuses_what_is_too_large() -> None:
    for options in ({"order": 9, "letters": 8}, {"order": 10**6}, {"order": 5, "characters": 4, "letters": 2}):
        with pytest.raises(ValueError, match="order"):
            markov(**options)


def grammar(relative_clause: float = 0.3, documents: int = 20, sentences: int = 100, seed: int = 0) -> Grammar:
    return Grammar(GrammarOptions(documents=documents, sentences=sentences, relative_clause=relative_clause, seed=seed))


class Derivations:
    """Every way the rules give a text: how many there are, and their summed probability (top down, remembering)."""

    def __init__(self, source: Grammar, text: str) -> None:
        self.rules, self.text = source.rules, text
        self.known: dict[tuple[str, int], list[tuple[int, int, float]]] = {}

    def of(self, symbol: str, start: int) -> list[tuple[int, int, float]]:
        """(end, number of derivations, probability) for each end that `symbol` reaches from `start`."""
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
        found = [(count, share) for end, count, share in self.of("TEXT", 0) if end == len(self.text)]
        return sum(count for count, _ in found), sum(share for _, share in found)


@pytest.mark.parametrize("relative_clause", [0.0, 0.3, 0.5])
def test_grammar_sentences_have_one_derivation_and_cost_what_the_entropy_says(relative_clause: float) -> None:
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

"""The explorer as a file of its own: its JavaScript computes what the model computes, and the file
asks for nothing.
"""

import base64
import copy
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
import small
import torch
from small import PROJECT
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.explorer import drawing, generate, heads, look, single_file, units
from lmlab.explorer.changes import Add, Change, Patch, Pin, Scale
from lmlab.explorer.subject import LAST, Moment, Subject
from lmlab.model.models import base as models
from lmlab.model.truncation import Truncation

TEXT = "a bad cab, a dab of bad ace; " * 3
CONTEXT = 16
HOSTILE = "</script><script>document.title = 'taken'</script><!-- ]]> &lt; \u2028 \\"
needs_browser = pytest.mark.skipif(
    browser.CHROMIUM is None or browser.DRIVER is None, reason="no Chromium with its driver"
)


def fitted(name: str, text: str = TEXT, **options: Any) -> Tokenizer:
    return tokenizers.fit(registry.choose(small.tree(**options), "tokenizers", name), [text])


CHARACTER = fitted("character")


def transformer(**options: Any) -> Choice:
    return registry.choose(small.tree(**options), "models", "transformer")


def subject(name: str, choice: Choice, tokenizer: Tokenizer = CHARACTER) -> Subject:
    """A model with large random weights, which 16 bits hold exactly."""
    model = small.rough(choice, 0, tokenizer.vocabulary_size, CONTEXT).float()
    grows = choice.name == "transformer" and choice.inner["normalisation"].name == "identity"
    with torch.no_grad():
        for parameter in model.parameters():  # where numbers grew, rounding errors would as well
            parameter.copy_((parameter * (0.4 if grows else 1.0)).half())
    return Subject(name, model, tokenizer, [Moment(7, "", "")])


# ---------------------------------------------------------------- what is written


class Elements(HTMLParser):
    """The elements of a page that hold other languages, with what is in them, and its policy."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.policy = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += attributes
        named = dict(attributes)
        if tag in ("script", "style"):
            self.found.append((tag, named, ""))
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem and self.found:
            tag, named, before = self.found[-1]
            self.found[-1] = (tag, named, before + data)

    def data(self) -> Any:
        return next(json.loads(text) for _, named, text in self.found if named.get("id") == "file")


def written(folder: Path, *subjects: Subject, held_out: Sequence[str] = (TEXT,)) -> Elements:
    path = folder / "model.html"
    single_file.write(subjects, held_out, TEXT, path)
    return Elements(path.read_text(encoding="utf-8"))


REFUSED = [
    *(("train.model", name, {}) for name in registry.names("models") if name != "transformer"),
    *(
        (f"models.transformer.{key}", name, {key: name})
        for key, computed in single_file.COMPUTED.items()
        for name in registry.names(f"layers.{key}")
        if name not in computed
    ),
]


@pytest.mark.parametrize(("key", "name", "options"), REFUSED, ids=[name for _, name, _ in REFUSED])
def test_what_the_page_cannot_compute_is_refused_by_name(
    key: str, name: str, options: dict[str, str], tmp_path: Path
) -> None:
    kind = name if key == "train.model" else "transformer"
    choice = registry.choose(small.tree(**options), "models", kind)
    with pytest.raises(UserError) as refused:
        written(tmp_path, subject("drawn", choice))
    message = str(refused.value)
    assert message.startswith(f"{key}: {name}")
    assert "`lmlab explore`" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_the_page_does_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(single_file.TOKENIZERS) == set(registry.names("tokenizers"))
    monkeypatch.setattr(single_file, "TOKENIZERS", ("byte",))
    with pytest.raises(UserError, match=r"tokenizer\.name: character"):
        written(tmp_path, subject("drawn", transformer()))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("model.htm", "name it .html"),
        ("model", "name it .html"),
        ("nowhere/model.html", "is no folder"),
        ("folder.html", "is a folder"),
    ],
)
def test_a_place_where_no_page_can_stand_is_refused(path: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=words):
        single_file.write([subject("drawn", transformer())], [], "", tmp_path / path)
    assert [each.name for each in tmp_path.iterdir()] == ["folder.html"]


def test_a_file_is_replaced_as_a_whole_or_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.html"
    path.write_text("before")
    with pytest.raises(UserError):
        written(tmp_path, subject("drawn", transformer(attention="linear")))
    assert path.read_text() == "before"
    assert written(tmp_path, subject("drawn", transformer())).found
    assert [each.name for each in tmp_path.iterdir()] == ["model.html"]


def test_no_text_ends_the_data_and_the_policy_lets_in_the_page_alone(tmp_path: Path) -> None:
    tokenizer = fitted("word", f"{HOSTILE} {TEXT}", vocabulary_size=300)
    one = subject(HOSTILE, transformer(), tokenizer)
    plain = written(tmp_path, subject("drawn", transformer()))
    page = written(tmp_path, one, held_out=[HOSTILE])
    assert len(page.found) == len(plain.found)
    assert page.data()["about"]["held_out"] == [HOSTILE]
    assert page.data()["about"]["runs"][0]["name"] == HOSTILE
    assert page.policy == plain.policy
    for name, value in page.attributes:
        assert name not in ("src", "href"), value
    allowed = dict(part.split(maxsplit=1) for part in page.policy.split("; "))
    assert allowed["default-src"] == "'none'"
    assert set(allowed) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    for tag in ("script", "style"):
        contents = [text for kind, named, text in page.found if kind == tag and "type" not in named]
        digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in contents]
        hashes = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
        assert allowed[f"{tag}-src"] == hashes


def test_the_file_says_what_the_server_says_of_a_run_and_what_rounding_costs(
    tmp_path: Path,
) -> None:
    model = small.rough(transformer(), 0, CHARACTER.vocabulary_size, CONTEXT).float()
    snapshots = [Moment(0, "step-0.safetensors", "model"), Moment(9, "", "")]
    one = Subject("drawn", model, CHARACTER, snapshots)
    about = written(tmp_path, one).data()["about"]["runs"][0]
    rounding = about.pop("rounding")
    assert about == json.loads(json.dumps({**one.about(), "moments": [9]}))
    half = subject("drawn", transformer())  # the same weights, rounded
    for key, each in (("bits_per_byte", one), ("rounded", half)):
        nats: list[float] = []
        for number in range(look.read_window(each, LAST, TEXT, 0, [])["count"]):
            nats += look.read_window(each, LAST, TEXT, number, [])["plain"]["nats"]
        bits = sum(nats) / torch.log(torch.tensor(2.0)).item() / len(TEXT)
        assert rounding[key] == pytest.approx(bits, rel=1e-4)
    assert rounding["bits_per_byte"] != rounding["rounded"]
    assert rounding["characters"] == len(TEXT)
    for name, value in model.state_dict().items():  # the run itself stays as it was
        assert torch.equal(
            value,
            small.rough(transformer(), 0, CHARACTER.vocabulary_size, CONTEXT)
            .float()
            .state_dict()[name],
        )


def test_without_text_or_with_an_infinite_loss_no_cost_is_told(tmp_path: Path) -> None:
    one = subject("drawn", transformer())
    assert single_file.rounding(one, "") is None
    with torch.no_grad():
        one.model.readout.weight.fill_(float("nan"))  # type: ignore[union-attr]
    assert single_file.rounding(one, TEXT) is None
    with pytest.raises(UserError, match="drawn has nothing to show: its training diverged"):
        written(tmp_path, one)
    path = tmp_path / "unscored.html"
    single_file.write([subject("drawn", transformer())], [TEXT], "", path)
    page = Elements(path.read_text(encoding="utf-8"))
    assert page.data()["about"]["runs"][0]["rounding"] is None


def test_a_weight_too_large_for_16_bits_keeps_its_tensor_in_32() -> None:
    one = subject("drawn", transformer())
    with torch.no_grad():
        one.model.readout.weight[0, 0] = 70_000.0  # type: ignore[union-attr]
    found = single_file.rounded(one.model)
    assert found.pop("readout.weight").dtype == torch.float32
    assert {value.dtype for value in found.values()} == {torch.float16}


def default() -> Subject:
    """The project's own model, untrained, with a character for each of 96."""
    tree = params.read(PROJECT / "params.yaml")
    tokenizer = fitted("character", "".join(map(chr, range(32, 128))))
    torch.manual_seed(0)
    choice = registry.choose(tree, "models", tree["train"]["model"])
    model = models.build(choice, tokenizer.vocabulary_size, tree["train"]["context"])
    return Subject("default", model.eval(), tokenizer, [Moment(0, "", "")])


def test_the_project_s_own_model_makes_a_file_below_5_mb(tmp_path: Path) -> None:
    path = tmp_path / "model.html"
    told = single_file.write([default()], [TEXT], "", path)
    assert told.size == path.stat().st_size < 5_000_000
    assert told.line() == f"{path}: {told.size / 1e6:.1f} MB, opens in a browser"


def test_the_command_writes_the_workspace_s_run(
    corpus_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = subject("drawn", transformer())
    corpus_of("train", TEXT, name="data/corpus")
    models.save(Path("data/model"), one.model.choice, one.model, small.facts(steps=7))
    tokenizers.write("character", one.tokenizer, Path("data/tokenizer/tokenizer.json"))
    project = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    one_thread = re.sub(
        r"(?m)^  threads: \d+", "  threads: 1", project
    )  # for the tests that follow
    Path("params.yaml").write_text(one_thread, encoding="utf-8")
    done = CliRunner().invoke(cli.app, ["explore", "--out", "model.html"])
    assert done.exit_code == 0, done.output
    line = r"model\.html: \d\.\d MB, opens in a browser; weights rounded to 16 bits: workspace"
    assert re.match(line, done.output)
    file = Elements(Path("model.html").read_text(encoding="utf-8")).data()
    assert file["about"]["held_out"] == [TEXT]
    run = file["about"]["runs"][0]
    assert run["name"] == "workspace"
    assert run["moments"] == [7]
    assert run["rounding"]["rounded"] == run["rounding"]["bits_per_byte"]  # they were round before
    refused = CliRunner().invoke(cli.app, ["explore", "--out", "nowhere/model.html"])
    assert refused.exit_code == 2


# ---------------------------------------------------------------- what is computed


class Opened:
    """A file of several runs in a browser."""

    def __init__(self, page: Any, subjects: Sequence[Subject], path: Path) -> None:
        self.page, self.path = page, path
        self.subjects = {each.name: each for each in subjects}
        self.numbers = {each.name: number for number, each in enumerate(subjects)}
        page.set_script_timeout(120)

    def run(self, script: str, *arguments: Any) -> Any:
        """What an async function of the arguments returns; its error as {"error": its words}."""
        whole = f"""
            const [json, done] = arguments;
            (async (...given) => {{ {script} }})(...JSON.parse(json))
              .then(done, (error) => done({{ error: error.message, name: error.name }}));
        """
        return self.page.execute_async_script(whole, json.dumps(arguments))

    def ask(self, name: str, *asked: tuple[str, dict[str, Any]]) -> list[Any]:
        """The engine's answers about a run, or of each its error."""
        bodies = [
            (address, {"run": self.numbers[name], "text": TEXT, **body}) for address, body in asked
        ]
        script = """
            const answers = [];
            for (const [address, body] of given[0]) {
              const answer = engine.ask(address, body);
              answers.push(await answer.catch(({ message }) => ({ error: message })));
            }
            return answers;
        """
        return list(self.run(script, bodies))

    def logits(self, name: str, ids: list[int]) -> torch.Tensor:
        script = "return Array.from(await engine.logits(...given))"
        values = torch.tensor(self.run(script, self.numbers[name], ids), dtype=torch.float64)
        return values.view(len(ids), -1)


AXES: list[list[dict[str, Any]]] = [
    [
        {"embedding": "token"},
        {"embedding": "n_gram", "buckets": 60},
        {"embedding": "n_gram", "buckets": 400, "row_width": 3},  # pairs have rows of their own
    ],
    [{"position": name} for name in single_file.COMPUTED["position"]],
    [
        {"attention": "multi_head", "qk_norm": True},
        {"attention": "multi_head", "qk_norm": False, "heads": 1},
        {"attention": "grouped_query", "qk_norm": True, "heads": 4, "groups": 2},
        {"attention": "grouped_query", "qk_norm": False, "heads": 2, "groups": 1},
        {"attention": "sliding_window", "qk_norm": True, "window": 5},
        {"attention": "sliding_window", "qk_norm": False, "window": 99},
    ],
    [{"feed_forward": name} for name in single_file.COMPUTED["feed_forward"]],
    [{"normalisation": name} for name in single_file.COMPUTED["normalisation"]],
    [{"placement": name} for name in single_file.COMPUTED["placement"]],
    [{"residual": name} for name in single_file.COMPUTED["residual"]],
    [{"tied": False, "logit_soft_cap": 0.0}, {"tied": True, "logit_soft_cap": 5.0}],
]
DRAWN = [
    {key: value for part in parts for key, value in part.items()}
    for parts in small.drawn(*AXES, rounds=4)
]
VARIANTS = {"-".join(map(str, options.values())): options for options in DRAWN}
REPEATS = "été 12 123 aa aa xaa xaa bb bb"
"""Text with a piece "aa", so that "aaa" can be spelled in two ways."""
TOKENIZERS = {
    "byte": fitted("byte"),
    "character": fitted("character", TEXT + "é😀\ufeff"),
    "bpe": fitted("bpe", TEXT + REPEATS, vocabulary_size=300),
    "unigram": fitted("unigram", TEXT + REPEATS, vocabulary_size=300),
    "word": fitted("word", TEXT + HOSTILE, vocabulary_size=280),
}
TOKENIZERS |= {
    f"{name}, grown": tokenizer.grown(["zebras zoom; ööö zebras zoom"], 5)
    for name, tokenizer in TOKENIZERS.items()
    if tokenizer.grows
}


def every_subject() -> Iterator[Subject]:
    yield subject("plain", transformer())
    for name, options in VARIANTS.items():
        yield subject(name, transformer(**options))
    for name, tokenizer in TOKENIZERS.items():
        yield subject(f"by {name}", transformer(), tokenizer)
    yield default()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("file")
    path = folder / "model.html"
    subjects = list(every_subject())
    single_file.write(subjects, [TEXT], "", path)
    with browser.opened(path, folder / "profile", 1000) as page:
        yield Opened(page, subjects, path)


def in_a_browser(test: Any) -> Any:
    return needs_browser(pytest.mark.pipeline(test))


def assert_close(found: Any, expected: Any, tolerance: float = 1e-3, where: str = "") -> None:
    """The same JSON, but for numbers that are rounded differently."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, tolerance, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_close(found[number], value, tolerance, f"{where}.{number}")
    elif isinstance(expected, float):  # pytest.approx would take most of the time
        assert abs(found - expected) <= tolerance * max(1, abs(expected)), where
    else:
        assert found == expected, where


@in_a_browser
def test_the_logits_are_the_model_s(opened: Opened) -> None:
    for name in ("plain", *VARIANTS):
        one = opened.subjects[name]
        ids = one.ids(TEXT)
        assert len(ids) > 3 * CONTEXT
        with torch.no_grad():
            expected_TV = copy.deepcopy(one.model).double()(torch.tensor([ids]))[0]
        found_TV = opened.logits(name, ids)
        gaps = (found_TV - expected_TV).abs() / expected_TV.abs().clamp(min=1)
        assert gaps.max() < 1e-4, (name, float(gaps.max()))
        short_TV = opened.logits(name, ids[:7])  # what comes later changes no bit of it
        assert torch.equal(short_TV, found_TV[:7]), name


PLAIN = "plain"
HEADS, UNITS = "blocks.0.attention.head_outputs", "blocks.0.feed_forward.units"
OTHER = "dab cab bad ace "


def off(place: str, unit: int | None = None, factor: float = 0.0, at: int | None = None) -> Scale:
    return Scale(kind="scale", place=place, unit=unit, factor=factor, at=at)


def patch(place: str, of: int = 7, unit: int | None = None, at: int | None = None) -> Patch:
    return Patch(kind="patch", place=place, text=OTHER, of=of, unit=unit, at=at)


def add(place: str, unit: int | None = None, at: int | None = None) -> Add:
    ends = {"plus": "a bad", "minus": OTHER * 2}
    return Add(kind="add", place=place, unit=unit, at=at, strength=1.5, **ends)


CHANGES: list[list[Change]] = [
    [off(HEADS, unit=1)],
    [off(HEADS, unit=0, at=20)],
    [off(UNITS, unit=5, factor=3.0)],
    [off("blocks.1.output", factor=-0.5)],
    [off("blocks.1.after_attention", unit=3)],
    [off("blocks.0.attention.pattern", unit=1, factor=2.0)],
    [off("blocks.0.attention.pattern", at=20)],
    [off("embedding", factor=0.3)],
    [off("blocks.0.input", at=20), off("embedding", factor=2.0)],
    [off("logits", unit=2, at=21, factor=5.0)],
    [off(HEADS, unit=0), off(UNITS, unit=1)],
    [off(HEADS), off("blocks.1.feed_forward.units")],
    [off(UNITS, factor=2.0), off(UNITS, factor=0.5)],
    [patch("blocks.0.output")],
    [patch("blocks.1.input", at=20)],
    [patch(HEADS, unit=1, at=20)],
    [patch(UNITS, of=0, unit=2)],
    [off("blocks.0.output", factor=2.0), patch("blocks.0.output", at=19)],
    [add("blocks.0.output")],
    [add(HEADS, unit=0)],
    [add("blocks.1.feed_forward.units", unit=4, at=20)],
    [Pin(kind="pin", at=18, token=3)],
    [Pin(kind="pin", at=2, token=3), off(HEADS, unit=0)],
]


@in_a_browser
def test_each_change_does_what_it_does_in_the_project(opened: Opened) -> None:
    one = opened.subjects[PLAIN]
    asked: list[tuple[str, dict[str, Any]]] = []
    expected = []
    for number in range(look.read_window(one, LAST, TEXT, 0, [])["count"]):
        asked.append(("window", {"window": number}))
        expected.append(look.read_window(one, LAST, TEXT, number, []))
    for changes in CHANGES:
        for number in (0, 1):  # the second begins at token 16, within its window
            plain = [change.model_dump() for change in changes]
            asked.append(("window", {"window": number, "changes": plain}))
            expected.append(look.read_window(one, LAST, TEXT, number, changes))
    for question, found, wanted in zip(asked, opened.ask(PLAIN, *asked), expected, strict=True):
        assert_close(found, wanted, where=str(question))
    nats = [json.dumps(window["changed"]["nats"]) for window in expected if "changed" in window]
    assert len(set(nats)) > len(CHANGES)  # they do different things


@in_a_browser
def test_every_place_of_every_variant_is_there_and_changes_as_in_the_project(
    opened: Opened,
) -> None:
    for name in (PLAIN, *VARIANTS):
        one = opened.subjects[name]
        names = [*one.about()["places"], *one.tables()]
        same = [off(place, factor=1.0) for place in names]
        other = [off(place, factor=-0.5) for place in names]
        asked = [
            ("window", {"window": 1, "changes": [change.model_dump()]}) for change in same + other
        ]
        answers = opened.ask(name, *asked)
        for place, found in zip(names, answers, strict=False):
            assert found["changed"] == found["plain"], (name, place)  # to the last bit
        for change, found in zip(other, answers[len(names) :], strict=True):
            wanted = look.read_window(one, LAST, TEXT, 1, [change])
            for side in ("plain", "changed"):
                for number, block in enumerate(wanted[side]["lens"]):
                    nats = found[side]["lens"][number]["nats"]
                    assert_close(nats, block["nats"], where=f"{name} {change.place} {number}")
                nats = found[side]["nats"]
                assert_close(nats, wanted[side]["nats"], where=f"{name} {change.place}")
            assert_close(found["direct"], wanted["direct"], where=f"{name} {change.place}")


@in_a_browser
def test_a_token_s_heads_and_layers_are_the_model_s(opened: Opened) -> None:
    for name in (PLAIN, *VARIANTS):
        one = opened.subjects[name]
        changes: list[Change] = [off(HEADS, unit=0, factor=0.5), Pin(kind="pin", at=20, token=2)]
        plain = [change.model_dump() for change in changes]
        tokens = (0, 30)
        asked = [("token", {"token": at, "changes": plain}) for at in tokens]
        for at, found in zip(tokens, opened.ask(name, *asked), strict=True):
            wanted = look.look_at(one, LAST, TEXT, at, changes)
            assert found.keys() == wanted.keys()
            assert found["features"] == wanted["features"] == []
            assert found["begin"] == wanted["begin"]
            assert_close(found["heads"], wanted["heads"], where=name)
            assert len(found["layers"]) == len(wanted["layers"])
            for mine, its in zip(found["layers"], wanted["layers"], strict=True):
                for key in ("place", "size", "length"):
                    assert_close(mine[key], its[key], where=f"{name} {its['place']} {key}")
                borderline = 2 if "gelu" in name else 0  # units that are nearly 0
                assert abs(mine["active"] - its["active"]) <= borderline, f"{name} {its['place']}"
                mine_top, its_top = dict(mine["top"]), dict(its["top"])
                assert len(mine_top) == len(its_top)
                for unit in mine_top.keys() & its_top.keys():  # others are about as active
                    assert_close(mine_top[unit], its_top[unit], where=f"{name} {its['place']}")
                sizes = (sorted(map(abs, top.values())) for top in (mine_top, its_top))
                assert_close(next(sizes), next(sizes), where=f"{name} {its['place']}")


@in_a_browser
def test_where_a_unit_is_most_active_is_where_it_is_in_the_model(opened: Opened) -> None:
    one = opened.subjects[PLAIN]
    parts = list(
        itertools.product((UNITS, HEADS, "blocks.1.output", "logits"), (0, 1), ("", TEXT + OTHER))
    )
    asked = [("unit", {"place": place, "unit": unit, "text": text}) for place, unit, text in parts]
    for (place, unit, text), found in zip(parts, opened.ask(PLAIN, *asked), strict=True):
        wanted = units.texts_of(one, LAST, place, unit, text or TEXT)
        assert_close(found, {"texts": wanted}, where=f"{place} {unit}")


@in_a_browser
def test_how_a_text_goes_on_is_cut_as_in_the_project(opened: Opened) -> None:
    one = opened.subjects[PLAIN]
    cuts = [
        (0, 1.0, 0.0),
        (3, 1.0, 0.0),
        (0, 0.7, 0.0),
        (0, 1.0, 0.2),
        (5, 0.9, 0.01),
        (99, 1e-9, 1),
    ]
    change = off(HEADS, unit=1)
    drawn: dict[int, set[int]] = {}
    for top_k, top_p, min_p in cuts:
        for temperature in (1.0, 0.0, 0.5, 20.0):
            for text in ("", TEXT):
                body = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "text": text}
                body |= {"temperature": temperature, "changes": [change.model_dump()]}
                asked = [("next", {**body, "seed": seed}) for seed in range(8)]
                found, *others = opened.ask(PLAIN, *asked)
                cut = Truncation(top_k, top_p, min_p)
                wanted = generate.next_token(one, LAST, text, [change], temperature, cut, 0)
                assert sum(token["p"] for token in found["tokens"]) == pytest.approx(1, abs=1e-4)
                kept = {token["id"] for token in found["tokens"] if token["p"]}
                drawn_here = {each["drawn"] for each in (found, *others)}
                assert drawn_here <= kept
                del found["drawn"], wanted["drawn"]
                assert_close(found, wanted, where=str(body))
                drawn.setdefault(len(kept), set()).update(drawn_here)
    assert len(drawn[1]) < len(drawn[CHARACTER.vocabulary_size])


TEXTS = [
    "",
    TEXT,
    "a bad  cab,\n\n\r\n\tdab\t \n",
    HOSTILE,
    "zebras zoom; ööö don't we'll I'm '",
    "\0\x01\x7f\x85\xa0\xad\u2028\u2029\ufeff\ufeff",
    "\ud800 lone \udfff\udc00 and \ud83d",
    "é e\u0301 e" + "\u0301" * 70 + "\u200d\u0300",
    "0 1234567 12é34 ٣٤",
    "😀👩\u200d👩\u200d👧🇩🇪 \U0001d518\U0001d52b 中文字 \U0010ffff\uffff\ufffd",
    "<|document|><|endoftext|>",
    "aaa aaaaa baaab bbbabbbbb",
    "a" * 500 + " " * 100 + "-" * 100 + "\n" * 100,
    "été" * 40,
    "😀" * 40,
]


@in_a_browser
def test_texts_become_the_same_tokens(opened: Opened) -> None:
    script = "return given[1].map((text) => engine.encode(given[0], text))"
    for name in TOKENIZERS:
        one = opened.subjects[f"by {name}"]
        found = opened.run(script, opened.numbers[one.name], TEXTS)
        for text, ids in zip(TEXTS, found, strict=True):
            assert ids == one.ids(text), (name, text)
        for number, text in enumerate(TEXTS):
            (window,) = opened.ask(one.name, ("window", {"text": text}))
            ids = one.ids(text)[1:]
            assert window["ids"] == ids, (name, number)
            pieces = one.pieces(text, ids)
            texts = [piece.decode("utf-8", "replace") for piece in pieces]
            assert window["texts"] == texts, (name, number)
            assert window["sizes"] == [len(piece) for piece in pieces], (name, number)


WRONG: list[tuple[str, dict[str, Any], Callable[[Subject], object]]] = [
    ("window", {"window": 99}, lambda one: look.read_window(one, LAST, TEXT, 99, [])),
    ("window", {"text": "é" * 200_001}, lambda one: look.Text.of(one, "é" * 200_001)),
    ("token", {"token": 99}, lambda one: look.look_at(one, LAST, TEXT, 99, [])),
    (
        "unit",
        {"place": UNITS, "unit": 999},
        lambda one: units.texts_of(one, LAST, UNITS, 999, TEXT),
    ),
    (
        "unit",
        {"place": "blocks.0.attention.pattern", "unit": 0},
        lambda one: units.texts_of(one, LAST, "blocks.0.attention.pattern", 0, TEXT),
    ),
    *(
        (
            "window",
            {"changes": [change.model_dump()]},
            lambda one, change=change: look.read_window(one, LAST, TEXT, 0, [change]),
        )
        for change in (
            off(HEADS, unit=9),
            Pin(kind="pin", at=10_000, token=0),
            Pin(kind="pin", at=0, token=10_000),
            patch("blocks.0.output", of=99),
            patch("blocks.0.attention.pattern"),
        )
    ),
]


@in_a_browser
def test_the_model_and_its_heads_are_described_as_by_the_server(opened: Opened) -> None:
    for name in (PLAIN, *VARIANTS):
        one = opened.subjects[name]
        told = opened.ask(name, ("drawing", {}), ("weights", {}), ("heads", {}))
        assert_close(told[0], drawing.structure(one), where=name)
        assert_close(told[1], drawing.weights(one, LAST), where=name)
        assert_close(told[2], heads.roles(one, LAST, TEXT), where=name)


@in_a_browser
def test_what_cannot_be_answered_is_said_in_the_same_words(opened: Opened) -> None:
    one = opened.subjects[PLAIN]
    answers = opened.ask(PLAIN, *((address, body) for address, body, _ in WRONG))
    for (_, body, compute), found in zip(WRONG, answers, strict=True):
        with pytest.raises(UserError) as refused:
            compute(one)
        assert found == {"error": str(refused.value)}, str(body)[:80]
    for address, body, words in (
        ("window", {"run": 999}, "there is no run 999"),
        ("window", {"moment": 1}, "plain has no moment 1"),
        (
            "window",
            {"changes": [off("blocks.9.output").model_dump()]},
            "no place blocks.9.output in",
        ),
        ("window", {"changes": [{"kind": "burn"}]}, "changes.0"),
        (
            "window",
            {"changes": [{**off(HEADS).model_dump(), "factor": 1e9}]},
            "changes.0.scale.factor",
        ),
        ("next", {"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ("next", {"top_p": 0}, "top_p: Input should be greater than 0"),
        ("next", {"seed": 0.5}, "seed: Input should be a valid integer"),
        ("microscope", {}, "this file shows inference; for that, run `lmlab explore`"),
        ("constructor", {}, "this file shows inference"),
    ):
        (found,) = opened.ask(PLAIN, (address, body))
        assert found["error"].startswith(words), found
    assert "plain" in opened.ask(PLAIN, ("window", {}))[0]


@in_a_browser
def test_long_work_gives_way_to_the_page_and_ends_when_it_is_stopped(opened: Opened) -> None:
    script = """
      const [run, text] = given, stop = new AbortController();
      let turns = 0;
      const turn = setInterval(() => { if (++turns === 3) stop.abort(); }, 1);
      try {
        await engine.ask("unit", { run, text, place: "logits", unit: 0 }, stop.signal);
        return { turns, ended: "by itself" };
      } catch (error) {
        return { turns, ended: error.name };
      } finally {
        clearInterval(turn);
      }
    """
    found = opened.run(script, opened.numbers["default"], TEXT * 100)
    assert found["ended"] == "AbortError"
    assert 3 <= found["turns"] < 10
    stopped = "await engine.ask('about', {}, AbortSignal.abort())"
    assert opened.run(stopped)["name"] == "AbortError"


def requested(opened: Opened) -> set[str]:
    """All that the page asked for since it was opened, the page among it."""
    address = opened.path.resolve().as_uri()
    events = (json.loads(one["message"])["message"] for one in opened.page.get_log("performance"))
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {each["request"]["url"] for each in sent if each["documentURL"].startswith(address)}


@in_a_browser
def test_the_page_shows_the_run_and_asks_for_nothing(opened: Opened) -> None:
    page = opened.page

    def wait(condition: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(page, 60).until(lambda each: each.execute_script(f"return {condition}"))

    def texts(selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return list(page.execute_script(script, selector))

    assert "".join(texts(".tokens span")) == TEXT
    assert "plain" in texts("#run option")
    page.execute_script("document.querySelectorAll('.tokens span')[30].click()")
    wait("document.querySelectorAll('#chosen .card').length > 4")
    page.execute_script(
        f"const one = document.querySelector(`[aria-label='factor of {HEADS} 1']`);"
        "one.value = 0; one.dispatchEvent(new Event('change', { bubbles: true }));"
    )
    wait("document.querySelectorAll('.tokens.changed').length === 1")
    assert any(f"{HEADS}, part 1" in line for line in texts("#changes li"))
    page.execute_script("document.getElementById('draw').click()")
    wait(f"document.getElementById('text').value.length > {len(TEXT)}")
    assert texts("#status.wrong") == []
    assert browser.complaints(page) == []
    assert requested(opened) == {opened.path.resolve().as_uri()}

    script = """
      const blocked = [];
      const note = ({ effectiveDirective }) => blocked.push(effectiveDirective);
      addEventListener("securitypolicyviolation", note);
      const fetched = await fetch("data:text/plain,sent").then(() => "sent", () => "stopped");
      const inside = document.createElement("script");
      inside.textContent = "document.title = 'taken'";
      document.body.append(inside);
      const image = new Image();
      await new Promise((resolve) => {
        image.onload = image.onerror = resolve;
        image.src = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
      });
      await new Promise((resolve) => setTimeout(resolve, 50));
      return { fetched, title: document.title, blocked };
    """
    found = opened.run(script)
    assert {url.partition(":")[0] for url in requested(opened)} <= {"data"}  # which is no request
    assert found["fetched"] == "stopped"
    assert found["title"] != "taken"
    assert set(found["blocked"]) >= {"connect-src", "script-src-elem", "img-src"}

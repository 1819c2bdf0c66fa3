"""A run as ONNX: ONNX Runtime computes what the lab does, and the programs beside it what they
should.
"""

import functools
import http.server
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import browser
import exported
import numpy as np
import pytest
import small
import torch
from hostile import texts
from hypothesis import given
from hypothesis import strategies as st
from small import CONTEXT, PROJECT, VOCABULARY
from torch import Tensor

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.export import extras
from lmlab.export.onnx import graph as graphs
from lmlab.export.onnx import verify
from lmlab.export.onnx.graph import Graph, graph_of
from lmlab.export.onnx.states import find_states
from lmlab.export.onnx.verify import Session
from lmlab.export.onnx.write import SPELLINGS, write
from lmlab.export.run import Run
from lmlab.model.generation import sample_ids
from lmlab.model.layers.position.learned import Learned
from lmlab.model.models.base import LanguageModel

LAYERS = ("attention", "embedding", "feed_forward", "normalisation", "placement", "position")
KINDS = (*LAYERS, "residual")


def part(kind: str, name: str, **options: Any) -> Choice:
    return registry.choose(small.tree(**options), kind, name)


def transformer(depth: int = 1, **layers: str) -> Choice:
    inner = {kind: part(f"layers.{kind}", name) for kind, name in layers.items()}
    return small.with_inner(part("models", "transformer", depth=depth), **inner)


def layer_combinations() -> list[Choice]:
    """Transformers in which every part of every kind of layer occurs."""
    axes = [registry.names(f"layers.{kind}") for kind in KINDS]
    choices = [transformer(**dict(zip(KINDS, names))) for names in small.drawn(*axes)]
    # attention without scores refuses what adds to them
    return [small.fitting(choice, "attention") for choice in choices]


MODELS = [
    *(
        part("models", name, depth=1, layers=2 if name == "hybrid" else 1)
        for name in registry.names("models")
        if name != "transformer"  # which is below, in all its forms
    ),
    transformer(2, attention="grouped_query", residual="value"),
    *layer_combinations(),
]


def loops(choice: Choice) -> bool:
    """Whether torch fixes the number of tokens, so that the graph reads one after the other."""
    inner = any(loops(each) for each in choice.inner.values())
    return inner or choice.name in ("linear", "lstm", "min_gru", "rwkv", "state_space")


def opened(model: LanguageModel, folder: Path) -> tuple[Path, Graph]:
    graph = graph_of(model, find_states(model))
    graph.save(folder / "model.onnx")
    return folder / "model.onnx", graph


def in_pieces(reader: Any, tokens_BT: Tensor, *lengths: int) -> Tensor:
    return torch.cat([reader(piece) for piece in torch.split(tokens_BT, list(lengths), dim=1)], 1)


def of_lab(model: LanguageModel) -> Any:
    """Reads on and on, as a session does."""
    cache = model.new_cache()
    return lambda tokens_BT: model(tokens_BT, cache).detach()


def assert_same(logits: Tensor, own: Tensor) -> None:
    assert logits.shape == own.shape
    torch.testing.assert_close(logits, own, rtol=0, atol=3e-5 * max(1.0, own.abs().max().item()))


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("choice", MODELS, ids=small.title)
def test_read_at_once_or_in_pieces_the_logits_are_the_models(
    choice: Choice, tmp_path: Path
) -> None:
    model = small.rough(choice).float()
    before = model(small.tokens(3, CONTEXT)).detach()
    file, graph = opened(model, tmp_path)
    assert graph.loops == loops(choice)
    assert torch.equal(model(small.tokens(3, CONTEXT)), before)
    for batch in (1, 3):
        tokens_BT = small.tokens(batch, CONTEXT)
        own = model(tokens_BT).detach()
        for lengths in ([CONTEXT], [1, 2, CONTEXT - 3], [CONTEXT - 1, 1], [1] * CONTEXT):
            assert_same(in_pieces(Session(file, graph, batch).read, tokens_BT, *lengths), own)
    far_BT = small.tokens(2, 5 * CONTEXT, seed=1)
    ones = [1] * far_BT.shape[1]
    own = in_pieces(of_lab(model), far_BT, *ones)
    assert_same(in_pieces(Session(file, graph, 2).read, far_BT, *ones), own)
    assert verify.verify(model, file, graph).holds


def test_the_shortest_caches_are_kept_too(tmp_path: Path) -> None:
    attention = part("layers.attention", "sliding_window", window=2)
    choice = small.with_inner(transformer(), attention=attention)
    model = small.rough(choice).float()
    file, graph = opened(model, tmp_path)
    assert verify.verify(model, file, graph).holds
    assert find_states(small.rough(choice, context=1).float()) == []


def test_of_an_empty_cache_the_states_are_told_apart_by_what_they_mean() -> None:
    model = small.model(transformer(embedding="n_gram")).eval()
    states = {state.name: state for state in find_states(model)}
    assert states["blocks.0.tokens"].shape == ("batch", 3)
    assert states["blocks.0.tokens"].initial == VOCABULARY  # no token is before the first
    assert states["blocks.0.keys"].shape == ("batch", 2, "past", 8)
    assert states["blocks.0.keys"].initial == 0


def test_what_cannot_be_traced_is_refused_by_name() -> None:
    class Odd(Learned):
        def embed(self, x_BTD: Tensor, start: int) -> Tensor:
            return super().embed(x_BTD, start) * (2.0 if start % 2 else 1.0)

    model = small.model(transformer(position="learned")).eval()
    assert isinstance(model.position, Learned)
    model.position.__class__ = Odd
    with pytest.raises(UserError, match=r"^train\.model: transformer cannot be exported to ONNX"):
        graph_of(model, find_states(model))


# ---------------------------------------------------------------- what is written


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Path]]:
    """A run for each tokenizer, of quick models with and without states of all kinds."""
    models = {
        "bpe": part("models", "lstm", layers=1),
        "byte": part("models", "n_gram_table"),
        "character": transformer(),
        "unigram": part("models", "perceptron", layers=1),
        "word": part("models", "n_gram_table"),
    }
    assert models.keys() == set(registry.names("tokenizers")) == SPELLINGS.keys()
    root = tmp_path_factory.mktemp("onnx")
    written = {}
    for name, choice in models.items():
        run = exported.run(root / f"run-{name}", choice, name)
        write(run, root / name)
        written[name] = run, root / name
    return written


Runs = dict[str, tuple[Run, Path]]


def test_the_folder_says_what_a_program_must_know(runs: Runs) -> None:
    import onnxruntime

    for name, (run, folder) in runs.items():
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        told = json.loads((folder / "model.json").read_text())
        assert (told["name"], told["tokenizer"]) == ("made_up", name)
        assert (told["context"], told["bos"]) == (exported.CONTEXT, run.tokenizer.bos)
        assert told["vocabulary_size"] == run.tokenizer.vocabulary_size
        inputs = [*told["inputs"], *told["states"]]
        for value, port in zip(inputs, session.get_inputs(), strict=True):
            assert (value["name"], value["shape"]) == (port.name, port.shape)
            onnx_type = {"float32": "tensor(float)", "int64": "tensor(int64)"}[value["dtype"]]
            assert onnx_type == port.type
        outputs = [told["outputs"][0]["name"], *(state["next"] for state in told["states"])]
        assert outputs == [port.name for port in session.get_outputs()]
        pieces = [piece.encode("latin-1") for piece in told["pieces"]]
        assert pieces == run.tokenizer.token_bytes
        files = {"model.onnx", "model.json", "tokenizer.json", "generate.py", "generate.html"}
        assert files | {"lmlab.json", "SHA256SUMS"} == {path.name for path in folder.iterdir()}
        tokenizer_file = run.folders.tokenizer_file
        assert (folder / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()


def test_another_process_writes_the_same_bytes_and_notes_nothing_of_this_machine(
    runs: Runs, tmp_path: Path
) -> None:
    run, folder = runs["character"]
    script = f"""
from pathlib import Path
from lmlab.export.onnx.write import write
from lmlab.export.run import Folders, Run
folders = Folders(Path({str(run.folders.model)!r}), Path({str(run.folders.tokenizer_file)!r}))
write(Run.open("made_up", folders), Path({str(tmp_path / "again")!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")  # torch's own words are kept away
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    graph = (folder / "model.onnx").read_bytes()
    assert str(small.PROJECT).encode() not in graph
    assert b"lmlab.model" not in graph


def test_large_weights_lie_in_a_second_file(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_BYTES", 1000)
    line, bits = write(runs["unigram"][0], tmp_path / "large")
    assert "generate.html" not in line
    of_graph, of_lab = re.findall(r"\d+\.\d+", bits)
    assert of_graph == of_lab
    assert (tmp_path / "large" / "model.onnx.data").stat().st_size > 1000
    assert not (tmp_path / "large" / "generate.html").exists()


@pytest.mark.parametrize("earlier", [False, True])
def test_a_graph_that_computes_something_else_is_not_written(
    earlier: bool, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = runs["byte"]
    out = tmp_path / "out"
    if earlier:
        shutil.copytree(folder, out)

    def wrong(model: LanguageModel, states: Any) -> Graph:
        other = small.model(part("models", "n_gram_table"), 1, run.model.vocabulary_size, 24)
        return graph_of(other.eval(), states)

    monkeypatch.setattr("lmlab.export.onnx.write.graph_of", wrong)
    with pytest.raises(UserError, match="computes other logits than in the lab"):
        write(run, out)
    assert out.exists() == earlier
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if earlier else [])
    assert not earlier or (out / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_logits_that_are_no_numbers_are_not_written(runs: Runs, tmp_path: Path) -> None:
    run = exported.run(tmp_path / "run", part("models", "n_gram_table"), "byte")
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="computes other logits"):
        write(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_the_programs_do_not_know_leaves_them_out(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(SPELLINGS, "byte")
    write(runs["byte"][0], tmp_path / "out")
    assert not (tmp_path / "out" / "generate.py").exists()
    assert (tmp_path / "out" / "model.onnx").exists()


def test_without_its_packages_an_export_begins_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name)
    )
    words = "needs onnx, onnxscript and onnxruntime: pip install 'lmlab[export]'"
    with pytest.raises(UserError, match=re.escape(words)):
        write(runs["byte"][0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_its_packages_are_loaded_where_it_is_asked_for_alone() -> None:
    script = "import sys, lmlab.export.onnx.write; print({'onnx', 'onnxruntime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n"


# ---------------------------------------------------------------- the programs

TEXTS = [
    "",
    exported.TEXT[:40],
    "a bad  cab,\n\n\r\n\tdab\t \n",
    "zebras zoom; ööö don't we'll I'm '",
    "\0\x01\x7f\x85\xa0\xad\u2028\u2029\ufeff\ufeff",
    "\ud800 lone \udfff\udc00 and \ud83d",
    "é e\u0301 e" + "\u0301" * 70 + "\u200d\u0300",
    "0 1234567 12é34 ٣٤",
    "😀👩\u200d👩\u200d👧🇩🇪 \U0001d518\U0001d52b 中文字 \U0010ffff\uffff\ufffd",
    "<|document|><|endoftext|>",
    "aaa aaaaa baaab bbbabbbbb",
    "a" * 200 + " " * 100 + "-" * 100 + "\n" * 100,
]


@functools.cache
def grown(name: str) -> tokenizers.Tokenizer:
    """A tokenizer with new ids after the BOS token."""
    return exported.tokenizer(name).grown(["zebras zoom; zebras zoom; 12 12 12 élan élan"], 7)


def spelling(name: str, tokenizer: tokenizers.Tokenizer) -> Any:
    from lmlab.data import pretokens
    from lmlab.data.tokenizers.base import readable

    pieces = [readable(piece) for piece in tokenizer.token_bytes]
    known = {"pretokens": pretokens.PATTERN, "pieces": pieces}
    return SPELLINGS[name](json.loads(json.dumps({**tokenizer.state(), **known})))


@pytest.mark.parametrize("after_growth", [False, True])
@pytest.mark.parametrize("name", sorted(SPELLINGS))
@given(text=texts, ids=st.lists(st.integers(0, 1000), max_size=30))
def test_any_text_is_spelled_as_in_the_lab(
    name: str, after_growth: bool, text: str, ids: list[int]
) -> None:
    tokenizer = grown(name) if after_growth else exported.tokenizer(name)
    own = spelling(name, tokenizer)
    assert own.encode(text) == tokenizer.encode(text).tolist()
    some = [i % tokenizer.vocabulary_size for i in ids]
    assert own.decode(some) == tokenizer.decode(np.array(some, dtype=np.uint32))


def likeliest(run: Run, text: str, count: int) -> list[int]:
    prompt = [run.tokenizer.bos, *run.tokenizer.encode(text).tolist()]
    return list(sample_ids(run.model, prompt, count, temperature=0, seed=0))


def likeliest_text(run: Run, text: str, count: int) -> tuple[list[int], str]:
    """Those up to the end of the document, and as text."""
    end = run.tokenizer.bos
    ids = list(itertools.takewhile(lambda i: i != end, likeliest(run, text, count)))
    return ids, run.tokenizer.decode(np.array(ids, dtype=np.uint32))


DRIVER = """
import json, runpy, sys
sys.stdout.reconfigure(encoding="utf-8")
answers = {}
for name, cls, folder in json.loads(sys.argv[1]):
    program = runpy.run_path(folder + "/generate.py")
    model = json.load(open(folder + "/model.json", encoding="utf-8"))
    saved = json.load(open(folder + "/tokenizer.json", encoding="utf-8"))
    tokenizer = program[cls]({**saved, **model})
    encoded = [tokenizer.encode(text) for text in json.loads(sys.argv[2])]
    prompts = [[model["bos"], *ids] for ids in encoded[:3]]
    greedy = [list(program["generate"](model, ids, 60, 0, 0)) for ids in prompts]
    answers[name] = {"encoded": encoded, "greedy": greedy}
print(json.dumps([answers, [name for name in sys.modules if "lmlab" in name or "torch" in name]]))
"""


def test_the_program_alone_generates_what_the_lab_does(runs: Runs) -> None:
    programs = [(name, SPELLINGS[name].__name__, str(runs[name][1])) for name in runs]
    done = subprocess.run(
        [sys.executable, "-I", "-c", DRIVER, json.dumps(programs), json.dumps(TEXTS)],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    answers, loaded = json.loads(done.stdout)
    assert loaded == []
    for name, (run, _) in runs.items():
        own = [run.tokenizer.encode(text).tolist() for text in TEXTS]
        assert answers[name]["encoded"] == own, name
        assert answers[name]["greedy"] == [likeliest(run, text, 60) for text in TEXTS[:3]], name


def test_the_program_prints_the_text_that_continues_a_prompt(runs: Runs) -> None:
    run, folder = runs["bpe"]

    def printed(*options: str) -> str:
        command = [sys.executable, "-I", str(folder / "generate.py"), "a bad", *options]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout

    _, text = likeliest_text(run, "a bad", 20)
    assert printed("--tokens", "20", "--temperature", "0") == f"a bad{text}\n"
    drawn = [printed("--tokens", "20", "--temperature", "2", "--seed", seed) for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]


# ---------------------------------------------------------------- the page


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(runs: Runs) -> Iterator[tuple[str, Path]]:
    """The address of a server of the folder that holds all exports, and the folder."""
    root = runs["byte"][1].parent
    serve = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", root
        server.shutdown()


@pytest.fixture(scope="module")
def runtime(site: tuple[str, Path]) -> str:
    """The path of ONNX Runtime for browsers, installed for the tests."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm to install onnxruntime-web with")
    command = [npm, "install", "--no-audit", "--no-fund", "onnxruntime-web"]
    done = subprocess.run(command, cwd=site[1], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("onnxruntime-web cannot be installed: no network?")
    return "/node_modules/onnxruntime-web/dist"


def in_a_browser(test: Any) -> Any:
    missing = browser.CHROMIUM is None or browser.DRIVER is None
    skip = pytest.mark.skipif(missing, reason="no Chromium with its driver")
    return pytest.mark.pipeline(skip(test))


ENCODE = "return JSON.parse(arguments[0]).map((text) => lab.tokenizer.encode(text))"
DECODE = "return lab.tokenizer.decode(arguments[0])"
GENERATE = """
  const [text, count] = arguments, done = arguments[arguments.length - 1];
  document.getElementById("prompt").value = text;
  document.getElementById("count").value = count;
  document.getElementById("temperature").value = 0;
  const status = document.getElementById("status");
  new MutationObserver((_, observer) => {
    observer.disconnect();
    done([status.textContent, document.getElementById("text").textContent]);
  }).observe(status, { childList: true });
  document.getElementById("go").click();
"""


@in_a_browser
def test_the_page_generates_what_the_lab_does(
    runs: Runs, site: tuple[str, Path], runtime: str, tmp_path: Path
) -> None:
    pages = {name: f"{site[0]}/{name}/generate.html?ort={runtime}" for name in runs}
    drawn = "return document.documentElement.dataset.drawn && location.href"
    with browser.opened(pages["byte"], tmp_path / "profile", 800) as window:
        window.set_script_timeout(60)
        for name, (run, _) in runs.items():
            window.get(pages[name])
            while window.execute_script(drawn) != pages[name]:
                time.sleep(0.01)
            own = [run.tokenizer.encode(text).tolist() for text in TEXTS]
            assert window.execute_script(ENCODE, json.dumps(TEXTS)) == own, name
            backwards = list(range(run.tokenizer.vocabulary_size))[::-1]
            text = run.tokenizer.decode(np.array(backwards, dtype=np.uint32))
            assert window.execute_script(DECODE, backwards) == text, name
            ids, text = likeliest_text(run, "a bad", 60)
            shown = [f"{len(ids)} tokens", f"a bad{text}"]
            assert window.execute_async_script(GENERATE, "a bad", 60) == shown, name
            hosts = {url.split("/")[2] for url in browser.requests(window) if "://" in url}
            assert hosts == {site[0].removeprefix("http://")}
        assert browser.complaints(window) == []


@in_a_browser
def test_the_page_says_how_to_get_what_it_lacks(
    runs: Runs, site: tuple[str, Path], tmp_path: Path
) -> None:
    status = "return document.getElementById('status').textContent"
    page = f"{site[0]}/byte/generate.html?ort=//elsewhere.org/ort"
    with browser.opened(page, tmp_path / "profile", 800) as window:
        assert "run `npm install onnxruntime-web`" in window.execute_script(status)
        hosts = {url.split("/")[2] for url in browser.requests(window) if "://" in url}
        assert hosts == {site[0].removeprefix("http://")}
    with browser.opened(runs["byte"][1] / "generate.html", tmp_path / "profile", 800) as window:
        assert "python -m http.server" in window.execute_script(status)


def test_alibi_without_qk_norm_is_exported_at_the_default_width(tmp_path: Path) -> None:
    """Its cache gives the same sums in another order."""
    tree = params.changed(
        params.read(PROJECT / "params.yaml"),
        {
            "models.transformer.position": "alibi",
            "models.transformer.depth": 2,
            "models.transformer.width": 128,
            "layers.attention.multi_head.qk_norm": False,
        },
    )
    run = exported.run(tmp_path, registry.choose(tree, "models", "transformer"))
    assert write(run, tmp_path / "out")


def test_nothing_is_told_of_this_machine(runs: Runs, tmp_path: Path) -> None:
    """ONNX Runtime's telemetry writes into the home folder unless it is off when imported."""
    write(runs["byte"][0], tmp_path / "out")
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home)}
    command = [sys.executable, "-I", str(tmp_path / "out" / "generate.py"), "a", "--tokens", "3"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert list(home.rglob("*")) == []

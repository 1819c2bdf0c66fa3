"""What the documents say is true: links lead somewhere, commands, params, paths and figures exist.

Blocks of commands that are not marked as not to be run are run in tests/pipeline/test_documents.py.
"""

import itertools
import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import documents
import pandas as pd
import pytest
import typer
from ruamel.yaml import YAML
from small import PROJECT

from lmlab import cli
from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.data.start import FROM_SCRATCH, StartParams
from lmlab.experiments import preflight, recipes
from lmlab.training import growing
from lmlab.training.growing import Shape

ROOMS = ["core", "data", "model", "training", "evaluation", "explorer", "export", "experiments"]
README_BYTES = 9_000
TERMS = """
    NaN, diverged, FLOPs, KV cache, gradient accumulation, hyperparameter, initialisation,
    inference, vocabulary size, BOS, QK-norm, receptive field, autoregressive, bits per byte,
    paired seeds, verdict
"""
"""What a reader looks up in the glossary."""
INVENTED = {"mine", "tanh", "delay", "weight_norm", "sums"}
"""Parts and studies that a reader of the documents makes."""
PLACEHOLDERS = {"NAME", "BRANCH", "…"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)*)\)")
PATH = re.compile(
    r"(?<![\w/.])(?:src|pipeline|docs|studies|benchmarks|tests|texts|recipes|results|data|\.ci)/[\w./-]*"
)
FIGURE = re.compile(r"(?<![\w.,])-?\d+\.\d{3,}(?![\d.])")
every_page = pytest.mark.parametrize("page", documents.pages())
every_guide = pytest.mark.parametrize("page", documents.guides())


# ------------------------------------------------------------------ links and paths


@every_page
def test_every_relative_link_and_anchor_leads_somewhere(page: str) -> None:
    for target in LINK.findall(documents.prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (PROJECT / page).parent / name if name else PROJECT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in documents.anchors(path), f"{page}: {target}"


def outputs() -> list[str]:
    """What the stages of dvc.yaml write, and what a run leaves beside it."""
    stages = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]
    kinds = ("outs", "metrics", "plots")
    written = [out for stage in stages.values() for kind in kinds for out in stage.get(kind, [])]
    named = [out if isinstance(out, str) else next(iter(out)) for out in written]
    return [*named, "data/timing", "results/final.csv"]


@every_guide
def test_every_path_that_a_page_names_exists(page: str) -> None:
    made = outputs()
    for name in PATH.findall(documents.read(page)):
        path = name.rstrip("./")
        by_the_reader = any(part.removesuffix(".py") in INVENTED for part in path.split("/"))
        by_a_command = path.startswith("studies/") and path.endswith("/tried")
        by_a_stage = any(path == out or path.startswith(f"{out}/") for out in made)
        # a pattern such as data/corpus/{train,validation}.parquet is named by its folder
        exists = (PROJECT / path).exists() or (PROJECT / page).parent.joinpath(path).exists()
        assert by_the_reader or by_a_command or by_a_stage or exists, f"{page}: {name}"


def test_the_readme_is_short() -> None:
    assert len(documents.read("README.md").encode()) <= README_BYTES


def test_every_page_of_docs_is_found_from_the_readme() -> None:
    linked = set(LINK.findall(documents.read("README.md")))
    pages = {page for page in documents.pages() if re.fullmatch(r"docs/\w+\.md", page)}
    assert pages <= {target.partition("#")[0] for target in linked}
    log = set(LINK.findall(documents.read("docs/log/README.md")))
    entries = {path.name for path in (PROJECT / "docs" / "log").glob("2*.md")}
    assert entries <= log


def test_the_map_of_rooms_is_that_of_the_docstrings() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(src/lmlab/\w+/\) \| (.+) \|$", documents.read("README.md"), re.M
    )
    said = {
        room: " ".join((import_module(f"lmlab.{room}").__doc__ or "").split()) for room in ROOMS
    }
    assert dict(rows) == said
    assert [room for room, _ in rows] == ROOMS


def test_the_glossary_has_the_terms_of_the_field_in_order() -> None:
    text = documents.read("docs/glossary.md")
    entries = re.findall(r"^\*\*(.+?)\*\*", text, re.M)
    for term in (term.strip() for term in TERMS.replace("\n", " ").split(",")):
        assert any(term in entry for entry in entries), term
    keys = [re.sub(r"[^a-z0-9 ]", "", entry.lower()) for entry in entries]
    assert keys == sorted(keys)


def test_the_version_is_the_same_everywhere() -> None:
    citation = YAML(typ="safe").load(PROJECT / "CITATION.cff")
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert citation["version"] == version
    newest = re.search(r"^## (\S+)", documents.read("CHANGELOG.md"), re.M)
    assert newest
    assert newest[1] == version.partition(".dev")[0]


# ------------------------------------------------------------------ commands


def console_blocks() -> list[documents.Block]:
    return [block for page in documents.guides() for block in documents.blocks(page, "console")]


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Every command of a program in the pages' blocks."""
    return [
        (block.page, words)
        for block in console_blocks()
        for words in block.commands
        if words and words[0] == program
    ]


def mentions(program: str) -> list[tuple[str, list[str]]]:
    """Those in the pages' sentences and tables, which may be no more than a command's name."""
    found = []
    for page in documents.guides():
        for code in re.findall(rf"`({program} [^`]+)`", documents.prose(page)):
            block = documents.Block(page, "console", code, "")
            found += [(page, words) for words in block.commands if words[0] == program]
    return found


def own_commands() -> dict[str, Any]:
    """The commands of `lmlab` as typer has them."""
    group: Any = typer.main.get_command(cli.app)
    commands: dict[str, Any] = group.commands
    return commands


def titled(case: tuple[str, list[str]]) -> str:
    page, words = case
    return f"{Path(page).stem}: {' '.join(words)}"


@pytest.mark.parametrize("case", commands("lmlab") + mentions("lmlab"), ids=titled)
def test_every_command_of_lmlab_and_its_options_exist(case: tuple[str, list[str]]) -> None:
    page, (_, name, *rest) = case
    known = own_commands()
    if name in PLACEHOLDERS or name == "--help":
        return
    assert name in known, f"{page}: lmlab {name}"
    options = [
        spelling
        for param in known[name].params
        for spelling in (*param.opts, *param.secondary_opts)
    ]
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{page}: lmlab {name} {word}"


def settings(words: list[str]) -> list[list[tuple[str, str]]]:
    """What each `-S key=a,b` sets: a list of (key, value) for every combination."""
    axes = []
    for flag, setting in itertools.pairwise(words):
        if flag == "-S" and "=" in setting:
            key, _, value = setting.partition("=")
            axes.append([(key, one) for one in _choices(value)])
    return [list(combination) for combination in itertools.product(*axes)]


def _choices(value: str) -> list[str]:
    if match := re.fullmatch(r"range\((\d+),(\d+)\)", value):
        return [str(number) for number in range(int(match[1]), int(match[2]))][:2]
    if value.startswith("["):
        return [value]
    return value.split(",")


def of_a_reader(setting: tuple[str, str]) -> bool:
    """Whether it names a part or a file that the page has the reader make."""
    key, value = setting
    names = set(re.findall(r"[\w.]+", value))
    return bool(names & (INVENTED | PLACEHOLDERS)) or key == "tokenizer.from"


@pytest.mark.parametrize(
    "case", [case for case in [*commands("dvc"), *mentions("dvc")] if "-S" in case[1]], ids=titled
)
def test_every_param_that_a_command_sets_exists_and_is_accepted(
    case: tuple[str, list[str]], tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    page, words = case
    yaml = YAML(typ="safe")
    for combination in settings(words):
        if any(value in PLACEHOLDERS for _, value in combination):
            continue
        changes: dict[str, Any] = {}
        for key, value in combination:
            params.changed(tree, {key: yaml.load(value)})  # raises where there is no such key
            if not of_a_reader((key, value)):
                changes[key] = yaml.load(value)
        changed = params.changed(tree, changes)
        try:
            if "$(lmlab start" in " ".join(words):
                check_start(tree, changed)
                changed = params.changed(changed, FROM_SCRATCH)
            preflight.check(changed)
        except UserError as error:
            pytest.fail(f"{page}: {' '.join(words)}: {error}")


def check_start(tree: Tree, changed: Tree) -> None:
    """Raise UserError where a run with the changed params cannot go on from one with the default's:
    by the steps that lead from one model to the other.
    """
    start = params.section(changed, "start", StartParams)
    registry.choices(changed, "start", start)
    names = [params.block(each, "train")["model"] for each in (tree, changed)]
    old, new = (
        registry.choose(each, "models", name)
        for each, name in zip((tree, changed), names, strict=True)
    )
    if start.growth:
        growing.check(old, new, growing.chosen(changed, start.growth), Shape(66, 128, 0))
    else:
        assert old.record() == new.record()


@pytest.mark.parametrize("case", commands("dvc"), ids=titled)
def test_every_command_of_dvc_and_its_options_exist(case: tuple[str, list[str]]) -> None:
    page, words = case
    recipe = words.index("$(lmlab") if "$(lmlab" in words else len(words)
    assert parses(words[1:recipe]), f"{page}: {' '.join(words)}"


@pytest.mark.parametrize("case", mentions("dvc"), ids=titled)
def test_every_command_of_dvc_that_is_named_in_passing_exists(case: tuple[str, list[str]]) -> None:
    page, words = case
    plain = itertools.takewhile(lambda word: word.isalpha() and word.islower(), words[1:])
    assert parses([*plain, "--help"]), f"{page}: {' '.join(words)}"


def parses(words: list[str]) -> bool:
    """Whether DVC understands these words behind its own name."""
    from dvc.cli import DvcParserError
    from dvc.cli.parser import get_main_parser

    try:
        get_main_parser().parse_args(words)
    except SystemExit as ended:
        return ended.code == 0
    except DvcParserError:
        return False
    return True


def test_every_recipe_that_a_page_names_exists() -> None:
    for page in documents.guides():
        for name in re.findall(r"lmlab recipe ([a-z_]+)", documents.read(page)):
            assert name in recipes.names(), f"{page}: {name}"


@pytest.mark.parametrize("key", re.findall(r"--key (\S+?)=", documents.read("docs/experiments.md")))
def test_every_key_that_is_searched_exists(key: str, tree: Tree) -> None:
    params.changed(tree, {key: 1})


def test_every_command_line_begins_with_a_prompt() -> None:
    for block in console_blocks():
        for line in block.text.splitlines():
            assert line.startswith("$ "), f"{block.page}: {line}"


def test_every_key_that_a_page_names_in_passing_exists(tree: Tree) -> None:
    top = "|".join(map(re.escape, tree))
    for page in documents.guides():
        for dotted in re.findall(rf"`((?:{top})\.[a-z_.]+)`", documents.prose(page)):
            at: Any = tree
            for key in dotted.split("."):
                if isinstance(at, dict) and key in at:
                    at = at[key]
                elif not of_measures(dotted):
                    pytest.fail(f"{page}: {dotted}")


def of_measures(dotted: str) -> bool:
    """Whether it is a key of results, or a module of Python, that looks like one of params.yaml."""
    return dotted.split(".")[-1] in {"json", "csv", "py", "jsonl", "parquet", "html", "md"}


# ------------------------------------------------------------------ figures


def numbers_in(path: Path) -> str:
    """A file's text, with every number of a table or of JSON at three decimals beside it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        values = pd.read_csv(path).select_dtypes("number").to_numpy().ravel()
    elif path.suffix == ".json":
        values = _leaves(json.loads(text))
    else:
        values = []
    return f"{text} {' '.join(f'{value:.3f}' for value in values)}"


def _leaves(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in _leaves(value)]
    return [float(tree)] if isinstance(tree, int | float) else []


def test_every_figure_of_the_open_questions_stands_in_a_file_its_section_links_to() -> None:
    page = "docs/questions.md"
    for section in documents.read(page).split("\n## ")[1:]:
        linked = {target.partition("#")[0] for target in LINK.findall(section)}
        paths = [(PROJECT / page).parent / target for target in sorted(linked - {""})]
        known = " ".join(numbers_in(path) for path in paths if path.is_file())
        for figure in FIGURE.findall(section):
            assert figure in known, f"{section.splitlines()[0]}: {figure}"


def test_every_figure_of_the_readmes_table_is_that_of_the_published_run() -> None:
    measures = json.loads((PROJECT / "results" / "measures.json").read_text())
    references = measures["references"]["validation"]
    (table,) = [block.text for block in documents.blocks("README.md", "text")]
    values = [measures["validation"]["bits_per_byte"], references["kneser_ney"]]
    values += [references["unigram"], references["uniform"]]
    for value in values:
        assert f"{value:.4f}" in table
    assert f"{measures['parameters']:,}" in table
    assert f"{measures['tokens_seen']:,}" in table


def test_the_parts_that_the_documents_show_pass_the_linter(tmp_path: Path) -> None:
    """Who copies one and runs `make lint` finds nothing to mend."""
    modules = [
        block.text
        for block in documents.blocks("docs/parts.md", "python")
        if block.text.startswith('"""')
    ]
    assert len(modules) >= 4
    for number, text in enumerate(modules):
        (tmp_path / f"part_{number}.py").write_text(text)
    for command in (["check"], ["format", "--check"]):
        options = ["--config", str(PROJECT / "pyproject.toml"), str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

"""What an NVIDIA GPU does with this laboratory: whether it computes what a processor does, repeats
itself and resumes in the same bytes, and how fast it trains, beside nanoGPT's own recipe for a GPU.

    python benchmarks/gpu.py --text FILE --nanogpt FOLDER

`sh benchmarks/gpu.sh` sees that what it needs is there, and runs it. Neither DVC nor an
installation of this project is needed. Every check is a row, written as soon as it is known; one
that fails is a row too, and the next one follows. After `--minutes` no check is begun. Writes
benchmarks/results/gpu.csv.

The rows are of four kinds. `alike`: the largest difference of a loss in three steps in float32 from
a processor's, for every model, learning rule and optimizer. `repeats`: whether a run, and one that
is stopped and goes on, write the same weights. `speed`: tokens a second. `race`: seconds of
training steps, and nats per token over all of validation; of nanoGPT's recipe the best validation
counts, of one every 250 steps.
"""

import functools
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import nanogpt
import torch
import typer
from common import RESULTS, pinned, prepare, show, write

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, Values, changed
from lmlab.data.batches import Batches
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.experiments import recipes
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.scoring import score
from lmlab.training import loop
from lmlab.training import step as stepping
from lmlab.training.results import RunFolders, Timing
from lmlab.training.step import TrainParams

Row = dict[str, Any]
Check = tuple[str, str, Callable[[], Row]]
"""Its kind, its name, and what it finds."""
PLAIN: Values = {
    "train.optimizer": "adamw",
    "train.schedule": "constant",
    "train.steps": 3,
    "train.batch": 4,
    "train.context": 32,
    "train.precision": "float32",
    "models.transformer.width": 64,
    "models.transformer.depth": 2,
}
"""Of the checks of what is alike."""
QUIET: Values = {
    "train.validate_every": 0,
    "train.sample_every": 0,
    "train.snapshots": 0,
    "train.checkpoint_seconds": 3600.0,
}
WITHOUT_TABLES: Values = {"models.transformer.embedding": "token"}
NEEDS_START = ("distillation",)


class Stopped(BaseException):
    """A run's sudden end."""


def losses(tree: Tree, shards: Shards, device: str) -> list[float]:
    """Of three steps."""
    section = params.section(changed(tree, {"train.device": device}), "train", TrainParams)
    parts = registry.choices(tree, "train", section)
    there = use_device(device, section.threads)
    torch.manual_seed(0)
    run = stepping.begin(section, parts, shards.vocabulary_size, torch.device("cpu"))
    run.model.to(there)
    run.rule.to(there)
    settled = run.params
    batches = Batches(shards, settled.batch, settled.context, 0, settled.pool_tokens)
    found = []
    for _ in range(settled.steps):
        found.append(stepping.take_step(run, parts["schedule"].build(settled.steps), batches).loss)
        run.step += 1
    return found


def alike(tree: Tree, shards: Shards, device: str) -> Row:
    """How far the losses are from a processor's, at the most. Noise differs, so the first step's
    loss counts alone for rules that draw some, and it is before any noise.
    """
    here, there = losses(tree, shards, "cpu"), losses(tree, shards, device)
    pairs = list(zip(here, there, strict=True))
    return {
        "first_difference": abs(pairs[0][0] - pairs[0][1]),
        "largest_difference": max(abs(one - other) for one, other in pairs),
    }


def trained(tree: Tree, shards: Shards, tokenizer: Tokenizer, folder: Path) -> tuple[Timing, str]:
    """What a run took, and the SHA-256 of its weights."""
    section = params.section(tree, "train", TrainParams)
    parts = registry.choices(tree, "train", section)
    folders = RunFolders(folder / "model", folder / "log")
    timing = loop.train(section, parts, shards, tokenizer, folders)
    return timing, models.load(folder / "model", torch.device("cpu"))[1].weights_sha256


def repeats(tree: Tree, shards: Shards, tokenizer: Tokenizer, folder: Path) -> Row:
    """Whether two runs, and one that is stopped in the middle, end in the same weights."""
    checkpoints = changed(tree, {"train.checkpoint_seconds": 0.0})
    steps = int(params.block(tree, "train")["steps"])
    once, twice = (
        trained(checkpoints, shards, tokenizer, folder / name)[1] for name in ("one", "two")
    )
    taken = loop.take_step
    count = 0

    def stops(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > steps // 2:
            raise Stopped
        return taken(*arguments)

    loop.take_step = stops
    try:
        trained(checkpoints, shards, tokenizer, folder / "stopped")
    except Stopped:
        pass
    finally:
        loop.take_step = taken
    resumed = trained(checkpoints, shards, tokenizer, folder / "stopped")[1]
    return {"same_twice": once == twice, "same_resumed": once == resumed}


def speed(tree: Tree, shards: Shards, tokenizer: Tokenizer, folder: Path) -> Row:
    """Tokens a second, but for the first quarter of the steps."""
    block = params.block(tree, "train")
    quarter = int(block["steps"]) // 4
    timing, _ = trained(changed(tree, {"train.log_every": quarter}), shards, tokenizer, folder)
    steps, seconds = timing.seconds_at.step, timing.seconds_at.seconds
    tokens = (steps[-1] - steps[0]) * int(block["batch"]) * int(block["context"])
    return {"tokens_per_second": tokens / (seconds[-1] - seconds[0])}


def with_graphs(measure: Callable[[], Row]) -> Row:
    """Compiled into CUDA graphs, which the laboratory does not offer yet: is it worth it?"""
    compile_ = torch.compile
    torch.compile = functools.partial(compile_, mode="reduce-overhead")  # type: ignore[assignment]
    try:
        return measure()
    finally:
        torch.compile = compile_


def race(tree: Tree, shards: Shards, tokenizer: Tokenizer, folder: Path) -> Row:
    """Seconds and loss of a recipe of ours."""
    timing, _ = trained(tree, shards, tokenizer, folder)
    section = params.section(tree, "train", TrainParams)
    model, _ = models.load(folder / "model", use_device(section.device, section.threads))
    window = model.context
    scored = score(model, shards.stream("validation"), shards.bos, window, window)
    return {"seconds": timing.training_seconds, "nats": scored.nats_per_token}


def race_of_nanogpt(clone: Path, shards: Shards, device: str, steps: int, every: int) -> Row:
    """Seconds until the best validation, its loss, and the seconds of all steps."""
    recipe = nanogpt.FOR_A_GPU._replace(steps=steps)
    text, validation = shards.stream("train"), shards.stream("validation")
    best, best_at, whole = float("inf"), 0.0, 0.0
    for model, whole, _ in nanogpt.training(
        clone, recipe, text, shards.vocabulary_size, 0, torch.device(device), every
    ):
        found = nanogpt.nats(model, validation, recipe.context)
        if found < best:
            best, best_at = found, whole
    return {"seconds": best_at, "nats": best, "seconds_of_all_steps": whole}


def checks(
    base: Tree, shards: Shards, tokenizer: Tokenizer, folder: Path, clone: Path | None, small: bool
) -> Iterator[Check]:
    """All of them; what is most telling comes first."""
    device = str(params.block(base, "train")["device"])
    steps = 8 if small else 200

    def of(name: str, **settings: Any) -> Tree:
        recipe = {} if name == "default" else recipes.read(name)
        little: Values = {"train.steps": steps} if small else {}
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        return changed(base, {**recipe, **QUIET, "train.device": device, **little, **dotted})

    where = iter(folder / str(number) for number in range(1000))
    for precision in ("float32", "bfloat16"):
        tree = of("default", train__precision=precision, train__steps=max(8, steps // 5))
        yield (
            *("repeats", f"default, {precision}"),
            functools.partial(repeats, tree, shards, tokenizer, next(where)),
        )
    half = {"train__precision": "bfloat16"}
    if clone:
        yield (
            *("race", "nanoGPT"),
            functools.partial(
                race_of_nanogpt, clone, shards, device, *((8, 4) if small else (5000, 250))
            ),
        )
    for name in ("ten_minutes", "fast", "default"):
        for is_compiled in (False, True):
            tree = of(name, **half, train__compile=is_compiled)
            title = f"{name}, compiled" if is_compiled else name
            yield (
                *("race", title),
                functools.partial(race, tree, shards, tokenizer, next(where)),
            )
    plain = changed(of("ten_minutes", **half), WITHOUT_TABLES)
    yield (
        *("race", "ten_minutes, without tables of n-grams"),
        functools.partial(race, plain, shards, tokenizer, next(where)),
    )
    for name in ("default", "fast"):
        for width, batch in ((32, 2),) if small else ((128, 16), (384, 64)):
            shape = {"models__transformer__width": width, "train__batch": batch}
            for title, settings in (
                ("float32", {"train__precision": "float32"}),
                ("bfloat16", half),
                ("bfloat16, compiled", {**half, "train__compile": True}),
            ):
                tree = of(name, **shape, **settings, train__steps=steps)
                yield (
                    *("speed", f"{name}, width {width}, batch {batch}, {title}"),
                    functools.partial(speed, tree, shards, tokenizer, next(where)),
                )
            tree = of(name, **shape, **half, train__compile=True, train__steps=steps)
            measure = functools.partial(speed, tree, shards, tokenizer, next(where))
            yield (
                *("speed", f"{name}, width {width}, batch {batch}, bfloat16, CUDA graphs"),
                functools.partial(with_graphs, measure),
            )
    for kind, key in (
        ("models", "train.model"),
        ("learning_rules", "train.learning_rule"),
        ("optimizers", "train.optimizer"),
    ):
        for name in registry.names(kind):
            if name not in NEEDS_START:
                tree = pinned({**PLAIN, key: name})
                yield (
                    *("alike", f"{key}: {name}"),
                    functools.partial(alike, tree, shards, device),
                )


def main(
    text: Annotated[Path, typer.Option(help="A text file, the last tenth of it validation.")],
    clone: Annotated[
        Path | None, typer.Option("--nanogpt", help="A folder with nanoGPT's model.py.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda; cpu to try this script.")] = "cuda",
    minutes: Annotated[float, typer.Option(help="After which no check is begun.")] = 10.0,
    kind: Annotated[
        list[str] | None, typer.Option(help="Of repeats, race, speed, alike; all.")
    ] = None,
    small: Annotated[bool, typer.Option(help="A few steps, to try this script.")] = False,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS / "gpu.csv",
) -> None:
    """Print and write what was found."""
    if clone and not (clone / "model.py").exists():
        raise SystemExit(f"{clone} holds no model.py: clone nanoGPT and name its folder")
    use_device(device, 2)
    card = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"{card}, torch {torch.__version__}", flush=True)
    base = changed(
        params.read(),
        {
            "download.corpus": "local",
            "corpora.local.files": str(text),
            "download.split": "tail",
            "download.validation": 0.1,
            "download.test": 0.0,
            "train.device": device,
        },
    )
    rows: list[Row] = []
    begun = time.monotonic()
    with TemporaryDirectory() as made:
        shards, tokenizer = prepare(base, Path(made) / "text")
        for of_kind, name, check in checks(base, shards, tokenizer, Path(made), clone, small):
            if kind and of_kind not in kind:
                continue
            row: Row = {"kind": of_kind, "check": name, "card": card, "torch": torch.__version__}
            if time.monotonic() - begun > 60 * minutes:
                row["failed"] = "not begun: the time is up"
            else:
                try:
                    row |= check()
                except (UserError, RuntimeError, ValueError, TypeError) as error:
                    if not isinstance(error, UserError):
                        traceback.print_exc()
                    row["failed"] = " ".join(str(error).split())[:200]
            rows.append(row)
            print({key: row[key] for key in row if key not in ("card", "torch")}, flush=True)
            write(rows, out)
    show(rows)


if __name__ == "__main__":
    typer.run(main)

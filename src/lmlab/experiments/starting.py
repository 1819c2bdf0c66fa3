"""Runs to go on from: a name becomes a commit and its model's hash, and a commit becomes a folder.

What a run made lies in DVC's cache by the hashes in its dvc.lock, so a full commit says all, and
nothing that is named here can move: a branch or an experiment may, and a folder may go. The commit
is kept from Git's garbage collection by a ref, and what a folder's cache holds is copied into this
project's.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.files import read_json, whole_folder, write_json
from lmlab.core.registry import Choice
from lmlab.data import start as starts
from lmlab.data.start import MODEL, RECORD, STATE, TOKENIZER, EarlierRun, StartParams, StartRecord
from lmlab.experiments import git
from lmlab.experiments.compare import dvc_cache
from lmlab.experiments.compare.experiments import Experiments
from lmlab.experiments.compare.lock import Lock, read_params, read_stages
from lmlab.experiments.compare.run import SEEDS, Run
from lmlab.experiments.compare.variants import mattering
from lmlab.experiments.git import Repository
from lmlab.model.record import ModelRecord, earlier_run, read_record
from lmlab.training.status import ADVICE, how_it_diverged

OUTS = {f"data/{name}": name for name in (MODEL, TOKENIZER, STATE)}
"""What a run hands on, with the folder that the stage `start` puts it into."""
LOG = "data/training/log.jsonl"
REFS = "refs/lmlab/starts"
RECIPE_DIGITS = 6
SHORT = 9
"""Digits of a commit in messages."""


def project() -> Path:
    """The project's own folder, also for an experiment that runs in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", "."))


def resolve(name: str, root: Path) -> dict[str, str]:
    """The params that name a finished run by its commit and its model, and let nothing else change:
    an experiment, a branch, a commit, or the folder of another clone, whose run is copied here.

    Raises UserError for a name that means none or several, and for a run to which nothing can be
    added.
    """
    run = made(name, root)
    for out in OUTS:
        for _ in run.contents(out):  # which raises where something is damaged
            pass
    record = run.model_record()
    if diverged := how_it_diverged(record):
        raise UserError(f"{name} cannot be gone on from: its training {diverged}; {ADVICE}")
    git.output("update-ref", f"{REFS}/{run.commit}", run.commit, root=root)
    return {"start.commit": run.commit, "start.model": record.weights_sha256, **starts.AS_IT_WAS}


def made(name: str, root: Path, outs: Sequence[str] = tuple(OUTS)) -> "Made":
    """The run that a name means (as `resolve`), with these folders in DVC's cache; it may have
    diverged.
    """
    if not (root / "dvc.yaml").is_file():
        raise UserError("there is no dvc.yaml here; run from the project's top folder")
    commit = _commit(name, root) or (_copied(Path(name), root) if Path(name).is_dir() else "")
    if not commit:
        waiting = {task.name: task.state for task in Experiments(Repository(root)).unfinished()}
        if name in waiting:
            raise UserError(f"{name} has no run yet: it is {waiting[name]}")
        raise UserError(
            f"there is no run {name!r}: no experiment, branch, commit or folder;"
            f" {params.nearest(name, _names(root))}"
        )
    run = Made(root, commit)
    run.check_complete(outs)
    return run


def _commit(name: str, root: Path) -> str:
    """The commit of an experiment, or what Git knows by this name; empty where there is neither."""
    repository = Repository(root)
    finished = Experiments(repository).finished()
    found = {each.commit: "experiment" for each in finished if each.name == name}
    if of_git := repository.commit(name):
        found.setdefault(of_git, "branch, tag or commit")
    if len(found) > 1:
        each = ", ".join(f"{commit[:SHORT]} ({what})" for commit, what in found.items())
        raise UserError(f"{name} is {len(found)} runs: {each}; name one by its commit")
    return next(iter(found), "")


def _names(root: Path) -> list[str]:
    """The names of experiments and branches."""
    repository = Repository(root)
    experiments = (each.name for each in Experiments(repository).finished())
    return sorted({*experiments, *repository.lines("branch", "--format=%(refname:short)")})


def _copied(folder: Path, root: Path) -> str:
    """The commit of another clone, which is brought here with what its run made."""
    commit = Repository(folder).commit("HEAD")
    if commit is None or not (folder / "dvc.lock").is_file():
        raise UserError(f"{folder} is no clone of a project with a run; name one, or an experiment")
    if Repository(folder).lines("status", "--porcelain", "--", "dvc.lock"):
        raise UserError(
            f"{folder} holds a run that is not committed (its dvc.lock has changed); commit it"
            " there first, or name the commit that you mean"
        )
    if folder.resolve() == root.resolve():
        return commit
    theirs = Made(folder, commit)
    theirs.check_complete()
    git.output("fetch", "--quiet", str(folder.resolve()), f"HEAD:{REFS}/{commit}", root=root)
    ours = dvc_cache.cache_folder(root.resolve())
    for source, relative in theirs.objects():
        dvc_cache.put(source, ours / relative)
    return commit


class Made:
    """What the run of a commit made, read from DVC's cache."""

    def __init__(self, root: Path, commit: str) -> None:
        self.root, self.commit = root, commit
        repository = Repository(root)
        if repository.commit(commit) is None:
            raise UserError(
                f"this repository has no commit {commit}, which start.commit names; `git fetch`"
                " the branch that holds it, `dvc exp pull` the experiment, or `lmlab start FOLDER`"
                " from a clone that has it"
            )
        lock = repository.file(commit, "dvc.lock")
        if lock is None:
            raise UserError(f"{commit[:SHORT]} holds no run: it has no dvc.lock; name another")
        self.lock = lock
        self.params = repository.file(commit, "params.yaml") or b""

    def check_complete(self, outs: Sequence[str] = tuple(OUTS)) -> None:
        """Raise UserError where something of `outs` is missing that cannot be fetched from DVC's
        remote, or where the commit's params are not those of its run.
        """
        locked = read_stages(self.lock.decode()).get("train")
        now = read_params(self.params)
        for key, value in (locked.params if locked else {}).items():
            if now.get(key, value) != value:
                raise UserError(
                    f"{self.commit[:SHORT]} has not been run with its params ({key}: {now[key]};"
                    f" its run had {value}): run `dvc repro` there, commit, and name that"
                )
        if "data/state" in outs and b"data/state" not in self.lock:
            raise UserError(
                f"{self.commit[:SHORT]} was made by a version that kept no state to go on from;"
                " run `dvc repro` with this one, commit, and name that"
            )
        missing = self._missing(outs)
        if missing and self._fetch(outs):
            missing = self._missing(outs)
        if missing:
            raise UserError(
                f"DVC's cache lacks {', '.join(missing)} of {self.commit[:SHORT]}: `dvc remote add`"
                " one that has it, or make it again (`git worktree add ../earlier"
                f" {self.commit[:SHORT]}`, `make` in there, `lmlab start ../earlier`)"
            )

    def model_record(self) -> ModelRecord:
        """The run's model.json, once it is known to be here (`check_complete`)."""
        try:
            return ModelRecord.model_validate_json(self.read("data/model/model.json") or b"")
        except ValidationError:
            raise UserError(
                f"{self.commit[:SHORT]} was made by another version of the model; run `dvc repro`"
                " with this one, commit, and name that"
            ) from None

    def read(self, path: str) -> bytes | None:
        """A file that one of the run's stages wrote."""
        return dvc_cache.read(self.root, self.lock, path)

    def files(self, out: str) -> dict[str, Path]:
        """The files of a folder that a stage wrote, in the cache, by their names in it."""
        return dvc_cache.files(self.root, self.lock, out)

    def contents(self, out: str) -> Iterator[tuple[str, bytes]]:
        """Each file of a folder that a stage wrote, by its name in it. Raises UserError where one
        is damaged.
        """
        for file in self.files(out):
            content = self.read(f"{out}/{file}")
            assert content is not None
            yield file, content

    def lay_out(self, out: str, folder: Path) -> None:
        """Write a folder that a stage wrote, `data/<name>`, into another one, as `<name>`."""
        target = folder / Path(out).name
        target.mkdir(parents=True, exist_ok=True)
        for file, content in self.contents(out):
            (target / file).write_bytes(content)

    def objects(self) -> Iterator[tuple[Path, Path]]:
        """All that has to be copied for the run to be whole elsewhere: each file in the cache, and
        its place there.
        """
        cache = dvc_cache.cache_folder(self.root.resolve())
        for out in (*OUTS, "data/training"):
            for path in dvc_cache.objects(self.root, self.lock, out):
                yield path, path.relative_to(cache)

    def is_kept(self, out: str) -> bool:
        """Whether DVC's cache has all of a folder that a stage wrote."""
        files = self.files(out)
        return bool(files) and all(path.exists() for path in files.values())

    def _missing(self, outs: Sequence[str]) -> list[str]:
        return [out for out in outs if not self.is_kept(out)]

    def _fetch(self, outs: Sequence[str]) -> bool:
        """Fetch it from DVC's remote; whether there is one."""
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        with Repo(str(self.root)) as repository:
            if not repository.config["core"].get("remote"):
                return False
            try:
                repository.fetch(targets=[*outs, "data/training"], revs=[self.commit])
            except DvcException as error:
                raise UserError(
                    f"dvc fetch of {self.commit[:SHORT]} failed: {' '.join(str(error).split())}"
                ) from None
        return True


def check(start: StartParams, tokenizer: Choice, root: Path, laid_out: Path) -> ModelRecord | None:
    """The model of a start; None where there is none.

    Raises UserError where no run with this tokenizer can go on from it. `laid_out` is the folder
    into which the stage `start` brings it; where it is there already, that is read and not the
    cache.
    """
    if not start.commit and not start.model:
        if start.migration != starts.STAYS:
            raise UserError(
                f"params.yaml: start.migration: {start.migration} needs a model that has another"
                f" tokenizer; `lmlab start NAME` names one, or set it to {starts.STAYS}"
            )
        if start.growth:
            raise UserError(
                f"params.yaml: start.growth: {', '.join(start.growth)} needs a smaller model;"
                " `lmlab start NAME` names one, or set it to []"
            )
        if start.optimizer_state != "auto":
            raise UserError(
                f"params.yaml: start.optimizer_state: {start.optimizer_state} needs a run to go on"
                " from; `lmlab start NAME` names one, or set it to auto"
            )
        return None
    if not start.commit or not start.model:
        raise UserError(
            "params.yaml: start needs both its commit and its model, or neither; `lmlab start NAME`"
            " writes them"
        )
    saved, name = _laid_out(start, laid_out) or _in_cache(start, root)
    _check_same(start, saved)
    if diverged := how_it_diverged(saved):
        raise UserError(f"params.yaml: start.commit: its training {diverged}; take another start")
    if name != tokenizer.name and not start.has_another_tokenizer:
        raise UserError(
            f"params.yaml: tokenizer.name: {tokenizer.name} is not the start's, {name}; set it"
            " back, or start.migration to how rows of new tokens come about"
            f" ({', '.join(sorted({*registry.names('migrations')} - {starts.STAYS}))})"
        )
    return saved


def _laid_out(start: StartParams, folder: Path) -> tuple[ModelRecord, str] | None:
    """The model's record and the tokenizer's name, where the stage `start` has brought them; None
    where it has not, or where they are damaged, which that stage will mend.
    """
    try:
        here = starts.read(folder, start.commit)
        if here is None:
            return None
        tokenizer = read_json(here.tokenizer_file, made_by="start")
        return read_record(here.model), str(tokenizer["tokenizer"])
    except (UserError, LookupError, TypeError):
        return None


def _in_cache(start: StartParams, root: Path) -> tuple[ModelRecord, str]:
    """The same from DVC's cache."""
    run = Made(root, start.commit)
    run.check_complete()
    tokenizer = json.loads(run.read("data/tokenizer/tokenizer.json") or b"{}")
    return run.model_record(), str(tokenizer.get("tokenizer"))


def bring(start: StartParams, root: Path, folder: Path) -> StartRecord:
    """Lay out a run's model, tokenizer and state in a folder, or the record that there is none."""
    if not start.commit:
        with whole_folder(folder) as partial:
            write_json(partial / RECORD, StartRecord().record())
        return StartRecord()
    run = Made(root, start.commit)
    run.check_complete()
    saved = run.model_record()
    _check_same(start, saved)
    record = StartRecord(commit=start.commit, model=start.model, earlier=_ledger(run, saved))
    with whole_folder(folder) as partial:
        for out, name in OUTS.items():
            for file, content in run.contents(out):
                target = partial / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        write_json(partial / RECORD, record.record())
    return record


def _check_same(start: StartParams, saved: ModelRecord) -> None:
    if saved.weights_sha256 != start.model:
        raise UserError(
            f"params.yaml: start.model is not the model of {start.commit[:SHORT]}; write both with"
            f" `lmlab start {start.commit[:SHORT]}`"
        )


def _ledger(run: Made, saved: ModelRecord) -> list[EarlierRun]:
    """The run after all that it went on from, with what they cost together."""
    made_with = Lock(run.lock.decode(), f"data/{MODEL}").params
    corpus = str(made_with.get("download.corpus", ""))
    earlier = saved.earlier[-1].recipe if saved.earlier else ""
    mattered = mattering(Run("", made_with, {}, start=earlier))
    without_seeds = {key: repr(mattered[key]) for key in sorted(mattered) if key not in SEEDS}
    digest = hashlib.sha256(json.dumps(without_seeds).encode()).hexdigest()[:RECIPE_DIGITS]
    recipe = f"{corpus}:{saved.steps}:{digest}"
    this = earlier_run(saved, run.commit, recipe, made_with, _last_bits(run))
    return [*saved.earlier, this]


def _last_bits(run: Made) -> float | None:
    """Bits per byte of the weights that a run ended with, from its log; None where it has none."""
    log = [json.loads(line) for line in (run.read(LOG) or b"").splitlines()]
    bits = [float(row["validation_bits_per_byte"]) for row in log if "validation_nats" in row]
    ended_with_best = any("kept" in row for row in log)
    return (min(bits) if ended_with_best else bits[-1]) if bits else None

"""Compiled passes give the gradients of the model as it is written, the same bytes each time, or
one line on why not.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small
import test_training
import torch
from test_training import BASE, Corpus, train, train_until
from torch._dynamo.utils import counters

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import section
from lmlab.model.compiling import Compiled
from lmlab.training import step as stepping
from lmlab.training.step import TrainParams

pytestmark = pytest.mark.pipeline

corpus = test_training.corpus


@small.needs_compiler
def test_a_compiled_run_writes_the_same_bytes_again_and_after_a_stop(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"compile": True, "dropout": 0.3, "depth": 1}
    whole = train(corpus, "whole", **changes)
    for step in (1, 4):
        train_until(step, corpus, "stopped", monkeypatch, **changes)
    assert train(corpus, "stopped", **changes) == whole


def gradients(run: stepping.Run, params: TrainParams) -> dict[str, torch.Tensor]:
    """Of one call of the rule in training, by the parameter's name."""
    tokens_BT = torch.arange(params.batch * params.context).view(params.batch, -1) % 11
    torch.manual_seed(1)
    run.model.train()
    with run.compilation:
        run.rule.assign_gradients(run.model, tokens_BT, tokens_BT.roll(-1, 1))
    return {
        name: parameter.grad
        for name, parameter in run.model.named_parameters()
        if parameter.grad is not None
    }


@small.needs_compiler
@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": "n_gram", "row_width": 4, "dropout": 0.3},
        {"feed_forward": "mixture_of_experts", "intervention": "sign_gradients"},
        {"model": "min_gru", "gradient_accumulation": 2},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_compiled_passes_give_the_gradients_that_the_model_as_written_gives(
    changes: dict[str, Any],
) -> None:
    torch.compiler.reset()
    counters["graph_break"].clear()
    found = []
    for compile_ in (False, True):
        tree = small.tree(**{**BASE, "depth": 1, "layers": 1, **changes, "compile": compile_})
        params = section(tree, "train", TrainParams)
        choices = registry.choices(tree, "train", params)
        run = stepping.begin(params, choices, 11, torch.device("cpu"))
        found.append(gradients(run, run.params))
        assert (type(run.compilation) is Compiled) == compile_
        assert "forward" not in vars(run.model)  # outside of training it is as written
    written, compiled = found
    torch.testing.assert_close(compiled, written, rtol=1e-4, atol=1e-6)
    assert any(
        not torch.equal(compiled[name], written[name]) for name in written
    )  # or nothing was compiled
    # experts are given as many tokens as choose them, which no graph foresees; all else is one
    # graph
    assert bool(counters["graph_break"]) == ("mixture_of_experts" in changes.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rule": "feedback_alignment"},
        {"learning_rule": "spsa"},
        {"second_intervention": "stop_gradient"},
        {"intervention": "surrogate_derivative", "second_intervention": "gradient_noise"},
    ],
    ids=lambda changes: " ".join(changes.values()),
)
def test_a_rule_that_goes_inside_the_model_is_not_compiled(
    corpus: Corpus, changes: dict[str, Any]
) -> None:
    with pytest.raises(
        UserError,
        match=f"train.compile needs a rule .* and .*{next(iter(changes.values()))}.* goes inside",
    ):
        train(corpus, "refused", compile=True, **changes)


def test_compiled_passes_cannot_let_gradients_go_one_by_one(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="step_in_backward saves nothing where compile"):
        train(corpus, "refused", compile=True, step_in_backward=True, clip=0.0)


COMPLAINTS = {
    "": "No working C",
    "fatal error: Python.h: No such file or directory": "Python.h: No such file",
    "oops": "C++ compile error",
    "fatal error: error writing to x.o: No space left on device": "the disk is full",
}
"""What a C++ compiler says, and what a user is told; the first: there is none."""
COMPILED_GELU = """
import os, sys, torch, torch._inductor.compile_fx
from pathlib import Path
from lmlab.model.compiling import Compiled, compiler_errors
from lmlab.core.errors import take_over

# torch is imported once; each tries in a process of its own
for place in sorted(Path(sys.argv[1]).iterdir()):
    if (child := os.fork()) == 0:
        os.dup2(os.open(place / "stderr", os.O_CREAT | os.O_WRONLY), 2)
        os.environ |= {"PATH": str(place), "TORCHINDUCTOR_CACHE_DIR": str(place / "cache")}
        take_over()
        model = torch.nn.GELU()
        with compiler_errors(), Compiled(model):
            model(torch.ones(2))
        os._exit(0)
    (place / "code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


def test_a_machine_that_cannot_compile_is_told_in_one_line(tmp_path: Path) -> None:
    for number, complaint in enumerate(COMPLAINTS):
        (tmp_path / str(number)).mkdir()
        if complaint:
            compiler = tmp_path / str(number) / "g++"
            says = f'echo "{complaint}" >&2\nexit 1\n'
            compiler.write_text(
                f'#!/bin/sh\ntest "$1" = --version && echo "g++ 12" && exit\n{says}'
            )
            compiler.chmod(0o755)
    subprocess.run(
        [sys.executable, "-c", COMPILED_GELU, str(tmp_path)],
        capture_output=True,
        timeout=300,
        check=True,
    )
    for number, (complaint, told) in enumerate(COMPLAINTS.items()):
        assert (tmp_path / str(number) / "code").read_text() == "2", complaint
        shown = (tmp_path / str(number) / "stderr").read_text().splitlines()
        # torch's log may add a warning of its own, such as where it would look for CUDA
        [line] = [text for text in shown if not re.match(r"W\d{4} [\d:.]+ ", text)]
        assert told in line
        assert told == "the disk is full" or "set train.compile to false" in line

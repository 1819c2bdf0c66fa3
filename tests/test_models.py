"""What every model keeps, with each of the layers it can be built from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file, save_file
from small import CONTEXT, VOCABULARY

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import write_sums
from lmlab.core.registry import Choice
from lmlab.model.models import base as models
from lmlab.model.models.base import next_token_loss

CPU = torch.device("cpu")
FAR = 5 * CONTEXT
"""Beyond the receptive field of every small model that has a limited one."""
every_model = pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
LARGER = [
    choice
    for choice in small.variants("models", width=48, layers=3, depth=3, buckets=300)
    if choice.name != "hybrid"
]


@every_model
def test_logits_have_a_row_for_each_token_and_a_number_for_each_id(choice: Choice) -> None:
    model = small.model(choice)
    for batch, time in ((1, 1), (3, CONTEXT), (2, 5)):
        assert model(small.tokens(batch, time)).shape == (batch, time, VOCABULARY)
    assert (model.vocabulary_size, model.context) == (VOCABULARY, CONTEXT)


@every_model
def test_it_learns_in_lower_precision_too(choice: Choice) -> None:
    model = small.model(choice).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = next_token_loss(model(small.tokens(2, CONTEXT)), small.tokens(2, CONTEXT, seed=1))
    loss.backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )
    exact = next_token_loss(
        small.model(choice).train()(small.tokens(2, CONTEXT)), small.tokens(2, CONTEXT, seed=1)
    )
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)


@every_model
def test_nothing_in_lower_precision_is_done_the_slow_way(
    choice: Choice, recwarn: pytest.WarningsRecorder
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small.model(choice).train()(small.tokens(2, CONTEXT))
    # torch warns where it has to mix precisions
    assert not [str(warning.message) for warning in recwarn]


@every_model
@pytest.mark.parametrize("double", [True, False])
def test_a_changed_token_leaves_the_logits_before_it_as_they_were(
    choice: Choice, double: bool
) -> None:
    model = small.rough(choice).to(torch.float64 if double else torch.float32)
    before = small.tokens(2, CONTEXT)
    logits = model(before)
    for at in range(CONTEXT):
        after = before.clone()
        after[:, at] = (after[:, at] + 1) % VOCABULARY
        changed = model(after)
        assert torch.equal(changed[:, :at], logits[:, :at])
        assert not torch.isclose(changed[:, at], logits[:, at]).all()
        in_field = model.receptive_field is None or CONTEXT - at <= model.receptive_field
        # and it counts to the end of the receptive field
        assert torch.isclose(changed[:, -1], logits[:, -1]).all() != in_field


@every_model
def test_a_token_is_read_as_far_as_the_receptive_field_and_no_further(choice: Choice) -> None:
    model = small.rough(choice)
    before = small.tokens(2, FAR if model.receptive_field is None else model.receptive_field + 3)
    after = before.clone()
    after[:, 0] = (after[:, 0] + 1) % VOCABULARY
    if model.receptive_field is None:
        assert not torch.equal(model(after)[:, -1], model(before)[:, -1])
        return
    assert model.receptive_field + 3 < FAR  # so a field that is limited but not said would show
    model = model.float()
    changed, logits = model(after), model(before)
    assert not torch.isclose(
        changed[:, model.receptive_field - 1], logits[:, model.receptive_field - 1]
    ).all()
    assert torch.equal(changed[:, model.receptive_field :], logits[:, model.receptive_field :])


def test_the_embedding_counts_towards_the_receptive_field() -> None:
    """As do all windows, also in a hybrid, whose ends are those of its first model."""
    tree = small.tree()
    short = small.with_inner(
        registry.choose(tree, "models", "transformer"),
        attention=registry.choose(tree, "layers.attention", "sliding_window"),
        embedding=registry.choose(tree, "layers.embedding", "n_gram"),
    )
    mixed = small.with_inner(registry.choose(tree, "models", "hybrid"), first=short, second=short)
    for choice in (short, mixed):
        model = small.rough(choice)
        assert model.receptive_field == 1 + 3 + 4 * len(model.blocks)
        test_a_token_is_read_as_far_as_the_receptive_field_and_no_further(choice)


@every_model
@pytest.mark.parametrize("first", [1, 3, CONTEXT - 1])
def test_reading_with_a_cache_gives_the_logits_of_reading_at_once(
    choice: Choice, first: int
) -> None:
    model = small.rough(choice)
    tokens = small.tokens(2, CONTEXT)
    cache = model.new_cache()
    steps = [model(tokens[:, :first], cache)]
    steps += [model(tokens[:, at : at + 1], cache) for at in range(first, CONTEXT)]
    logits = model(tokens)
    # without a normalisation logits may be millions
    tolerance = 1e-9 * max(1.0, logits.abs().max().item())
    torch.testing.assert_close(torch.cat(steps, dim=1), logits, rtol=0, atol=tolerance)


@every_model
def test_reading_goes_on_beyond_the_context(choice: Choice) -> None:
    model = small.rough(choice)
    tokens = small.tokens(2, 4 * CONTEXT)
    cache = model.new_cache()
    logits = [model(tokens[:, at : at + 1], cache) for at in range(tokens.shape[1])]
    assert torch.isfinite(torch.cat(logits)).all()
    assert cache[0].seen == tokens.shape[1]
    assert torch.isfinite(model(tokens, cache)).all()  # more at once than a context holds


@every_model
def test_a_cache_stops_growing(choice: Choice) -> None:
    model = small.rough(choice)
    tokens = small.tokens(2, 4 * CONTEXT)
    cache = model.new_cache()
    sizes = []
    for at in range(tokens.shape[1]):
        model(tokens[:, at : at + 1], cache)
        sizes.append(
            sum(tensor.numel() for of_block in cache for tensor in of_block.tensors.values())
        )
    assert len(set(sizes[CONTEXT:])) == 1


@every_model
def test_every_weight_the_logits_depend_on_is_one_of_the_models_parameters(choice: Choice) -> None:
    model = small.rough(choice)
    leaves, pending = set(), [model(small.tokens(2, CONTEXT)).sum().grad_fn]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        pending += [before for before, _ in node.next_functions]
    assert leaves == {id(parameter) for parameter in model.parameters()}


@every_model
def test_the_gradient_reaches_every_parameter(choice: Choice) -> None:
    model = small.rough(choice)
    # so many that no expert stays idle
    tokens, targets = small.tokens(64, CONTEXT), small.tokens(64, CONTEXT, seed=1)
    next_token_loss(model(tokens), targets).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untouched


def test_checking_params_and_sizes_draws_nothing_and_loads_no_compiler_whichever_the_model() -> (
    None
):
    """Loading torch's compiler takes seconds, and a drawn number would change the weights of a run
    that follows.
    """
    script = """
import sys, small, torch
from lmlab.core import registry
from lmlab.experiments import preflight
from lmlab.training import outline
before = torch.get_rng_state()
tree = small.tree()
for name in registry.names("models"):
    preflight.check({**tree, "train": {**tree["train"], "model": name}})
    assert "torch._dynamo" not in sys.modules, name
    assert torch.equal(torch.get_rng_state(), before), name
with outline.without_storage():
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
assert "torch._dynamo" not in sys.modules, "an optimizer"
"""
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, check=True)


@every_model
def test_the_seed_decides_the_initial_weights(choice: Choice) -> None:
    first, again, second = (small.model(choice, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@every_model
def test_a_new_model_finds_every_token_about_equally_likely(choice: Choice) -> None:
    loss = next_token_loss(
        small.model(choice)(small.tokens(16, CONTEXT)), small.tokens(16, CONTEXT, seed=1)
    )
    assert loss.item() == pytest.approx(torch.tensor(VOCABULARY).log().item(), abs=0.1)


@pytest.mark.parametrize("tied", [False, True])
@every_model
def test_saved_and_loaded_a_model_is_the_same_to_the_last_bit(
    choice: Choice, tied: bool, tmp_path: Path
) -> None:
    if "tied" in type(choice.options).model_fields:
        choice = Choice(
            choice.kind, choice.name, choice.options.model_copy(update={"tied": tied}), choice.inner
        )
    model = small.model(choice)
    models.save(tmp_path / "model", choice, model, small.facts(steps=7))
    loaded, saved = models.load(tmp_path / "model", CPU)
    assert not loaded.training
    assert saved.steps == 7
    assert saved.parameters == models.parameter_count(loaded) == models.parameter_count(model)
    assert registry.recall("models", saved.model) == choice
    assert {name: value.tolist() for name, value in loaded.state_dict().items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }
    tokens = small.tokens(2, CONTEXT)
    assert torch.equal(loaded(tokens), model.eval()(tokens))
    models.save(tmp_path / "again", choice, loaded, small.facts(steps=7))
    for file in ("weights.safetensors", "model.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()


def test_tied_weights_are_one_matrix_also_after_loading(tmp_path: Path) -> None:
    tied, untied = small.some_model(tied=True), small.some_model(tied=False)
    model = small.model(tied)
    assert (
        models.parameter_count(small.model(untied)) - models.parameter_count(model)
        == VOCABULARY * 16
    )
    models.save(tmp_path / "model", tied, model, small.facts())
    loaded, _ = models.load(tmp_path / "model", CPU)
    loaded.readout.weight.data += 1
    assert torch.equal(loaded.readout.weight, loaded.embedding.tokens.weight)


def test_a_cap_keeps_logits_in_bounds_and_at_infinity_changes_nothing() -> None:
    plain, loose, tight = (
        small.rough(small.some_model(logit_soft_cap=cap)) for cap in (0.0, 1e9, 2.0)
    )
    tokens = small.tokens(2, CONTEXT)
    logits = plain(tokens)
    assert logits.abs().max() > 2
    torch.testing.assert_close(loose(tokens), logits)
    torch.testing.assert_close(tight(tokens), 2 * (logits / 2).tanh())


def test_dropout_drops_in_training_alone() -> None:
    model = small.model(small.some_model(dropout=0.5))
    tokens = small.tokens(2, CONTEXT)
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    torch.manual_seed(3)
    once = model(tokens)
    torch.manual_seed(3)
    assert torch.equal(model(tokens), once)
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    plain = small.model(small.some_model(dropout=0.0))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.train()(tokens), model(tokens))


def test_the_loss_is_the_mean_surprise_in_double_precision_where_the_model_is() -> None:
    logits = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    expected = (torch.tensor(2.0).log() + torch.tensor(1 + torch.e**2).log()) / 2
    targets = torch.tensor([[1, 0]])
    assert next_token_loss(logits, targets).item() == pytest.approx(expected.item())
    assert next_token_loss(logits.bfloat16(), targets).dtype == torch.float32
    assert next_token_loss(logits.double(), targets).dtype == torch.float64


# ---------------------------------------------------------------- damaged saved models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    choice = small.some_model()
    models.save(tmp_path / "model", choice, small.model(choice), small.facts())
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        models.load(folder, CPU)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 500
    assert "params.yaml" not in message  # nothing is wrong there
    return message


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert f"{folder / file} is missing; run `dvc repro train`" in refusal(folder)


@pytest.mark.parametrize("file", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 300]
)
def test_a_damaged_file_is_refused(folder: Path, file: str, spoil: object) -> None:
    path = folder / file
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    assert "dvc repro --force train" in refusal(folder)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (["vocabulary_size"], 12),
        (["vocabulary_size"], -1),
        (["vocabulary_size"], "many"),
        (["model"], None),
        (["model", "name"], "transfromer"),
        (["model", "options", "width"], 32),
        (["model", "options", "width"], "wide"),
        (["model", "options", "new_option"], 1),
        (["model", "inner"], []),
        (["model", "inner", "feed_forward", "name"], "swiglu"),
        (["model", "inner", "attention", "options", "heads"], 3),
    ],
)
def test_a_model_json_that_does_not_describe_the_weights_is_refused(
    folder: Path, at: list[str], value: object
) -> None:
    saved = json.loads((folder / "model.json").read_text())
    node = saved
    for key in at[:-1]:
        node = node[key]
    node[at[-1]] = value
    (folder / "model.json").write_text(json.dumps(saved))
    write_sums(folder)
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize("saved", [[], {}, 3, {"model": {}}])
def test_a_model_json_of_another_kind_is_refused(folder: Path, saved: object) -> None:
    (folder / "model.json").write_text(json.dumps(saved))
    write_sums(folder)
    assert str(folder) in refusal(folder)


def test_weights_that_are_not_all_there_are_refused(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "weights.safetensors")
    write_sums(folder)
    assert "Missing key" in refusal(folder)


@pytest.mark.parametrize("file", ["weights.safetensors", "model.json"])
def test_a_flipped_bit_is_noticed_wherever_it_is(folder: Path, file: str) -> None:
    whole = (folder / file).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 50)):
        (folder / file).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert f"{file} is damaged; run `dvc repro --force train`" in refusal(folder)


# ---------------------------------------------------------------- initialisation

OWN_INITIALISATION = {"state_space": ["convolution"]}
"""Modules that begin otherwise, as their model says."""


@pytest.mark.parametrize("choice", LARGER, ids=small.title)
def test_matrices_begin_normal_and_those_that_write_to_the_stream_smaller_with_depth(
    choice: Choice,
) -> None:
    """Radford et al. 2019: standard deviation 0.02, divided by sqrt(2 layers) in the last map of
    each layer.
    """
    model = small.model(choice, vocabulary_size=400)
    written = 0
    for name, module in model.named_modules():
        own = name.rpartition(".")[2] in OWN_INITIALISATION.get(choice.name, [])
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv1d) and not own:
            writes = name.rpartition(".")[2] == "out"
            written += writes
            sigma = 0.02 / (2 * len(model.blocks)) ** 0.5 if writes else 0.02
            weight = module.weight.detach()
            error = 1 / weight.numel() ** 0.5
            assert weight.std().item() == pytest.approx(sigma, rel=4 * error), name
            assert abs(weight.mean().item()) < 5 * sigma * error, name
            if getattr(module, "bias", None) is not None and choice.name != "lstm":
                assert not module.bias.any(), name
    assert written or choice.name in ("convolution", "lstm", "n_gram_table")

"""A tree of values comes back as it was saved, or not at all."""

import math
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lmlab.core.scratch import scratch_folder
from lmlab.training import checkpoint

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(
        draw(st.sampled_from(DTYPES))
    )


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = (
    st.text(max_size=4)
    | st.integers()
    | st.sampled_from(["a/b", "a", "b", "1", "tensor", "dict", "list", "value", ""])
)
trees = st.recursive(
    plain | tensors(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        alike = isinstance(other, Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(one, other)
    if isinstance(one, dict):
        # keys keep their type and order
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and bool(one == other)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(state=st.dictionaries(keys, trees, max_size=4))
def test_a_tree_comes_back_as_it_was(tmp_path: Path, state: dict[Any, Any]) -> None:
    checkpoint.save(tmp_path, state)
    assert same(state, checkpoint.load(tmp_path))


def test_names_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    state = {
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "1": torch.full((1,), 2.0),
        1: torch.full((1,), 3.0),
    }
    checkpoint.save(tmp_path, state)
    assert same(state, checkpoint.load(tmp_path))


def test_tensors_that_share_memory_or_are_turned_round_come_back(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {
        "one": whole,
        "same": whole,
        "row": whole[1],
        "turned": whole.T,
        "learned": torch.nn.Parameter(whole),
    }
    checkpoint.save(tmp_path, state)
    loaded = checkpoint.load(tmp_path)
    assert loaded
    assert loaded["turned"].tolist() == whole.T.tolist()
    assert loaded["row"].tolist() == whole[1].tolist()
    assert loaded["same"].tolist() == loaded["learned"].tolist() == whole.tolist()


def test_the_state_of_a_tied_model_and_its_optimizer_comes_back(tmp_path: Path) -> None:
    model = small.model(small.some_model(tied=True))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(small.tokens(2, 4)).sum().backward()
    optimizer.step()
    state = {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "chance": torch.get_rng_state(),
    }
    checkpoint.save(tmp_path, state)
    loaded = checkpoint.load(tmp_path)
    assert loaded
    assert same(state["model"], loaded["model"])
    assert same(state["optimizer"]["state"], loaded["optimizer"]["state"])
    assert torch.equal(state["chance"], loaded["chance"])


@pytest.mark.parametrize(
    "value",
    [torch.arange(40.0), torch.ones(3, dtype=torch.bfloat16), torch.tensor(2.5), torch.ones(0)],
)
def test_any_bit_that_is_not_what_was_written_is_noticed(
    tmp_path: Path, value: torch.Tensor
) -> None:
    checkpoint.save(tmp_path, {"weights": value, "step": 17})
    file = tmp_path / checkpoint.FILE
    whole = file.read_bytes()
    assert checkpoint.load(tmp_path) is not None
    for place in range(8, len(whole)):
        for bit in (1, 64):
            content = bytearray(whole)
            content[place] ^= bit
            file.write_bytes(bytes(content))
            loaded = checkpoint.load(tmp_path)
            # but for spaces that pad the header, and such
            assert loaded is None or same(loaded, {"weights": value, "step": 17}), place


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[:-1], lambda data: data[:5], lambda data: b"", lambda data: b"x" * 99],
)
def test_a_file_that_is_not_whole_counts_as_none(tmp_path: Path, spoil: Any) -> None:
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, {"a": torch.ones(5)})
    file = tmp_path / checkpoint.FILE
    file.write_bytes(spoil(file.read_bytes()))
    assert checkpoint.load(tmp_path) is None


def named(text: str | None) -> dict[str, Tensor]:
    """Tensors as in a checkpoint whose JSON is this text; without any where there is none."""
    json = (
        {}
        if text is None
        else {checkpoint.SKELETON: torch.tensor(list(text.encode()), dtype=torch.uint8)}
    )
    return {"a": torch.ones(1), **json}


@pytest.mark.parametrize("text", [None, "", "{", '{"tensor": "7"}', "3"])
@pytest.mark.parametrize("vouched", [True, False])
def test_a_file_of_another_kind_counts_as_none(
    tmp_path: Path, text: str | None, vouched: bool
) -> None:
    metadata = {"sha256": checkpoint._digest(named(text))} if vouched else None
    save_file(named(text), tmp_path / checkpoint.FILE, metadata=metadata)
    assert checkpoint.load(tmp_path) is None


def test_no_state_is_too_long(tmp_path: Path) -> None:
    """A header of safetensors may have 100 MB."""
    state = {"said": "x" * 101_000_000, "weights": torch.ones(3)}
    checkpoint.save(tmp_path, state)
    assert same(state, checkpoint.load(tmp_path))


def test_an_interrupted_save_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"step": 1})

    def interrupted(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, {"step": 2})
    assert checkpoint.load(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
    checkpoint.discard(tmp_path)
    checkpoint.discard(tmp_path)
    assert not tmp_path.exists()


def test_a_runs_key_is_made_of_what_decides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    key = checkpoint.run_key({"steps": 1, "parts": {"a": 1, "b": 2}})
    assert key == checkpoint.run_key({"parts": {"b": 2, "a": 1}, "steps": 1})
    assert key != checkpoint.run_key({"steps": 2, "parts": {"a": 1, "b": 2}})
    monkeypatch.setattr(
        checkpoint,
        "sha256",
        lambda path: f"edited {path.name}" if path.name == "params.py" else "as it was",
    )
    edited = checkpoint.run_key({"steps": 1})
    monkeypatch.setattr(checkpoint, "sha256", lambda path: "as it was")
    assert edited != checkpoint.run_key({"steps": 1})
    as_it_was = checkpoint.run_key({"steps": 1})
    monkeypatch.setattr(checkpoint.torch, "__version__", "another")
    assert as_it_was != checkpoint.run_key({"steps": 1})


def test_lines_go_on_from_a_place_and_forget_what_came_later(tmp_path: Path) -> None:
    lines = checkpoint.Lines(tmp_path / "log.jsonl")
    assert lines.begin()
    lines.add({"step": 1, "text": "\u00e9"})
    place = lines.place()
    lines.add([2, 0.5])
    lines.close()
    assert lines.read() == [{"step": 1, "text": "\u00e9"}, [2, 0.5]]
    resumed = checkpoint.Lines(tmp_path / "log.jsonl")
    assert resumed.begin(place)
    resumed.add("other")
    later = resumed.place()
    resumed.close()
    assert resumed.read() == [{"step": 1, "text": "\u00e9"}, "other"]
    assert later[0] == (tmp_path / "log.jsonl").stat().st_size
    anew = checkpoint.Lines(tmp_path / "log.jsonl")
    assert anew.begin()
    anew.close()
    assert anew.read() == []


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:3], lambda data: b"", lambda data: bytes([data[0] ^ 1]) + data[1:]]
)
def test_lines_that_are_not_what_they_were_at_a_place_are_not_gone_on_with(
    tmp_path: Path, spoil: Any
) -> None:
    lines = checkpoint.Lines(tmp_path / "log.jsonl")
    lines.begin()
    lines.add({"step": 1})
    place = lines.place()
    lines.close()
    lines.path.write_bytes(spoil(lines.path.read_bytes()))
    assert not checkpoint.Lines(lines.path).begin(place)


def test_a_checkpoint_costs_the_same_however_long_the_log_has_become(tmp_path: Path) -> None:
    lines = checkpoint.Lines(tmp_path / "log.jsonl")
    lines.begin()
    sizes = []
    for _ in range(3):
        for step in range(2000):
            lines.add({"step": step, "train_nats": 1.2345678})
        checkpoint.save(tmp_path, {"run": {"model": torch.ones(3)}, "log": lines.place()})
        sizes.append((tmp_path / checkpoint.FILE).stat().st_size)
    assert max(sizes) - min(sizes) <= 16  # digits of a number
    lines.close()


def test_the_scratch_lies_in_the_project_also_for_a_copy_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert scratch_folder("train-k") == Path(".scratch/train-k")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert scratch_folder("train-k") == tmp_path / ".scratch" / "train-k"

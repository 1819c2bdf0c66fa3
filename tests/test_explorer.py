"""The explorer: what it shows is what the model computes, and what it changes is what is asked."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import small
import test_training
import torch
import uvicorn
from test_continuing import train
from test_training import Corpus
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.explorer import generate, heads, held_out, history, look, units
from lmlab.explorer.changes import Add, Change, Patch, Pin, Scale, applied
from lmlab.explorer.microscope import Material
from lmlab.explorer.server import FILES, HEADERS, Explorer
from lmlab.explorer.subject import LAST, Folders, Moment, Subject
from lmlab.model import places
from lmlab.model.models import base as models
from lmlab.model.scoring import score
from lmlab.model.truncation import Truncation

corpus = test_training.corpus  # the fixture
TEXT = "a bad cab, a dab of bad ace; " * 3
CONTEXT = 16
MODELS = small.variants("models")
names = [f"{number}-{choice.name}" for number, choice in enumerate(MODELS)]
every_model = pytest.mark.parametrize("choice", MODELS, ids=names)
TOKENIZER = tokenizers.fit(registry.choose(small.tree(), "tokenizers", "character"), [TEXT])


def subject(choice: Choice | None = None, **changes: Any) -> Subject:
    """A model with large random weights, so that everything in it matters."""
    choice = choice or registry.choose(small.tree(**changes), "models", "transformer")
    torch.manual_seed(0)
    model = models.build(choice, TOKENIZER.vocabulary_size, CONTEXT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return Subject("drawn", model.eval(), TOKENIZER, [Moment(0, "", "")])


def nats(
    of: Subject, changes: list[Change], text: str = TEXT, side: str = "changed"
) -> list[float]:
    """Of every token, over all windows."""
    found: list[float] = []
    number, count = 0, 1
    while number < count:
        window = look.read_window(of, LAST, text, number, changes)
        count = window["count"]
        found += window[side]["nats"]
        number += 1
    return found


def off(place: str, unit: int | None = None, factor: float = 0.0, at: int | None = None) -> Scale:
    return Scale(kind="scale", place=place, unit=unit, factor=factor, at=at)


# ---------------------------------------------------------------- what is shown


@every_model
def test_every_token_is_scored_once_as_scoring_scores_it(choice: Choice) -> None:
    one = subject(choice)
    found = nats(one, [], side="plain")
    ids = np.array(one.ids(TEXT), dtype=np.uint32)
    scored = score(one.model, ids, TOKENIZER.bos, CONTEXT, CONTEXT // 2)
    np.testing.assert_allclose(found, scored.nats_by_target, rtol=1e-4, atol=1e-4)


@every_model
def test_every_place_is_shown_and_can_be_scaled(choice: Choice) -> None:
    one = subject(choice)
    shown = look.look_at(one, LAST, TEXT, 30, [])
    listed = {layer["place"] for layer in shown["layers"]} | {
        head["place"] for head in shown["heads"]
    }
    assert listed == {*places.names(one.model), *one.tables()} - {"logits"}
    plain = look.read_window(one, LAST, TEXT, 1, [])["plain"]
    for place in listed:
        same = look.read_window(one, LAST, TEXT, 1, [off(place, factor=1.0)])
        assert same["changed"] == plain, place  # to the last bit
        other = [off(place, factor=-1.5)]  # over all of the text, as an expert works on few tokens
        assert nats(one, other) != nats(one, other, side="plain"), place
    assert same["plain"] == plain  # and nothing stays behind


def test_guesses_and_ranks_are_those_of_the_model() -> None:
    one = subject()
    window = look.read_window(one, LAST, TEXT, 0, [])["plain"]
    logits_TV = one.model(torch.tensor([one.ids(TEXT)[:CONTEXT]]))[0].double()
    order = logits_TV.argsort(dim=-1, descending=True)
    assert [[guess[1] for guess in guesses] for guesses in window["guesses"]] == order[
        :, : look.GUESSES
    ].tolist()
    ranks = [order[at].tolist().index(id_) for at, id_ in enumerate(one.ids(TEXT)[1 : CONTEXT + 1])]
    assert window["rank"] == ranks
    assert [len(block["p"]) for block in window["lens"]] == [CONTEXT, CONTEXT]
    last = window["lens"][-1]  # behind the last block the lens is the model
    assert last["nats"] == window["nats"]


def test_the_chosen_token_has_its_own_heads_and_units() -> None:
    one = subject()
    token = 30
    whole = look.Text.of(one, TEXT)
    begin = whole.window(whole.window_of(token)).start
    tokens_BT = torch.tensor([one.ids(TEXT)[begin : begin + CONTEXT]])
    with torch.no_grad(), places.record(one.model) as states:
        one.model(tokens_BT)
    shown = look.look_at(one, LAST, TEXT, token, [])
    assert shown["begin"] == begin
    position = token - begin
    head = next(each for each in shown["heads"] if (each["head"]) == 1)
    expected = states[head["place"]][0, 1, position, : position + 1]
    torch.testing.assert_close(torch.tensor(head["weights"]), expected, rtol=1e-4, atol=1e-6)
    layer = next(each for each in shown["layers"] if each["place"] == "blocks.1.feed_forward.units")
    values = states[layer["place"]][0, position]
    best = values.abs().argmax()
    assert layer["top"][0][0] == int(best)
    assert layer["top"][0][1] == pytest.approx(float(values[best]), rel=1e-4)


def test_a_unit_s_texts_are_where_it_is_most_active() -> None:
    one = subject()
    place, unit = "blocks.0.feed_forward.units", 3
    found = units.texts_of(one, LAST, place, unit, TEXT)
    ids = one.ids(TEXT)
    with torch.no_grad(), places.record(one.model, [place]) as states:
        one.model(torch.tensor([ids[:CONTEXT], ids[CONTEXT : 2 * CONTEXT]]))
    first = states[place][0, :, unit].abs().max()
    assert any(abs(each["value"]) == pytest.approx(float(first), rel=1e-4) for each in found)
    assert [abs(each["value"]) for each in found] == sorted(
        (abs(each["value"]) for each in found), reverse=True
    )
    best = found[0]
    assert "".join(best["before"]) + best["next"] in TEXT
    with pytest.raises(UserError, match="has no part 10000"):
        units.texts_of(one, LAST, place, 10_000, TEXT)


# ---------------------------------------------------------------- what is changed


def without_columns(model: Any, block: int, start: int, stop: int, name: str) -> None:
    with torch.no_grad():
        model.get_submodule(f"blocks.{block}.{name}").weight[:, start:stop] = 0


def test_a_head_that_is_off_is_one_whose_columns_are_zero() -> None:
    one, other = subject(), subject()
    changed = nats(one, [off("blocks.1.attention.head_outputs", unit=1)])
    width = one.model.width // 2
    without_columns(other.model, 1, width, 2 * width, "attention.out")
    np.testing.assert_allclose(changed, nats(other, [], side="plain"), rtol=1e-5)
    assert changed != nats(one, [], side="plain")


def test_a_unit_that_is_off_is_one_whose_column_is_zero() -> None:
    one, other = subject(), subject()
    changed = nats(one, [off("blocks.0.feed_forward.units", unit=5)])
    without_columns(other.model, 0, 5, 6, "feed_forward.out")
    np.testing.assert_allclose(changed, nats(other, [], side="plain"), rtol=1e-5)


def test_a_table_that_is_off_is_one_of_zeros() -> None:
    one, other = subject(embedding="n_gram"), subject(embedding="n_gram")
    table = one.tables()[1]
    changed = nats(one, [off(table)])
    with torch.no_grad():
        other.model.get_submodule(table).weight.zero_()  # type: ignore[union-attr, operator]
    assert changed == nats(other, [], side="plain")


def test_a_change_at_one_token_leaves_those_before_it() -> None:
    one = subject()
    plain, at = nats(one, [], side="plain"), 20
    changed = nats(one, [off("blocks.0.output", at=at)])
    assert changed[:at] == plain[:at]
    assert changed[at] != plain[at]


def test_direct_and_total_effect_are_one_behind_the_last_block_and_two_before() -> None:
    one = subject()
    last = look.read_window(one, LAST, TEXT, 0, [off("blocks.1.feed_forward.units", unit=2)])
    np.testing.assert_allclose(last["direct"]["nats"], last["changed"]["nats"], rtol=1e-4)
    first = look.read_window(one, LAST, TEXT, 0, [off("blocks.0.feed_forward.units", unit=2)])
    gaps = np.abs(np.array(first["direct"]["nats"]) - np.array(first["changed"]["nats"]))
    assert gaps.max() > 1e-3
    two = [off("blocks.0.feed_forward.units"), off("blocks.1.feed_forward.units")]
    assert "one block" in look.read_window(one, LAST, TEXT, 0, two)["direct"]["why_not"]


def test_what_is_patched_from_another_text_is_what_flows_there() -> None:
    one, other = subject(), "dab cab bad ace "
    patch = Patch(kind="patch", place="blocks.1.output", text=other, of=7, at=5)
    found = look.read_window(one, LAST, TEXT, 0, [patch])["changed"]["guesses"][5]
    logits_V = one.model(torch.tensor([one.ids(other)[:8]]))[0, -1]
    assert [guess[1] for guess in found] == logits_V.argsort(descending=True)[
        : look.GUESSES
    ].tolist()
    nothing = Patch(kind="patch", place="blocks.0.output", text=TEXT, of=5, at=5)
    np.testing.assert_allclose(
        look.read_window(one, LAST, TEXT, 0, [nothing])["changed"]["nats"],
        look.read_window(one, LAST, TEXT, 0, [])["plain"]["nats"],
        rtol=1e-4,
    )


def test_a_direction_is_the_difference_of_two_texts() -> None:
    one = subject()
    add = Add(kind="add", place="blocks.0.output", plus="a bad", minus="a cab", strength=2.0)
    ends = []
    for text in ("a bad", "a cab"):
        with places.record(one.model, ["blocks.0.output"]) as states:
            one.model(torch.tensor([one.ids(text)]))
        ends.append(states["blocks.0.output"][0, -1].detach())

    def push(x_BTD: Tensor) -> Tensor:
        return x_BTD + 2 * (ends[0] - ends[1])

    tokens_BT = torch.tensor([one.ids(TEXT)[:CONTEXT]])
    with places.changed(one.model, {"blocks.0.output": push}):
        expected = one.model(tokens_BT)
    with applied(one, one.model, [add], 0):
        torch.testing.assert_close(one.model(tokens_BT), expected)
    zero = add.model_copy(update={"strength": 0.0})
    assert nats(one, [zero]) == nats(one, [], side="plain")


def test_what_is_patched_in_comes_from_the_model_without_the_other_changes() -> None:
    one, place = subject(), "blocks.0.feed_forward.units"
    patch = Patch(kind="patch", place=place, text="cab", of=2)
    first = off("blocks.0.attention.head_outputs", factor=3.0)
    with places.record(one.model, [place]) as states, torch.no_grad():
        one.model(torch.tensor([one.ids("cab")[:3]]))
    expected = states[place][0, -1]
    for changes, factor in (
        ([patch, off(place, factor=2.0)], 2),
        ([first, patch], 1),
        ([patch, first], 1),
    ):
        with (
            applied(one, one.model, changes, 0),
            places.record(one.model, [place]) as states,
            torch.no_grad(),
        ):
            one.model(torch.tensor([one.ids(TEXT)[:8]]))
        torch.testing.assert_close(states[place][0, 5], factor * expected)


def test_a_pinned_token_is_read_and_the_text_stays_what_is_predicted() -> None:
    one = subject()
    id_ = TOKENIZER.encode("z" if "z" in TEXT else "b").tolist()[0]
    pin = Pin(kind="pin", at=4, token=id_)
    text = TEXT[:4] + "b" + TEXT[5:]
    read, plain = (
        look.read_window(one, LAST, *arguments) for arguments in ((TEXT, 0, [pin]), (text, 0, []))
    )
    assert read["changed"]["guesses"] == plain["plain"]["guesses"]
    assert read["ids"] == one.ids(TEXT)[1:]
    assert "why_not" in read["direct"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (off("blocks.9.output"), "no place"),
        (off("blocks.0.attention.head_outputs", unit=9), "has no part 9; the last is 1"),
        (Pin(kind="pin", at=10_000, token=0), "no token 10000 to be pinned"),
        (Pin(kind="pin", at=0, token=10_000), "there is no token 10000"),
        (
            Patch(kind="patch", place="blocks.0.output", text="a", of=99),
            "has no token 99; it has 1",
        ),
        (
            Patch(kind="patch", place="blocks.0.attention.pattern", text="a", of=0),
            "can be scaled, not patched",
        ),
    ],
)
def test_what_cannot_be_changed_is_said(change: Change, words: str) -> None:
    one = subject()
    plain = nats(one, [], side="plain")
    with pytest.raises(UserError, match=words):
        look.read_window(one, LAST, TEXT, 0, [change])
    assert nats(one, [], side="plain") == plain


def test_no_text_has_no_windows_and_a_long_one_is_refused() -> None:
    one = subject()
    assert look.read_window(one, LAST, "", 0, []) == {
        "count": 0,
        "texts": [],
        "sizes": [],
        "ids": [],
    }
    with pytest.raises(UserError, match="at most 200,000"):
        look.read_window(one, LAST, "a" * 200_001, 0, [])
    with pytest.raises(UserError, match="there is no 99"):
        look.read_window(one, LAST, TEXT, 99, [])


# ---------------------------------------------------------------- generation


def plainly(probabilities: list[float], cut: Truncation) -> set[int]:
    """The tokens that may be drawn, by the definitions."""
    order = sorted(range(len(probabilities)), key=lambda id_: -probabilities[id_])
    kept = set(order)
    if cut.top_k:
        least = probabilities[order[min(cut.top_k, len(order)) - 1]]
        kept &= {id_ for id_ in order if probabilities[id_] >= least}
    if cut.top_p < 1:
        total, count = 0.0, 0
        while total < cut.top_p and count < len(order):
            total += probabilities[order[count]]
            count += 1
        kept &= {id_ for id_ in order if probabilities[id_] >= probabilities[order[count - 1]]}
    most = probabilities[order[0]]
    return {id_ for id_ in kept if probabilities[id_] >= cut.min_p * most}


@pytest.mark.parametrize("top_k", [0, 1, 3, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-9])
@pytest.mark.parametrize("min_p", [0.0, 0.1, 1.0])
def test_what_is_cut_off_is_what_the_definitions_cut_off(
    top_k: int, top_p: float, min_p: float
) -> None:
    cut = Truncation(top_k, top_p, min_p)
    rows = torch.randn(20, 9, generator=torch.Generator().manual_seed(3)).double().mul(2)
    probabilities_BV = torch.cat((rows.softmax(-1), torch.full((1, 9), 1 / 9).double()))
    after_BV = cut.of(probabilities_BV)
    for before, after in zip(probabilities_BV.tolist(), after_BV.tolist(), strict=True):
        kept = plainly(before, cut)
        assert {id_ for id_, p in enumerate(after) if p} == kept
        assert sum(after) == pytest.approx(1, abs=1e-12)
        share = sum(before[id_] for id_ in kept)
        for id_ in kept:
            assert after[id_] == pytest.approx(before[id_] / share, rel=1e-9)


def test_the_next_token_is_drawn_by_the_seed_from_what_is_kept() -> None:
    one = subject()
    whole = generate.next_token(one, LAST, TEXT, [], 1.0, Truncation(), 0)
    logits_V = one.model(torch.tensor([one.ids(TEXT)[-CONTEXT:]]))[0, -1].double().detach()
    expected = logits_V.softmax(0)
    for token in whole["tokens"]:
        assert token["p"] == pytest.approx(float(expected[token["id"]]), rel=1e-4)
    assert whole["cut_off"] == 0
    two = Truncation(top_k=2)
    drawn = {
        generate.next_token(one, LAST, TEXT, [], 1.0, two, seed)["drawn"] for seed in range(40)
    }
    assert drawn == {token["id"] for token in whole["tokens"][:2]}
    cold = generate.next_token(one, LAST, TEXT, [], 0.0, Truncation(), 5)
    assert cold["drawn"] == int(logits_V.argmax())


# ---------------------------------------------------------------- over training


def test_the_slider_goes_over_the_snapshots(corpus: Corpus) -> None:
    train(corpus, "run", snapshots=3, steps=7)
    tokenizers.write("character", corpus[1], Path("tokenizer.json"))
    folders = Folders(Path("run/model"), Path("tokenizer.json"), Path("run/snapshots"))
    one = Subject.open("run", folders)
    assert [moment.step for moment in one.moments] == [0, 1, 4, 7, 7]
    end, _ = models.load(Path("run/model"), torch.device("cpu"))
    torch.manual_seed(0)
    begun = models.build(end.choice, end.vocabulary_size, end.context)
    for moment, expected in ((0, begun), (3, end), (LAST, end)):
        for name, value in one.at(moment).state_dict().items():
            assert torch.equal(value, expected.state_dict()[name]), (moment, name)
    gone = Subject.open("run", Folders(folders.model, folders.tokenizer_file))
    assert [moment.step for moment in gone.moments] == [7]
    tokenizers.write("character", TOKENIZER, Path("other.json"))
    with pytest.raises(UserError, match="are of two runs"):
        Subject.open("run", Folders(folders.model, Path("other.json")))


def test_a_token_is_followed_over_the_run(corpus: Corpus) -> None:
    train(corpus, "run", snapshots=3, steps=7)
    tokenizers.write("character", corpus[1], Path("tokenizer.json"))
    folders = Folders(Path("run/model"), Path("tokenizer.json"), Path("run/snapshots"))
    one = Subject.open("run", folders)
    text, token = test_training.TEXT[:60], 41
    change = off("blocks.0.feed_forward.units", factor=0.5)
    for changes, side in (([], "plain"), ([change], "changed")):
        found = history.over_training(one, text, token, changes)
        assert [each["step"] for each in found] == [moment.step for moment in one.moments]
        for moment, each in enumerate(found):
            every = [
                (nats, guesses[0])
                for number in range(99)
                if number < len(look.Text.of(one, text).windows)
                for told in [look.read_window(one, moment, text, number, changes)[side]]
                for nats, guesses in zip(told["nats"], told["guesses"], strict=True)
            ]
            nats_there, (guess, _, p) = every[token]
            assert (each["nats"], each["guess"], each["p"]) == (nats_there, guess, p)


def test_what_heads_do_as_a_rule_is_their_mean_weight() -> None:
    one = subject(heads=2, depth=2)
    found = heads.roles(one, LAST, TEXT)
    assert found.keys() == {"blocks.0.attention.pattern", "blocks.1.attention.pattern"}
    ids = torch.tensor(one.ids(TEXT))
    rows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    with places.record(one.model, ["blocks.1.attention.pattern"]) as states, torch.no_grad():
        one.model(rows)
    weights = states["blocks.1.attention.pattern"].double()
    before = [weights[:, 1, t, t - 1] for t in range(1, CONTEXT)]
    itself = [weights[:, 1, t, t] for t in range(CONTEXT)]
    first = [weights[:, 1, t, 0] for t in range(1, CONTEXT)]
    for name, values in (("previous", before), ("itself", itself), ("first", first)):
        mean = float(torch.stack(values).mean())
        assert found["blocks.1.attention.pattern"][name][1] == pytest.approx(mean, rel=1e-3)
    assert all(0 <= share <= 1 for share in found["blocks.0.attention.pattern"]["induction"])
    assert heads.roles(subject(registry.choose(small.tree(), "models", "lstm")), LAST, TEXT) == {}


def test_a_head_that_finds_what_came_next_is_told_from_one_that_looks_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights put there by hand: head 0 is a perfect induction head, head 1 looks one back."""
    one = subject(heads=2, depth=1)
    period = CONTEXT // 2

    def patterns(model: object, tokens_BT: Tensor, of_heads: Callable[[Tensor], Tensor]) -> Any:
        batch, time = tokens_BT.shape
        weights = torch.zeros(batch, 2, time, time, dtype=torch.float64)
        for t in range(time):
            weights[:, 0, t, max(0, t + 1 - period)] = 1
            weights[:, 1, t, max(0, t - 1)] = 1
        return {"blocks.0.attention.pattern": of_heads(weights).tolist()}

    monkeypatch.setattr(heads, "_by_place", patterns)
    found = heads.roles(one, LAST, TEXT)["blocks.0.attention.pattern"]
    assert found["induction"] == [1, 0]
    assert found["previous"] == [pytest.approx(1 / (CONTEXT - 1)), 1]


def test_changes_at_one_place_act_in_the_order_given() -> None:
    one, place = subject(), "blocks.0.output"
    patch = Patch(kind="patch", place=place, text="dab", of=2)
    plain, twice = nats(one, [patch]), off(place, factor=2.0)
    assert nats(one, [twice, patch]) == plain
    assert nats(one, [patch, twice]) != plain


def test_pieces_of_held_out_text_are_text(corpus_of: Callable[..., Path], tmp_path: Path) -> None:
    text = "".join(f"SPEAKER {number}:\nsays so.\n\n" for number in range(400))
    found = held_out.pieces(corpus_of("train", text, "test"))
    assert len(found) == held_out.PIECES
    assert all(piece in text and len(piece) == held_out.CHARACTERS for piece in found[:-1])
    assert all(piece.startswith("SPEAKER") for piece in found)
    assert held_out.pieces(tmp_path / "nothing") == []


# ---------------------------------------------------------------- the server


@dataclass
class Served:
    port: int

    def post(self, what: str, body: Any, **headers: str) -> requests.Response:
        content = body if isinstance(body, str) else json.dumps(body)
        headers = {"Content-Type": "application/json", **headers}
        return requests.post(
            f"http://127.0.0.1:{self.port}/api/{what}", content, headers=headers, timeout=60
        )

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=60)


@contextlib.contextmanager
def serving(*subjects: Subject) -> Iterator[Served]:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        material = Material(TEXT, "a dab of ace, bad cab; " * 2)
        app = Explorer(subjects, [TEXT], material, small.tree()).app(port)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Served(port)
        finally:
            server.should_exit = True
            thread.join()


def test_the_server_answers_its_own_page_alone() -> None:
    with serving(subject()) as served:
        for path in (*FILES, "/api/about"):
            answer = served.get(path)
            assert answer.status_code == 200
            assert answer.headers.items() >= HEADERS.items()
            assert "access-control-allow-origin" not in answer.headers
            for header, value in (
                ("Host", f"evil.example:{served.port}"),
                ("Host", "127.0.0.1"),
                ("Origin", "http://evil.example"),
                ("Origin", "null"),
                ("Sec-Fetch-Site", "cross-site"),
                ("Sec-Fetch-Site", "same-site"),
            ):
                assert served.get(path, **{header: value}).status_code == 403, (path, header)
        own = {"Origin": f"http://127.0.0.1:{served.port}", "Sec-Fetch-Site": "same-origin"}
        assert served.post("window", {"text": TEXT}, **own).status_code == 200
        form = {"Content-Type": "text/plain"}  # which a page elsewhere may send without asking
        assert served.post("window", {"text": TEXT}, **form).status_code == 403
        assert served.get("/api/window").status_code == 405
        assert served.get("/../pyproject.toml").status_code == 404


@pytest.mark.parametrize(
    ("what", "body", "status", "words"),
    [
        ("window", "{", 400, "Invalid JSON"),
        ("window", {"text": TEXT, "more": 1}, 400, "more: Extra inputs"),
        ("window", {"text": TEXT, "run": 5}, 400, "there is no run 5"),
        ("window", {"text": TEXT, "moment": 5}, 400, "has no moment 5"),
        ("window", {"text": TEXT, "window": 99}, 400, "there is no 99"),
        ("window", {"text": TEXT, "changes": [{"kind": "burn"}]}, 400, "changes.0"),
        ("token", {"text": TEXT, "token": 9999}, 400, "no token 9999"),
        ("unit", {"place": "nowhere", "unit": 0}, 400, "no place nowhere"),
        ("next", {"text": TEXT, "temperature": -1}, 400, "temperature"),
        ("window", '{"text": "' + "a" * 3_000_000 + '"}', 413, "too much text"),
    ],
)
def test_a_wrong_request_is_answered_in_one_line(
    what: str, body: Any, status: int, words: str
) -> None:
    with serving(subject()) as served:
        answer = served.post(what, body)
        assert answer.status_code == status
        assert words in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
        assert served.post("window", {"text": TEXT}).status_code == 200


def test_who_goes_away_is_not_worked_for() -> None:
    """A question that nobody waits for any more is given up, and the next one is answered."""
    asked = {"place": "blocks.0.output", "steps": 100_000, "text": TEXT}
    with serving(subject()) as served:
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.post(f"http://127.0.0.1:{served.port}/api/features", json=asked, timeout=0.5)
        assert served.post("window", {"text": TEXT}).status_code == 200


def test_a_model_that_has_diverged_shows_no_numbers() -> None:
    one = subject()
    with torch.no_grad():
        next(one.model.parameters()).fill_(torch.nan)
    with serving(one) as served:
        for what, body in (
            ("window", {"text": TEXT}),
            ("next", {"text": TEXT}),
            ("step", {"rule": "backprop", "optimizer": "sgd"}),
            ("features", {"place": "blocks.0.output", "text": TEXT}),
        ):
            answer = served.post(what, body)
            assert answer.status_code == 400, what
            assert "diverged" in answer.json()["error"] or "NaN" in answer.json()["error"], what
        past = served.post("history", {"text": TEXT, "token": 3}).json()["moments"]
        assert past == [{"step": 0, "nats": None, "rank": None, "guess": None, "p": None}]
    with serving(subject()) as served:
        change = {"kind": "scale", "place": "embedding", "unit": None, "at": None, "factor": 1e6}
        twice = {"text": TEXT, "changes": [change] * 8}
        assert "with these changes" in served.post("window", twice).json()["error"]


@pytest.mark.parametrize("name", registry.names("tokenizers"))
def test_every_byte_of_a_text_belongs_to_one_token(name: str) -> None:
    """Also of characters that the tokenizer spells: each belongs to its last token."""
    choice = registry.choose(small.tree(vocabulary_size=280), "tokenizers", name)
    tokenizer = tokenizers.fit(choice, [TEXT])
    model = small.model(small.some_model(), vocabulary_size=tokenizer.vocabulary_size)
    one = Subject("drawn", model, tokenizer, [Moment(0, "", "")])
    for text in (
        TEXT,
        "hi \U0001f600 é end",
        "<script>a</script>",
        "",
        "\n\n",
        "né" * 40,
    ):
        ids = one.ids(text)[1:]
        pieces = one.pieces(text, ids)
        assert len(pieces) == len(ids)
        assert b"".join(pieces) == text.encode("utf-8", "surrogatepass")
        told = look.read_window(one, LAST, text, 0, [])
        assert told["sizes"] == [len(piece) for piece in pieces]
    if name == "character":
        known, unknown = one.pieces("aé", one.ids("aé")[1:])[0], one.pieces("aé", one.ids("aé")[1:])
        assert known == b"a"
        assert unknown[-1] == "é".encode()
        assert set(unknown[1:-1]) == {b""}


def test_long_work_tells_how_far_it_is_and_can_be_stopped() -> None:
    asked = {"place": "blocks.0.output", "steps": 100_000, "text": TEXT}
    with serving(subject()) as served:
        answers: list[requests.Response] = []
        work = threading.Thread(target=lambda: answers.append(served.post("features", asked)))
        work.start()
        until = time.monotonic() + 60
        while served.get("/api/progress").json()["done"] < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert served.get("/api/progress").json()["of"] == 100_000
        served.post("stop", {})
        work.join(timeout=60)
        assert answers[0].status_code == 400
        assert answers[0].json()["error"] == "stopped; no features were kept"
        wrong = served.post("feature", {"place": "blocks.0.output", "feature": 0})
        assert "look for them first" in wrong.json()["error"]


def test_the_page_gets_what_the_functions_give() -> None:
    one = subject()
    with serving(one) as served:
        about = served.get("/api/about").json()
        assert about["runs"] == [json.loads(json.dumps(one.about()))]
        change = off("blocks.0.output", factor=0.5)
        asked = {"text": TEXT, "changes": [change.model_dump()]}
        window = served.post("window", asked).json()
        assert window == json.loads(json.dumps(look.read_window(one, LAST, TEXT, 0, [change])))
        token = served.post("token", {**asked, "token": 30}).json()
        assert token == look.look_at(one, LAST, TEXT, 30, [change])
        next_ = served.post("next", {"text": TEXT, "top_k": 3, "seed": 4}).json()
        assert next_ == generate.next_token(one, LAST, TEXT, [], 1.0, Truncation(top_k=3), 4)
        texts = served.post("unit", {"place": "blocks.0.feed_forward.units", "unit": 1}).json()
        found = units.texts_of(one, LAST, "blocks.0.feed_forward.units", 1, TEXT)
        assert texts == {"texts": found}

"""What every schedule keeps, for any length of run and of warm-up."""

from itertools import pairwise

import pytest
import small
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmlab.core import registry
from lmlab.training.schedules.base import Schedule

every_schedule = pytest.mark.parametrize("name", registry.names("schedules"))
lengths = st.integers(1, 300)


TREE = small.tree()


def factors(
    name: str, steps: int, warmup: int, final: float = 0.0, cooldown: float = 0.2
) -> list[float]:
    choice = registry.choose(TREE, "schedules", name)
    asked = {"warmup": warmup, "final": final, "cooldown": cooldown}
    wanted = {key: value for key, value in asked.items() if hasattr(choice.options, key)}
    schedule: Schedule = choice.part(choice.options.model_copy(update=wanted), steps)
    return [schedule.factor(step) for step in range(steps)]


@every_schedule
@settings(max_examples=50, deadline=None)
@given(steps=lengths, warmup=st.integers(0, 400), final=st.floats(0, 1), cooldown=st.floats(0, 1))
@example(steps=1, warmup=0, final=0.0, cooldown=1.0)
@example(steps=1, warmup=50, final=0.0, cooldown=0.5)
@example(steps=20, warmup=20, final=0.5, cooldown=0.5)
@example(steps=20, warmup=10, final=0.5, cooldown=1.0)
def test_the_rate_rises_to_its_peak_and_not_beyond(
    name: str, steps: int, warmup: int, final: float, cooldown: float
) -> None:
    values = factors(name, steps, warmup, final, cooldown)
    assert all(0 < value <= 1 for value in values)
    rise = values[: warmup + 1]
    assert rise == pytest.approx([(step + 1) / (warmup + 1) for step in range(len(rise))])
    if steps > warmup:
        assert values[warmup] == 1
        fall = values[warmup:]
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(fall))


@pytest.mark.parametrize("name", ["linear", "cosine"])
@given(steps=st.integers(2, 300), final=st.floats(0, 1), data=st.data())
def test_the_rate_falls_to_its_final_share(
    name: str, steps: int, final: float, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    last = factors(name, steps, warmup, final)[-1]
    one_step = 1 / (steps - warmup)  # the share is reached one step after the last
    if name == "linear":
        assert last == pytest.approx(final + (1 - final) * one_step)
    else:
        assert (
            final - 1e-12 <= last <= final + (1 - final) * 2.5 * one_step**2 + 1e-12
            or one_step == 1
        )


def test_half_way_down() -> None:
    assert factors("linear", 11, 1, 0.2)[6] == pytest.approx(0.6)
    assert factors("cosine", 11, 1, 0.2)[6] == pytest.approx(0.6)
    assert factors("cosine", 5, 1, 0.0)[2] == pytest.approx(0.5 + 0.5 * 0.5**0.5)
    assert factors("constant", 11, 1)[6] == 1


@given(steps=st.integers(2, 300), cooldown=st.floats(0, 1), data=st.data())
def test_the_rate_is_held_until_the_cool_down_and_would_reach_zero_one_step_after_the_last(
    steps: int, cooldown: float, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    values = factors("warmup_stable_decay", steps, warmup, cooldown=cooldown)
    length = min(round(cooldown * steps), steps - warmup)
    assert values[warmup : steps - length + 1] == [1.0] * len(values[warmup : steps - length + 1])
    falling = values[steps - length :]
    assert falling == pytest.approx([1 - (step / length) ** 0.5 for step in range(length)])


def test_a_cool_down_of_four_steps() -> None:
    values = factors("warmup_stable_decay", 20, 1, cooldown=0.2)
    assert values[:2] == [0.5, 1.0]
    assert set(values[1:17]) == {1.0}
    assert values[16:] == pytest.approx([1.0, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])
    assert factors("warmup_stable_decay", 20, 1, cooldown=0.0) == factors("constant", 20, 1)

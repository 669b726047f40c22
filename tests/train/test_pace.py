"""How many steps and validations a run has whose time is limited."""

import pytest

from lamm.train.pace import Pace
from lamm.train.recipe import TrainConfig


def validations(seconds_each: float, seconds_per_step: float, limit: float) -> tuple[int, float]:
    """How many validations a run has, and the share of the limit that they take."""
    pace = Pace(TrainConfig(max_seconds=limit, log_every=10), 1000, step=0, seconds=0.0)
    now, step, count = seconds_each, 0, 1
    pace.note_validation(0, seconds_each)
    while step < pace.num_steps:
        step += 1
        now += seconds_per_step
        if step % 10 == 0:
            pace.estimate(step, now)
            pace.agree(pace.num_steps, pace.fewest_between)
        if pace.validates(step):
            now, count = now + seconds_each, count + 1
            pace.note_validation(step, seconds_each)
    assert now <= limit
    return count, count * seconds_each / limit


def test_quick_validations_are_ten():
    count, share = validations(0.1, 0.1, limit=100)
    assert 9 <= count <= 13
    assert share < 0.02


def test_slow_validations_are_fewer_and_take_little_of_the_time():
    count, share = validations(2.0, 0.1, limit=100)
    assert 4 <= count <= 7
    assert share < 0.15


def test_there_are_some_however_slow_they_are():
    count, _ = validations(5.0, 0.1, limit=60)
    assert 3 <= count <= 5


@pytest.mark.parametrize("every", [7, 50])
def test_a_number_that_the_configuration_says_holds(every: int):
    config = TrainConfig(max_seconds=60, validate_every=every)
    pace = Pace(config, 1000, step=0, seconds=0.0)
    pace.note_validation(0, 30.0)
    pace.estimate(10, 31.0)
    assert pace.validate_every == every

"""The rules by which fine-tuning chooses what its user doesn't."""

import pytest

from lamm.finetune.rules import (
    FEWEST_STEPS,
    MOST_STEPS,
    PATIENCE,
    WARM_UP_TIMED,
    batch_size,
    calm_share,
    choose_recipe,
    energy_weight,
    held_out_shares,
    learning_rate,
)


def test_few_structures_have_no_test_split():
    assert held_out_shares(30) == (0.2, 0.0)
    assert held_out_shares(500) == (0.1, 0.1)


def test_mini_batches_hold_about_as_many_atoms_whatever_the_size_of_structures():
    assert batch_size(10_000, 20.0) * 20 == batch_size(10_000, 40.0) * 40 == 160
    assert batch_size(10_000, 1000.0) == 1


def test_a_small_set_still_has_several_steps_to_an_epoch():
    assert batch_size(24, 3.0) == 2
    assert batch_size(1, 3.0) == 1


KIND = {"conservative": True, "from_scratch": False}
SCRATCH = {"conservative": True, "from_scratch": True}


def test_wider_models_learn_more_slowly():
    assert learning_rate(24, **KIND) == learning_rate(96, **KIND) == 2e-3
    assert learning_rate(384, **KIND) == pytest.approx(1e-3)


def test_conservative_models_learn_fast_from_scratch_alone():
    assert learning_rate(96, conservative=True, from_scratch=True) == 3e-3
    assert learning_rate(96, conservative=False, from_scratch=True) == 1e-3


def test_direct_energies_weigh_as_much_as_if_all_structures_had_the_mean_size():
    assert energy_weight(30.0, conservative=False) == 30
    assert energy_weight(30.0, conservative=True) == energy_weight(5.0, conservative=True)


@pytest.mark.parametrize(("structures", "steps"), [(4, FEWEST_STEPS), (10**6, MOST_STEPS)])
def test_the_length_stays_within_bounds(structures: int, steps: int):
    assert choose_recipe(structures, 20.0, 96, 5, **KIND, steps=None, timed=False).steps == steps


@pytest.mark.parametrize("steps", [0, 1, 10, 1000])
def test_warm_up_and_validations_fit_the_length_that_a_user_says(steps: int):
    recipe = choose_recipe(100, 20.0, 96, 5, **KIND, steps=steps, timed=False)
    assert recipe.steps == steps
    assert recipe.warmup_steps <= steps // 20
    assert recipe.validate_every >= 1


def test_nothing_stops_early_where_the_time_is_given():
    assert choose_recipe(100, 20.0, 96, 5, **KIND, steps=None, timed=True).patience is None


@pytest.mark.parametrize("steps", [0, 1, 4, 1000])
def test_a_time_limit_beside_a_length_warms_up_within_it(steps: int):
    recipe = choose_recipe(100, 20.0, 96, 5, **KIND, steps=steps, timed=True)
    assert recipe.warmup_steps == max(min(WARM_UP_TIMED, steps - 1), 0)


def test_a_length_that_a_user_says_isnt_cut_short():
    assert choose_recipe(100, 20.0, 96, 5, **KIND, steps=4, timed=False).patience is None
    assert choose_recipe(100, 20.0, 96, 5, **KIND, steps=None, timed=False).patience == PATIENCE


def test_few_structures_of_many_elements_are_learnt_slowly_from_scratch():
    assert calm_share(1, elements=19) == 1
    assert calm_share(12, elements=20) == calm_share(99, elements=89) == 1
    assert calm_share(6, elements=85) == pytest.approx(0.5)
    assert calm_share(1, elements=85) == pytest.approx(1 / 3)
    slow = choose_recipe(800, 29.0, 96, 85, **SCRATCH, steps=None, timed=True)
    assert slow.batch_size == 6
    assert slow.lr == pytest.approx(1.5e-3)
    few = choose_recipe(800, 29.0, 96, 4, **SCRATCH, steps=None, timed=True)
    assert few.lr == 3e-3
    pretrained = choose_recipe(800, 29.0, 96, 85, **KIND, steps=None, timed=True)
    assert pretrained.lr == 2e-3

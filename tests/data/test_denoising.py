"""Noise has no mean to predict, is its own label, and depends on nothing but its key (Sec. 3.3)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lamm.data.denoising import (
    DenoisingConfig,
    center_noise,
    denoising_structure,
    draw_noise,
    draw_std,
    without_rotation,
)
from lamm.data.splits import hash_id
from lamm.errors import ConfigError
from lamm.schema import parse
from lamm.structure import Structure

ID = hash_id("molecule")


@pytest.fixture
def molecule(rng: np.random.Generator) -> Structure:
    return Structure(
        np.array([6, 1, 1, 1, 1], dtype=np.uint8),
        rng.uniform(0, 5, (5, 3)).astype(np.float32),
        energy=-40.0,
        stress=np.zeros(6),
        fixed=np.array([True, False, False, False, False]),
        id="molecule",
    )


def test_the_mean_of_every_structure_is_removed() -> None:
    noise = torch.randn(7, 3, dtype=torch.float64)
    index = torch.tensor([0, 0, 0, 2, 2, 2, 2])  # structure 1 is empty
    centred = center_noise(noise, index, 3)
    for number in (0, 2):
        assert centred[index == number].sum(dim=0).abs().max() < 1e-14
        difference = noise[index == number] - centred[index == number]
        assert (difference - difference[0]).abs().max() < 1e-14


def test_a_lone_atom_has_no_noise_left() -> None:
    noise = center_noise(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64), 1)
    assert not noise.any()


def test_labels_lead_back_to_the_original(molecule: Structure) -> None:
    noisy = denoising_structure(molecule, ID, DenoisingConfig(), seed=1, epoch=2)
    assert noisy.forces is not None
    assert noisy.positions.dtype == noisy.forces.dtype == np.float64
    displacement = noisy.positions - molecule.positions.astype(np.float64)
    np.testing.assert_allclose(noisy.forces, -displacement, rtol=0, atol=1e-15)
    np.testing.assert_allclose(noisy.forces.sum(axis=0), 0, atol=1e-15)
    assert (noisy.energy, noisy.stress, noisy.fixed) == (None, None, None)
    assert noisy.id == "molecule"
    noisy.check()


def test_the_baseline_keeps_the_mean(molecule: Structure) -> None:
    config = DenoisingConfig(centred=False)
    noisy = denoising_structure(molecule, ID, config, seed=1, epoch=2)
    assert noisy.forces is not None
    np.testing.assert_array_equal(noisy.forces, -draw_noise(ID, 5, 0.1, 1, 2))
    assert abs(noisy.forces.sum(axis=0)).max() > 1e-3
    centred = denoising_structure(molecule, ID, DenoisingConfig(), seed=1, epoch=2)
    mean = noisy.forces.mean(axis=0)
    np.testing.assert_allclose(noisy.forces - mean, centred.forces, atol=1e-15)


def test_the_same_key_gives_the_same_noise_in_any_order() -> None:
    ids = [hash_id(str(number)) for number in range(5)]
    forward = {one: draw_noise(one, 4, 0.1, 0, 3) for one in ids}
    for one in reversed(ids):
        np.testing.assert_array_equal(draw_noise(one, 4, 0.1, 0, 3), forward[one])


def test_another_seed_epoch_or_structure_gives_other_noise() -> None:
    draws = [
        draw_noise(*key)
        for key in [
            (ID, 4, 0.1, 0, 0),
            (ID, 4, 0.1, 1, 0),
            (ID, 4, 0.1, 0, 1),
            (ID + 1, 4, 0.1, 0, 0),
        ]
    ]
    for number, one in enumerate(draws):
        for other in draws[:number]:
            assert abs(one - other).min() > 0


def test_noise_is_gaussian_of_the_given_width() -> None:
    noise = draw_noise(ID, 100_000, 0.2, 0, 0) / 0.2
    count = noise.size
    assert abs(noise.mean()) < 5 / np.sqrt(count)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 5 * np.sqrt(96 / count)
    assert abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / np.sqrt(count / 3)
    assert np.isfinite(noise).all()


@pytest.mark.parametrize("num_atoms", [1, 2, 3])
def test_any_number_of_atoms_has_its_noise(num_atoms: int) -> None:
    noise = draw_noise(2**64 - 1, num_atoms, 0.1, 0, 2**31 - 1)
    assert noise.shape == (num_atoms, 3)
    assert (noise != 0).all()


BENT = np.array([[0.0, 0.0, 0.0], [1.1, 0.2, 0.0], [-0.4, 1.0, 0.3], [0.5, -0.7, 0.9]])
LINE = np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [2.3, 0.0, 0.0]])


@pytest.mark.parametrize("positions", [BENT, LINE, BENT[:2], BENT[:1]], ids=len)
def test_noise_without_rotation_has_no_momentum_and_is_left_alone_again(positions) -> None:
    noise = draw_noise(5, len(positions), 0.3, 0, 0)
    noise -= noise.mean(axis=0)
    still = without_rotation(noise, positions)
    arms = positions - positions.mean(axis=0)
    assert np.cross(arms, still).sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-12)
    assert still.sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-12)
    assert without_rotation(still, positions) == pytest.approx(still, abs=1e-12)
    assert np.square(still).sum() <= np.square(noise).sum()  # the nearest such noise


def test_what_only_turns_a_structure_is_removed_and_what_bends_it_is_not() -> None:
    turn = np.cross(np.array([0.1, -0.2, 0.3]), BENT - BENT.mean(axis=0))
    assert without_rotation(turn, BENT) == pytest.approx(np.zeros_like(BENT), abs=1e-12)
    bend = np.array([[0.0, 0.1, 0.0], [0.0, -0.2, 0.0], [0.0, 0.1, 0.0]])
    assert np.abs(without_rotation(bend, LINE)[:, 1]).max() > 0.05


def test_turned_false_leaves_crystals_and_the_draws_as_they_are(molecule: Structure) -> None:
    centred = DenoisingConfig(std=0.1)
    still = DenoisingConfig(std=0.1, turned=False)
    first, second = (denoising_structure(molecule, 7, one, 0, 0) for one in (centred, still))
    assert not np.allclose(first.positions, second.positions)
    assert first.positions + first.forces == pytest.approx(molecule.positions, abs=1e-6)
    assert second.positions + second.forces == pytest.approx(molecule.positions, abs=1e-6)
    crystal = replace(molecule, cell=9.0 * np.eye(3), pbc=np.array([True] * 3))
    first, second = (denoising_structure(crystal, 7, one, 0, 0) for one in (centred, still))
    assert np.array_equal(first.positions, second.positions)
    with pytest.raises(ValueError, match="needs `centred: true`"):
        DenoisingConfig(turned=False, centred=False)


def test_a_range_of_noise_gives_each_structure_and_pass_its_own() -> None:
    config = DenoisingConfig(std=(0.05, 0.2))
    drawn = np.array([[draw_std(one, config, 0, epoch) for one in range(400)] for epoch in (0, 1)])
    assert drawn.min() >= 0.05
    assert drawn.max() <= 0.2
    assert not np.isclose(drawn[0], drawn[1]).any()
    quartiles = np.quantile(np.log(drawn / 0.05) / np.log(4), [0.25, 0.5, 0.75])
    assert quartiles == pytest.approx([0.25, 0.5, 0.75], abs=0.06), "uniform in the logarithm"
    assert config.rms_std == pytest.approx(np.sqrt(np.square(drawn).mean()), rel=0.04)
    assert draw_std(3, config, 0, 1) == drawn[1, 3]


def test_the_drawn_size_is_that_of_the_noise(molecule: Structure) -> None:
    config = DenoisingConfig(std=(0.05, 0.2), centred=False)
    noisy = denoising_structure(molecule, ID, config, seed=1, epoch=2)
    of_one = draw_noise(ID, 5, 1.0, 1, 2)
    assert noisy.forces == pytest.approx(-draw_std(ID, config, 1, 2) * of_one, rel=1e-12)


def test_a_range_that_is_one_size_is_that_size(molecule: Structure) -> None:
    plain, same = DenoisingConfig(std=0.1), DenoisingConfig(std=(0.1, 0.1))
    assert same.rms_std == plain.rms_std == 0.1
    first, second = (denoising_structure(molecule, ID, one, 0, 0) for one in (plain, same))
    np.testing.assert_array_equal(first.positions, second.positions)


@pytest.mark.parametrize("std", [[0.2, 0.1], [0.1], [0.0, 0.1], [1, 2, 3], -0.1, "wide", None])
def test_a_size_that_cannot_be_is_named(std: object) -> None:
    with pytest.raises(ConfigError, match=r"'std': found .*greater than 0, in Å, or two"):
        parse(DenoisingConfig, {"std": std}, "run.yaml")

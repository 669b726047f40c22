"""References of a fine-tuning: per atom, and not moved by a few extreme structures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from lamm.data.joint import JointDataset
from lamm.data.references import Normalisation, composition_counts
from lamm.finetune import Request, config_for
from lamm.finetune.robust import robust_solution, with_robust_references
from lamm.finetune.run import starting_model
from lamm.structure import Structure
from small import ATOMIC, small_structure

ZERO = Normalisation(np.zeros(119), np.ones(119, dtype=bool), 1.0, 1.0)


def structures(count: int = 60, noise: float = 0.01) -> list[Structure]:
    """Energies that are the sum of their atoms', but for a little per atom."""
    rng = np.random.default_rng(0)
    some = [small_structure(rng, f"x/{number}") for number in range(count)]
    atomic = np.zeros(119)
    atomic[list(ATOMIC)] = list(ATOMIC.values())
    sums = composition_counts(some) @ atomic
    return [
        replace(one, energy=float(total + noise * one.num_atoms * rng.normal()))
        for one, total in zip(some, sums, strict=True)
    ]


def test_a_line_is_found_beside_points_that_are_far_off():
    x = np.linspace(0, 1, 50)
    y = 2 * x + 1
    y[::10] += 100
    slope, start = robust_solution(np.column_stack((x, np.ones(50))), y)
    assert (slope, start) == pytest.approx((2, 1), abs=0.1)


def test_references_are_those_of_most_structures():
    some = structures()
    for number in (3, 30):
        some[number] = replace(some[number], energy=some[number].energy + 400.0)
    found = with_robust_references(ZERO, some).reference_energies
    for number, energy in ATOMIC.items():
        assert found[number] == pytest.approx(energy, abs=0.05)
    assert found[29] == 0


def test_structures_without_energies_change_nothing():
    bare = [replace(one, energy=None) for one in structures(5)]
    assert with_robust_references(ZERO, bare) is ZERO


def test_training_from_scratch_starts_at_them(tmp_path: Path):
    some = structures(80)
    for number in (10, 40):
        some[number] = replace(some[number], energy=some[number].energy + 300.0)
    write(tmp_path / "my.xyz", [one.to_atoms() for one in some], format="extxyz")
    request = Request(
        tmp_path / "my.xyz",
        tmp_path / "run",
        preset="lamm-xs",
        accept_data=True,
        words=["train.steps=1"],
    )
    config = config_for(request)
    joint = JointDataset(config.data, config.seed)
    model, _ = starting_model(config, None, joint)
    for number, energy in ATOMIC.items():
        assert float(model.reference_energies[0, number]) == pytest.approx(energy, abs=0.1)

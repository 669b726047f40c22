"""Uncertainties of energies and forces: features of the last layer, batches, units, and files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lamm.calculators.ase import LaMMCalculator
from lamm.errors import CheckpointError, ConfigError, DataError
from lamm.evaluate.evaluation import evaluate_structures
from lamm.evaluate.predict import predict, predict_batches
from lamm.evaluate.rigidity import NORMAL_WITHIN
from lamm.evaluate.uncertainty import (
    Uncertainty,
    _Errors,
    fingerprint,
    fit_uncertainty,
    uncertainty_path,
)
from lamm.models.potential import Potential, build
from lamm.structure import Structure
from lamm.train.checkpoint import save_potential
from small import ATOMIC, SMALL_MODELS, small_structure, without_dropout


def potential(kind: str = "painn", forces: str = "direct", seed: int = 0) -> Potential:
    model = build({**without_dropout(SMALL_MODELS[kind]), "forces": forces}, ["a", "b"], seed=seed)
    reference = torch.zeros(119, dtype=torch.float64)
    for number, energy in ATOMIC.items():
        reference[number] = energy
    for column in range(2):
        known = torch.ones(119, dtype=torch.bool)
        model.set_normalisation(column, reference, known, 1.0 + column, 1.0)
    return model.double().eval()


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    rng = np.random.default_rng(5)
    return [small_structure(rng, str(number)) for number in range(40)]


def fitted(model: Potential, structures: list[Structure], **keywords: int) -> Uncertainty:
    head, _ = fit_uncertainty(model, "a", structures[:25], structures[25:], **keywords)
    return Uncertainty(fingerprint(model), {"a": head})


def sigmas(
    model: Potential, structures: list[Structure], uncertainty: Uncertainty, **keywords: int
) -> list[float]:
    results = predict(model, structures, "a", uncertainty=uncertainty, **keywords)
    return [result.energy_uncertainty or 0.0 for result in results]


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("kind", list(SMALL_MODELS))
def test_energies_are_linear_in_the_features(
    kind: str, forces: str, structures: list[Structure]
) -> None:
    """A change of the last layer's weights changes energies by its product with the features."""
    model = potential(kind, forces)

    def energies() -> tuple[np.ndarray, np.ndarray]:
        (item,) = predict_batches(model, structures, 1, batch_size=40, last_layer=True)
        return item.prediction.energy[:, 0].numpy(), item.structure_features.numpy()

    before, features = energies()
    tensor, bias = (one for one, _, _ in model.energy_head.output_rows())
    change = torch.linspace(-1, 1, features.shape[1] - 1, dtype=torch.float64)
    shift, norm = 0.3, getattr(model.energy_head, "average_atoms", 1)
    with torch.no_grad():
        rows = tensor if kind == "painn" else tensor[0]  # (D, F - 1)
        rows[1] += change
        bias[1] += shift
    after, _ = energies()
    sizes = np.array([one.num_atoms for one in structures])
    scale = float(model.energy_scale[1]) / norm
    expected = scale * sizes * (features @ np.array([*change.tolist(), shift]))
    np.testing.assert_allclose(after - before, expected, atol=1e-9)


def test_nothing_depends_on_how_structures_are_put_into_batches(
    structures: list[Structure],
) -> None:
    model = potential()
    together, alone = fitted(model, structures), fitted(model, structures, batch_size=1)
    first = sigmas(model, structures, together)
    assert min(first) > 0
    np.testing.assert_allclose(sigmas(model, structures, alone, batch_size=3), first, rtol=1e-6)


def test_structures_without_energies_are_left_out(structures: list[Structure]) -> None:
    model = potential()
    rng = np.random.default_rng(9)
    bare = [small_structure(rng, f"bare {k}", labels="F") for k in range(5)]
    plain = fit_uncertainty(model, "a", structures[:25], structures[25:])
    mixed = fit_uncertainty(model, "a", bare + structures[:25], structures[25:] + bare)
    assert mixed[0].energy[1:] == plain[0].energy[1:]
    assert mixed[0].energy.rigidity.scale == pytest.approx(plain[0].energy.rigidity.scale, rel=1e-9)
    factors = [one[0].energy.rigidity.factor for one in (mixed, plain)]
    np.testing.assert_allclose(factors[0], factors[1], rtol=1e-6)
    with pytest.raises(DataError, match="no training structure of head 'a'"):
        fit_uncertainty(model, "a", bare, structures)


def test_sigma_is_in_ev_of_the_whole_structure(structures: list[Structure]) -> None:
    """On the structures of the calibration 68.3% of the errors are below sigma."""
    model = potential()
    uncertainty = fitted(model, structures)
    held_out = structures[25:]
    results = list(predict(model, held_out, "a", uncertainty=uncertainty))
    ratio = [
        (result.energy - (one.energy or 0.0)) / (result.energy_uncertainty or np.nan)
        for one, result in zip(held_out, results, strict=True)
    ]
    assert np.quantile(np.abs(ratio), NORMAL_WITHIN[0]) == pytest.approx(1)
    assert next(iter(predict(model, held_out, "a"))).energy_uncertainty is None
    evaluation = evaluate_structures(model, held_out, 0, uncertainty=uncertainty)
    assert [row["energy_uncertainty_ev"] for row in evaluation.rows] == pytest.approx(
        [result.energy_uncertainty for result in results]
    )
    assert evaluation.calibration is not None
    assert evaluation.calibration.within_one_sigma == pytest.approx(
        np.mean(np.abs(ratio) <= 1), abs=1e-12
    )


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_sigma_of_forces_is_one_for_each_atom(forces: str, structures: list[Structure]) -> None:
    """On the atoms of the calibration 68.3% of the components' errors are below sigma."""
    model = potential(forces=forces)
    uncertainty, held_out = fitted(model, structures), structures[25:]
    results = list(predict(model, held_out, "a", uncertainty=uncertainty))
    for one, result in zip(held_out, results, strict=True):
        assert result.forces_uncertainty is not None
        assert result.forces_uncertainty.shape == (one.num_atoms,)
    errors = [r.forces - one.forces for one, r in zip(held_out, results, strict=True)]
    ratio = (
        np.concatenate(errors) / np.concatenate([r.forces_uncertainty for r in results])[:, None]
    )
    assert np.quantile(np.abs(ratio), NORMAL_WITHIN[0]) == pytest.approx(1)
    evaluation = evaluate_structures(model, held_out, 0, uncertainty=uncertainty)
    assert evaluation.force_calibration is not None
    assert evaluation.force_calibration.size == sum(one.num_atoms for one in held_out)
    assert evaluation.force_calibration.within_one_sigma == pytest.approx(
        np.mean(np.abs(ratio) <= 1), abs=0.01
    )
    largest = [row["forces_uncertainty_largest_ev_per_ang"] for row in evaluation.rows]
    assert largest == pytest.approx([float(r.forces_uncertainty.max()) for r in results])


def test_an_atom_unlike_those_of_training_is_less_certain(structures: list[Structure]) -> None:
    model = potential()
    uncertainty = fitted(model, structures)
    one = structures[0]
    squeezed = replace(one, positions=0.5 * one.positions)
    usual, odd = predict(model, [one, squeezed], "a", uncertainty=uncertainty)
    assert usual.forces_uncertainty is not None
    assert odd.forces_uncertainty is not None
    assert (odd.forces_uncertainty > usual.forces_uncertainty).all()
    assert odd.forces_uncertainty.mean() > 1.3 * usual.forces_uncertainty.mean()


def test_without_force_labels_energies_alone_are_fitted(structures: list[Structure]) -> None:
    model = potential()
    bare = [replace(one, forces=None) for one in structures]
    for training, held_out in ((bare, structures), (structures, bare)):
        head, calibrations = fit_uncertainty(model, "a", training[:25], held_out[25:])
        assert (head.forces, calibrations.forces) == (None, None)
        uncertainty = Uncertainty(fingerprint(model), {"a": head})
        (result,) = predict(model, structures[:1], "a", uncertainty=uncertainty)
        assert result.energy_uncertainty is not None
        assert result.forces_uncertainty is None


def test_of_many_atoms_evenly_chosen_ones_are_kept() -> None:
    some = _Errors(1, (3,), most=10)
    values = np.arange(41.0)
    for part in np.array_split(values, 7):
        some.add(part[:, None], torch.as_tensor(part)[:, None].expand(-1, 3))
    features, errors = some.joined()
    assert features[:, 0].tolist() == np.arange(0, 41, 8).tolist()
    assert np.array_equal(errors, np.repeat(features, 3, axis=1))
    assert len(some) == len(features)


def test_two_copies_far_apart_are_twice_as_uncertain(structures: list[Structure]) -> None:
    model = potential()
    uncertainty = fitted(model, structures)
    one = structures[0]
    two = Structure(
        atomic_numbers=np.tile(one.atomic_numbers, 2),
        positions=np.concatenate([one.positions, one.positions + 50]),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
    )
    single, double = sigmas(model, [one, two], uncertainty)
    assert double == pytest.approx(2 * single)


def test_a_saved_uncertainty_is_the_same_again(structures: list[Structure], tmp_path: Path) -> None:
    model = potential().float()
    uncertainty = fitted(model, structures)
    path = tmp_path / "uncertainty.safetensors"
    uncertainty.save(path)
    again = Uncertainty.load(path, model)
    for kind in ("energy", "forces"):
        assert getattr(again.heads["a"], kind)[1:] == getattr(uncertainty.heads["a"], kind)[1:]
    assert sigmas(model, structures, again) == sigmas(model, structures, uncertainty)
    double = potential().float().double()
    assert sigmas(double, structures, Uncertainty.load(path, double)) == pytest.approx(
        sigmas(model, structures, uncertainty), rel=1e-2
    )


def test_the_file_of_another_model_is_refused(structures: list[Structure], tmp_path: Path) -> None:
    model = potential()
    path = tmp_path / "uncertainty.safetensors"
    fitted(model, structures).save(path)
    with pytest.raises(CheckpointError, match="fitted for another model"):
        Uncertainty.load(path, potential(seed=1))
    other = potential()
    other.energy_scale[1] *= 1 + 1e-12
    with pytest.raises(CheckpointError, match="fitted for another model"):
        Uncertainty.load(path, other)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        Uncertainty.load(path, model)
    save_potential(model, path)
    with pytest.raises(CheckpointError, match="holds no uncertainty"):
        Uncertainty.load(path, model)


def test_the_calculator_finds_what_lies_beside_the_checkpoint(
    structures: list[Structure], tmp_path: Path
) -> None:
    from ase.build import molecule

    model = potential().float()
    checkpoint = tmp_path / "model.safetensors"
    save_potential(model, checkpoint)
    water = molecule("H2O")
    assert LaMMCalculator(checkpoint, "a").uncertainty is None
    fitted(model, structures).save(uncertainty_path(checkpoint))
    water.calc = LaMMCalculator(checkpoint, "a")
    water.get_potential_energy()
    assert water.calc.results["energy_uncertainty"] > 0
    assert (water.calc.get_property("forces_uncertainty", water) > 0).all()
    assert water.calc.get_property("energy_uncertainty", water) > 0
    assert LaMMCalculator(checkpoint, "a", uncertainty=False).uncertainty is None
    assert LaMMCalculator(checkpoint, "b").uncertainty is None
    with pytest.raises(ConfigError, match="no uncertainty was fitted for head 'b'"):
        LaMMCalculator(model, "b", uncertainty=uncertainty_path(checkpoint))
    save_potential(potential(seed=1), checkpoint)
    with pytest.raises(CheckpointError, match="another model"):
        LaMMCalculator(checkpoint, "a")

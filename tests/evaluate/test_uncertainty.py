"""Uncertainties of energies: features of the last layer, batches, units, and files."""

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
    EnergyUncertainty,
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


def fitted(model: Potential, structures: list[Structure], **keywords: int) -> EnergyUncertainty:
    rigidity, record, _ = fit_uncertainty(model, "a", structures[:25], structures[25:], **keywords)
    return EnergyUncertainty(fingerprint(model), {"a": rigidity}, {"a": record})


def sigmas(
    model: Potential, structures: list[Structure], uncertainty: EnergyUncertainty, **keywords: int
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
        assert item.last_layer is not None
        return item.prediction.energy[:, 0].numpy(), item.last_layer.numpy()

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
    assert mixed[1] == pytest.approx(plain[1], rel=1e-9)
    np.testing.assert_allclose(mixed[0].factor, plain[0].factor, rtol=1e-6)
    with pytest.raises(DataError, match="no training structure of head 'a'"):
        fit_uncertainty(model, "a", bare, structures)


def test_sigma_is_in_ev_of_the_whole_structure(structures: list[Structure]) -> None:
    """On the structures of the calibration 68.3% of the errors are below sigma."""
    model = potential()
    rigidity, record, _ = fit_uncertainty(model, "a", structures[:25], structures[25:])
    uncertainty = EnergyUncertainty(fingerprint(model), {"a": rigidity}, {"a": record})
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
    again = EnergyUncertainty.load(path, model)
    assert again.records == uncertainty.records
    assert sigmas(model, structures, again) == sigmas(model, structures, uncertainty)
    double = potential().float().double()
    assert sigmas(double, structures, EnergyUncertainty.load(path, double)) == pytest.approx(
        sigmas(model, structures, uncertainty), rel=1e-2
    )


def test_the_file_of_another_model_is_refused(structures: list[Structure], tmp_path: Path) -> None:
    model = potential()
    path = tmp_path / "uncertainty.safetensors"
    fitted(model, structures).save(path)
    with pytest.raises(CheckpointError, match="fitted for another model"):
        EnergyUncertainty.load(path, potential(seed=1))
    other = potential()
    other.energy_scale[1] *= 1 + 1e-12
    with pytest.raises(CheckpointError, match="fitted for another model"):
        EnergyUncertainty.load(path, other)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        EnergyUncertainty.load(path, model)
    save_potential(model, path)
    with pytest.raises(CheckpointError, match="holds no uncertainty"):
        EnergyUncertainty.load(path, model)


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
    assert water.calc.get_property("energy_uncertainty", water) > 0
    assert LaMMCalculator(checkpoint, "a", uncertainty=False).uncertainty is None
    assert LaMMCalculator(checkpoint, "b").uncertainty is None
    with pytest.raises(ConfigError, match="no uncertainty was fitted for head 'b'"):
        LaMMCalculator(model, "b", uncertainty=uncertainty_path(checkpoint))
    save_potential(potential(seed=1), checkpoint)
    with pytest.raises(CheckpointError, match="another model"):
        LaMMCalculator(checkpoint, "a")

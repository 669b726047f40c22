"""`Potential`: units, outputs, gradient forces, precision, building and re-heading."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoders import MODELS, PAINN, SMOOTH, SUBSETS, small_model
from torch.testing import assert_close

from awkward import AWKWARD
from lamm.errors import CheckpointError, ConfigError, DataError
from lamm.graph import GraphBatch
from lamm.models import PRESETS, ModelConfig, Potential, build, count_parameters
from lamm.models.heads import safe_norm

GRADIENT = ModelConfig(encoder=SMOOTH, forces="gradient")


def batch_of(structures, model, dtype=torch.float64):
    return GraphBatch.from_structures(structures, model.graph_config, dtype=dtype)


def learnt(model):
    """All parameters but the layers' scales, which are fitted before training."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", MODELS)
def test_physical_units_are_the_normalised_ones_scaled_and_shifted(name):
    model = small_model(MODELS[name])
    batch = batch_of(AWKWARD, model)
    raw, physical = model(batch, normalised=True), model(batch)
    for d in range(2):
        reference = torch.stack(
            [model.reference_energies[d, one.atomic_numbers.astype(int)].sum() for one in AWKWARD]
        )
        energy = raw.energy[:, d] * model.energy_scale[d] + reference
        assert_close(physical.energy[:, d], energy, rtol=0, atol=1e-10)
        forces = raw.forces[:, d] * model.force_scale[d]
        assert_close(physical.forces[:, d], forces, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", [*MODELS.values(), GRADIENT], ids=[*MODELS, "gradient"])
def test_energies_alone_are_those_beside_the_forces(config):
    model = small_model(config)
    batch = batch_of(AWKWARD, model)
    with torch.no_grad():
        assert_close(model.energies(batch), model(batch).energy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_can_start_at_the_references(name):
    model = small_model(MODELS[name])
    batch = batch_of(AWKWARD, model)
    before = model(batch, normalised=True)
    model.start_at_references([1])
    after = model(batch, normalised=True)
    assert_close(after.energy[:, 0], before.energy[:, 0])
    assert_close(after.forces[:, 0], before.forces[:, 0])
    assert before.energy[:, 1].all()
    assert not after.energy[:, 1].any()
    assert not after.forces[:, 1].any()


@pytest.mark.parametrize("name", MODELS)
def test_outputs_that_start_at_the_references_can_learn(name):
    model = small_model(MODELS[name]).train().start_at_references()
    first = model(batch_of(AWKWARD, model), normalised=True)
    loss = (first.energy - 1).square().sum() + (first.forces - 1).square().sum()
    gradients = torch.autograd.grad(loss, learnt(model), allow_unused=True)
    assert any(one is not None and one.any() for one in gradients)


@pytest.mark.parametrize("structure", AWKWARD, ids=lambda s: s.name)
def test_gradient_forces_are_finite_differences_of_the_energy(structure, rng):
    model = small_model(GRADIENT)
    forces = model(batch_of([structure], model)).forces
    step = 1e-5
    for _ in range(3):
        direction = rng.normal(size=structure.positions.shape)
        energies = [
            model(
                batch_of([replace(structure, positions=structure.positions + h * direction)], model)
            ).energy[0]
            for h in (step, -step)
        ]
        slope = (energies[0] - energies[1]) / (2 * step)
        expected = -(forces * torch.from_numpy(direction)[:, None]).sum(dim=(0, 2))
        assert_close(slope, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "structure", [one for one in AWKWARD if one.pbc.all()], ids=lambda s: s.name
)
def test_stress_is_finite_differences_of_the_energy_by_strain(structure):
    model = small_model(GRADIENT)
    stress = model(batch_of([structure], model)).stress
    volume = abs(np.linalg.det(structure.cell))
    step = 1e-5
    for voigt, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for h in (step, -step):
            strain = np.eye(3)
            strain[a, b] += h / 2
            strain[b, a] += h / 2
            strained = replace(
                structure, positions=structure.positions @ strain, cell=structure.cell @ strain
            )
            energies.append(model(batch_of([strained], model)).energy[0])
        slope = (energies[0] - energies[1]) / (2 * step) / volume
        assert_close(stress[0, :, voigt], slope, rtol=0, atol=1e-8)


def test_a_structure_without_a_cell_has_zero_stress():
    model = small_model(GRADIENT)
    assert (model(batch_of([AWKWARD[5]], model)).stress == 0).all()


def test_training_on_gradient_forces_has_the_right_gradient():
    """The gradient of a loss of the forces, by weight, against finite differences."""
    model = small_model(GRADIENT).train()
    batch = batch_of(AWKWARD[:6], model)
    weight = model.encoder.messages[1].filter.weight

    def loss():
        prediction = model(batch, subset_index=batch.subset_index, normalised=True)
        return prediction.forces.square().sum() + prediction.energy.sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).to(weight)
    original, step, values = weight.detach().clone(), 1e-6, []
    for h in (step, -step):
        with torch.no_grad():
            weight.copy_(original + h * direction)
        values.append(loss().item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(
        (gradient * direction).sum().item(), rel=1e-6
    )


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_forces_work_inside(context):
    model = small_model(GRADIENT)
    batch = batch_of(AWKWARD, model)
    expected = model(batch).forces
    with context():
        inner = batch_of(AWKWARD, model)
        for one in (batch, inner):
            prediction = model(one)
            assert not prediction.forces.requires_grad
            assert_close(prediction.forces, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_nothing_is_attached_to_every_parameter(name):
    model = small_model(MODELS[name]).train()
    prediction = model(batch_of([], model), normalised=True)
    assert prediction.energy.shape == (0, 2)
    assert prediction.forces.shape == (0, 2, 3)
    gradients = torch.autograd.grad(
        prediction.energy.sum() + prediction.forces.sum(), learnt(model)
    )
    assert all((gradient == 0).all() for gradient in gradients)
    assert model(batch_of([], model)).energy.shape == (0, 2)


def test_another_precision_leaves_references_and_scales_alone():
    model = small_model(MODELS["painn"])
    exact = model.reference_energies.clone()
    for changed in (model.float(), model.half(), model.to(torch.bfloat16), model.double()):
        for name in ("reference_energies", "energy_scale", "force_scale"):
            assert getattr(changed, name).dtype == torch.float64
        assert torch.equal(changed.reference_energies, exact)
    assert model.known_elements.dtype == torch.bool


def test_large_total_energies_keep_their_digits():
    model = small_model(MODELS["painn"]).float()
    references = torch.full((119,), -40000.0, dtype=torch.float64)
    model.set_normalisation(0, references, torch.ones(119), 1.0, 1.0)
    batch = batch_of([AWKWARD[5]], model, torch.float32)
    raw, physical = model(batch, normalised=True), model(batch)
    remainder = physical.energy[0, 0] + 9 * 40000.0
    assert_close(remainder, raw.energy[0, 0].double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["painn", "painn with gradient forces"])
def test_mixed_precision_sums_energies_in_float32(name):
    model = small_model(MODELS[name]).float()
    batch = batch_of(AWKWARD, model, torch.float32)
    expected = model(batch, normalised=True)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()
        result = model(batch, normalised=True)
    assert result.energy.dtype == result.forces.dtype == torch.float32
    scale = expected.energy.abs().max()
    assert (result.energy - expected.energy).abs().max() < 0.05 * scale
    (result.energy.sum() + result.forces.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in learnt(model))


def test_a_float64_batch_suits_a_float32_model():
    model = small_model(MODELS["painn"]).float()
    double, single = (batch_of(AWKWARD, model, d) for d in (torch.float64, torch.float32))
    assert_close(model(double).forces, model(single).forces, rtol=0, atol=1e-4)


def test_the_norm_is_safe_at_zero_twice():
    vectors = torch.zeros(1, 3, 2, dtype=torch.float64)
    vectors[0, :, 1] = torch.tensor([1.0, 2.0, 2.0])
    vectors.requires_grad_()
    norm = safe_norm(vectors)
    assert norm.tolist() == [[0.0, 3.0]]
    (first,) = torch.autograd.grad(norm.sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() + first.sum(), vectors)
    assert_close(first[0, :, 1].detach(), torch.tensor([1, 2, 2]) / 3.0, check_dtype=False)
    assert (first[0, :, 0] == 0).all()
    assert second.isfinite().all()


def test_the_sizes_are_the_papers():
    ten = [f"subset {d}" for d in range(10)]
    assert build("lamm-s", ten).num_parameters == 20_100_644
    assert count_parameters("lamm-s", 10) == 20_100_644
    original = {"preset": "lamm-s", "encoder": {"num_elements": 83}}
    assert count_parameters(original, 1) == 20_073_481


def test_a_seed_decides_the_weights_and_nothing_else():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = build("lamm-xs", ["a"], seed=7)
    assert torch.equal(torch.rand(3), expected)
    second = build("lamm-xs", ["a"], seed=7)
    other = build("lamm-xs", ["a"], seed=8)
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(first.encoder.embedding.weight, other.encoder.embedding.weight)


def test_fine_tuning_keeps_the_encoder_and_starts_heads_anew():
    model = small_model(MODELS["painn"])
    new = model.with_subsets(["mine"], seed=3)
    assert new.subsets == ("mine",)
    own = dict(new.encoder_parameters())
    for name, parameter in model.encoder_parameters():
        assert torch.equal(parameter, own[name])
        assert parameter is not own[name]
    assert not torch.equal(new.energy_head.net[0].weight, model.energy_head.net[0].weight)
    assert (new.energy_scale == 1).all()
    names = [*own, *dict(new.head_parameters())]
    assert names == [name for name, _ in new.named_parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_fine_tuning_can_start_from_a_head(name):
    model = small_model(MODELS[name])
    new = model.with_subsets(["mine", "copy"], heads={"copy": SUBSETS[1]}, seed=3)
    batch = batch_of(AWKWARD, model)
    expected, result = model(batch), new(batch)
    assert_close(result.energy[:, 1], expected.energy[:, 1], rtol=0, atol=1e-12)
    assert_close(result.forces[:, 1], expected.forces[:, 1], rtol=0, atol=1e-12)
    assert (result.forces[:, 0] - expected.forces[:, 0]).abs().max() > 1e-6
    with pytest.raises(ConfigError, match=r"no output for subset 'tow'\. Did you mean 'two'"):
        model.with_subsets(["mine"], heads={"mine": "tow"})


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("name", ["lamm-xs", "lamm-xs-eq"])
def test_an_output_is_the_same_to_the_last_bit_beside_any_number_of_others(name, forces):
    """In float32 and at the widths of use, where a product's columns differ with their number."""
    config = PRESETS[name].model_copy(update={"forces": forces})
    model = build(config, [str(number) for number in range(7)], seed=1).eval()
    batch = batch_of(AWKWARD, model)

    def said(potential, column):
        chosen = torch.full((len(AWKWARD),), column)
        with torch.no_grad():
            return potential(batch, subset_index=chosen)

    expected = said(model, 4)
    for number in (1, 2, 5):
        names = [f"new {k}" for k in range(number)]
        other = model.with_subsets(names, heads={names[-1]: "4"}, seed=2)
        found = said(other, number - 1)
        assert torch.equal(found.energy, expected.energy)
        assert torch.equal(found.forces, expected.forces)


def test_a_description_builds_the_same_architecture():
    for config in MODELS.values():
        model = build(config, ["a", "b"])
        again = Potential.from_description(model.describe())
        assert again.config == model.config
        assert again.subsets == model.subsets
        again.load_state_dict(model.state_dict())
    with pytest.raises(CheckpointError, match="not the description of a model"):
        Potential.from_description({"subsets": ["a"]})


def test_a_preset_is_a_name_a_dictionary_or_a_configuration():
    changed = ModelConfig.model_validate(
        {"preset": "lamm-xs", "encoder": {"channels": 32}, "forces": "gradient"}
    )
    assert changed.encoder == PRESETS["lamm-xs"].encoder.model_copy(update={"channels": 32})
    assert changed.forces == "gradient"
    assert ModelConfig.model_validate("lamm-s") == PRESETS["lamm-s"]
    assert build({"encoder": PAINN.model_dump()}, ["a"]).config.encoder == PAINN


def test_wrong_requests_say_what_would_be_right():
    with pytest.raises(ConfigError, match=r"unknown model preset 'lamm-sx'\. Did you mean 'lamm-"):
        build("lamm-sx", ["a"])
    with pytest.raises(ConfigError, match="num_layer"):
        build({"preset": "lamm-s", "encoder": {"num_layer": 3}}, ["a"])
    with pytest.raises(ConfigError, match="one or more different names"):
        build("lamm-xs", ["a", "a"])
    model = build("lamm-xs", ["oc20", "qmugs"])
    assert model.column("qmugs") == 1
    with pytest.raises(ConfigError, match=r"no output for subset 'oc2'\. Did you mean 'oc20'"):
        model.column("oc2")
    with pytest.raises(ConfigError, match="energy_scale of subset 'oc20' is 0"):
        model.set_normalisation(0, np.zeros(119), np.ones(119, dtype=bool), 0.0, 1.0)


def test_an_element_that_the_model_lacks_is_named():
    few = ModelConfig(encoder=PAINN.model_copy(update={"num_elements": 20}))
    model = build(few, ["a"])
    with pytest.raises(DataError, match="element 26 in the batch; this model has elements 1 to 20"):
        model(batch_of([AWKWARD[0]], model))

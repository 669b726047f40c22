"""EquiformerV2 as a whole: size, symmetry, gradients, blocks, dropout."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from encoders import EQUIFORMER, GATED, SUBSETS, small_model
from test_so2 import about_the_edge
from torch.testing import assert_close

from awkward import AWKWARD, ETHANOL, random_rotation, structure, turned
from lamm.errors import ConfigError, DataError
from lamm.graph import GraphBatch, edge_vectors
from lamm.models import ModelConfig, build, count_parameters, edge_frames

EXACT = {"rtol": 0, "atol": 1e-10}
LOW_SYMMETRY = [AWKWARD[3], AWKWARD[4], AWKWARD[5]]
CHAIN = structure(
    "a chain along y", [8, 6, 1], [[0, 0, 0], [0, 1.2, 0], [0, 2.3, 0]], np.diag([3.0, 3.7, 3.2]),
    (True, True, True),
)  # fmt: skip
CUBIC = structure("a cubic crystal", [11], [[0, 0, 0]], np.eye(3) * 2.6, (True, True, True))
BOTH = {"grid": EQUIFORMER, "gates": GATED}
both = pytest.mark.parametrize("encoder", BOTH.values(), ids=BOTH)


def changed(encoder=EQUIFORMER, forces="direct", **update):
    """A potential with another value of some keys, all of them checked."""
    keys = encoder.model_dump() | update
    return small_model(ModelConfig.model_validate({"encoder": keys, "forces": forces}), scale=1.0)


def batch_of(structures, model, dtype=torch.float64):
    return GraphBatch.from_structures(structures, model.graph_config, dtype=dtype)


def evaluated(model, structures):
    with torch.no_grad():
        return model(batch_of(structures, model), normalised=True)


def relative(value, expected):
    return ((value - expected).abs().max() / expected.abs().max()).item()


def turn_errors(model, structures, seed):
    """Relative errors of energies, forces, scalars and vectors when structures are turned."""
    matrix = torch.from_numpy(random_rotation(seed))
    expected = evaluated(model, structures)
    result = evaluated(model, [turned(one, matrix.numpy()) for one in structures])
    return [
        relative(result.energy, expected.energy),
        relative(result.forces, expected.forces @ matrix.T),
        relative(result.features, expected.features),
        relative(result.vectors, torch.einsum("xy,nyc->nxc", matrix, expected.vectors)),
    ]


def test_the_size_is_the_originals():
    assert count_parameters("lamm-l", 10) == 31_145_492
    per_output = 2 * (5 * 128 + 1)  # a row of five matrices and a bias, of energy and of forces
    assert count_parameters("lamm-l", 11) == 31_145_492 + per_output


# --- symmetry ---

TURN_ERRORS = {
    (2, 1): {10: (4.3e-8, 2.5e-5), 14: (9.0e-10, 2.2e-7), 18: (1.4e-12, 2.0e-9)},
    (2, 2): {10: (1.9e-8, 7.7e-5), 14: (2.4e-10, 1.2e-6), 18: (4.4e-12, 2.5e-8)},
    (4, 2): {
        10: (2.7e-6, 2.2e-3),
        14: (2.8e-7, 1.1e-4),
        18: (1.0e-8, 1.4e-5),
        26: (1.4e-10, 6.1e-8),
    },
}
"""Measured: the largest relative errors of energies, and of forces, scalars and vectors, over six
rotations of three structures, by l_max, m_max and the grid's resolution."""


@pytest.mark.parametrize(("l_max", "m_max"), TURN_ERRORS)
def test_the_model_turns_the_better_the_finer_its_grid(l_max, m_max):
    errors = []
    for resolution, (energy, forces) in TURN_ERRORS[l_max, m_max].items():
        model = changed(l_max=l_max, m_max=m_max, grid_resolution=resolution)
        worst = np.max([turn_errors(model, LOW_SYMMETRY, seed) for seed in range(3)], axis=0)
        assert worst[0] < 2 * energy, resolution
        assert (worst[1:] < 2 * forces).all(), resolution
        errors.append(worst[1])
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("l_max", "m_max"), [(1, 1), (2, 0), (2, 2), (4, 2)])
def test_with_gates_alone_the_model_turns_exactly(l_max, m_max):
    model = changed(GATED, l_max=l_max, m_max=m_max)
    assert max(turn_errors(model, LOW_SYMMETRY, 1)) < 1e-10


def rolled(monkeypatch, angles):
    """Let each edge's frame be rolled about the edge by an angle of its own."""
    plain = edge_frames.edge_wigner

    def edge_wigner(vectors, layout):
        rolls = [about_the_edge(layout, angle) for angle in angles[: len(vectors)]]
        return torch.stack(rolls) @ plain(vectors, layout)

    monkeypatch.setattr(edge_frames, "edge_wigner", edge_wigner)


@both
def test_a_roll_about_the_edges_changes_no_more_than_a_rotation(encoder, monkeypatch, rng):
    """Measured 2e-8 of the forces on the grid; nothing with gates, which have none."""
    model = changed(encoder)
    expected = evaluated(model, LOW_SYMMETRY)
    bounds = (1e-7, 1e-6) if encoder is EQUIFORMER else (1e-10, 1e-10)
    for _ in range(3):
        with monkeypatch.context() as patch:
            rolled(patch, rng.uniform(0, 2 * np.pi, 1000))
            result = evaluated(model, LOW_SYMMETRY)
        assert relative(result.energy, expected.energy) < bounds[0]
        assert relative(result.forces, expected.forces) < bounds[1]
        assert encoder is GATED or not torch.equal(result.forces, expected.forces)


ACTIVATIONS = ("gate", "s2", "separable_s2")
NORMS = ("layer_norm", "layer_norm_sh", "rms_norm_sh")
KINDS = [
    {"norm": norm, "attention_activation": one, "feed_forward_activation": one, "grid_mlp": mlp}
    for norm, one, mlp in product(NORMS, ACTIVATIONS, (False, True))
]
OTHERS = [
    {"alpha_norm": False},
    {"shared_radial": True},
    {"shared_radial": True, "l_max": 3, "m_max": 2},
    {"atom_edge_embedding": False},
    {"weight_init": "normal"},
    {"attention_activation": "gate", "grid_mlp": True},
    {"attention_activation": "s2", "feed_forward_activation": "gate", "grid_mlp": False},
    {"m_max": 0},
    {"l_max": 1, "m_max": 1},
    {"num_heads": 1, "num_layers": 1, "alpha_channels": 1, "value_channels": 1},
]


@pytest.mark.parametrize("update", KINDS + OTHERS, ids=lambda u: " ".join(map(str, u.values())))
def test_every_kind_turns_and_has_all_gradients(update):
    model = changed(**update, grid_resolution=18)
    config = model.config.encoder
    exact = config.attention_activation == config.feed_forward_activation == "gate"
    bound = 1e-10 if exact and not config.grid_mlp else 1e-5
    if config.weight_init == "normal":  # larger weights, sharper functions: measured 4e-4
        bound = 1e-3
    assert max(turn_errors(model, [AWKWARD[3]], 1)) < bound
    grads = {}
    for block in (16, None):
        other = changed(**update, grid_resolution=18, edge_block=block)
        result = other(batch_of(LOW_SYMMETRY[::2], other), normalised=True)
        (result.energy.sum() + result.forces.square().sum()).backward()
        grads[block] = {name: one.grad for name, one in other.named_parameters()}
    for name, gradient in grads[None].items():
        assert gradient is not None, name
        assert_close(grads[16][name], gradient, rtol=1e-9, atol=1e-10)


# --- edges ---


@both
def test_the_same_call_gives_the_same_bits(encoder):
    model = changed(encoder)
    first, second = evaluated(model, AWKWARD), evaluated(model, AWKWARD)
    for one, other in zip(first, second, strict=True):
        assert one is other is None or torch.equal(one, other)


@both
def test_the_order_of_edges_means_nothing(encoder):
    model = changed(encoder)
    batch = batch_of(AWKWARD, model)
    order = torch.randperm(batch.num_edges, generator=torch.Generator().manual_seed(1))
    mixed = replace(
        batch, edge_index=batch.edge_index[:, order], cell_offsets=batch.cell_offsets[order]
    )
    expected, result = model(batch), model(mixed)
    assert_close(result.energy, expected.energy, **EXACT)
    # Sums in another order, made larger by norms where symmetry makes features vanish.
    assert_close(result.forces, expected.forces, rtol=0, atol=1e-9)


def test_the_rule_for_ties_matters_where_there_are_some():
    shell, strict = changed(ties="shell"), changed(ties="strict")
    one, other = (evaluated(model, [AWKWARD[5]]) for model in (shell, strict))
    assert_close(other.energy, one.energy, **EXACT)
    counts = [batch_of([AWKWARD[7]], model).num_edges for model in (shell, strict)]
    assert counts == [4 * 12, 4 * 8]
    assert evaluated(strict, [AWKWARD[7]]).forces.isfinite().all()


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@both
def test_atoms_without_neighbours_have_an_energy_and_no_force(encoder, forces):
    model = changed(encoder, forces)
    for structures in ([AWKWARD[0]], [AWKWARD[1]], [AWKWARD[0], AWKWARD[1], AWKWARD[0]]):
        result = model(batch_of(structures, model), normalised=True)
        assert result.energy.isfinite().all()
        assert (result.energy != 0).all()
        assert (result.forces == 0).all()
    beside = model(batch_of([AWKWARD[0], *LOW_SYMMETRY], model), normalised=True)
    assert (beside.forces[0] == 0).all()


def test_edges_along_the_polar_axis_are_like_any_other():
    """The crystal turned so that its edges lie along y, and so that none does."""
    model = changed(GATED)
    for one in (CHAIN, CUBIC):
        for seed in range(3):
            matrix = torch.from_numpy(random_rotation(seed))
            expected, result = (
                evaluated(model, [one]),
                evaluated(model, [turned(one, matrix.numpy())]),
            )
            assert_close(result.energy, expected.energy, **EXACT)
            assert_close(result.forces, expected.forces @ matrix.T, **EXACT)


# --- gradients ---

LARGE = {"average_atoms": 1.0}
MOVED = [CHAIN, CUBIC, AWKWARD[2], AWKWARD[3], AWKWARD[4], AWKWARD[5], AWKWARD[7]]


def slope(energy, step=3e-8):
    """Central difference. In a crystal where symmetry forbids all l > 0, norms make the energy
    bend within 1e-5 Å: the error is 1e7 times the square of the step there."""
    return (energy(step) - energy(-step)) / (2 * step)


@both
@pytest.mark.parametrize("one", MOVED, ids=lambda s: s.name)
def test_gradient_forces_are_finite_differences_of_the_energy(encoder, one, rng):
    """With the same edges, since a neighbour limit makes the energy jump."""
    model = changed(encoder, "gradient")
    model.reference_energies.zero_()  # for the digits
    batch = batch_of([one], model)
    forces = model(batch).forces
    for _ in range(2):
        direction = torch.from_numpy(rng.normal(size=one.positions.shape))

        def energy(h, direction=direction):
            return model(replace(batch, positions=batch.positions + h * direction)).energy[0]

        expected = -(forces * direction[:, None]).sum(dim=(0, 2))
        assert_close(slope(energy), expected, rtol=0, atol=1e-6)


@both
@pytest.mark.parametrize("one", [s for s in MOVED if s.pbc.all()], ids=lambda s: s.name)
def test_stress_is_finite_differences_of_the_energy_by_strain(encoder, one):
    model = changed(encoder, "gradient")
    model.reference_energies.zero_()  # for the digits
    batch = batch_of([one], model)
    stress, volume = model(batch).stress, abs(np.linalg.det(one.cell))
    for voigt, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):

        def energy(h, a=a, b=b):
            strain = torch.eye(3, dtype=torch.float64)
            strain[a, b] += h / 2
            strain[b, a] += h / 2
            strained = replace(batch, positions=batch.positions @ strain, cell=batch.cell @ strain)
            return model(strained).energy[0]

        assert_close(stress[0, :, voigt], slope(energy) / volume, rtol=0, atol=1e-7)


@both
def test_training_on_gradient_forces_has_the_right_gradient(encoder):
    """The gradient of a loss of the forces, by weight, against finite differences."""
    calm = {"alpha_dropout": 0.0, "drop_path": 0.0}
    model = changed(encoder, "gradient", **calm).train()
    batch = batch_of([CHAIN, CUBIC, *AWKWARD[:6]], model)

    def loss():
        result = model(batch, subset_index=batch.subset_index, normalised=True)
        return result.forces.square().sum() + result.energy.sum()

    attention = model.encoder.blocks[0].attention
    for weight in (
        attention.convolution_1.zero.weight,
        attention.radial.net[0].weight,
        model.encoder.blocks[1].feed_forward.linear_1.weight,
        model.encoder.embedding.weight,
    ):
        (gradient,) = torch.autograd.grad(loss(), weight)
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).to(weight)
        original = weight.detach().clone()

        def value(h, weight=weight, original=original, direction=direction):
            with torch.no_grad():
                weight.copy_(original + h * direction)
            return loss().item()

        expected = slope(value, 1e-6)
        value(0.0)
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@both
def test_blocks_of_edges_change_nothing(encoder, forces):
    """Energies, forces, and, of a model in evaluation mode, the gradients of all weights."""
    results, grads = [], []
    for block in (None, 16, 128):
        model = changed(encoder, forces, edge_block=block)
        results.append(model(batch_of([CHAIN, *AWKWARD], model)))
        if forces == "direct":
            loss = results[-1].energy.sum() + results[-1].forces.square().sum()
            grads.append(torch.autograd.grad(loss, list(model.parameters())))
    for result in results[1:]:
        assert_close(result.energy, results[0].energy, rtol=0, atol=1e-9)
        assert_close(result.forces, results[0].forces, rtol=0, atol=1e-9)
    for other in grads[1:]:
        for one, expected in zip(other, grads[0], strict=True):
            assert_close(one, expected, rtol=1e-8, atol=1e-9)


@both
def test_second_derivatives_of_the_energy_are_refused_in_blocks_and_right_without(encoder, rng):
    def gradient(block, vectors=None):
        model = changed(encoder, edge_block=block)
        batch = batch_of([WATER], model)
        if vectors is None:
            vectors = edge_vectors(batch)
        vectors = vectors.detach().requires_grad_()
        features = model.encoder(batch, vectors)
        energy = model.energy_head(features, batch.structure_index, 1)[0, 0]
        return vectors, torch.autograd.grad(energy, vectors, create_graph=True)[0]

    with pytest.raises(RuntimeError, match="edge_block"):
        gradient(16)
    vectors, first = gradient(None)
    direction = torch.from_numpy(rng.normal(size=vectors.shape))
    (second,) = torch.autograd.grad((first * direction).sum(), vectors)
    step = 1e-6
    ahead, behind = (gradient(None, vectors + h * direction)[1] for h in (step, -step))
    assert_close(second, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


@both
def test_mixed_precision_is_near_float32(encoder):
    """Of structures of low symmetry; bf16 has three digits."""
    model = changed(encoder).float()
    batch = batch_of(LOW_SYMMETRY, model, torch.float32)
    expected = model(batch, normalised=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(batch, normalised=True)
    assert result.energy.dtype == result.forces.dtype == torch.float32
    assert relative(result.energy, expected.energy) < 0.05
    assert relative(result.forces, expected.forces) < 0.15
    (result.energy.sum() + result.forces.square().sum()).backward()
    assert all(one.grad.isfinite().all() for one in model.parameters())


# --- dropout ---

NO_DROPOUT = {"edge_block": None, "alpha_dropout": 0.0, "drop_path": 0.0, "projection_dropout": 0.0}
WATER = structure("water", [8, 1, 1], [[0, 0, 0], [0.8, 0.6, 0.1], [-0.8, 0.5, 0]])


def test_training_and_evaluation_differ_by_dropout_alone():
    model = changed(**NO_DROPOUT)
    batch = batch_of(AWKWARD, model)
    expected, result = model(batch), model.train()(batch)
    assert torch.equal(result.energy, expected.energy)
    assert torch.equal(result.forces, expected.forces)


@pytest.mark.parametrize("kind", list(NO_DROPOUT)[1:])
def test_dropout_is_drawn_from_the_seed(kind):
    model = changed(**NO_DROPOUT | {kind: 0.4})
    batch = batch_of([AWKWARD[4]] * 3, model)
    calm = model(batch).forces
    model.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model(batch).forces)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], calm)
    assert torch.equal(model.eval()(batch).forces, calm)


def feed_forward_changes(copies, **dropout):
    """What the only feed-forward part adds: in evaluation, and in training with dropout.

    Returns:
        Two (copies, atoms, M, C).
    """
    model = changed(num_layers=1, **NO_DROPOUT | dropout)
    block, seen = model.encoder.blocks[0], []
    model.encoder.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    batch = batch_of([WATER] * copies, model)
    torch.manual_seed(5)
    with torch.no_grad():
        for one in block.attention.project.parameters():
            one.zero_()
        model(batch)
        model.train()(batch)
        for one in block.feed_forward.linear_2.parameters():
            one.zero_()
        model.eval()(batch)
    calm, noisy, none = (one.unflatten(0, (copies, 3)) for one in seen)
    return calm - none, noisy - none


def test_drop_path_leaves_out_whole_structures_and_keeps_the_mean():
    calm, noisy = feed_forward_changes(200, drop_path=0.25)
    kept = noisy.abs().amax(dim=(1, 2, 3)) > 0
    assert_close(noisy[kept], calm[kept] / 0.75, **EXACT)
    assert abs(kept.double().mean().item() - 0.75) < 5 * (0.25 * 0.75 / 200) ** 0.5


def test_projection_dropout_leaves_out_channels_of_atoms_and_keeps_the_mean():
    calm, noisy = feed_forward_changes(30, projection_dropout=0.25)
    kept = noisy.abs().amax(dim=2, keepdim=True) > 0  # of all coefficients alike
    assert_close(noisy, torch.where(kept, calm / 0.75, 0.0), **EXACT)
    assert abs(kept.double().mean().item() - 0.75) < 5 * (0.25 * 0.75 / kept.numel()) ** 0.5
    assert not (kept == kept[:1]).all()
    assert not (kept == kept[:, :1]).all()


def test_alpha_dropout_keeps_the_mean_and_spares_the_force_head():
    copies = 200
    model = changed(num_layers=1, **NO_DROPOUT | {"alpha_dropout": 0.3})
    block, seen = model.encoder.blocks[0], []
    model.encoder.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    batch = batch_of([WATER] * copies, model)
    torch.manual_seed(5)
    with torch.no_grad():
        for one in block.feed_forward.linear_2.parameters():
            one.zero_()
        model(batch)
        model.train()(batch)
        calm, noisy = (one.unflatten(0, (copies, 3)) for one in seen)
        deviation = (noisy.mean(dim=0) - calm[0]).abs() / (noisy.std(dim=0) + 1e-12)
        assert noisy.std(dim=0).max() > 1e-3
        assert (deviation < 6 / copies**0.5).all()
        for one in block.attention.project.parameters():
            one.zero_()
        assert torch.equal(model(batch).forces, model.eval()(batch).forces)


# --- outputs and configuration ---


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_each_subset_has_a_column(forces):
    config = ModelConfig(encoder=EQUIFORMER, forces=forces)
    model = build(config, ["a", "b", "c"], seed=1).double().eval()
    result = model(batch_of([AWKWARD[5]], model))
    assert result.energy.shape == (1, 3)
    assert result.forces.shape == (9, 3, 3)
    assert len(set(result.energy[0].tolist())) == 3


def test_a_head_taken_over_with_a_permutation_gives_permuted_columns():
    model = changed()
    swapped = model.with_subsets(["x", "y", "z"], heads={"x": SUBSETS[1], "z": SUBSETS[0]}, seed=2)
    batch = batch_of(LOW_SYMMETRY, model)
    expected, result = model(batch), swapped(batch)
    for new, old in ((0, 1), (2, 0)):
        assert_close(result.energy[:, new], expected.energy[:, old], **EXACT)
        assert_close(result.forces[:, new], expected.forces[:, old], **EXACT)
    assert not torch.allclose(result.forces[:, 1], expected.forces[:, 0])


def test_the_state_dict_holds_weights_and_normalisation_alone():
    model = changed()
    extra = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    assert all("." not in name for name in extra)
    again = build(model.config, SUBSETS, seed=9).double().eval()
    again.load_state_dict(model.state_dict())
    batch = batch_of(AWKWARD, model)
    assert torch.equal(again(batch).forces, model(batch).forces)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"m_max": 3}, "m_max is 3, expected at most l_max, 2"),
        ({"grid_resolution": 15}, "grid_resolution is 15, expected an even number of at least 6"),
        ({"grid_resolution": 4}, "grid_resolution is 4, expected an even number of at least 6"),
        ({"norm": "batch"}, "norm"),
        ({"alpha_dropout": 1.0}, "alpha_dropout"),
        ({"l_max": 0, "m_max": 0}, "l_max"),
        ({"sphere_channels": 8}, "sphere_channels"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_error(update, message):
    keys = EQUIFORMER.model_dump() | update
    with pytest.raises(ConfigError, match=message):
        build({"encoder": keys}, ["one"])


def test_the_last_element_is_the_last_row():
    model = changed(num_elements=10)
    atoms = [(9, [0, 0, 0]), (9, [1.4, 0, 0])]
    fine = structure("fluorine", [z for z, _ in atoms], [r for _, r in atoms])
    assert model(batch_of([fine], model)).energy.isfinite().all()
    neon = structure("neon", [10], [[0, 0, 0]])
    with pytest.raises(DataError, match="element 10 in the batch; this model has elements 1 to 9"):
        model(batch_of([neon], model))


def test_a_larger_molecule_costs_nothing_to_its_neighbours():
    """One structure's predictions to the last digits, whatever shares the batch."""
    model = changed()
    ethanol = structure("ethanol", *ETHANOL)
    alone = model(batch_of([ethanol], model))
    together = model(batch_of([AWKWARD[4], ethanol, AWKWARD[7]], model))
    assert_close(together.energy[1:2], alone.energy, **EXACT)
    assert_close(together.forces[10:19], alone.forces, **EXACT)

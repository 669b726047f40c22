"""Low-rank adapters: nothing at first, the same when merged, and nothing else is trained."""

import pytest
import torch
from encoders import GRID_ERROR, MODELS, SUBSETS, predict, small_model

from awkward import AWKWARD, random_rotation, turned
from lamm.graph import GraphBatch
from lamm.models import Potential, Prediction, build
from lamm.models.lora import LoRAConfig, adapt, num_trained, plain_state

RANK = 3
STRUCTURES = AWKWARD[:4]


@pytest.fixture(params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def adapted(name: str, moved: bool = True) -> Potential:
    """A model with adapters; `moved` as if they had been trained."""
    model = small_model(MODELS[name])
    adapt(model, LoRAConfig(rank=RANK, alpha=4.0), seed=3)
    generator = torch.Generator().manual_seed(4)
    if moved:
        with torch.no_grad():
            for adapter in model.adapters.of.values():
                adapter.b.normal_(0, 0.1, generator=generator)
    return model


def assert_same(one: Prediction, other: Prediction) -> None:
    """To rounding: PyTorch multiplies in another order where a weight requires no gradient."""
    for mine, expected in zip(one, other, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-11)


def test_before_the_first_step_nothing_has_changed(name: str):
    model, base = adapted(name, moved=False), small_model(MODELS[name])
    state = plain_state(model)
    assert state.keys() == base.state_dict().keys()
    assert all(torch.equal(state[key], weight) for key, weight in base.state_dict().items())
    assert_same(predict(model, STRUCTURES), predict(base, STRUCTURES))


def test_merged_weights_predict_the_same(name: str):
    model = adapted(name)
    plain = build(MODELS[name], SUBSETS).double().eval()
    plain.load_state_dict(plain_state(model))
    found = predict(model, STRUCTURES)
    assert_same(found, predict(plain, STRUCTURES))
    before = predict(small_model(MODELS[name]), STRUCTURES)
    assert (found.forces - before.forces).abs().max() > 1e-4


def loss(model: Potential) -> torch.Tensor:
    """Of a model in training, where all is computed in blocks, or twice for gradient forces."""
    batch = GraphBatch.from_structures(STRUCTURES, model.graph_config, dtype=torch.float64)
    torch.manual_seed(5)  # of what is dropped
    prediction = model.train()(batch, normalised=True)
    return prediction.energy.square().sum() + prediction.forces.square().sum()


def test_gradients_are_those_of_the_merged_weights(name: str):
    """With W' = W + s B A and G the gradient by W', those by B and A are s G A^T and s B^T G."""
    model = adapted(name)
    plain = build(MODELS[name], SUBSETS).double()
    plain.load_state_dict(plain_state(model))
    loss(model).backward()
    loss(plain).backward()
    assert all(weight.grad is None for weight in model.encoder.parameters())
    compared = 0
    for weight, adapter in zip(model.adapters.names, model.adapters.of.values(), strict=True):
        of_weight = plain.encoder.get_parameter(weight).grad
        if of_weight is None:  # no energy depends on it
            assert adapter.b.grad is None
            continue
        scale = 4.0 / RANK
        by_b, by_a = of_weight @ adapter.a.mT, adapter.b.mT @ of_weight
        torch.testing.assert_close(adapter.b.grad, scale * by_b, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(adapter.a.grad, scale * by_a, rtol=1e-8, atol=1e-10)
        compared += bool(of_weight.any())
    assert compared > 10
    for (key, one), (_, other) in zip(
        model.head_parameters(), plain.head_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10, msg=key)


def test_predictions_still_turn_with_the_structure(name: str):
    model, rotation = adapted(name), random_rotation(5)
    for structure in AWKWARD[3:7]:
        before, after = predict(model, structure), predict(model, turned(structure, rotation))
        expected = before.forces @ torch.from_numpy(rotation).T
        tolerance = 3 * GRID_ERROR.get(name, 1e-10)
        torch.testing.assert_close(after.forces, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(after.energy, before.energy, rtol=0, atol=tolerance)


def test_adapters_and_heads_alone_are_trained(name: str):
    model = adapted(name)
    trained = {key for key, weight in model.named_parameters() if weight.requires_grad}
    heads = {key for key, _ in model.head_parameters()}
    assert trained == heads | {key for key, _ in model.adapters.named_parameters(prefix="adapters")}
    small = sum(weight.numel() for weight in model.adapters.parameters())
    assert num_trained(model) == small + sum(w.numel() for _, w in model.head_parameters())


def test_a_rank_above_the_channels_is_that_of_the_matrix():
    model = small_model(MODELS["equiformer"])
    adapt(model, LoRAConfig(rank=1000), seed=0)
    for weight, adapter in zip(model.adapters.names, model.adapters.of.values(), strict=True):
        *_, outputs, inputs = model.encoder.get_parameter(weight).shape
        assert adapter.a.shape[-2:] == (min(outputs, inputs), inputs)
        assert adapter.scale == 2

"""Learning rate, parameter groups, averaged weights."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from lamm.models import build
from lamm.train import optim
from lamm.train.ema import AveragedWeights
from lamm.train.optim import (
    OptimConfig,
    build_optimizer,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
)
from small import SMALL_MODELS


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 1)


def test_the_rate_rises_linearly_then_falls_along_a_cosine():
    config = OptimConfig(warmup_steps=10, final_lr_fraction=0.1)
    factors = [learning_rate_factor(step, 110, config) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55)
    assert factors[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_only_matrices_decay_and_the_encoder_has_its_own_rate():
    model = Small()
    config = OptimConfig(lr=1e-3, weight_decay=0.1, encoder_lr_factor=0.5)
    groups = parameter_groups(model, model.encoder, config)
    found = {
        (group["lr"], group["weight_decay"]): {id(p) for p in group["params"]} for group in groups
    }
    encoder, head = model.encoder, model.head
    assert found[(5e-4, 0.1)] == {id(encoder[1].weight)}
    assert found[(5e-4, 0.0)] == {
        id(encoder[0].weight),
        id(encoder[1].bias),
        id(encoder[2].weight),
        id(encoder[2].bias),
    }
    assert found[(1e-3, 0.1)] == {id(head.weight)}
    assert found[(1e-3, 0.0)] == {id(head.bias)}


def test_the_rate_of_every_group_follows_its_own_peak():
    model = Small()
    optimizer = build_optimizer(model, model.encoder, OptimConfig(lr=1e-3, encoder_lr_factor=0.5))
    set_learning_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4, 2.5e-4}


def test_averaged_weights_are_the_mean_that_their_formula_says():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    averaged = AveragedWeights(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(2.0)
    averaged.update(0)  # alpha = min(0.9, 1/10)
    expected = 0.1 * 1.0 + 0.9 * 2.0
    assert averaged.state_dict()["weight"].item() == pytest.approx(expected)
    with averaged.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 2.0


def test_gains_of_more_than_one_dimension_do_not_decay():
    model = build({"encoder": {**SMALL_MODELS["equiformer_v2"]["encoder"]}}, ["one"])
    groups = parameter_groups(model, model.encoder, OptimConfig())
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    block = model.encoder.blocks[0]
    assert block.norm_1.weight.ndim == 2
    assert id(block.norm_1.weight) not in decaying
    assert id(model.encoder.embedding.weight) not in decaying
    assert id(block.attention.project.weight) in decaying


def test_the_training_knows_no_model_by_name():
    folder = Path(optim.__file__).parent
    for path in folder.glob("*.py"):
        assert not re.search("painn|equiformer", path.read_text(encoding="utf-8"), re.IGNORECASE)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_rates_fall_from_the_heads_through_the_layers_to_the_embeddings(name: str):
    model = build(SMALL_MODELS[name], ["one"], seed=0)
    config = OptimConfig(lr=1.0, layer_decay=0.5, encoder_lr_factor=0.1)
    groups = parameter_groups(model, model.encoder, config)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    layers = model.config.encoder.num_layers
    found = {
        tensor: rate[id(parameter)]
        for tensor, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for tensor, value in found.items():
        parts = tensor.split(".")
        if parts[0] != "encoder":
            expected = 1.0
        elif parts[1] in ("messages", "updates", "blocks"):
            expected = 0.1 * 0.5 ** (layers - 1 - int(parts[2]))
        else:
            expected = 0.1 if parts[1] == "norm" else 0.1 * 0.5**layers
        assert value == pytest.approx(expected), tensor

"""The encoders that the shared suite runs over, small, and how to ask them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from awkward import CUTOFF, MAX_NEIGHBORS
from lamm.graph import GraphBatch
from lamm.models import ModelConfig, Potential, Prediction, build
from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.painn import PaiNNConfig
from lamm.structure import Structure

PAINN = PaiNNConfig(
    channels=16, num_layers=2, num_radial=12, cutoff=CUTOFF, max_neighbors=MAX_NEIGHBORS
)
SMOOTH = PAINN.model_copy(update={"max_neighbors": None, "smooth_cutoff": True})
EQUIFORMER = EquiformerV2Config(
    channels=8,
    num_layers=2,
    l_max=2,
    m_max=1,
    num_heads=2,
    attention_hidden=6,
    alpha_channels=5,
    value_channels=4,
    feed_forward_hidden=7,
    edge_channels=9,
    num_radial=20,
    cutoff=CUTOFF,
    max_neighbors=MAX_NEIGHBORS,
    grid_resolution=14,
    average_atoms=1.0,
    average_degree=2.0,
    edge_block=16,
)
GATED = EQUIFORMER.model_copy(
    update={
        "attention_activation": "gate",
        "feed_forward_activation": "gate",
        "grid_mlp": False,
        "norm": "rms_norm_sh",
        "m_max": 2,
    }
)
MODELS = {
    "painn": ModelConfig(encoder=PAINN),
    "painn without a limit": ModelConfig(encoder=SMOOTH),
    "painn with gradient forces": ModelConfig(encoder=PAINN, forces="gradient"),
    "equiformer": ModelConfig(encoder=EQUIFORMER),
    "equiformer with gates": ModelConfig(encoder=GATED),
    "equiformer with gradient forces": ModelConfig(encoder=GATED, forces="gradient"),
}
EQUIFORMERS = [name for name in MODELS if name.startswith("equiformer")]
GRID_ERROR = {"equiformer": 1e-6}
"""How far the predictions of a model that works on a grid turn with the structure: to the grid's
error, which is measured and falls fast with the grid (test_equiformer_v2); 4e-7 here."""
SUBSETS = ("one", "two")


def small_model(config: ModelConfig, seed: int = 1, scale: float = 3.0) -> Potential:
    """A potential in float64 with random weights, biases, references and scales."""
    model = build(config, SUBSETS, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    for column in range(len(SUBSETS)):
        references = 10 * torch.randn(119, generator=generator, dtype=torch.float64)
        model.set_normalisation(column, references, torch.ones(119), scale + column, 0.5 * scale)
    return model


def predict(
    model: Potential,
    structures: Structure | Sequence[Structure],
    dtype: torch.dtype = torch.float64,
) -> Prediction:
    """What the model says of one structure, or of several in one batch."""
    several = [structures] if isinstance(structures, Structure) else structures
    with torch.no_grad():
        return model(GraphBatch.from_structures(several, model.graph_config, dtype=dtype))

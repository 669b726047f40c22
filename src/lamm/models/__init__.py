"""Models: encoders, heads, and `Potential`, which joins them."""

from lamm.models.fairchem import from_fairchem
from lamm.models.potential import (
    PRESETS,
    ModelConfig,
    Potential,
    Prediction,
    build,
    count_parameters,
)

__all__ = [
    "PRESETS",
    "ModelConfig",
    "Potential",
    "Prediction",
    "build",
    "count_parameters",
    "from_fairchem",
]

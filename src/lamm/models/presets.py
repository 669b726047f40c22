"""What a model is made of, and the named ones."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError, model_validator

from lamm.errors import ConfigError, nearest_names
from lamm.graph.neighbors import GraphConfig
from lamm.models.painn import PaiNNConfig
from lamm.schema import Frozen


class ModelConfig(Frozen):
    """Encoder and kind of forces.

    Instead of this in full, the name of a preset will do, or a preset with changes::

        model: lamm-s
        model: {preset: lamm-s, encoder: {channels: 256}, forces: gradient}
    """

    encoder: PaiNNConfig
    forces: Literal["direct", "gradient"] = "direct"
    """``direct``: a head of their own, as in the paper. ``gradient``: minus the energy's gradient,
    and the stress likewise, so that energy is conserved in molecular dynamics."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            return preset(value).model_dump()
        if isinstance(value, dict) and "preset" in value:
            changes = {key: item for key, item in value.items() if key != "preset"}
            base = preset(value["preset"]).model_dump()
            if isinstance(encoder := changes.get("encoder"), dict):
                changes["encoder"] = base["encoder"] | encoder
            return base | changes
        return value

    @property
    def graph(self) -> GraphConfig:
        """The edges that the encoder is given."""
        return self.encoder.graph


PRESETS: dict[str, ModelConfig] = {
    "lamm-s": ModelConfig(encoder=PaiNNConfig()),
    "lamm-xs": ModelConfig(
        encoder=PaiNNConfig(
            channels=96,
            num_layers=3,
            num_radial=32,
            cutoff=6.0,
            max_neighbors=24,
            smooth_cutoff=True,
        )
    ),
}
"""Models by name: LaMM-S of the paper, and a small PaiNN for laptops."""


def preset(name: str) -> ModelConfig:
    """The preset of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset '{name}'. {nearest_names(name, PRESETS)}")
    return PRESETS[name]


def resolve_model(model: str | ModelConfig | dict[str, Any]) -> ModelConfig:
    """A model configuration from a preset's name, a configuration, or its keys as a dictionary.

    Raises:
        ConfigError: the preset is unknown or a key is wrong.
    """
    if isinstance(model, str):
        return preset(model)
    if isinstance(model, ModelConfig):
        return model
    try:
        return ModelConfig.model_validate(model)
    except ValidationError as error:
        raise ConfigError(f"model configuration {model}:\n{error}") from error

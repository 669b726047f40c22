"""What a model is made of, and the named ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError, model_validator

from lamm.errors import ConfigError, nearest_names
from lamm.graph.neighbors import GraphConfig
from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.painn import PaiNNConfig
from lamm.schema import Frozen

EncoderConfig: TypeAlias = Annotated[PaiNNConfig | EquiformerV2Config, Field(discriminator="name")]


class ModelConfig(Frozen):
    """Encoder and kind of forces.

    Instead of this in full, the name of a preset will do, or a preset with changes::

        model: lamm-s
        model: {preset: lamm-s, encoder: {channels: 256}, forces: gradient}
    """

    encoder: EncoderConfig
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
            encoder = changes.get("encoder")
            if isinstance(encoder, dict) and encoder.get("name", "") in (
                "",
                base["encoder"]["name"],
            ):
                changes["encoder"] = base["encoder"] | encoder
            value = base | changes
        if isinstance(value, dict) and isinstance(encoder := value.get("encoder"), dict):
            value = value | {"encoder": {"name": "painn"} | encoder}
        return value

    @property
    def graph(self) -> GraphConfig:
        """The edges that the encoder is given."""
        return self.encoder.graph


PRESETS: dict[str, ModelConfig] = {
    "lamm-s": ModelConfig(encoder=PaiNNConfig()),
    "lamm-l": ModelConfig(encoder=EquiformerV2Config()),
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
    "lamm-xs-eq": ModelConfig(
        encoder=EquiformerV2Config(
            channels=24,
            num_layers=2,
            l_max=2,
            m_max=1,
            num_heads=4,
            attention_hidden=12,
            alpha_channels=8,
            value_channels=6,
            feed_forward_hidden=48,
            edge_channels=24,
            num_radial=128,
            cutoff=5.0,
            max_neighbors=12,
            grid_resolution=8,
            norm="rms_norm_sh",
            average_atoms=1.0,
            average_degree=1.0,
            alpha_dropout=0.0,
            drop_path=0.0,
            edge_block=None,
        )
    ),
}
"""Models by name: LaMM-S and LaMM-L of the paper, and a small one of each kind for laptops."""


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

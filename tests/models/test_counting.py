"""The paper's count of parameters, FAIR-Chem's constants included."""

from __future__ import annotations

import pytest

from lamm.models import count_parameters
from lamm.models.counting import fairchem_constants
from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.presets import PRESETS


def test_lamm_l_has_the_papers_number_of_parameters():
    assert count_parameters("lamm-l", 10) == 31_145_492
    constants = fairchem_constants(PRESETS["lamm-l"].encoder)
    assert count_parameters("lamm-l", 10) + constants == 33_801_719


# Entries of the state dict less learnt parameters, counted in fairchem-core 1.10.0.
@pytest.mark.parametrize(
    ("changes", "entries"),
    [
        ({}, 979_737),
        (
            {
                "l_max": 3,
                "m_max": 1,
                "grid_resolution": None,
                "norm": "rms_norm_sh",
                "attention_activation": "gate",
                "feed_forward_activation": "gate",
                "grid_mlp": False,
            },
            61_608,
        ),
        (
            {
                "l_max": 6,
                "m_max": 3,
                "norm": "layer_norm",
                "shared_radial": True,
                "grid_mlp": False,
            },
            3_583_930,
        ),
    ],
)
def test_constants_are_counted_as_fairchem_repeats_them(changes, entries):
    assert fairchem_constants(EquiformerV2Config(num_layers=2, **changes)) == entries

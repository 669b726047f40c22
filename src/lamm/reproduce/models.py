"""Table 1: models and data beside those of other pre-training works."""

from __future__ import annotations

from typing import Any

from lamm.data.overview import joint_overview
from lamm.evaluate.curves import ratio
from lamm.models.counting import parameter_counts
from lamm.models.presets import PRESETS
from lamm.reproduce.outcome import Outcome, Table
from lamm.reproduce.settings import DataExperiment, paper_values

NUM_SUBSETS = 10
"""D of the paper, at which it counts parameters."""


class ModelsExperiment(DataExperiment):
    """What Table 1 compares."""

    presets: dict[str, str | None]
    """Preset to the row of the paper's table that it is; null for one that the paper hasn't."""


def compare_models(settings: ModelsExperiment) -> Outcome:
    """Count parameters of the presets with ten outputs, and training structures of the data."""
    paper: dict[str, Any] = paper_values("table1")["models"]
    samples = joint_overview(settings.joint()).total("num_train")
    ours: list[dict[str, Any]] = []
    for preset, row in settings.presets.items():
        counts = parameter_counts(preset, NUM_SUBSETS)
        as_paper = counts.get("parameters_with_constants", counts["parameters"])
        published = None if row is None else paper[row]["parameters"]
        ours.append(
            {
                "preset": preset,
                "row": row,
                "encoder": PRESETS[preset].encoder.name,
                **counts,
                "parameters_as_the_paper_counts": as_paper,
                "beside_paper": ratio(as_paper, published),
                "samples": samples,
            }
        )
    table = Table(
        ("model", "base model", "parameters (M)", "as the paper counts (M)", "samples", "whose"),
        [
            *(
                (name, one["base"], _millions(one["parameters"]), None, one["samples"], "paper")
                for name, one in paper.items()
            ),
            *(
                (
                    one["preset"],
                    one["encoder"],
                    _millions(one["parameters"]),
                    _millions(one["parameters_as_the_paper_counts"]),
                    samples,
                    "here",
                )
                for one in ours
            ),
        ],
        "Rows of the paper's Table 1, and the presets here with ten outputs. Parameters are those "
        "that are learnt; the paper counts LaMM-L's with the constants of FAIR-Chem's state dict. "
        "Samples: training structures of the joint data set.",
    )
    return Outcome({"models": ours}, [table])


def _millions(count: float | None) -> float | None:
    return None if count is None else count / 1e6

"""Fig. 8: the map of atoms' representations, and what they say before and after pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from lamm.config import RunConfig
from lamm.data.joint import JointDataset
from lamm.data.overview import joint_overview
from lamm.demo.config import StageConfig
from lamm.evaluate.dataset_figures import shown_subsets
from lamm.evaluate.embedding import axis_names, measures, project
from lamm.evaluate.feature_map import feature_map, map_rows
from lamm.evaluate.features import AtomFeatures, atom_features, source_of_rows
from lamm.evaluate.projection import require_umap
from lamm.evaluate.style import subset_colours
from lamm.models.potential import ModelConfig, Potential, build
from lamm.reproduce.outcome import Outcome, Picture, Table
from lamm.reproduce.runs import Runner, Training
from lamm.reproduce.settings import DataExperiment, paper_values
from lamm.schema import parse
from lamm.train.checkpoint import load

UMAP = "umap"
RUN = "pretrain"


class EmbeddingExperiment(DataExperiment):
    """What is mapped."""

    checkpoint: Path | None = None
    """A pre-trained model; where left out, one is pre-trained here."""
    model: ModelConfig
    pretrain: StageConfig
    atoms: PositiveInt
    """Drawn from each subset."""
    projections: Annotated[list[Literal["umap", "pca"]], Field(min_length=1)]
    elements: list[str] | None = None
    """Named in panel (d); the most frequent where left out."""

    def pretraining(self, to: Path) -> RunConfig:
        """The pre-training run."""
        run = {"to": to, "seed": self.seed, "data": self.data, "model": self.model}
        return parse(RunConfig, run | self.pretrain.parts(), "pretrain")


def map_atoms(experiment: EmbeddingExperiment, runner: Runner) -> Outcome:
    """Draw atoms of every subset, map their features, and measure what they separate.

    Raises:
        ConfigError: UMAP is asked for and isn't installed.
    """
    if UMAP in experiment.projections:
        require_umap()
    joint = experiment.joint()
    if experiment.checkpoint is None:
        runner.run([Training(RUN, experiment.pretraining)])
        model = load(runner.folder / RUN)
    else:
        model = load(experiment.checkpoint)
    after = _sample(experiment, joint, model)
    untrained = build(model.config, joint.names, seed=experiment.seed)
    numbers = {
        "pretrained": measures(after),
        "untrained": measures(_sample(experiment, joint, untrained)),
    }
    colours = subset_colours(joint.names)
    projections = project(after, experiment.projections, seed=experiment.seed)
    axes = axis_names(numbers["pretrained"])
    rows = map_rows(after, projections)
    pictures = [
        Picture(
            f"fig8_{name}",
            feature_map(points, after, axes[name], colours=colours, elements=experiment.elements),
            rows,
            f"Features of {len(after):,} atoms by {name.upper()} (as Fig. 8).",
        )
        for name, points in projections.items()
    ]
    paper = paper_values("fig8")
    table = Table(
        ("separation by", "features", "neighbours alike", "by chance", "silhouette"),
        [
            (title, which, *(one[key][entry] for entry in ("purity", "chance", "silhouette")))
            for key, title in (
                ("element", "element"),
                ("subset", "subset"),
                ("subset_within_element", "subset, atoms of one element"),
            )
            for which, one in numbers.items()
        ],
        f"{len(after):,} atoms, {after.features.shape[1]} channels, measured in the space of the "
        "features. Neighbours alike: share of an atom's ten nearest that have its label. The paper "
        f"shows {paper['atoms_per_subset']:,} atoms of each subset, {paper['channels']} channels, "
        f"by {paper['projection']}, and gives no number.",
    )
    return Outcome(
        {"atoms": len(after), "channels": int(after.features.shape[1]), "measures": numbers},
        [table],
        pictures,
    )


def _sample(experiment: EmbeddingExperiment, joint: JointDataset, model: Potential) -> AtomFeatures:
    """The same atoms of the subsets that Fig. 8 shows, for any model, without noise."""
    shown = shown_subsets(joint_overview(joint))
    sources: list[Any] = [
        source_of_rows(one.name, one.store, one.all_rows())
        for one in joint.subsets
        if one.name in shown
    ]
    return atom_features(model, sources, atoms_per_subset=experiment.atoms, seed=experiment.seed)

"""The experiments by name: what each shows, its configuration, and the function that runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamm.errors import ConfigError, nearest_names
from lamm.reproduce.datasets import compare_elements, compare_sizes, compare_subsets
from lamm.reproduce.denoising_study import DenoisingStudy, compare_objectives
from lamm.reproduce.embedding import EmbeddingExperiment, map_atoms
from lamm.reproduce.finetuning_results import compare_pretraining
from lamm.reproduce.finetuning_study import FinetuningStudy
from lamm.reproduce.models import ModelsExperiment, compare_models
from lamm.reproduce.outcome import RESULTS, Outcome, write_outcome
from lamm.reproduce.runs import Runner
from lamm.reproduce.settings import (
    DataExperiment,
    Experiment,
    paper_values,
    read_settings,
    shipped,
)
from lamm.reproduce.step_times import StepTimesExperiment, compare_step_times


@dataclass(frozen=True)
class Reproduction:
    """One experiment of the paper."""

    title: str
    kind: type[Experiment]
    run: Callable[[Any, Runner], Outcome]
    """Takes the configuration, and what trains; one that trains nothing leaves the latter alone."""
    trains: bool = False


REPRODUCTIONS = {
    "table1": Reproduction(
        "Table 1: pre-trained models", ModelsExperiment, lambda s, _: compare_models(s)
    ),
    "table2": Reproduction(
        "Table 2: the joint data set", DataExperiment, lambda s, _: compare_subsets(s)
    ),
    "fig2": Reproduction(
        "Fig. 2: elements of the subsets", DataExperiment, lambda s, _: compare_elements(s)
    ),
    "fig4": Reproduction(
        "Fig. 4: sizes of the structures", DataExperiment, lambda s, _: compare_sizes(s)
    ),
    "fig6": Reproduction(
        "Fig. 6: step times with load balancing",
        StepTimesExperiment,
        lambda s, _: compare_step_times(s),
    ),
    "fig7": Reproduction(
        "Fig. 7: denoising, baseline and centred", DenoisingStudy, compare_objectives, trains=True
    ),
    "fig8": Reproduction(
        "Fig. 8: representations of atoms", EmbeddingExperiment, map_atoms, trains=True
    ),
    "table3": Reproduction(
        "Table 3: fine-tuning with and without pre-training",
        FinetuningStudy,
        compare_pretraining,
        trains=True,
    ),
    "fig9": Reproduction(
        "Fig. 9: learning curves of fine-tuning", FinetuningStudy, compare_pretraining, trains=True
    ),
}


def reproduction(name: str) -> Reproduction:
    """The experiment of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in REPRODUCTIONS:
        raise ConfigError(
            f"reproduce '{name}': no such experiment. {nearest_names(name, REPRODUCTIONS)}"
        )
    return REPRODUCTIONS[name]


def shipped_scale(name: str) -> list[str]:
    """How the shipped configuration of an experiment differs from the paper, in words."""
    scale: list[str] = shipped(name)["scale"]
    return scale


def reproduce(
    name: str,
    to: Path,
    *,
    file: Path | None = None,
    shared: Path | None = None,
    words: Sequence[str] = (),
    quiet: bool = False,
    force: bool = False,
    runs: Path | None = None,
) -> dict[str, Any]:
    """Run an experiment of the paper and write its results.

    Args:
        name: ``table1``, ``fig7`` and so on.
        to: folder of the results; trainings that are finished there are kept and used.
        file: YAML with entries to change.
        shared: folder of stores from genuine samples, in place of the shipped subsets.
        words: dotted ``key=value`` changes.
        quiet: without progress bars.
        force: replace results that are there.
        runs: folder of the trainings; ``to/runs`` where left out.

    Returns:
        What ``results.json`` holds.

    Raises:
        LaMMError: the request is wrong, or data can't be used.
        InterruptedRunError: a signal stopped a training; the same command goes on with it.
    """
    one = reproduction(name)
    asked = read_settings(name, one.kind, file=file, shared=shared, words=words)
    if to.exists() and not to.is_dir():
        raise ConfigError(f"--to {to}: found a file, expected a folder or nothing.")
    if (to / RESULTS).exists() and not force:
        raise ConfigError(
            f"--to {to}: {RESULTS} exists. Add --force to write it anew; finished trainings in "
            "the folder are kept, and only what is missing is run."
        )
    begun = time.perf_counter()
    outcome = one.run(asked.settings, Runner(runs or to / "runs", quiet=quiet))
    seconds = time.perf_counter() - begun
    return write_outcome(to, name, one.title, asked, paper_values(name), outcome, seconds)


def reproduce_all(
    to: Path, *, shared: Path | None = None, quiet: bool = False, force: bool = False
) -> Iterator[tuple[str, Path]]:
    """Run every experiment that has no results in the folder yet, one after the other.

    Table 3 and Fig. 9 show the same trainings, which are run once.

    Args:
        to: a folder of folders, one per experiment.
        shared: as of `reproduce`.
        quiet: likewise.
        force: write all results anew; finished trainings are kept.

    Yields:
        Name and folder of each experiment, as soon as it has results.
    """
    for name in REPRODUCTIONS:
        runs = to / "table3" / "runs" if name == "fig9" else None
        if force or not (to / name / RESULTS).exists():
            reproduce(name, to / name, shared=shared, quiet=quiet, force=force, runs=runs)
        yield name, to / name

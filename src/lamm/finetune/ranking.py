"""Which pre-training head suits the user's data, and its references and scales there.

Every head predicts the same training structures. Reference energies and one factor for the energies
and one for the forces are fitted, as every level of theory has its own zero and, within bounds, its
own slope; what is then left of the labels ranks the heads. Fits and ranks are robust: a few broken
records neither choose the head nor move the references that training starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lamm.balance.columns import spread_places
from lamm.data.references import Normalisation, composition_counts
from lamm.evaluate.predict import in_batches
from lamm.finetune.robust import robust_references, robust_solution
from lamm.graph.batch import GraphBatch
from lamm.models.heads import scale_output
from lamm.models.potential import Potential
from lamm.structure import Structure

MAX_RANKED = 500
"""Training structures whose energies heads are ranked on: references need many, of all elements."""
MAX_FORCES = 48
"""Those of them whose forces are looked at: each has many labels, and where forces are a gradient,
each head takes a backward pass."""
FACTORS = (0.25, 4.0)
"""Bounds of the factors. A head beyond them predicts something else, such as noise."""


class HeadFit(NamedTuple):
    """One head on the user's structures, after the fit."""

    head: str
    energy_mae: float | None
    """meV/atom; None without energies."""
    forces_mae: float | None
    """meV/Å; None without forces."""
    energy_factor: float
    """0 where direct energies say no more than references alone."""
    force_factor: float
    """0 where direct forces are no better than none."""
    reference_energies: NDArray[np.float64]
    """(119,) eV, fitted to what the head leaves of the energies."""
    score: float
    """Mean of both median errors, each as a share of what references alone leave; below 1 is of
    use."""


class _Outputs(NamedTuple):
    """Predictions of all heads, in physical units, without reference energies."""

    energy: NDArray[np.float64]
    """(S, D) eV."""
    forces: NDArray[np.float64]
    """(N, D, 3) eV/Å; of the atoms with a label in at most `MAX_FORCES` of the structures."""
    labels: NDArray[np.float64]
    """(N, 3) eV/Å."""


def rows_to_rank(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `MAX_RANKED` of some rows, evenly chosen."""
    some: NDArray[np.int64] = rows[spread_places(len(rows), MAX_RANKED)]
    return some


def rank_heads(
    model: Potential, structures: Sequence[Structure], normalisation: Normalisation
) -> list[HeadFit]:
    """All heads of a potential, the best for these structures first.

    Heads that were trained without energies, such as those of the denoising task, come last where
    the structures have some.

    Args:
        model: the base.
        structures: training structures, for instance those of `rows_to_rank`.
        normalisation: references and scales fitted without the model, for what a head can't tell.
    """
    outputs = _predict(model, structures)
    fits = [
        _fit(model, column, name, structures, outputs, normalisation)
        for column, name in enumerate(model.subsets)
    ]
    knows = model.known_elements.any(dim=1).tolist()
    without = {name for name, known in zip(model.subsets, knows, strict=True) if not known}
    return sorted(
        fits, key=lambda fit: (fit.energy_mae is not None and fit.head in without, fit.score)
    )


def _predict(model: Potential, structures: Sequence[Structure]) -> _Outputs:
    was_training = model.training
    model.eval()
    energies, forces, labels = [], [], []
    with torch.no_grad():
        for part in in_batches(structures, 32):
            reference = composition_counts(part) @ model.reference_energies.cpu().numpy().T
            predicted = model.energies(_batch(model, part)).cpu().numpy()
            energies.append(predicted - reference - model.energy_shift.cpu().numpy())
        some = [structures[place] for place in spread_places(len(structures), MAX_FORCES)]
        for part in in_batches(some, 32):
            batch = _batch(model, part)
            labelled = batch.free & batch.has_forces[batch.structure_index]
            forces.append(model(batch).forces[labelled].double().cpu().numpy())
            labels.append(batch.forces[labelled].cpu().numpy())
    model.train(was_training)
    return _Outputs(np.concatenate(energies), np.concatenate(forces), np.concatenate(labels))


def _batch(model: Potential, structures: Sequence[Structure]) -> GraphBatch:
    batch = GraphBatch.from_structures(structures, model.graph_config, dtype=torch.float64)
    return batch.to(model.energy_scale.device)


def _fit(
    model: Potential,
    column: int,
    name: str,
    structures: Sequence[Structure],
    outputs: _Outputs,
    normalisation: Normalisation,
) -> HeadFit:
    predicted, labels = outputs.forces[:, column], outputs.labels
    shares = []
    force_factor, forces_mae = 1.0, None
    is_direct = model.force_head is not None
    if len(labels):
        force_factor = _bounded(robust_solution(predicted.reshape(-1, 1), labels.reshape(-1))[0])
        moved = labels.any(axis=1) | ~labels.any()  # symmetry makes zeros, which say nothing

        def share_of(factor: float) -> float:
            return _share(np.abs(factor * predicted - labels)[moved], np.abs(labels[moved]))

        if is_direct and share_of(force_factor) >= 1:
            force_factor = 0.0
        forces_mae = float(np.abs(force_factor * predicted - labels).mean())
        shares.append(share_of(force_factor))
    rows = [row for row, one in enumerate(structures) if one.energy is not None]
    energy_factor, energy_mae = force_factor, None
    references = normalisation.reference_energies
    if rows:
        counts = composition_counts([structures[row] for row in rows])
        energy = np.array([structures[row].energy for row in rows], dtype=np.float64)
        own, size = outputs.energy[rows, column], counts.sum(axis=1)
        rest = energy - counts @ references  # small numbers before the fit
        if is_direct or not len(labels):  # else one factor serves both
            energy_factor = _bounded(_slope(counts, own, rest, size))

        def fitted(factor: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            """What references have to be changed by, and what is left per atom."""
            change = robust_references(counts, rest - factor * own, size)
            return change, np.abs(rest - counts @ change - factor * own) / size

        (change, left), (change_alone, alone) = fitted(energy_factor), fitted(0.0)
        if is_direct and _share(left, alone) >= 1:
            energy_factor, change, left = 0.0, change_alone, alone
        references = references + change
        energy_mae = float(left.mean())
        shares.append(_share(left, alone))
    return HeadFit(
        name,
        None if energy_mae is None else 1000 * energy_mae,
        None if forces_mae is None else 1000 * forces_mae,
        energy_factor,
        force_factor,
        references,
        float(np.mean(shares)) if shares else float("inf"),
    )


def _share(errors: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """The median of errors over that of what there was to tell."""
    return float(np.median(errors)) / max(float(np.median(whole)), 1e-12)


def _bounded(factor: float) -> float:
    return float(np.clip(factor, *FACTORS))


def _slope(
    counts: NDArray[np.float64],
    own: NDArray[np.float64],
    rest: NDArray[np.float64],
    size: NDArray[np.float64],
) -> float:
    """The factor of the head's energies in a fit together with references, both per atom."""
    used = counts.any(axis=0)
    return float(
        robust_solution(np.column_stack((counts[:, used], own)) / size[:, None], rest / size)[-1]
    )


def take_over(
    model: Potential, column: int, base: Potential, fit: HeadFit, normalisation: Normalisation
) -> None:
    """Give an output that starts from a head of the base the references and factors of its fit.

    Direct energies and forces have scales of their own, which weigh them in the loss: they become
    those of the training structures, and the output's weights are scaled instead. Where forces are
    the energy's gradient both have one scale, and it doesn't matter which.

    Args:
        model: the potential that is about to be fine-tuned; its output has the head's weights.
        column: the output.
        base: where the head came from.
        fit: the head on the training structures.
        normalisation: elements and scales of the training structures.
    """
    old = base.column(fit.head)
    energy_unit = float(base.energy_scale[old]) * fit.energy_factor
    if model.force_head is None:
        force_unit = float(base.force_scale[old]) * fit.energy_factor
        scales = energy_unit, force_unit
    else:
        force_unit = float(base.force_scale[old]) * fit.force_factor
        scales = normalisation.energy_scale, normalisation.force_scale
        scale_output(model.energy_head, column, energy_unit / scales[0])
        scale_output(model.force_head, column, force_unit / scales[1])
    model.set_normalisation(
        column,
        torch.from_numpy(fit.reference_energies),
        torch.from_numpy(normalisation.known),
        *scales,
    )


def ranking_table(fits: Sequence[HeadFit]) -> list[str]:
    """Lines of a table for a person."""
    width = max(4, *(len(fit.head) for fit in fits))
    lines = [f"{'head':<{width}}  E MAE meV/atom  F MAE meV/Å  share of references alone"]
    for fit in fits:
        energy = "-" if fit.energy_mae is None else f"{fit.energy_mae:.1f}"
        forces = "-" if fit.forces_mae is None else f"{fit.forces_mae:.1f}"
        lines.append(f"{fit.head:<{width}}  {energy:>14}  {forces:>11}  {fit.score:>25.3f}")
    return lines

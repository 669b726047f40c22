"""The rules by which fine-tuning chooses what its user doesn't: shares, batch, rate, length.

Each rule is one function of the numbers of structures and atoms, with its reason. All can be
overridden by ``KEY=VALUE`` on the command line.
"""

from __future__ import annotations

import math
from typing import NamedTuple

TEST_FROM = 200
"""Structures from which a test split is held out: of fewer, a tenth is too few to tell an error."""
PASSES = 200
"""Passes over the training data; small sets need many, and early stopping ends the rest."""
FEWEST_STEPS, MOST_STEPS = 1000, 20_000
VALIDATIONS = 20
"""Validations of a run: enough for a curve and for stopping early, each a small share of the time.
"""
PATIENCE = 7
"""Validations without a new best. The averaged weights improve to the end of a cosine, so less
than a third of the run would stop before the rate has fallen."""
STEP_ATOMS = 160
"""Atoms of a mini-batch. Small ones take more steps in the same time, which counts where time is
short; below this, what a step costs beside its atoms takes over."""
MOST_STRUCTURES = 32
SHARE_OF_EPOCH = 10
"""Steps that an epoch has at least."""
WARM_UP, WARM_UP_TIMED = 50, 20
FORCES_WEIGHT = 10.0
CLIP_NORM = 1.0
"""Far below what most steps have: a structure with extreme forces moves the weights no farther than
others do."""
MANY_ELEMENTS = 20
CALM_STRUCTURES, LEAST_SHARE = 12, 1 / 3
"""Structures of a step that are enough where there are many elements; see `calm_share`."""
MAX_VAL = 500
"""Validation structures that are looked at during a run: their error is known to some percent."""


class Shares(NamedTuple):
    """What is held out of the structures."""

    val: float
    test: float


class Recipe(NamedTuple):
    """What the rules choose for a training."""

    energy_weight: float
    forces_weight: float
    batch_size: int
    lr: float
    clip_norm: float
    encoder_lr_factor: float
    warmup_steps: int
    ema_decay: float
    steps: int
    validate_every: int
    patience: int | None


def held_out_shares(num_structures: int) -> Shares:
    """Shares for validation and testing of data without splits.

    A tenth each; of fewer than `TEST_FROM` a fifth for validation alone, as a best step chosen on
    a handful is chosen by chance.
    """
    return Shares(0.1, 0.1) if num_structures >= TEST_FROM else Shares(0.2, 0.0)


def batch_size(num_train: int, mean_atoms: float) -> int:
    """Structures of a mini-batch: about `STEP_ATOMS`, and `SHARE_OF_EPOCH` steps to an epoch."""
    by_atoms = round(STEP_ATOMS / max(mean_atoms, 1.0))
    return max(1, min(by_atoms, MOST_STRUCTURES, max(num_train // SHARE_OF_EPOCH, 1)))


def further_weight(own: int, further: int) -> float:
    """Factor on the uses of replayed and unlabelled subsets: together no more than the user's own.

    A few hundred structures among ten thousand of pre-training would hardly be trained on.

    Args:
        own: uses of the user's structures in an epoch.
        further: uses of the other subsets by their sizes alone.
    """
    return min(1.0, round(own / further, 6)) if further else 1.0


def batch_size_with_further(size: int, own: int, further: int) -> int:
    """Structures of a mini-batch with as many of the user's own as one of `size` alone has.

    Args:
        size: by `batch_size`.
        own: uses of the user's structures in an epoch.
        further: uses of the other subsets, weighted.
    """
    return round(size * (own + further) / own)


def batch_size_per_rank(size: int, ranks: int) -> int:
    """Each rank's structures of a mini-batch of `size`, which is the whole run's."""
    return max((2 * size + ranks) // (2 * ranks), 1)


def learning_rate(
    channels: int, conservative: bool, from_scratch: bool, share: float = 1.0
) -> float:
    """Peak rate at 96 channels, and less by the root of the width for wider models.

    `share` is what `calm_share` says of the steps; it counts from scratch, at the highest rate.
    With the gradient's norm held at `CLIP_NORM`, a conservative model bears three times the rate,
    and twice the rate where it has learnt something before.
    """
    peak = (3e-3 if from_scratch else 2e-3) if conservative else 1e-3
    if from_scratch and conservative:
        peak *= share
    return min(peak, round(peak * math.sqrt(96 / channels), 6))


def calm_share(structures: int, elements: int) -> float:
    """Share of the rate that steps of few structures bear where each has other elements.

    Steps of 14 crystals of 89 elements and of 6 of one molecule had lower force errors at 3e-3 than
    at half of it; steps of 5 of MAD's 85 elements had lower energy and force errors at 1e-3.

    Args:
        structures: of a mini-batch.
        elements: of the training data.
    """
    if elements < MANY_ELEMENTS:
        return 1.0
    return min(max(structures / CALM_STRUCTURES, LEAST_SHARE), 1.0)


def energy_weight(mean_atoms: float, conservative: bool) -> float:
    """lambda_E on energies per atom, beside a lambda_F of `FORCES_WEIGHT`.

    A conservative model's energies have the unit of its forces, so one number does for all data.
    Direct ones have the energies' own, which grows with the structures.
    """
    return 10.0 if conservative else round(max(mean_atoms, 1.0), 1)


def choose_recipe(
    num_train: int,
    mean_atoms: float,
    channels: int,
    elements: int,
    *,
    conservative: bool,
    from_scratch: bool,
    steps: int | None,
    timed: bool,
) -> Recipe:
    """All that the rules say of a training.

    Args:
        num_train: training structures.
        mean_atoms: atoms of one, on average.
        channels: width of the encoder.
        elements: how many the training structures have.
        conservative: whether forces are the energy's gradient.
        from_scratch: whether nothing was learnt before.
        steps: the length, where the user says it; then nothing stops early, as it was asked for.
        timed: whether a time limit sets the length; then nothing stops early, as the time is there.
    """
    size = batch_size(num_train, mean_atoms)
    stops_early = steps is None and not timed
    if steps is None:
        steps = min(max(PASSES * num_train // size, FEWEST_STEPS), MOST_STEPS)
    # The average reaches over about a twentieth of the run: its weights forget the start in time.
    ema = 0.995 if timed else min(max(1 - 20 / max(steps, 1), 0.9), 0.999)
    return Recipe(
        energy_weight=energy_weight(mean_atoms, conservative),
        forces_weight=FORCES_WEIGHT,
        batch_size=size,
        lr=learning_rate(channels, conservative, from_scratch, calm_share(size, elements)),
        clip_norm=CLIP_NORM,
        encoder_lr_factor=1.0,
        # Adam's second moments need some steps to settle; a short time has no more to spare.
        warmup_steps=max(min(WARM_UP_TIMED, steps - 1), 0) if timed else min(WARM_UP, steps // 20),
        ema_decay=ema,
        steps=steps,
        validate_every=max(steps // VALIDATIONS, 1),
        patience=PATIENCE if stops_early else None,
    )

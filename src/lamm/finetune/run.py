"""Fine-tuning: keep the encoder, start the heads, refit the references, train (Sec. 4.4)."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import yaml

from lamm.balance.columns import spread_places
from lamm.config import BEST, RESET, FinetuneConfig
from lamm.data.joint import JointDataset, Subset, refit_normalisation
from lamm.data.references import Normalisation
from lamm.errors import ConfigError, nearest_names
from lamm.finetune.card import write_card
from lamm.finetune.ranking import HeadFit, rank_heads, ranking_table, rows_to_rank, take_over
from lamm.finetune.robust import with_robust_references
from lamm.models.lora import adapt, num_trained
from lamm.models.potential import Potential, build
from lamm.schema import parse
from lamm.train.checkpoint import TrainState, load
from lamm.train.distributed import join, leave
from lamm.train.local_ranks import ranks_here
from lamm.train.run import CONFIG, ENVIRONMENT, restarted_here, run_training
from lamm.train.start import check_architecture, set_normalisation, set_one

logger = logging.getLogger(__name__)

MOST_FITTED = 5000
"""Training structures that references are fitted to, robustly; all of a few hundred are needed."""


def start_from(
    base: Potential, subsets: tuple[str, ...], heads: dict[str, str], seed: int
) -> Potential:
    """A potential with the encoder of `base` and heads for new subsets.

    Args:
        base: the pre-trained potential.
        subsets: names of the new outputs.
        heads: new subset to the old subset whose head it starts from; others start anew.
        seed: seed of the new heads' weights.

    Raises:
        ConfigError: `heads` names a subset that isn't there.
    """
    for new, old in heads.items():
        if new not in subsets:
            raise ConfigError(f"heads: no new subset '{new}'. {nearest_names(new, subsets)}")
        if old not in base.subsets:
            raise ConfigError(
                f"heads: the base has no subset '{old}'. {nearest_names(old, base.subsets)}"
            )
    return base.with_subsets(subsets, heads=heads, seed=seed)


def checked_base(config: FinetuneConfig) -> Potential | None:
    """The base of a fine-tuning; None where training is from scratch.

    Raises:
        CheckpointError: it can't be read, or is of another architecture than `model` asks for.
        ConfigError: the configuration names a head that it doesn't have.
    """
    base = None if config.base is None else load(config.base)
    if base is not None and config.model is not None:
        check_architecture(base, config.model)
    check_heads(config, base)
    return base


def check_heads(config: FinetuneConfig, base: Potential | None) -> None:
    """Refuse a head that isn't there, before any data is read.

    Raises:
        ConfigError: `head` names none of the base's.
    """
    if config.head == RESET or (base is not None and config.head in (BEST, *base.subsets)):
        return
    known = (RESET,) if base is None else (RESET, BEST, *base.subsets)
    raise ConfigError(f"head '{config.head}': unknown. {nearest_names(config.head, known)}")


def fitted_on_train(subset: Subset) -> Normalisation:
    """References and scales of a subset's training structures; the noise's where it is denoised."""
    if subset.denoising is not None:
        return subset.normalisation()
    rows = subset.rows("train")
    some = list(subset.store.structures(rows[spread_places(len(rows), MOST_FITTED)]))
    return with_robust_references(refit_normalisation(subset), some)


def starting_model(
    config: FinetuneConfig, base: Potential | None, joint: JointDataset
) -> tuple[Potential, dict[str, list[HeadFit]]]:
    """The potential before its first step, and how the base's heads ranked for each subset.

    An output that starts from a head has the head's references and scales fitted to the training
    structures; with no step to train, it has them as they were, so that the base's predictions
    come out to the last bit.

    Raises:
        ConfigError: a head or a new subset isn't there.
    """
    if base is None:
        assert config.model is not None, "the configuration is checked"
        model = build(config.model, joint.names, seed=config.seed).start_at_references()
        set_normalisation(model, [fitted_on_train(subset) for subset in joint.subsets])
        return model, {}
    fitted = {
        subset.name: fitted_on_train(subset)
        for subset in joint.subsets
        if subset.name not in config.replay  # which keep the base's
    }
    rankings: dict[str, list[HeadFit]] = {}
    heads = dict(config.heads) | {name: name for name in config.replay}
    for subset in joint.subsets:
        named = heads.get(subset.name, config.head)
        if subset.name in config.replay or named == RESET or subset.denoising is not None:
            continue
        rows = rows_to_rank(subset.rows("train"))
        fits = rank_heads(base, list(subset.store.structures(rows)), fitted[subset.name])
        rankings[subset.name] = fits
        heads[subset.name] = fits[0].head if named == BEST else named
        logger.info(
            "heads of the base on %d training structures of %s, references and scales refitted:",
            len(rows),
            subset.name,
        )
        for line in ranking_table(fits):
            logger.info("  %s", line)
        logger.info("  the output starts from '%s'", heads[subset.name])
    model = start_from(base, joint.names, heads, config.seed)
    model.start_at_references(
        column for column, name in enumerate(joint.names) if name not in heads
    )
    for column, name in enumerate(joint.names):
        fits = rankings.get(name, [])
        if name in config.replay:
            continue  # with its references and scales
        if not fits:
            set_one(model, column, fitted[name])
        elif config.train.steps != 0:
            fit = next(one for one in fits if one.head == heads[name])
            take_over(model, column, base, fit, fitted[name])
    return model, rankings


def with_less_time(config: FinetuneConfig, seconds: float) -> FinetuneConfig:
    """The configuration with less time for training, where the time is limited; at least 1 s."""
    limit = config.train.max_seconds
    if limit is None:
        return config
    train = config.train.model_copy(update={"max_seconds": round(max(limit - seconds, 1.0), 1)})
    return config.model_copy(update={"train": train})


def with_time_of(config: FinetuneConfig, before: FinetuneConfig) -> FinetuneConfig:
    """The configuration with the time limit that the run began with, if it has one."""
    if config.train.max_seconds is None:
        return config
    train = config.train.model_copy(update={"max_seconds": before.train.max_seconds})
    return config.model_copy(update={"train": train})


def resumed_config(to: Path) -> FinetuneConfig:
    """The configuration that a run folder was begun with.

    Raises:
        ConfigError: there is none.
    """
    path = to / CONFIG
    if not path.is_file():
        raise ConfigError(f"{to}: no run to resume. Start without --resume.")
    return parse(FinetuneConfig, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def ranks_of_run(config: FinetuneConfig) -> int:
    """How many ranks to start on this machine for a run that goes on: as it had, if it can."""
    try:
        had = json.loads((config.to / ENVIRONMENT).read_text(encoding="utf-8"))["ranks"]
    except (OSError, ValueError, KeyError):
        return 1
    return min(int(had), ranks_here(config.train.device))


def finetune(config: FinetuneConfig, *, resume: bool = False, quiet: bool = False) -> TrainState:
    """Fine-tune a checkpoint, or train from scratch, on the data of a configuration.

    The metrics of step 0, before any training, are always validated and written. At the end the
    run folder has a report and a model card beside the weights.

    Raises:
        LaMMError: the configuration, the data or the checkpoint can't be used.
        BadAnswerError: the loss isn't finite.
        InterruptedRunError: a signal stopped the run; a checkpoint was saved.
    """
    world = join(config.train.device)
    if not world.is_main:
        logging.getLogger(__package__).setLevel(logging.WARNING)
    try:
        begin = time.monotonic()
        base = world.together(lambda: checked_base(config))
        joint = world.together(lambda: JointDataset(config.data, config.seed))
        model, rankings = world.together(lambda: starting_model(config, base, joint))
        if not resume and restarted_here(config.to):
            config = with_time_of(config, resumed_config(config.to))
        elif not resume:  # less by the time of the slowest rank
            used = world.largest(round(1000 * (time.monotonic() - begin))) / 1000
            config = with_less_time(config, used)
        if config.encoder == "frozen":
            model.encoder.requires_grad_(False)
        parameters = model.num_parameters
        if config.lora is not None:
            adapt(model, config.lora, config.seed)
            logger.info("low-rank adapters of rank %d in the encoder", config.lora.rank)
        logger.info("%s of %s parameters are trained", f"{num_trained(model):,}", f"{parameters:,}")
        title = "training from scratch" if base is None else "fine-tuning"
        state = run_training(config, model, joint, world, resume=resume, title=title, quiet=quiet)
        trained, size = num_trained(model), state.mini_batch_size
        world.from_main(lambda: write_card(config, joint, rankings, trained, size))
        return state
    finally:
        leave(world)

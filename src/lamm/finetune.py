"""Fine-tuning: keep the encoder, reset the heads, refit the references (Sec. 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamm.config import FinetuneConfig, override
from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.joint import JointDataset, refit_normalisation
from lamm.data.store import Store
from lamm.errors import CheckpointError, ConfigError, nearest_names
from lamm.models.potential import ModelConfig, Potential
from lamm.schema import parse
from lamm.train.checkpoint import TrainState, load, weights_file
from lamm.train.distributed import join, leave
from lamm.train.run import run_training, set_normalisation


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


def check_architecture(base: Potential, wanted: ModelConfig) -> None:
    """Refuse a base of another architecture than the configuration asks for.

    Raises:
        CheckpointError: an entry of the encoder's configuration differs.
    """
    has: dict[str, Any] = base.config.encoder.model_dump()
    asked: dict[str, Any] = wanted.encoder.model_dump()
    different = [
        f"{key} is {has.get(key)}, expected {value}"
        for key, value in asked.items()
        if has.get(key) != value and key not in wanted.encoder.no_architecture
    ]
    if different:
        raise CheckpointError(
            "the base checkpoint is of another architecture than `model` asks for: "
            f"{'; '.join(different)}.\n"
            "  Leave `model` out to take the checkpoint's own."
        )


def finetune(config: FinetuneConfig, *, resume: bool = False, quiet: bool = False) -> TrainState:
    """Fine-tune a checkpoint on the data of a configuration.

    The metrics of step 0, before any training, are always validated and written.

    Raises:
        LaMMError: the configuration, the data or the checkpoint can't be used.
        BadAnswerError: the loss isn't finite.
        InterruptedRunError: a signal stopped the run; a checkpoint was saved.
    """
    world = join(config.train.device)
    try:
        base = load(config.base)
        if config.model is not None:
            check_architecture(base, config.model)
        joint = JointDataset(config.data, config.seed)
        model = start_from(base, joint.names, config.heads, config.seed)
        set_normalisation(model, [refit_normalisation(subset) for subset in joint.subsets])
        return run_training(
            config, model, joint, world, resume=resume, title="fine-tuning", quiet=quiet
        )
    finally:
        leave(world)


def config_for(base: Path, data: Path, to: Path, words: Sequence[str] = ()) -> FinetuneConfig:
    """A fine-tuning configuration for one store or file, with lengths that fit its size.

    A file is ingested into ``to/data`` first. Structures without a given split go 80/20 to training
    and validation. The run takes about 200 passes over the training data, at least 1,000 and at
    most 20,000 steps.

    Args:
        base: checkpoint to start from.
        data: a store, or an extended XYZ file.
        to: the run folder.
        words: dotted ``key=value`` overrides.

    Raises:
        ConfigError: there is nothing at `data`, or an override is wrong.
        DataError: a record of the file can't be used.
    """
    weights_file(base)  # a wrong checkpoint is found before any data is read
    if not data.exists():
        raise ConfigError(f"--data {data}: no such file or store.")
    store = data
    if data.is_file():
        store = to / "data"
        if not store.exists():
            header = CardHeader(name=data.stem, task="S2EF-Total")
            ingest("extxyz", [data], store, header)
    size = len(Store.open(store))
    batch_size = 8
    steps = min(max(200 * size // batch_size, 1000), 20000)
    mapping: dict[str, Any] = {
        "to": str(to),
        "base": str(base),
        "data": {
            "subsets": {_subset_name(store, data): {"store": str(store)}},
            "val_fraction": 0.2,
        },
        "optim": {"lr": 5e-4, "warmup_steps": 20},
        "balance": {"batch_size": batch_size},
        "train": {"steps": steps, "validate_every": max(steps // 20, 1)},
    }
    return parse(FinetuneConfig, override(mapping, words), "command line")


def _subset_name(store: Path, data: Path) -> str:
    return Store.open(store).card.name or data.stem

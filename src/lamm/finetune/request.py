"""From what the user typed to a whole configuration: data prepared, rules applied."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from dataclasses import replace
from typing import Any

import numpy as np

from lamm.config import BEST, RESET, FinetuneConfig, override
from lamm.data.joint import DataConfig, JointDataset
from lamm.data.sampling import temperature_sizes
from lamm.data.splits import TRAIN
from lamm.data.store import Store
from lamm.errors import ConfigError, LaMMError
from lamm.finetune.data import check_data, prepare_data
from lamm.finetune.further import UNLABELLED, Request, further_subsets, unlabelled_subset
from lamm.finetune.rules import (
    MAX_VAL,
    batch_size_per_rank,
    batch_size_with_further,
    choose_recipe,
    further_weight,
)
from lamm.finetune.run import resumed_config
from lamm.models.presets import ModelConfig, resolve_model
from lamm.schema import parse
from lamm.train.checkpoint import load, weights_file
from lamm.train.distributed import World, join, leave
from lamm.train.local_ranks import ranks_here
from lamm.train.run import CONFIG, restarted_here

logger = logging.getLogger(__name__)

DEFAULT_HEAD = BEST
"""Where the output starts unless the user says it: it is the best after few steps, and no worse
after many."""
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
LEAST_SECONDS = 5.0
"""Time for training that must be left after the data is prepared."""
LEAST_STEPS_SHARED, LEAST_SECONDS_SHARED = 200, 30.0
"""Length of a run that is shared by ranks: they take some seconds to start."""
AFTER, AFTER_SHARE = 3.0, 0.03
"""Seconds, and share of the whole, that are kept for test errors, card and report."""


def parse_time(text: str) -> float:
    """Seconds of a person's words, as 90s, 10m or 1.5h.

    Raises:
        ConfigError: it is no such thing.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"--max-time {text}: expected a time as 90s, 10m or 2h.")
    return float(match[1]) * _UNITS[match[2]]


def config_for(request: Request) -> FinetuneConfig:
    """A fine-tuning configuration for one store or file, by the rules of `lamm.finetune.rules`.

    The data goes to ``to/data`` with a split for each structure, after the doctor has seen it.

    Raises:
        ConfigError: a path has nothing, there is a run already, or an override is wrong.
        CheckpointError: the base can't be used.
        DataError: the data can't be used, or the doctor found what spoils training.
    """
    model = _architecture(request)  # a wrong checkpoint or word is found before any data is read
    said = override({}, request.words)
    if (request.to / CONFIG).exists():
        raise ConfigError(
            f"{request.to}: there is a run in this folder already.\n"
            "  Go on with it by --resume, or choose another folder with --to."
        )
    old = further_subsets(request)
    prepared = prepare_data(
        request.data,
        request.to,
        val=request.val,
        test=request.test,
        card=request.card,
        seed=_seed(said),
    )
    store = prepared.store
    try:
        check_data(prepared, request.to, accept=request.accept_data)
        mapping = _with_further(request, _mapping(request, store, model, said), store, old)
        whole = mapping["balance"]["batch_size"]
        mapping["balance"] = {"batch_size": batch_size_per_rank(whole, request.ranks)}
        if request.max_seconds is not None:
            left = _time_left(request.max_seconds, time.monotonic() - request.begun)
            mapping["train"]["max_seconds"] = left
        return parse(FinetuneConfig, override(mapping, request.words), "command line")
    except BaseException:  # the next attempt begins anew
        shutil.rmtree(store.path)
        if request.unlabelled is not None and request.unlabelled.is_file():
            shutil.rmtree(request.to / UNLABELLED, ignore_errors=True)
        raise


def ranks_by_rule(request: Request) -> int:
    """How many ranks to start on this machine for a request.

    One where the user chose the mini-batches, which are a rank's, or where the run is over before
    the start of further processes has paid off.
    """
    said = override({}, request.words)
    train = said.get("train")
    train = train if isinstance(train, dict) else {}
    steps = train.get("steps")
    short = isinstance(steps, int) and steps < LEAST_STEPS_SHARED
    short |= request.max_seconds is not None and request.max_seconds < LEAST_SECONDS_SHARED
    return 1 if short or "balance" in said else ranks_here(str(train.get("device", "auto")))


def config_on_every_rank(request: Request) -> FinetuneConfig:
    """`config_for` on rank 0, which prepares the data; the other ranks wait for what it gives.

    Processes that `torchrun` has started again take the configuration that the run began with.

    Raises:
        LaMMError: as `config_for`, on every rank.
    """
    if restarted_here(request.to):
        return resumed_config(request.to)
    said = override({}, request.words).get("train", {})
    world = join(str(said.get("device", "auto")) if isinstance(said, dict) else "auto")
    found: FinetuneConfig | LaMMError | None = None
    if world.is_main:
        try:
            found = config_for(_shared_by(request, world))
        except LaMMError as error:
            found = error
    found = world.gather(found)[0]
    assert found is not None
    if isinstance(found, LaMMError):
        leave(world)
        raise found
    return found


def _shared_by(request: Request, world: World) -> Request:
    """The request of several ranks; those that share a CPU read their structures themselves."""
    busy = world.size > 1 and world.device.type == "cpu"
    words = ["train.workers=0", *request.words] if busy else request.words  # the user's count
    return replace(request, ranks=world.size, words=words)


def _with_further(
    request: Request, mapping: dict[str, Any], store: Store, old: dict[str, Any]
) -> dict[str, Any]:
    """The configuration with replayed and unlabelled subsets beside the user's own.

    Raises:
        ConfigError: two subsets of one name, or a path has nothing.
        DataError: the unlabelled structures can't be used.
    """
    further = dict(old.get("subsets", {}))
    if request.unlabelled is not None:
        further |= unlabelled_subset(request.unlabelled, request.to)
    if store.card.name in further:
        raise ConfigError(
            f"the data is called '{store.card.name}', as a further subset is. "
            "Give its file another name."
        )
    shares = {key: value for key, value in old.items() if key != "subsets"}
    data = mapping["data"] | shares
    data["subsets"] = data["subsets"] | further
    replayed = [name for name in further if name != UNLABELLED]
    whole = mapping | {"data": data, "replay": replayed}
    return _with_shares(request, whole, store.card.name) if further else whole


def _with_shares(request: Request, mapping: dict[str, Any], own: str) -> dict[str, Any]:
    """The configuration in which further subsets are used as often as the user's own, together."""
    data = parse(DataConfig, override(mapping, request.words)["data"], "command line")
    joint = JointDataset(data, seed=0)
    sizes = [len(subset.training_rows()) for subset in joint.subsets]
    uses = dict(
        zip(joint.names, map(int, temperature_sizes(sizes, data.sampling.temperature)), strict=True)
    )
    further = sum(count for name, count in uses.items() if name != own)
    weight = further_weight(uses[own], further)
    size = batch_size_with_further(
        mapping["balance"]["batch_size"], uses[own], round(weight * further)
    )
    subsets = {
        name: entry if name == own else {**entry, "sampling_weight": weight}
        for name, entry in mapping["data"]["subsets"].items()
    }
    logger.info(
        "replayed and unlabelled structures: %.2g for each of the data's own; batch size %d",
        weight * further / uses[own],
        size,
    )
    return mapping | {
        "data": mapping["data"] | {"subsets": subsets},
        "balance": mapping["balance"] | {"batch_size": size},
    }


def _time_left(limit: float, used: float) -> float:
    """Seconds for training of a time limit, after what was used and what the end needs.

    Raises:
        ConfigError: too few are left.
    """
    left = limit * (1 - AFTER_SHARE) - AFTER - used
    if left < LEAST_SECONDS:
        raise ConfigError(
            f"--max-time: {limit:.0f} s are too few. Preparing the data took {used:.0f} s, test "
            f"errors, card and report are given {limit - left - used:.0f} s, and training needs "
            f"{LEAST_SECONDS:.0f} s at least.\n"
            f"  Give {math.ceil((used + AFTER + LEAST_SECONDS) / (1 - AFTER_SHARE)) + 1} s or more."
        )
    return round(left, 1)


def _architecture(request: Request) -> ModelConfig:
    if (request.base is None) == (request.preset is None):
        raise ConfigError(
            "name one thing to start from: --from CHECKPOINT, or --from-scratch PRESET "
            "(`lamm models` lists presets)."
        )
    if request.base is None:
        assert request.preset is not None
        return resolve_model(request.preset)
    weights_file(request.base)
    base = load(request.base)
    if request.head not in (None, RESET, BEST, *base.subsets):
        raise ConfigError(
            f"--head {request.head}: expected {RESET}, {BEST} or one of the base's: "
            f"{', '.join(base.subsets)}."
        )
    return base.config


def _new_model(preset: str, said: dict[str, Any], store: Store) -> dict[str, Any]:
    """The configuration of a model from scratch: a preset, and the kind of forces.

    Where there are forces to learn, PaiNN learns them as the energy's gradient, unless the user
    says otherwise: on the few structures of a fine-tuning, every force is then a label of the
    energy, too, which is worth far more than the time that it takes.
    """
    asked = said.get("model")
    forces = asked.get("forces") if isinstance(asked, dict) else None
    learns_forces = bool(store.index.has_forces[store.index.split == TRAIN].any())
    if forces is None and learns_forces and resolve_model(preset).encoder.name == "painn":
        forces = "gradient"
    return {"preset": preset} | ({} if forces is None else {"forces": forces})


def _seed(said: dict[str, Any]) -> int:
    seed = said.get("seed", 0)
    return seed if isinstance(seed, int) else 0  # what is wrong with it is said when it is parsed


def _mapping(
    request: Request, store: Store, model: ModelConfig, said: dict[str, Any]
) -> dict[str, Any]:
    """The configuration that the rules give."""
    index = store.index
    train = index.split == TRAIN
    new = None
    if request.preset is not None:
        new = _new_model(request.preset, said, store)
        model = resolve_model(new)
    steps = said.get("train", {}).get("steps") if isinstance(said.get("train"), dict) else None
    timed = request.max_seconds is not None
    recipe = choose_recipe(
        int(train.sum()),
        float(np.mean(index.num_atoms[train])),
        model.encoder.channels,
        int(store.normalisation().known.sum()),
        conservative=model.forces == "gradient",
        from_scratch=request.base is None,
        steps=steps if isinstance(steps, int) else None,
        timed=timed,
    )
    logger.info(
        "rules: batch size %d, learning rate %g, %s, averaged weights %g",
        recipe.batch_size,
        recipe.lr,
        f"at most {request.max_seconds:.0f} s in all" if timed else f"{recipe.steps} steps",
        recipe.ema_decay,
    )
    length: dict[str, Any] = {} if timed else {"steps": recipe.steps}
    if not timed:
        length |= {"validate_every": recipe.validate_every, "patience": recipe.patience}
    head = request.head or (RESET if request.base is None else DEFAULT_HEAD)
    return {
        "to": str(request.to),
        "base": None if request.base is None else str(request.base),
        "model": new,
        "head": head,
        "encoder": "frozen" if request.frozen else "trained",
        "lora": None if request.lora is None else {"rank": request.lora},
        "data": {
            "subsets": {store.card.name: {"store": str(store.path)}},
            "max_val_structures": MAX_VAL,
        },
        "loss": {
            "energy": recipe.energy_weight,
            "forces": recipe.forces_weight,
            "energy_per": "atom",
        },
        "optim": {
            "lr": recipe.lr,
            "clip_norm": recipe.clip_norm,
            "encoder_lr_factor": 1.0 if request.lora is not None else recipe.encoder_lr_factor,
            "layer_decay": request.layer_decay,
            "warmup_steps": recipe.warmup_steps,
            "ema_decay": recipe.ema_decay,
        },
        "balance": {"batch_size": recipe.batch_size},
        "train": length,
    }

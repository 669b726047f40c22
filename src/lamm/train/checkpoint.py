"""Checkpoints: a folder per saved step, whole or not there, and loaded without running any code.

``checkpoints/step-N/`` holds ``model.safetensors`` (weights), ``ema.safetensors`` (averaged
weights, where they are kept), ``training.pt`` (optimizer) and ``state.json``. The links ``last``
and ``best`` in the run folder point to two of them. Where adapters are trained (LoRA), both files
of weights have them merged, as those of any other model, and ``adapters.safetensors`` has what
resuming needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lamm.errors import CheckpointError, nearest_names
from lamm.files import make_readable, point_link, replaced_folder, write_json
from lamm.models.lora import PREFIX, plain_state, unmerged_state
from lamm.models.potential import Potential
from lamm.shipped import checkpoint_path, shipped_models
from lamm.train.ema import AveragedWeights
from lamm.typing import JSONDict, PathLike

FORMAT_VERSION = 1
WEIGHTS, AVERAGED, ADAPTERS, TRAINING, STATE = (
    "model.safetensors",
    "ema.safetensors",
    "adapters.safetensors",
    "training.pt",
    "state.json",
)

INCOMPLETE = ".*.incomplete-*"
"""What `lamm.files` writes before it is whole."""


@dataclass
class TrainState:
    """Where a run is: all that resuming needs beside the weights and the optimizer."""

    step: int = 0
    """Steps done."""
    epoch: float = 0.0
    """Passes over the joint data set done."""
    cursor: int = 0
    """Structures used so far, all ranks together."""
    seed: int = 0
    best_loss: float | None = None
    """Lowest validation loss so far."""
    best_step: int | None = None
    seconds: float = 0.0
    """Time spent training, over all sessions of the run."""
    mini_batch_size: int | None = None
    """G, which stays when the run goes on with another number of ranks."""
    ranks: int | None = None
    """W of the session that saved this."""
    plan: JSONDict | None = None
    """What the plan depends on beside G and W, as `lamm.train.batches.Schedule.basis` says it."""
    budget: int | None = None
    """Atoms and edges above which a GPU batch is split, once memory has run out."""
    set_aside: list[JSONDict] = field(default_factory=list)
    """Structures that didn't fit into the memory alone."""
    ended: JSONDict | None = None
    """The length that the run had when it came to its end; none before."""
    skipped_in_a_row: int = 0
    """Latest steps that were skipped because loss or gradient weren't finite."""
    format_version: int = FORMAT_VERSION


def _metadata(model: Potential) -> dict[str, str]:
    return {"format_version": str(FORMAT_VERSION), "model": json.dumps(model.describe())}


def save_potential(model: Potential, path: Path) -> None:
    """Write a potential's weights, with what is needed to build it again in the file's header.

    Equal weights give equal files, byte for byte. Adapters are merged.
    """
    state = plain_state(model)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata=_metadata(model))
    _sort_metadata(path)
    make_readable(path)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library writes them in a random one."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same header in another order is no longer"
        file.seek(8)
        file.write(text.ljust(length))


def save_checkpoint(
    run_dir: Path,
    model: Potential,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedWeights | None,
    state: TrainState,
    *,
    is_best: bool,
    keep: int = 2,
) -> Path:
    """Save a step; move the links; remove the oldest saved steps but the best.

    A kill at any instant leaves `last` on a whole step; `tidy` sees to what else it leaves.

    Args:
        run_dir: folder of the run.
        model: the potential, not its distributed wrapper.
        optimizer: its state is saved for resuming.
        averaged: averaged weights, or None where none are kept.
        state: where the run is.
        is_best: whether ``best`` is to point here.
        keep: how many of the latest steps stay, beside the best.
    """
    folder = run_dir / "checkpoints" / f"step-{state.step}"
    last = run_dir / "last"
    if not (last.exists() and last.resolve() == folder.resolve()):  # or it is there already
        with replaced_folder(folder) as temporary:
            save_potential(model, temporary / WEIGHTS)
            if averaged is not None:
                with averaged.applied():
                    save_potential(model, temporary / AVERAGED)
            if model.adapters is not None:
                _save_adapters(model, averaged, temporary / ADAPTERS)
            torch.save(optimizer.state_dict(), temporary / TRAINING)
            write_json(temporary / STATE, {**asdict(state), "model": model.describe()})
        point_link(last, folder)
    if is_best:
        point_link(run_dir / "best", folder)
    _remove_old(run_dir, keep)
    return folder


def _save_adapters(model: Potential, averaged: AveragedWeights | None, path: Path) -> None:
    """Write the adapters, the weights without them, and the adapters' averages."""
    tensors = unmerged_state(model)
    if averaged is not None:
        own = {key: one for key, one in averaged.state_dict().items() if key.startswith(PREFIX)}
        tensors |= {f"averaged.{key}": one for key, one in own.items()}
    save_file({key: one.detach().contiguous() for key, one in tensors.items()}, path)
    make_readable(path)


def tidy(run_dir: Path, state: TrainState) -> None:
    """Remove what a killed session left in a run folder and the state knows nothing of.

    That is what was half-written, steps that were saved after the state but not linked yet, and a
    `best` that doesn't point to the state's best step yet.
    """
    for left in [*run_dir.glob(INCOMPLETE), *(run_dir / "checkpoints").glob(INCOMPLETE)]:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    for folder in saved_steps(run_dir):
        if _step_of(folder) > state.step:
            shutil.rmtree(folder)
    best = run_dir / "checkpoints" / f"step-{state.best_step}"
    if best.is_dir():
        point_link(run_dir / "best", best)


def saved_steps(run_dir: Path) -> list[Path]:
    """The saved steps of a run, oldest first."""
    folders = (run_dir / "checkpoints").glob("step-*")
    return sorted(folders, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _remove_old(run_dir: Path, keep: int) -> None:
    best = run_dir / "best"
    kept = {best.resolve()} if best.exists() else set()
    for folder in saved_steps(run_dir)[:-keep]:
        if folder.resolve() not in kept:
            shutil.rmtree(folder)


def read_state(folder: Path) -> TrainState:
    """The state of a saved step.

    Raises:
        CheckpointError: it is missing, damaged, or of a later version of LaMM.
    """
    path = folder / STATE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint state ({error}).") from error
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {version}, expected {FORMAT_VERSION}. "
            "Install the version of LaMM that wrote it."
        )
    values.pop("model", None)
    return TrainState(**values)


def resume_checkpoint(
    folder: Path,
    model: Potential,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedWeights | None,
) -> TrainState:
    """Put a saved step back into model, optimizer and averages.

    Raises:
        CheckpointError: the checkpoint is of another model, or a part of it is missing.
    """
    state = read_state(folder)
    unmerged: dict[str, torch.Tensor] = {}
    if model.adapters is not None:
        unmerged = _read_tensors(folder / ADAPTERS)
    of_average = {
        key.removeprefix("averaged."): unmerged.pop(key)
        for key in list(unmerged)
        if key.startswith("averaged.")
    }
    load_weights(model, folder / WEIGHTS, unmerged)
    if averaged is not None:
        averaged.load_state_dict(_read_tensors(folder / AVERAGED) | unmerged | of_average)
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    path = folder / TRAINING
    try:
        saved = torch.load(path, weights_only=True)
        optimizer.load_state_dict(saved)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: can't restore the optimizer ({error}).") from error
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)  # rates and decay are the configuration's, not the file's
    return state


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Name a run, a saved step or a .safetensors.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). Copy it again from its source."
        ) from error


def load_weights(
    model: Potential, path: Path, unmerged: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Load weights into a potential of the same architecture.

    Args:
        model: what they go into.
        path: file of weights.
        unmerged: what `unmerged_state` gave, for a potential with adapters.

    Raises:
        CheckpointError: a weight is missing, left over or of another shape.
    """
    tensors = _read_tensors(path) | dict(unmerged or {})
    own = model.state_dict()
    tensors.setdefault("energy_shift", torch.zeros_like(own["energy_shift"]))  # newer than the file
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if missing or extra or shapes:
        faults = [f"missing {missing[:3]}"] * bool(missing) + [f"unknown {extra[:3]}"] * bool(extra)
        raise CheckpointError(
            f"{path}: the checkpoint is of another architecture than the model "
            f"({'; '.join(faults + shapes[:3])}).\n"
            "  Use the configuration that it was made with, or start without it."
        )
    model.load_state_dict(tensors)


def weights_file(path: Path, averaged: bool = True) -> Path:
    """The weights that a shipped model's name, a run folder, a saved step or a file means.

    Args:
        path: a ``.safetensors`` file, a saved step, a run folder (its ``best`` step, else its
            ``last``), or the name of a model that the package ships.
        averaged: prefer the averaged weights where there are any.

    Raises:
        CheckpointError: there is nothing to load.
    """
    path = checkpoint_path(path)
    if path.is_file():
        return path
    if not path.exists():
        near = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
        near += shipped_models() if len(path.parts) == 1 else []
        hint = nearest_names(path.name, near) if near else ""
        raise CheckpointError(f"{path}: no such run, checkpoint or file. {hint}".rstrip())
    for folder in (path, path / "best", path / "last"):
        names = (AVERAGED, WEIGHTS) if averaged else (WEIGHTS,)
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise CheckpointError(
        f"{path}: no {WEIGHTS} here, nor in its `best` or `last` step. "
        "Name a run folder that has saved a step."
    )


def read_description(path: Path) -> JSONDict:
    """What the header of a weights file says of its model.

    Raises:
        CheckpointError: the file isn't one of ours or is of a later version.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata: dict[str, Any] = tensors.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). Copy it again from its source."
        ) from error
    if "model" not in metadata:
        raise CheckpointError(f"{path}: its header doesn't describe a LaMM model.")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format_version is {metadata.get('format_version')}, expected "
            f"{FORMAT_VERSION}. Install the version of LaMM that wrote it."
        )
    description: JSONDict = json.loads(metadata["model"])
    return description


def load(
    name_or_path: PathLike, device: str | torch.device = "cpu", averaged: bool = True
) -> Potential:
    """Load a trained potential, ready for prediction.

    Args:
        name_or_path: a run folder, a saved step, a ``.safetensors`` file, or the name of a model
            that the package ships (``lamm-xs``).
        device: where the weights go.
        averaged: take the averaged weights where there are any.

    Returns:
        The potential in evaluation mode.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged or of another version.
    """
    path = weights_file(Path(name_or_path).expanduser(), averaged)
    model = Potential.from_description(read_description(path))
    load_weights(model, path)
    return model.to(device).eval()

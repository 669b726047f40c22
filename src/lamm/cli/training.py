"""How `pretrain` and `finetune` end: the exit status and what is said of the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamm.cli import common

if TYPE_CHECKING:
    from lamm.train.checkpoint import TrainState


def finish(run: Callable[[], TrainState], run_dir: Path, as_json: bool) -> None:
    """Run a training and say how it ended, on rank 0.

    Args:
        run: the training.
        run_dir: its run folder.
        as_json: say it as one JSON object.
    """
    common.start_logging(quiet=as_json)
    state = run()
    from lamm.evaluate.curves import read_metrics
    from lamm.train.launch import find_place

    if find_place(os.environ).rank != 0:
        return

    lines = [line for line in read_metrics(run_dir) if line["kind"] == "validation"]
    first = lines[0]
    best = min(lines, key=lambda line: float(line["loss"]))
    if as_json:
        common.emit_json(
            {
                "run": run_dir,
                "steps": state.step,
                "epochs": state.epoch,
                "seconds": state.seconds,
                "best_step": best["step"],
                "validation_step_0": first,
                "validation_best": best,
            }
        )
        return
    common.say(f"{state.step} steps, {state.epoch:.2f} epochs, {state.seconds:.0f} s -> {run_dir}")
    for text in errors_table(first, best):
        common.say(text)


def errors_table(first: dict[str, Any], best: dict[str, Any]) -> Iterable[str]:
    """Lines of a table: each subset's validation errors at step 0 and at the best step."""
    columns = (
        ("energy_mae_mev_per_atom", "E MAE meV/atom"),
        ("forces_mae_mev_per_ang", "F MAE meV/Å"),
        ("denoising_mae_fair_ang", "noise MAE Å"),
    )
    names = list(best["subsets"])
    width = max([len("validation"), *map(len, names)])
    head = "".join(f"  {title:>22}" for _, title in columns)
    yield f"{'validation':<{width}}{head}    (step {first['step']} -> step {best['step']})"
    for name in names:
        cells = []
        for key, _ in columns:
            before, after = first["subsets"][name].get(key), best["subsets"][name].get(key)
            cells.append("-" if after is None else f"{_short(before)} -> {_short(after)}")
        yield f"{name:<{width}}" + "".join(f"  {cell:>22}" for cell in cells)


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"

"""What a fine-tuned model is, for whoever gets it: a card (Markdown, JSON) and a report page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lamm import __version__
from lamm.config import FinetuneConfig
from lamm.data.joint import JointDataset, store_path
from lamm.data.store import Store
from lamm.errors import LaMMError
from lamm.evaluate.curves import read_metrics
from lamm.evaluate.report import duration, read_run, report_page
from lamm.files import write_json, write_text
from lamm.finetune.ranking import HeadFit
from lamm.models.potential import Potential
from lamm.train.checkpoint import load
from lamm.train.distributed import World
from lamm.train.run import run_config_file
from lamm.train.validation import validate
from lamm.typing import JSONDict

logger = logging.getLogger(__name__)

CARD_JSON, CARD_TEXT, REPORT = "card.json", "card.md", "report.html"
MOST_ELEMENTS = 20
"""Elements that the limits name one by one; the data's section has them all."""
ERRORS = {
    "energy_mae_mev_per_atom": "energy MAE (meV/atom)",
    "energy_rmse_mev_per_atom": "energy RMSE (meV/atom)",
    "forces_mae_mev_per_ang": "forces MAE (meV/Å)",
    "forces_rmse_mev_per_ang": "forces RMSE (meV/Å)",
}


def write_card(
    config: FinetuneConfig,
    joint: JointDataset,
    rankings: Mapping[str, Sequence[HeadFit]],
    num_trained: int,
) -> JSONDict:
    """Judge the best weights of a run, and write its card and report.

    Args:
        config: of the run.
        joint: its data.
        rankings: of each subset, the base's heads, the best first.
        num_trained: parameters that were trained.

    Returns:
        The card.
    """
    model = load(config.to)
    lines = [line for line in read_metrics(config.to) if line["kind"] == "validation"]
    best = min(lines, key=lambda line: float(line["loss"]))
    errors: JSONDict = {"validation_step_0": lines[0]["subsets"], "validation": best["subsets"]}
    if len(joint.ids("test")):
        test = validate(
            model,
            joint,
            config.loss,
            World(0, 1, torch.device("cpu")),
            split="test",
            atoms_per_batch=config.train.val_atoms_per_batch,
        )
        errors["test"] = test["subsets"]
    card: JSONDict = {
        "format_version": 1,
        "lamm_version": __version__,
        "model": {**model.describe(), "parameters": model.num_parameters},
        "base": _base(config.base),
        "data": [_data(joint, number) for number in range(len(joint.subsets))],
        "training": {
            "steps": lines[-1]["step"],
            "best_step": best["step"],
            "seconds": lines[-1]["seconds"],
            "head": config.head,
            "heads": config.heads,
            "encoder": config.encoder,
            "lora": None if config.lora is None else config.lora.model_dump(mode="json"),
            "trained_parameters": num_trained,
            "optim": config.optim.model_dump(mode="json"),
            "loss": config.loss.model_dump(mode="json"),
            "batch_size": config.balance.batch_size,
            "seed": config.seed,
        },
        "heads_ranked": {name: [_ranked(fit) for fit in fits] for name, fits in rankings.items()},
        "errors": errors,
        "forgetting": {
            name: {"before": lines[0]["subsets"][name], "after": best["subsets"][name]}
            for name in config.replay
        },
        "limits": _limits(model, joint),
    }
    write_json(config.to / CARD_JSON, card)
    write_text(config.to / CARD_TEXT, card_text(card))
    page = report_page([read_run(config.to)])
    if config.replay:
        page.section("What the old heads forgot", "Validation errors before and after.")
        page.table(
            ["Subset", "Error", "Before", "After"],
            [[*row] for row in forgetting_rows(card["forgetting"])],
            "Replayed subsets, at step 0 and at the best step.",
        )
    page.details("Model card", card_text(card))
    page.write(config.to / REPORT)
    logger.info("best model: %s, card: %s, report: %s", config.to / "best", CARD_TEXT, REPORT)
    return card


def _ranked(fit: HeadFit) -> JSONDict:
    return {
        "head": fit.head,
        "energy_mae_mev_per_atom": fit.energy_mae,
        "forces_mae_mev_per_ang": fit.forces_mae,
        "energy_factor": fit.energy_factor,
        "force_factor": fit.force_factor,
        "score": fit.score,
    }


def _base(base: Path | None) -> JSONDict | None:
    """The checkpoint that was fine-tuned, and the licences of what it had learnt from."""
    if base is None:
        return None
    licences: dict[str, str] = {}
    file = run_config_file(base)
    known = {} if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, subset in known.get("data", {}).get("subsets", {}).items():
        try:
            licence = Store.open(store_path(subset["store"])).card.licence
        except LaMMError:
            licence = ""  # the base's data needn't be on this machine
        licences[name] = licence or "not known here"
    return {"checkpoint": str(base), "licences": licences}


def _data(joint: JointDataset, number: int) -> JSONDict:
    subset = joint.subsets[number]
    card = subset.store.card
    return {
        "subset": subset.name,
        "store": str(subset.store.path),
        "structures": len(subset.store),
        "splits": {name: len(subset.rows(name)) for name in ("train", "val", "test")},
        "labels": dict(card.label_counts),
        "elements": list(card.elements),
        "atoms": card.num_atoms.model_dump(),
        "periodic": card.periodic,
        "functional": card.functional,
        "licence": card.licence,
    }


def _limits(model: Potential, joint: JointDataset) -> list[str]:
    """What the model wasn't made for, in sentences."""
    elements = sorted({symbol for one in joint.subsets for symbol in one.store.card.elements})
    said = ", ".join(elements) if len(elements) <= MOST_ELEMENTS else f"the {len(elements)} above"
    largest = max(one.store.card.num_atoms.max for one in joint.subsets)
    limits = [
        f"Elements other than {said} are outside the fine-tuning data.",
        f"The largest structure had {largest} atoms; interactions end at "
        f"{model.graph_config.cutoff:g} Å.",
        "Errors hold for structures like the held-out ones; other phases, temperatures and "
        "compositions need a check of their own.",
    ]
    if model.force_head is not None:
        limits.append(
            "Forces are predicted directly: energy isn't conserved exactly in molecular dynamics, "
            "and there is no stress."
        )
    return limits


def card_text(card: JSONDict) -> str:
    """The card as Markdown."""
    data, training, model = card["data"], card["training"], card["model"]
    names = ", ".join(one["subset"] for one in data)
    encoder = model["config"]["encoder"]
    base = card["base"]
    lines = [
        f"# Model card: {names}",
        "",
        f"{encoder['name']}, {encoder['num_layers']} layers, {encoder['channels']} channels, "
        f"{model['parameters']:,} parameters; "
        + (f"fine-tuned from `{base['checkpoint']}`" if base else "trained from scratch")
        + f" in {training['steps']:,} steps ({duration(training['seconds'])}); the weights are "
        f"those of step {training['best_step']:,}, the best on the validation split.",
        "",
        "## Errors",
        "",
        "| subset | split | " + " | ".join(ERRORS.values()) + " |",
        "| --- | --- |" + " --- |" * len(ERRORS),
    ]
    for split, subsets in card["errors"].items():
        title = {"validation_step_0": "validation, before the first step"}.get(split, split)
        for name, errors in subsets.items():
            cells = [_cell(errors.get(key)) for key in ERRORS]
            lines.append(f"| {name} | {title} | " + " | ".join(cells) + " |")
    lines += _forgetting(card["forgetting"])
    lines += ["", "## Data", ""]
    for one in data:
        splits = ", ".join(f"{count:,} {name}" for name, count in one["splits"].items())
        lines.append(
            f"- {one['subset']}: {one['structures']:,} structures ({splits}), "
            f"{one['atoms']['min']} to {one['atoms']['max']} atoms, {' '.join(one['elements'])}; "
            f"licence: {one['licence'] or 'not said'}"
        )
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in card["limits"])]
    if base:
        licences = sorted(set(base["licences"].values())) or ["not known here"]
        lines += ["", "## Licence of the base", "", *(f"- {licence}" for licence in licences)]
    optim = training["optim"]
    lines += [
        "",
        "## Settings",
        "",
        f"Head: {training['head']}; encoder: {_encoder(training)}; "
        f"{training['trained_parameters']:,} trained parameters; batch size "
        f"{training['batch_size']}; learning rate {optim['lr']:g}; averaged weights "
        f"{optim['ema_decay']:g}; seed {training['seed']}. All of them are in `config.yaml`.",
        "",
    ]
    return "\n".join(lines)


def _encoder(training: JSONDict) -> str:
    """What happened to the encoder."""
    lora = training["lora"]
    if lora is None:
        return str(training["encoder"])
    return f"low-rank adapters (LoRA) of rank {lora['rank']}, merged into its weights"


def forgetting_rows(forgetting: JSONDict) -> list[tuple[str, str, float, float]]:
    """Subset, kind of error, and its value before and after, of each replayed subset."""
    keys = {**ERRORS, "denoising_mae_fair_ang": "noise MAE (Å)"}
    return [
        (name, title, one["before"][key], one["after"][key])
        for name, one in forgetting.items()
        for key, title in keys.items()
        if one["before"].get(key) is not None and one["after"].get(key) is not None
    ]


def _forgetting(forgetting: JSONDict) -> list[str]:
    """The same as Markdown."""
    if not forgetting:
        return []
    lines = ["", "## What the old heads forgot", "", "| subset | error | before | after |"]
    lines.append("| --- | --- | --- | --- |")
    for name, title, before, after in forgetting_rows(forgetting):
        lines.append(f"| {name} | {title} | {before:.4g} | {after:.4g} |")
    return lines


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"

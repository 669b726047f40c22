"""What a fine-tuned model is, for whoever gets it: a card (Markdown, JSON) and a report page."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lamm import __version__
from lamm.config import BEST, FinetuneConfig
from lamm.data.joint import JointDataset, store_path
from lamm.data.store import Store
from lamm.errors import LaMMError
from lamm.evaluate.curves import read_metrics
from lamm.evaluate.report import duration, read_run, report_page
from lamm.files import write_json, write_text
from lamm.finetune.data import DATA, DOCTOR, label_words
from lamm.finetune.ranking import HeadFit
from lamm.finetune.sources import IGNORED_INPUT
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
NOISE = {"denoising_mae_fair_ang": "noise MAE, fair (Å)"}
"""Of subsets that are denoised; see Fig. 7."""


def write_card(
    config: FinetuneConfig,
    joint: JointDataset,
    rankings: Mapping[str, Sequence[HeadFit]],
    num_trained: int,
    mini_batch_size: int | None,
) -> JSONDict:
    """Judge the best weights of a run, and write its card and report.

    Args:
        config: of the run.
        joint: its data.
        rankings: of each subset, the base's heads, the best first.
        num_trained: parameters that were trained.
        mini_batch_size: structures of a step, of all ranks together.

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
            "started_from": _started_from(config, joint, rankings),
            "encoder": config.encoder,
            "lora": None if config.lora is None else config.lora.model_dump(mode="json"),
            "trained_parameters": num_trained,
            "optim": config.optim.model_dump(mode="json"),
            "loss": config.loss.model_dump(mode="json"),
            "batch_size": mini_batch_size,
            "seed": config.seed,
        },
        "heads_ranked": {name: [_ranked(fit) for fit in fits] for name, fits in rankings.items()},
        "errors": errors,
        "forgetting": {
            name: {"before": lines[0]["subsets"][name], "after": best["subsets"][name]}
            for name in config.replay
        },
        "doctor": _doctor(config, joint),
    }
    card["limits"] = _limits(config, model, joint, card["doctor"])
    write_json(config.to / CARD_JSON, card)
    write_text(config.to / CARD_TEXT, card_text(card))
    page = report_page([read_run(config.to)])
    if "test" in errors:
        page.section("Test errors", "Errors of the best step on structures that chose nothing.")
        columns = _columns([errors["test"]])
        page.table(
            ["Subset", "Structures", *(title[0].upper() + title[1:] for title in columns.values())],
            [
                [name, one["structures"], *(one.get(key) for key in columns)]
                for name, one in errors["test"].items()
            ],
            f"Test errors at step {best['step']:,}.",
        )
    if card["doctor"] is not None:
        page.section("The doctor on the data", _doctor_words(card["doctor"]))
        if card["doctor"]["findings"]:
            page.table(
                ["Severity", "Check", "Finding"],
                [[*one.values()] for one in card["doctor"]["findings"]],
                "Errors and warnings; `doctor.json` has all findings.",
            )
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


def _started_from(
    config: FinetuneConfig, joint: JointDataset, rankings: Mapping[str, Sequence[HeadFit]]
) -> dict[str, str | None]:
    """The base's head that each output began as; None for those that began anew."""
    started: dict[str, str | None] = {name: name for name in config.replay}
    for name in joint.names:
        named = config.heads.get(name, config.head)
        if name in rankings:
            started[name] = rankings[name][0].head if named == BEST else named
    return {name: started.get(name) for name in joint.names}


def _doctor(config: FinetuneConfig, joint: JointDataset) -> JSONDict | None:
    """Errors and warnings on the prepared data; None where it was another's store."""
    file, prepared = config.to / DOCTOR, (config.to / DATA).resolve()
    own = any(subset.store.path.resolve() == prepared for subset in joint.subsets)
    if not own or not file.is_file():
        return None
    said = json.loads(file.read_text(encoding="utf-8"))
    return {
        "splits": said.get("splits", ""),
        "accepted": said.get("accepted", False),
        "findings": [
            {key: one[key] for key in ("severity", "check", "title")}
            for one in said["findings"]
            if one["severity"] != "note"
        ],
    }


def _doctor_words(doctor: JSONDict) -> str:
    """What was found and accepted, in a sentence or two."""
    kinds = [one["severity"] for one in doctor["findings"]]
    words = f"{kinds.count('error')} errors, {kinds.count('warning')} warnings"
    if doctor["accepted"]:
        words += "; training went on whatever they were, by --accept-data"
    return words + "."


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


def _limits(
    config: FinetuneConfig, model: Potential, joint: JointDataset, doctor: JSONDict | None
) -> list[str]:
    """What the model wasn't made for, in sentences; of the user's subsets, not of those beside."""
    own = [
        one for one in joint.subsets if one.name not in config.replay and one.denoising is None
    ] or joint.subsets
    elements = sorted({symbol for one in own for symbol in one.store.card.elements})
    said = ", ".join(elements) if len(elements) <= MOST_ELEMENTS else f"the {len(elements)} above"
    largest = max(one.store.card.num_atoms.max for one in own)
    limits = [
        f"Elements other than {said} are outside the fine-tuning data.",
        f"The largest structure had {largest} atoms; interactions end at "
        f"{model.graph_config.cutoff:g} Å.",
        "Errors hold for structures like the held-out ones; other phases, temperatures and "
        "compositions need a check of their own.",
    ]
    direct = model.force_head is not None
    for one in own:
        rows = one.rows("train")
        if not np.asarray(one.has_energy[rows]).any():
            limits.append(
                f"{one.name} was trained without energies: the energies that it predicts mean "
                "nothing" + ("." if direct else " but for differences that follow from forces.")
            )
        if not np.asarray(one.has_forces[rows]).any():
            limits.append(
                f"{one.name} was trained without forces: those that it predicts were compared with "
                "nothing."
            )
    if direct:
        limits.append(
            "Forces are predicted directly: energy isn't conserved exactly in molecular dynamics, "
            "and there is no stress."
        )
    else:
        limits.append("Stress isn't trained on, also where the data have it; check it by itself.")
    for finding in [] if doctor is None else doctor["findings"]:
        if finding["check"] == IGNORED_INPUT:
            limits.append(f"{finding['title']}.")
    return limits


def card_text(card: JSONDict) -> str:
    """The card as Markdown."""
    data, training, model = card["data"], card["training"], card["model"]
    names = ", ".join(one["subset"] for one in data)
    encoder = model["config"]["encoder"]
    base = card["base"]
    columns = _columns(card["errors"].values())
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
        "| subset | split | " + " | ".join(columns.values()) + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for split, subsets in card["errors"].items():
        title = {"validation_step_0": "validation, before the first step"}.get(split, split)
        for name, errors in subsets.items():
            cells = [_cell(key, errors.get(key)) for key in columns]
            lines.append(f"| {name} | {title} | " + " | ".join(cells) + " |")
    lines += _forgetting(card["forgetting"])
    lines += ["", "## Data", ""]
    for one in data:
        splits = ", ".join(f"{count:,} {name}" for name, count in one["splits"].items())
        lines.append(
            f"- {one['subset']}: {one['structures']:,} structures ({splits}), "
            f"{label_words(one['labels'])}; {one['atoms']['min']} to {one['atoms']['max']} atoms, "
            f"{' '.join(one['elements'])}; "
            f"licence: {one['licence'] or 'not said'}"
        )
    lines += _doctor_lines(card["doctor"])
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in card["limits"])]
    if base:
        licences = sorted(set(base["licences"].values())) or ["not known here"]
        lines += ["", "## Licence of the base", "", *(f"- {licence}" for licence in licences)]
    optim = training["optim"]
    lines += [
        "",
        "## Settings",
        "",
        f"{_heads(training['started_from'])}; encoder: {_encoder(training)}; "
        f"{training['trained_parameters']:,} trained parameters; batch size "
        f"{training['batch_size']}; learning rate {optim['lr']:g}; averaged weights "
        f"{optim['ema_decay']:g}; seed {training['seed']}. All of them are in `config.yaml`.",
        "",
    ]
    return "\n".join(lines)


def _columns(subsets: Iterable[Mapping[str, JSONDict]]) -> dict[str, str]:
    """Key and title of the errors in a table: that of noise where there is some."""
    noise = {key for of in subsets for one in of.values() for key in NOISE if key in one}
    return ERRORS | {key: NOISE[key] for key in NOISE if key in noise}


def _doctor_lines(doctor: JSONDict | None) -> list[str]:
    """How the data were split and what is wrong with them, as Markdown."""
    if doctor is None:
        return []
    lines = [f"- split: {doctor['splits'] or 'nothing is held out'}"]
    lines += ["", "## What the doctor found in the data", "", _doctor_words(doctor)]
    if doctor["findings"]:
        lines.append("")
    lines += [
        f"- {one['severity']}: {one['title']} (`{one['check']}`)" for one in doctor["findings"]
    ]
    return lines


def _heads(started: Mapping[str, str | None]) -> str:
    """What each output began as."""
    words = [
        f"{name} " + (f"from the base's head '{head}'" if head else "anew")
        for name, head in started.items()
    ]
    return f"Start of the outputs: {', '.join(words)}"


def _encoder(training: JSONDict) -> str:
    """What happened to the encoder."""
    lora = training["lora"]
    if lora is None:
        return str(training["encoder"])
    return f"low-rank adapters (LoRA) of rank {lora['rank']}, merged into its weights"


def forgetting_rows(forgetting: JSONDict) -> list[tuple[str, str, float, float]]:
    """Subset, kind of error, and its value before and after, of each replayed subset."""
    keys = ERRORS | NOISE
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


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if key in NOISE else f"{value:.1f}"

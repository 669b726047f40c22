"""Time and memory of a model beside the original in FAIR-Chem: same weights, edges and threads.

Allocator and product settings belong to a process, and so does the peak of its memory. Every
measurement is a process of its own, and the contenders take turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamm.bench.timing import provenance, spread
from lamm.errors import BadAnswerError, ConfigError, nearest_names
from lamm.typing import JSONDict

PEERS = ("fairchem", "fairchem-tuned")
"""The original as it comes; and with our settings of allocator and float32 products."""

PHASES = ("inference", "step")
"""Evaluation without gradients; forward and backward pass in training mode."""

HINT = "pip install fairchem-core==1.10.0 torch-scatter torch-geometric e3nn"

CONFIGS: dict[str, JSONDict] = {
    "lamm-s": {
        "name": "painn",
        "hidden_channels": 512,
        "num_layers": 6,
        "num_rbf": 128,
        "cutoff": 12.0,
        "max_neighbors": 50,
        "regress_forces": True,
        "direct_forces": True,
        "use_pbc": True,
        "otf_graph": True,
    },
    "lamm-l": {
        "backbone": {
            "model": "equiformer_v2_backbone",
            "use_pbc": True,
            "regress_forces": True,
            "otf_graph": True,
            "max_neighbors": 20,
            "max_radius": 12.0,
            "max_num_elements": 90,
            "num_layers": 8,
            "sphere_channels": 128,
            "attn_hidden_channels": 64,
            "num_heads": 8,
            "attn_alpha_channels": 64,
            "attn_value_channels": 16,
            "ffn_hidden_channels": 128,
            "norm_type": "layer_norm_sh",
            "lmax_list": [4],
            "mmax_list": [2],
            "grid_resolution": 18,
            "edge_channels": 128,
            "use_grid_mlp": True,
            "alpha_drop": 0.1,
            "drop_path_rate": 0.1,
            "proj_drop": 0.0,
            "weight_init": "uniform",
        },
        "heads": {
            "energy": {"module": "equiformerV2_scalar_head"},
            "forces": {"module": "equiformerV2_vector_head"},
        },
    },
}
"""FAIR-Chem's configurations of the presets, with its number of elements and one output."""


def bench_model(
    preset: str,
    batch_file: Path,
    *,
    peers: Sequence[str] | None = None,
    phases: Sequence[str] = PHASES,
    threads: int = 1,
    rounds: int = 3,
    calls: int = 1,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> JSONDict:
    """Measure a model and its peers on one batch.

    Args:
        preset: ``lamm-s`` or ``lamm-l``.
        batch_file: structures in any format that ASE reads; they make one batch.
        peers: of `PEERS`; None: all where FAIR-Chem is installed, else none.
        phases: of `PHASES`.
        threads: of PyTorch, in every process.
        rounds: how often everybody's turn comes.
        calls: calls that are timed in a turn, after one that warms up.
        seed: of the weights.
        progress: told about each turn.

    Returns:
        Settings, times, memory and ratios, as JSON can hold it.

    Raises:
        ConfigError: an unknown preset, peer or phase, or a peer isn't installed.
        BadAnswerError: the peers' energies or forces differ from ours.
    """
    installed = find_spec("fairchem") is not None
    if peers is None:
        peers = PEERS if installed else ()
    _check(preset, peers, phases, installed)
    contenders = ["lamm", *peers]
    with tempfile.TemporaryDirectory() as folder:
        weights, batch = Path(folder) / "weights.pt", Path(folder) / "batch.pt"
        job: JSONDict = {"preset": preset, "config": CONFIGS[preset], "seed": seed}
        job |= {"weights": str(weights), "batch": str(batch), "calls": calls, "threads": threads}
        sizes = write_batch(preset, batch_file, batch)
        _turn(job | {"contender": "fairchem" if peers else "lamm", "phase": "weights"})
        turns: dict[str, dict[str, list[JSONDict]]] = {
            phase: {name: [] for name in contenders} for phase in phases
        }
        for number in range(rounds):
            for phase in phases:
                for name in contenders if number % 2 == 0 else contenders[::-1]:
                    progress(f"{phase}, round {number + 1} of {rounds}: {name}")
                    turns[phase][name].append(_turn(job | {"contender": name, "phase": phase}))
    agreement = {name: _agreement(turns, name) for name in peers}
    return {
        "settings": {
            "preset": preset,
            "batch": batch_file.name,
            **sizes,
            "threads": threads,
            "rounds": rounds,
            "calls": calls,
        },
        "largest_difference": agreement,
        "phases": {
            phase: {name: _summary(found, name) for name in contenders}
            for phase, found in turns.items()
        },
        "not_installed": {} if installed else dict.fromkeys(PEERS, HINT),
        "provenance": provenance(seed, ("fairchem-core", "torch-geometric", "torch-scatter")),
    }


def write_batch(preset: str, batch_file: Path, to: Path) -> JSONDict:
    """Put a batch and its edges into a file that every contender reads.

    A structure without a cell is put into a box, as FAIR-Chem wants one.

    Returns:
        Numbers of structures, atoms and edges.
    """
    import torch
    from ase.io import read

    from lamm.graph.batch import GraphBatch
    from lamm.models.presets import preset as preset_config
    from lamm.structure import Structure

    structures = []
    for atoms in read(batch_file, ":"):
        if abs(np.linalg.det(np.array(atoms.cell))) < 1e-6:
            atoms.set_cell(np.ptp(atoms.positions, axis=0) + 30.0)
            atoms.center()
        structures.append(
            Structure(
                atomic_numbers=atoms.numbers.astype(np.uint8),
                positions=atoms.positions,
                cell=np.array(atoms.cell),
                pbc=np.ones(3, dtype=bool),
            )
        )
    graph = preset_config(preset).graph.model_copy(update={"ties": "strict", "symmetric": False})
    batch = GraphBatch.from_structures(structures, graph)
    torch.save({field.name: getattr(batch, field.name) for field in fields(batch)}, to)
    return {
        "structures": len(structures),
        "atoms": len(batch.atomic_numbers),
        "edges": batch.num_edges,
    }


def _check(preset: str, peers: Sequence[str], phases: Sequence[str], installed: bool) -> None:
    for name, known in ((preset, CONFIGS), *((one, PEERS) for one in peers)):
        if name not in known:
            raise ConfigError(f"'{name}' can't be measured. {nearest_names(name, known)}")
    for phase in phases:
        if phase not in PHASES:
            raise ConfigError(f"unknown phase '{phase}'. {nearest_names(phase, PHASES)}")
    if peers and not installed:
        raise ConfigError(f"FAIR-Chem isn't installed here. {HINT}")


def _turn(job: JSONDict) -> JSONDict:
    """One process, start to end."""
    done = subprocess.run(
        [sys.executable, "-m", "lamm.bench.model_worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BadAnswerError(
            f"{job['contender']} ({job['phase']}) ended with status {done.returncode}:\n"
            f"{done.stderr.strip()[-2000:]}"
        )
    answer: JSONDict = json.loads(done.stdout.splitlines()[-1])
    return answer


def _agreement(turns: dict[str, dict[str, list[JSONDict]]], name: str) -> dict[str, float]:
    """Largest difference of a peer's numbers from ours, over the largest of its numbers.

    Raises:
        BadAnswerError: it is more than float32 and the grid's error explain.
    """
    if "inference" not in turns:
        return {}
    ours, theirs = turns["inference"]["lamm"][0], turns["inference"][name][0]
    result = {}
    for what in ("energy", "forces"):
        one, other = (np.array(side[what]) for side in (ours, theirs))
        result[what] = float(np.abs(one - other).max() / np.abs(other).max())
        if not result[what] < 1e-3:
            raise BadAnswerError(
                f"{what} of {name} differ from ours by {result[what]:.1e} of the largest: "
                "it isn't the same model."
            )
    return result


def _summary(found: dict[str, list[JSONDict]], name: str) -> JSONDict:
    """Times and memory of one contender, and how they compare to ours, round by round."""
    turns = found[name]
    summary: JSONDict = {
        "wall_s": spread(_each(turns, "wall")),
        "cpu_s": spread(_each(turns, "cpu")),
        "peak_mib": spread(_each(turns, "peak_mib")),
        "before_mib": spread(_each(turns, "before_mib")),
    }
    if name != "lamm":
        ours = found["lamm"]
        summary["lamm_is_faster_by_cpu"] = spread(_each(turns, "cpu") / _each(ours, "cpu"))
        summary["lamm_is_faster_by_wall"] = spread(_each(turns, "wall") / _each(ours, "wall"))
        needed = [_each(side, "peak_mib") - _each(side, "before_mib") for side in (ours, turns)]
        summary["lamm_peak_memory_ratio"] = spread(
            _each(ours, "peak_mib") / _each(turns, "peak_mib")
        )
        summary["lamm_own_memory_ratio"] = spread(needed[0] / needed[1])
    return summary


def _each(turns: Sequence[JSONDict], what: str) -> NDArray[np.float64]:
    """(rounds,) medians of each turn."""
    return np.array([float(np.median(turn[what])) for turn in turns])


def table(result: dict[str, Any]) -> list[str]:
    """The result of `bench_model` for a person."""
    settings = result["settings"]
    lines = [
        f"{settings['preset']}, {settings['atoms']} atoms, {settings['edges']:,} edges, "
        f"{settings['threads']} thread(s); medians over {settings['rounds']} rounds",
        f"{'':26}{'CPU s':>9}{'wall s':>9}{'peak MiB':>10}   LaMM is faster by; its memory",
    ]
    for phase, found in result["phases"].items():
        for name, one in found.items():
            line = f"{phase:10}{name:16}{one['cpu_s']['median']:>9.2f}"
            line += f"{one['wall_s']['median']:>9.2f}{one['peak_mib']['median']:>10.0f}"
            if name != "lamm":
                ratio = one["lamm_is_faster_by_cpu"]
                line += f"   {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
                line += f"; {one['lamm_peak_memory_ratio']['median']:.2f} of it"
            lines.append(line)
    lines += [
        f"{name}: energies within {one['energy']:.1e}, forces within {one['forces']:.1e} of ours"
        for name, one in result["largest_difference"].items()
        if one
    ]
    lines += [f"{name}: {hint}" for name, hint in result["not_installed"].items()]
    return lines

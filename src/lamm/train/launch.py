"""Which rank a process is, from what its launcher says in the environment.

The same command runs alone, under ``torchrun``, under SLURM's ``srun``, and under ``mpirun`` of
Open MPI, MPICH and Intel MPI, as in a PBS job. ``torchrun`` also says where the ranks meet;
elsewhere that is the first host of the job, at a port that depends on the job, so that two jobs on
one host don't meet.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lamm.errors import ConfigError

logger = logging.getLogger(__name__)

DEFAULT_PORT = 29500
_FIRST_JOB_PORT, _JOB_PORTS = 20000, 10000
_SLURM_NO_STEPS = ("batch", "interactive", "extern", "4294967290", "4294967291", "4294967292")
"""Step ids of shells, in which nothing is started side by side."""


class Place(NamedTuple):
    """This process among those of the run."""

    launcher: str
    """What started it, for messages; ``alone`` where nothing did."""
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number among the ranks of the same host, which chooses the GPU."""
    address: str | None = None
    """Host where the ranks meet; None where PyTorch finds that in the environment itself."""
    port: int = DEFAULT_PORT
    local_size: int = 1
    """Ranks on the same host, which share its memory; all of them where nothing says how many."""


class _Launcher(NamedTuple):
    """Names of the variables in which a launcher says who a process is."""

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str


_LAUNCHERS = (
    _Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Launcher(
        "mpirun (Open MPI)",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Launcher("srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
)
"""In the order in which they are asked: an `mpirun` inside a job of SLURM has `srun` start its
daemons on the further hosts, whose ranks find variables of that step of one task per host."""


def find_place(environment: Mapping[str, str]) -> Place:
    """Read which rank this process is.

    A launcher that is found first counts: ``torchrun`` may itself have been started by ``srun`` or
    ``mpirun``, and ``mpirun`` by ``srun``. A shell or a batch script of SLURM, in which nothing was
    started side by side, runs alone.

    Args:
        environment: as `os.environ`.

    Raises:
        ConfigError: the variables contradict each other, or don't say where the ranks meet.
    """
    for launcher in _LAUNCHERS:
        if _has_started(launcher, environment):
            return _place(launcher, environment)
    return Place("alone")


def warn_of_unused_tasks(place: Place, environment: Mapping[str, str]) -> None:
    """Say it where SLURM gave the job several tasks, and no launcher started this process."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if place.launcher == "alone" and "SLURM_PROCID" in environment and tasks != "1":
        logger.warning(
            "SLURM gives this job %s tasks, but srun didn't start this process: it runs alone. "
            "Write `srun lamm ...` to use all of them.",
            tasks,
        )


def _has_started(launcher: _Launcher, environment: Mapping[str, str]) -> bool:
    if launcher.name == "srun":
        return _is_srun(environment)
    if (
        launcher.name == "mpirun"
        and launcher.local_rank not in environment
        and _is_srun(environment)
    ):
        return False  # srun sets PMI_RANK too, for programs that use MPI
    return launcher.rank in environment or launcher.size in environment


def _is_srun(environment: Mapping[str, str]) -> bool:
    """Whether SLURM started this process as one of several, or as the only one of a step."""
    if "SLURM_PROCID" not in environment:
        return False
    step = environment.get("SLURM_STEP_ID")
    shell = environment.get("ENVIRONMENT") == "BATCH" if step is None else step in _SLURM_NO_STEPS
    return not shell


def _place(launcher: _Launcher, environment: Mapping[str, str]) -> Place:
    rank = _number(environment, launcher.rank, launcher)
    size = _number(environment, launcher.size, launcher)
    if launcher.name == "srun" and "SLURM_STEP_NUM_TASKS" in environment:
        size = _number(environment, "SLURM_STEP_NUM_TASKS", launcher)
    if not 0 <= rank < size:
        raise ConfigError(
            f"environment of {launcher.name}: {launcher.rank} is {rank} and {launcher.size} is "
            f"{size}; expected a rank from 0 to {max(size - 1, 0)}. "
            "Unset what an earlier launcher has left."
        )
    if size == 1:
        return Place(launcher.name)
    local_rank = _number(environment, launcher.local_rank, launcher)
    local_size = min(_local_size(launcher, environment) or size, size)
    if launcher.name == "torchrun":
        _check_meeting_place(environment)
        return Place(launcher.name, rank, size, local_rank, local_size=local_size)
    address = environment.get("MASTER_ADDR") or _first_host(launcher, environment, size)
    port = _port(launcher, environment)
    return Place(launcher.name, rank, size, local_rank, address, port, local_size)


def _local_size(launcher: _Launcher, environment: Mapping[str, str]) -> int | None:
    """Ranks on this host; None where the environment doesn't say."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE")
    if launcher.name == "srun" and tasks:
        node = environment.get("SLURM_NODEID", "")
        return tasks_of_node(tasks, int(node) if node.isdigit() else None)
    text = environment.get(launcher.local_size, "")
    return int(text) if text.isdigit() else None


def tasks_of_node(text: str, node: int | None) -> int:
    """Tasks on a node of a step by SLURM's short form, as 4 on node 2 of ``8(x2),4``.

    Where the node isn't known, the most of any.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ConfigError(
                f"SLURM_STEP_TASKS_PER_NODE is '{text}', expected numbers as 8(x2),4. Unset it."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node] if node is not None and node < len(counts) else max(counts)


def _number(environment: Mapping[str, str], name: str, launcher: _Launcher) -> int:
    text = environment.get(name)
    if text is None or not text.strip().isdigit():
        found = "isn't set" if text is None else f"is '{text}'"
        raise ConfigError(
            f"environment of {launcher.name}: {name} {found}, expected a number.\n"
            f"  Start all ranks by the same launcher, or unset {launcher.rank} and "
            f"{launcher.size} to run alone."
        )
    return int(text)


def _check_meeting_place(environment: Mapping[str, str]) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}, where the ranks meet. "
            "Start them by `torchrun`, or unset RANK and WORLD_SIZE to run alone."
        )


def _first_host(launcher: _Launcher, environment: Mapping[str, str], size: int) -> str:
    """Host of rank 0."""
    hosts = environment.get("SLURM_JOB_NODELIST")
    if launcher.name == "srun":
        hosts = environment.get("SLURM_STEP_NODELIST") or hosts
        if hosts:
            return first_of_node_list(hosts)
    if environment.get(launcher.local_size) == str(size):
        return "127.0.0.1"
    file = environment.get("PBS_NODEFILE")
    if file and Path(file).is_file():
        lines = Path(file).read_text(encoding="utf-8").split()
        if lines:
            return lines[0]
    if hosts:
        return first_of_node_list(hosts)
    raise ConfigError(
        f"environment of {launcher.name}: it doesn't say which host rank 0 is on (no node list of "
        "SLURM, no PBS_NODEFILE).\n"
        "  Export MASTER_ADDR, the name of that host, to all ranks."
    )


def first_of_node_list(text: str) -> str:
    """The first host of SLURM's short form, as ``gpu003`` of ``gpu[003-006,9],login``."""
    match = re.match(r"[^,\[]+(?:\[\w[^\]]*\][^,\[]*)*", text)
    if match is None:
        raise ConfigError(
            f"SLURM's list of nodes is '{text}', expected names as gpu[01-04]. Export MASTER_ADDR."
        )
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[0])


def _port(launcher: _Launcher, environment: Mapping[str, str]) -> int:
    text = environment.get("MASTER_PORT")
    if text:
        if not text.isdigit() or not 0 < int(text) < 2**16:
            raise ConfigError(f"MASTER_PORT is '{text}', expected a port number from 1 to 65535.")
        return int(text)
    job = environment.get("SLURM_JOB_ID") or environment.get("PBS_JOBID") or ""
    digits = re.match(r"\d+", job)
    if digits is None:
        return DEFAULT_PORT
    step = environment.get("SLURM_STEP_ID", "0") if launcher.name == "srun" else "0"
    number = int(digits[0]) + (int(step) if step.isdigit() else 0)
    return _FIRST_JOB_PORT + number % _JOB_PORTS

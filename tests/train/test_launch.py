"""Which rank a process is, by the environments of the launchers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamm.errors import ConfigError
from lamm.train.launch import (
    Place,
    find_place,
    first_of_node_list,
    tasks_of_node,
    warn_of_unused_tasks,
)

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "1234",
}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[017-018]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
INTEL_MPI = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}


@pytest.fixture
def pbs(tmp_path: Path) -> dict[str, str]:
    nodes = tmp_path / "nodes"
    nodes.write_text("node7\nnode7\nnode8\nnode8\n")
    return {"PBS_NODEFILE": str(nodes), "PBS_JOBID": "424242.pbs1"}


def test_without_a_launcher_a_process_is_alone():
    assert find_place({"HOME": "/root"}) == Place("alone", 0, 1, 0, None)


def test_torchrun_says_all():
    assert find_place(TORCHRUN) == Place("torchrun", 5, 8, 1, None, local_size=4)


def test_srun_meets_at_the_first_host_at_a_port_of_the_job():
    assert find_place(SRUN)[:6] == ("srun", 9, 16, 1, "gpu017", 20000 + 4567 + 2)
    given = SRUN | {"MASTER_ADDR": "there", "MASTER_PORT": "4000"}
    assert find_place(given)[:6] == ("srun", 9, 16, 1, "there", 4000)


def test_a_step_of_fewer_tasks_than_the_job_counts_its_own():
    assert find_place(SRUN | {"SLURM_STEP_NUM_TASKS": "10"}).size == 10


@pytest.mark.parametrize(
    "shell",
    [
        {"SLURM_STEP_ID": "4294967290"},
        {"SLURM_STEP_ID": "batch"},
        {"SLURM_STEP_ID": None, "ENVIRONMENT": "BATCH"},
    ],
    ids=["interactive", "batch by name", "batch"],
)
def test_what_srun_did_not_start_is_alone_and_says_so(shell, caplog):
    variables = SRUN | {"SLURM_PROCID": "0"} | shell
    environment = {name: value for name, value in variables.items() if value is not None}
    place = find_place(environment)
    assert place.size == 1
    with caplog.at_level(logging.WARNING, logger="lamm"):
        warn_of_unused_tasks(place, environment)
    assert "srun lamm" in caplog.text


@pytest.mark.parametrize(("variables", "rank"), [(OPEN_MPI, 3), (INTEL_MPI, 2)])
def test_mpirun_in_a_pbs_job_meets_at_its_first_host(variables, rank, pbs):
    place = find_place(variables | pbs)
    local = int(variables.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
    assert place[1:] == (rank, 4, local, "node7", 20000 + 4242, 2)


@pytest.mark.parametrize(("variables", "rank"), [(OPEN_MPI, 3), (INTEL_MPI, 2)])
@pytest.mark.parametrize(
    "step",
    [
        {"SLURM_STEP_ID": "batch", "SLURM_NTASKS": "4"},
        {
            "SLURM_STEP_ID": "1",
            "SLURM_NTASKS": "4",
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_STEP_NODELIST": "gpu018",
        },
    ],
    ids=["first host, below the batch script", "further host, below the step of a daemon"],
)
def test_mpirun_in_a_slurm_job_counts_before_the_step_of_its_daemons(variables, rank, step, caplog):
    environment = SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"} | step | variables
    place = find_place(environment)
    assert place.launcher.startswith("mpirun")
    assert place[1:3] == (rank, 4)
    assert (place.address, place.port) == ("gpu017", 20000 + 4567)  # the same on every host
    with caplog.at_level(logging.WARNING, logger="lamm"):
        warn_of_unused_tasks(place, environment)
    assert not caplog.text


def test_srun_that_speaks_pmi_is_srun():
    assert find_place(SRUN | {"PMI_RANK": "9", "PMI_SIZE": "16"}) == find_place(SRUN)


@pytest.mark.parametrize(
    "variables",
    [
        OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
        INTEL_MPI | {"MPI_LOCALNRANKS": "4"},
    ],
)
def test_mpirun_on_one_host_needs_no_queue(variables):
    assert find_place(variables).address == "127.0.0.1"


def test_torchrun_inside_a_step_counts_first(pbs):
    assert find_place(SRUN | OPEN_MPI | pbs | TORCHRUN).launcher == "torchrun"


def test_one_process_of_a_launcher_needs_nobody_to_meet():
    one = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}
    assert find_place(one) == Place("mpirun (Open MPI)")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4"}, "RANK isn't set, expected a number"),
        ({"RANK": "0"}, "WORLD_SIZE isn't set"),
        (TORCHRUN | {"RANK": "8"}, "RANK is 8 and WORLD_SIZE is 8; expected a rank from 0 to 7"),
        (TORCHRUN | {"RANK": "two"}, "RANK is 'two', expected a number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "not MASTER_ADDR and MASTER_PORT"),
        (OPEN_MPI, "Export MASTER_ADDR"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK isn't set"),
        (SRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
        (SRUN | {"SLURM_JOB_NODELIST": "[1-2]"}, "SLURM's list of nodes is '\\[1-2\\]'"),
    ],
)
def test_an_environment_that_contradicts_itself_is_one_error(environment, message):
    with pytest.raises(ConfigError, match=message):
        find_place(environment)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("gpu3", "gpu3"),
        ("gpu3,gpu4", "gpu3"),
        ("gpu[003-006,9],login", "gpu003"),
        ("a[7,9]-ib", "a7-ib"),
        ("r1n[01-02],r2n[01-02]", "r1n01"),
        ("rack[1-2]n[01-04],login", "rack1n01"),
    ],
)
def test_the_first_host_of_a_node_list(text, first):
    assert first_of_node_list(text) == first


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "2"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "1"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,14"}, 14),
        ({"SLURM_NTASKS_PER_NODE": "8"}, 8),
        ({}, 16),
    ],
)
def test_the_ranks_of_a_host_are_those_that_slurm_says_or_all(said, ranks):
    assert find_place(SRUN | said).local_size == ranks


def test_a_number_of_tasks_that_nobody_can_read_is_an_error():
    with pytest.raises(ConfigError, match="'8xx2', expected numbers as"):
        tasks_of_node("8xx2", 0)


SAY = """
import torch
from lamm.train.distributed import join, leave
from lamm.train.ending import run_to_the_end

def say():
    world = join("cpu")
    print("sum", int(world.sum(torch.tensor([world.rank + 1.0]))), world.size)
    leave(world)

run_to_the_end(say)
"""


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_two_processes_meet_as_their_launcher_says(launcher, pbs):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    job = str(os.getpid())
    processes = []
    for rank in ("0", "1"):
        if launcher == "srun":
            said = SRUN | {"SLURM_PROCID": rank, "SLURM_NTASKS": "2", "SLURM_LOCALID": rank}
            said |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": job}
        else:
            said = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
            said |= {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
            said |= pbs | {"PBS_JOBID": f"{int(job) + 5000}.host"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SAY],
                env=environment | said,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "sum 3 2" in output

"""What `pretrain` and `finetune` say in the end, and which rank says it."""

import json

import pytest

from lamm.cli.training import finish
from lamm.train.checkpoint import TrainState

VALIDATION = {"kind": "validation", "step": 0, "loss": 1.0, "seconds": 0.0, "subsets": {"one": {}}}
LAUNCHERS = {
    "srun": {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "{rank}",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_NODELIST": "gpu[1-2]",
    },
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "{rank}",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{rank}",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    },
}


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_of_all_ranks_one_says_the_result(tmp_path, monkeypatch, capsys, launcher, as_json):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(VALIDATION) + "\n")
    monkeypatch.delenv("RANK", raising=False)
    said = []
    for rank in "01":
        for name, value in LAUNCHERS[launcher].items():
            monkeypatch.setenv(name, value.format(rank=rank))
        finish(lambda: TrainState(step=3, seed=0), tmp_path, as_json)
        said.append(capsys.readouterr().out)
    assert "0" in said[0]
    assert said[1] == ""

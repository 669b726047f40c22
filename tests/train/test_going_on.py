"""Going on with a run: leftovers of a kill are removed, other ranks take the same mini-batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lamm.balance.plan import join_windows
from lamm.config import RunConfig, merged
from lamm.data.joint import JointDataset
from lamm.errors import ConfigError
from lamm.evaluate.curves import read_metrics
from lamm.models.potential import build
from lamm.train import run as run_module
from lamm.train.batches import Schedule
from lamm.train.checkpoint import TrainState, saved_steps, tidy
from lamm.train.distributed import World
from lamm.train.run import pretrain
from small import small_config


def test_what_a_kill_left_half_written_or_unlinked_is_removed(tmp_path: Path):
    checkpoints = tmp_path / "checkpoints"
    for name in ("step-2", "step-4", "step-6", ".step-8.incomplete-123"):
        (checkpoints / name).mkdir(parents=True)
    (tmp_path / ".last.incomplete-123").symlink_to("checkpoints/step-6")
    (tmp_path / "best").symlink_to("checkpoints/step-2")
    tidy(tmp_path, TrainState(step=4, best_step=4))
    assert [folder.name for folder in saved_steps(tmp_path)] == ["step-2", "step-4"]
    assert (tmp_path / "best").resolve().name == "step-4"
    assert [path.name for path in tmp_path.rglob(".*")] == []


@pytest.mark.parametrize("planner", ["balanced", "greedy", "random"])
def test_any_number_of_ranks_takes_the_same_mini_batches(tmp_path: Path, planner: str):
    config = small_config(tmp_path, balance={"planner": planner, "batch_size": 4})
    joint = JointDataset(config.data, config.seed)
    graph = build(config.model, joint.names).graph_config
    epochs = []
    for size in (2, 1, 4):
        worlds = [World(rank, size, torch.device("cpu")) for rank in range(size)]
        given = None if size == 2 else epochs[0][0]  # G of the run that began on two ranks
        plans = [Schedule(joint, config.balance, graph, w, 0, given) for w in worlds]
        plan = join_windows(list(plans[0].windows(1)), plans[0].index)
        steps = [
            np.sort(np.concatenate([plan.ids[plan.part(step, rank)] for rank in range(size)]))
            for step in range(plan.num_steps)
        ]
        epochs.append((plans[0].mini_batch_size, steps))
    for size, steps in epochs[1:]:
        assert size == 8
        assert all(np.array_equal(a, b) for a, b in zip(steps, epochs[0][1], strict=True))


def with_ranks(run: Path, ranks: int) -> None:
    path = run / "last" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ranks": ranks}))


def test_a_plan_of_the_ranks_is_not_gone_on_with_by_others(tmp_path: Path):
    changes = {"balance": {"planner": "paper", "batch_size": 8}}
    short = {"workers": 0, "log_every": 2, "validate_every": 4}
    config = small_config(tmp_path, **changes, train={"steps": 4, **short})
    pretrain(config, quiet=True)
    with_ranks(config.to, 2)
    longer = small_config(tmp_path, **changes, train={"steps": 6, **short})
    with pytest.raises(
        ConfigError, match=r"4 steps into an epoch that 'paper' planned for 2 ranks"
    ):
        pretrain(longer, quiet=True, resume=True)
    with_ranks(config.to, 1)
    assert pretrain(longer, quiet=True, resume=True).step == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, r"other settings of `seed`"),
        ({"data": {"sampling": {"temperature": 1.0}}}, "other settings of `data.sampling"),
        ({"data": {"max_train_structures": 20}}, "other settings of `data` "),
        ({"data": {"subsets": {"both": {"sampling_weight": 2}}}}, "other settings of `data` "),
        ({"balance": {"planner": "random"}}, "into an epoch that 'balanced' planned"),
    ],
)
def test_what_would_change_the_plan_of_a_run_is_refused(tmp_path: Path, changes, said):
    short = {"workers": 0, "validate_every": 100}
    pretrain(small_config(tmp_path, train={"steps": 3, **short}), quiet=True)
    other = small_config(tmp_path, train={"steps": 5, **short}).model_dump(mode="json")
    with pytest.raises(ConfigError, match=said):
        pretrain(RunConfig.model_validate(merged(other, changes)), quiet=True, resume=True)


def test_a_resumed_run_has_the_rate_that_is_asked_for_and_says_what_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    short = {"workers": 0, "log_every": 1, "validate_every": 100}
    config = small_config(tmp_path, train={"steps": 4, **short})
    pretrain(config, quiet=True)
    slower = config.optim.model_copy(update={"lr": 1e-6})
    longer = small_config(tmp_path, train={"steps": 6, **short})
    pretrain(longer.model_copy(update={"optim": slower}), quiet=True, resume=True)
    rates = [line["lr"] for line in read_metrics(config.to) if line["kind"] == "train"]
    assert min(rates[:4]) > 1e-5 > 2e-6 > max(rates[4:])
    assert "optim.lr was 0.005 and is now 1e-06" in caplog.text
    assert "train.steps was 4 and is now 6" in caplog.text
    assert yaml.safe_load((config.to / "config.yaml").read_text())["optim"]["lr"] == 1e-6


def test_a_run_killed_before_it_saved_anything_begins_anew(tmp_path: Path):
    config = small_config(tmp_path, train={"steps": 3, "workers": 0})
    pretrain(config, quiet=True)
    (config.to / "last").unlink()
    assert pretrain(config, quiet=True, resume=True).step == 3


def test_a_restart_goes_on_by_itself_only_in_its_own_unchanged_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    short = {"workers": 0, "validate_every": 2}
    monkeypatch.setattr(run_module, "launch_key", lambda: "one")
    config = small_config(tmp_path, train={"steps": 4, **short})
    pretrain(config, quiet=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert pretrain(config, quiet=True).step == 4
    changed = small_config(tmp_path, train={"steps": 5, **short})
    with pytest.raises(ConfigError, match="was changed since the run began"):
        pretrain(changed, quiet=True)
    monkeypatch.setattr(run_module, "launch_key", lambda: "another")
    with pytest.raises(ConfigError, match="there is a run in this folder already"):
        pretrain(config, quiet=True)

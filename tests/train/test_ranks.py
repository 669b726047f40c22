"""Several processes give the losses, the gradients and the validation of one."""

from pathlib import Path

import pytest
import torch
import yaml

from lamm.evaluate.curves import read_metrics
from launching import run_python, torchrun
from small import small_config

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("model", "ranks"), [("painn", 2), ("painn", 4), ("equiformer_v2", 2)], ids=str
)
def test_ranks_together_give_the_loss_and_the_gradients_of_one(
    tmp_path: Path, model: str, ranks: int
):
    small_config(tmp_path)  # makes the stores
    script = str(HERE / "ranks.py")
    run_python([script, str(tmp_path), str(tmp_path / "one.pt"), "8", model])
    run_python(
        [*torchrun(ranks), script, str(tmp_path), str(tmp_path / "all.pt"), str(8 // ranks), model]
    )
    one, all_ = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "all.pt"))
    for alone, together in zip(one, all_, strict=True):
        name, labels = alone["name"], torch.tensor(together["labels"])  # (W, 3)
        assert together["name"] == name
        assert labels.sum(0).tolist() == list(alone["labels"][0])
        assert together["pieces"] > 1  # sent while backward was running
        assert together["loss"].item() == pytest.approx(alone["loss"].item(), abs=1e-10), name
        for expected, found in zip(alone["gradients"], together["gradients"], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, msg=name)
    found = {one["name"]: torch.tensor(one["labels"]) for one in all_}
    assert (found["labels of one kind"][0, 1:] > 0).tolist() == [True, False]  # energies alone
    assert (found["labels of one kind"][-1, 1:] > 0).tolist() == [False, True]  # forces alone
    assert found["all on the last rank"][0].tolist() == [0, 0, 0]
    assert found["no energy at all"][:, 1].sum() == 0
    assert found["no force at all"][:, 2].sum() == 0
    (last,) = [one for name, one in found.items() if name not in ("step 0", "step 1")][:1]
    assert last[:, 0].sum() < 8  # the plan's last mini-batch is incomplete


def test_the_command_runs_on_two_ranks_and_resumes_there(tmp_path: Path):
    config = small_config(tmp_path, balance={"batch_size": 4})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_python([*torchrun(2), "-m", "lamm", "pretrain", str(path), "train.steps=6"])
    lines = read_metrics(config.to)
    assert lines[-1]["step"] == 6
    alone = tmp_path / "alone"
    words = ["train.steps=6", "balance.batch_size=8", f"to={alone}"]
    run_python(["-m", "lamm", "pretrain", str(path), *words])
    for together, single in zip(lines, read_metrics(alone), strict=True):
        assert together["loss"] == pytest.approx(single["loss"], rel=1e-4)

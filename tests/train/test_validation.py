from pathlib import Path

import pytest
import torch

from lamm.config import FinetuneConfig
from lamm.data.joint import JointDataset
from lamm.errors import DataError
from lamm.models.potential import Potential, build
from lamm.train.distributed import World
from lamm.train.validation import validate
from small import small_config

ALONE = World(0, 1, torch.device("cpu"))


def validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int):
    """Validate a model that runs out of memory with more than `most` structures."""
    config = small_config(tmp_path)
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=1)
    forward, sizes = Potential.forward, []

    def limited(self, batch, *args, **kwargs):
        if batch.num_structures > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(batch.num_structures)
        return forward(self, batch, *args, **kwargs)

    monkeypatch.setattr(Potential, "forward", limited)
    return validate(model, joint, config.loss, ALONE, split="train"), sizes


def test_a_batch_that_does_not_fit_is_validated_in_halves(tmp_path, monkeypatch):
    whole, sizes = validated(tmp_path, monkeypatch, 10**6)
    monkeypatch.undo()
    halved, smaller = validated(tmp_path, monkeypatch, 3)
    assert max(sizes) > 3 >= max(smaller)
    assert sum(sizes) == sum(smaller)
    assert halved["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    for name, errors in whole["subsets"].items():
        assert halved["subsets"][name] == pytest.approx(errors, rel=1e-4)


def test_subsets_that_do_not_judge_leave_the_loss_to_the_others(tmp_path):
    config = small_config(tmp_path)
    joint = JointDataset(config.data, config.seed)
    model = build(config.model, joint.names, seed=1)
    every = validate(model, joint, config.loss, ALONE)
    judged = validate(model, joint, config.loss, ALONE, unjudged=("both", "none"))
    alone = small_config(tmp_path, data={"subsets": {"energies": config.data.subsets["energies"]}})
    of_one = JointDataset(alone.data.model_copy(update={"val_fraction": 0.2}), config.seed)
    expected = validate(
        model.with_subsets(("energies",), heads={"energies": "energies"}, seed=0),
        of_one,
        config.loss,
        ALONE,
    )
    assert judged["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert judged["force_loss"] == 0 < every["force_loss"]
    assert judged["subsets"] == every["subsets"]


def test_neither_replayed_nor_unlabelled_structures_judge_a_fine_tuning(tmp_path):
    config = small_config(tmp_path)
    mapping = {**config.model_dump(mode="json", exclude={"start_from"}), "base": None}
    mapping["data"]["subsets"]["none"]["denoising"] = {"std": 0.1}
    tuning = FinetuneConfig.model_validate({**mapping, "replay": ["energies"]})
    assert tuning.recipe().unjudged == ("energies", "none")
    assert config.recipe().unjudged == ()
    only = {"none": mapping["data"]["subsets"]["none"]}
    mapping["data"]["subsets"] = only
    assert FinetuneConfig.model_validate(mapping).recipe().unjudged == ()


def test_a_structure_that_does_not_fit_alone_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"validation: subset '\w+', structure '\w+/\d+' of \d+"):
        validated(tmp_path, monkeypatch, 0)

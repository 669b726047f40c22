"""Where a pre-training starts: anew, or with what a checkpoint knows."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamm.data.joint import JointDataset
from lamm.data.store import Store
from lamm.errors import CheckpointError
from lamm.evaluate.curves import read_metrics
from lamm.evaluate.predict import predict
from lamm.train.checkpoint import load, save_potential
from lamm.train.run import pretrain
from lamm.train.start import pretraining_model
from small import SMALL_MODELS, small_config, small_store


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    length = {"steps": 40, "workers": 0}
    pretrain(small_config(folder, train=length), quiet=True)
    small_store(folder / "new", seed=11)
    return folder


def further(home: Path, **changes: object):
    """A run that goes on from the first one, with one subset less and one more."""
    subsets = {name: {"store": str(home / name)} for name in ("both", "none", "new")}
    settings = {
        "to": home / "further",
        "start_from": home / "run",
        "data": {"subsets": subsets, "val_fraction": 0.2},
    }
    return small_config(home, **(settings | changes))


def test_what_the_base_knows_stays_and_what_is_new_starts_at_its_references(
    home: Path, caplog: pytest.LogCaptureFixture
):
    config = further(home)
    joint = JointDataset(config.data, config.seed)
    with caplog.at_level(logging.INFO, logger="lamm"):
        model = pretraining_model(config, joint).eval()
    assert "2 of its outputs, 1 new (new)" in caplog.text
    base = load(home / "run").eval()
    structures = list(Store.open(home / "both").structures(np.arange(12)))
    for subset in ("both", "none"):
        before = list(predict(base, structures, subset))
        after = list(predict(model, structures, subset))
        assert [one.energy for one in after] == [one.energy for one in before]
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one.forces, other.forces)
    fitted = next(one for one in joint.subsets if one.name == "new").normalisation()
    for structure, one in zip(structures, predict(model, structures, "new"), strict=True):
        reference = fitted.reference_energies[structure.atomic_numbers].sum()
        assert one.energy == pytest.approx(reference, abs=1e-4)
        assert not one.forces.any()


def test_elements_that_only_the_new_data_has_are_added_to_the_references(home: Path):
    base = load(home / "run")
    column, energies = base.column("both"), base.reference_energies.clone()
    base.known_elements[column, 8] = False
    save_potential(base, home / "less.safetensors")
    config = further(home, start_from=home / "less.safetensors")
    joint = JointDataset(config.data, config.seed)
    model = pretraining_model(config, joint)
    added = next(one for one in joint.subsets if one.name == "both").normalisation()
    references = model.reference_energies[model.column("both")]
    assert model.known_elements[model.column("both"), 8]
    assert references[8] == added.reference_energies[8]
    assert references[6] == energies[column, 6]


def validations(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["kind"] == "validation"]


def test_training_goes_on_from_where_the_base_ended(home: Path):
    pretrain(further(home, to=home / "trained"), quiet=True)
    assert load(home / "trained").subsets == ("both", "none", "new")
    ended, went_on = validations(home / "run")[-1], validations(home / "trained")[0]
    assert went_on["step"] == 0
    for subset in ("both", "none"):
        assert went_on["subsets"][subset] == ended["subsets"][subset]


def test_a_base_of_another_architecture_is_refused(home: Path):
    encoder = {**SMALL_MODELS["painn"]["encoder"], "channels": 24}
    with pytest.raises(CheckpointError, match=r"channels is 16, expected 24"):
        pretrain(further(home, model={"encoder": encoder}, to=home / "other"), quiet=True)
    assert not (home / "other").exists()

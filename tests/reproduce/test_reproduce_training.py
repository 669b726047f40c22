"""``lamm reproduce``: the experiments that train, with small models on small stores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamm.config import to_yaml
from lamm.data.joint import SubsetConfig
from lamm.errors import ConfigError, InterruptedRunError
from lamm.evaluate.curves import Series
from lamm.reproduce import runs
from lamm.reproduce.experiments import REPRODUCTIONS, reproduce
from lamm.reproduce.runs import DONE, Runner, Training
from lamm.reproduce.settings import read_settings
from lamm.reproduce.spread import seeds_text, speed_up, spread, spread_text
from small import small_config, small_store

MODEL = {"encoder": {"name": "painn", "channels": 8, "num_layers": 1, "num_radial": 8}}
STAGE = {
    "optim": {"lr": 2e-3, "warmup_steps": 1},
    "balance": {"batch_size": 6},
    "train": {"steps": 6, "validate_every": 2, "checkpoint_every": 2, "workers": 0, "log_every": 2},
}


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, str]:
    labels = {"both": "EF", "none": "", "downstream": "EF"}
    return {
        name: str(small_store(tmp_path / name, labels=one, seed=len(name)))
        for name, one in labels.items()
    }


def written(path: Path, mapping: dict[str, Any]) -> Path:
    path.write_text(json.dumps(mapping))
    return path


@pytest.fixture
def denoising_file(tmp_path: Path, stores: dict[str, str]) -> Path:
    """Fig. 7 in small, with an objective more."""
    return written(
        tmp_path / "fig7.yaml",
        {
            "data": {
                "subsets": {"none": {"store": stores["none"], "denoising": {"std": 0.1}}},
                "val_fraction": 0.3,
            },
            "unlabelled": "none",
            "model": MODEL,
            "training": {**STAGE, "loss": {"energy": 0, "forces": 1}},
            "objectives": {
                "small": {"denoising": {"std": 0.02}, "training": {"optim": {"lr": 1e-7}}}
            },
            "threshold_factors": [1.0, 2.0],
            "seeds": [0, 1],
        },
    )


@pytest.fixture
def finetuning_file(tmp_path: Path, stores: dict[str, str]) -> Path:
    """Table 3 in small, with one model and two arms."""
    arms = ("pretrained_0", "pretrained_5", "best_head", "labelled", "unlabelled")
    study = {"model": MODEL, "paper": "LaMM-S", "pretrain": STAGE, "finetune": STAGE}
    return written(
        tmp_path / "table3.yaml",
        {
            "data": {
                "subsets": {
                    "both": {"store": stores["both"]},
                    "none": {"store": stores["none"], "denoising": {"std": 0.1}},
                },
                "val_fraction": 0.2,
            },
            "downstream": {
                "name": "downstream",
                "subset": {"store": stores["downstream"]},
                "train_structures": None,
                "val_fraction": 0.3,
                "test_fraction": 0.3,
            },
            "models": {"lamm-xs": study, "lamm-xs-eq": None},
            "arms": dict.fromkeys(arms),
            "seeds": [0, 1],
            "figures": {"fig9_data": []},
        },
    )


def test_objectives_are_compared_seed_by_seed(denoising_file: Path, tmp_path: Path):
    to = tmp_path / "fig7"
    results = reproduce("fig7", to, file=denoising_file, quiet=True)
    found = results["denoising"]
    assert list(found) == ["baseline", "centred", "small"]
    own = found["baseline"]["own_labels"]
    assert own["speedup"]["1"]["values"] == pytest.approx([1, 1], nan_ok=False)
    assert own["beside_baseline"]["mean"] == 1
    # The centred noise's own labels lack the translation, which nobody can predict.
    assert found["centred"]["own_labels"]["best_ang"]["mean"] < own["best_ang"]["mean"]
    # Less noise, less error by its own measure; on the common noise it is judged as the others.
    small = found["small"]
    assert small["fair"]["best_ang"]["mean"] < 0.5 * found["centred"]["fair"]["best_ang"]["mean"]
    common = found["centred"]["fair_on_common_noise_ang"]["mean"]
    assert common == pytest.approx(found["centred"]["fair"]["best_ang"]["mean"], rel=0.05)
    assert small["fair_on_common_noise_ang"]["mean"] > 0.9 * common
    both = [found[name]["fair_on_common_noise_ang"]["values"] for name in ("small", "baseline")]
    beside = small["fair_on_common_noise_beside_baseline"]["values"]
    assert beside == [ours / other for ours, other in zip(*both, strict=True)]
    assert results["paper"]["speedup"] == 2
    assert {path.name for path in to.iterdir()} == {
        *("results.json", "page.md", "page.html", "runs"),
        *(f"fig7.{suffix}" for suffix in ("png", "svg", "csv")),
    }


def test_an_arm_is_compared_with_scratch_and_finished_runs_are_kept(
    finetuning_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    to = tmp_path / "table3"
    results = reproduce("table3", to, file=finetuning_file, quiet=True)
    arms = results["downstream"]["lamm-xs"]
    assert list(arms) == ["scratch", "pretrained"]
    scratch, pretrained = arms["scratch"], arms["pretrained"]
    assert scratch["speedup"] == {"energy": 1, "forces": 1}
    for arm in (scratch, pretrained):
        assert len(arm["seeds"]) == 2
        assert arm["energy_mae_mev_per_atom"] == pytest.approx(
            np.mean([one["energy_mae_mev_per_atom"] for one in arm["seeds"]])
        )
        assert arm["forces_median_mev_per_ang"] > 0
        assert set(arm["steps_to_threshold"]) == {"energy", "forces"}
    first = scratch["seeds"][0]
    threshold = 1.05 * first["validation_best"]["energy"]
    assert first["thresholds"]["energy"] == pytest.approx(threshold)
    names = sorted(path.name for path in (to / "runs" / "lamm-xs").iterdir())
    pretraining = "pretrain-pretrained-seed-0"
    tuned = [f"{arm}-seed-{seed}" for arm in ("pretrained", "scratch") for seed in (0, 1)]
    assert names == sorted([pretraining, *tuned])

    def none(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "finetune", none)
    monkeypatch.setattr(runs, "pretrain", none)
    again = reproduce("table3", to, file=finetuning_file, quiet=True, force=True)
    assert again["downstream"] == results["downstream"]


def test_atoms_are_mapped_before_and_after_pre_training(stores: dict[str, str], tmp_path: Path):
    subsets = {"both": {"store": stores["both"]}, "downstream": {"store": stores["downstream"]}}
    file = written(
        tmp_path / "fig8.yaml",
        {
            "data": {"subsets": subsets, "val_fraction": 0.2},
            "model": MODEL,
            "pretrain": STAGE | {"optim": {"lr": 0.05, "warmup_steps": 1}},
            "atoms": 30,
        },
    )
    to = tmp_path / "fig8"
    results = reproduce("fig8", to, file=file, quiet=True)
    assert (results["atoms"], results["channels"]) == (60, 8)
    assert set(results["measures"]) == {"pretrained", "untrained"}
    assert results["measures"]["pretrained"] != results["measures"]["untrained"]
    assert (to / "fig8_pca.png").exists()
    words = [f"checkpoint={to / 'runs' / 'pretrain'}"]
    again = reproduce("fig8", tmp_path / "again", file=file, words=words, quiet=True)
    assert again["measures"] == results["measures"]
    assert not (tmp_path / "again" / "runs").exists()


def test_shares_and_kinds_of_pre_training(finetuning_file: Path, stores: dict[str, str]):
    kind = REPRODUCTIONS["table3"].kind
    arms = "arms={scratch: {}, none: {pretrain: all, share: 0}, half: {pretrain: all, share: 0.5},"
    arms += " all: {pretrain: all}, more: {pretrain: all, finetune: {optim: {lr: 0.1}}},"
    arms += " marked: {pretrain: labelled}, plain: {pretrain: unlabelled, denoising: {std: 0.2}},"
    arms += " other: {pretrain: all, pretraining: {loss: {relative: 3}}}}"
    study = read_settings("table3", kind, file=finetuning_file, words=[arms]).settings
    name = "lamm-xs"
    steps = {
        arm: study.pretraining(name, arm, 0, Path("x")).train.steps
        for arm in ("none", "half", "all")
    }
    assert steps == {"none": 0, "half": 3, "all": 6}
    assert list(study.pretraining(name, "marked", 0, Path("x")).data.subsets) == ["both"]
    bare = {"both": study.data.subsets["both"], "none": SubsetConfig(store=str(stores["none"]))}
    data = study.data.model_copy(update={"subsets": bare})  # the card says what is denoised
    found = study.model_copy(update={"data": data}).pretraining_data(study.arms["plain"])
    assert list(found.subsets) == ["none"]
    plain = study.pretraining(name, "plain", 0, Path("x")).data.subsets
    assert {key: one.denoising.std for key, one in plain.items()} == {"none": 0.2}
    assert study.pretraining_name(name, "more", 0) == study.pretraining_name(name, "all", 1)
    assert study.pretraining_name(name, "half", 0) != study.pretraining_name(name, "all", 0)
    assert study.pretraining_name(name, "other", 0) != study.pretraining_name(name, "all", 0)
    losses = [study.pretraining(name, arm, 0, Path("x")).loss for arm in ("other", "all")]
    assert losses[0] == losses[1].model_copy(update={"relative": 3.0})
    more = study.finetuning(name, "more", 1, Path("runs"), Path("x"))
    assert (more.optim.lr, more.seed) == (0.1, 1)
    assert more.base == Path("runs/lamm-xs/pretrain-all-seed-0")
    assert study.finetuning(name, "scratch", 1, Path("runs"), Path("x")).base is None


def test_weights_before_the_first_step_are_a_base(finetuning_file: Path, tmp_path: Path):
    words = ["arms={scratch: {}, none: {pretrain: all, share: 0}}", "seeds=[0]"]
    results = reproduce("table3", tmp_path / "to", file=finetuning_file, words=words, quiet=True)
    assert set(results["downstream"]["lamm-xs"]) == {"scratch", "none"}


def test_a_stopped_run_goes_on_and_one_of_other_settings_is_refused(tmp_path: Path, monkeypatch):
    config = small_config(tmp_path)
    training = Training("one", lambda to: config.model_copy(update={"to": to}))
    runner = Runner(tmp_path / "runs", quiet=True)
    folder = tmp_path / "runs" / "one"

    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no run"):
        runner.run([training])
    (folder / "thesis.tex").unlink()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text("")  # killed before it saved anything: it begins anew
    runner.run([training])
    assert json.loads((folder / DONE).read_text())["step"] == 12

    (folder / DONE).unlink()  # as though it had been stopped: it goes on from its last checkpoint
    seen = []
    monkeypatch.setattr(
        runs,
        "pretrain",
        lambda config, resume, **_: seen.append(resume) or runs.TrainState(step=12),
    )
    runner.run([training])
    assert seen == [True]

    def stopped(*_: object, **__: object) -> None:
        raise InterruptedRunError(15, "stopped at step 4 of 12; go on with --resume")

    monkeypatch.setattr(runs, "pretrain", stopped)
    (folder / DONE).unlink()
    with pytest.raises(InterruptedRunError, match="training 1 of 1, one; the same command"):
        runner.run([training])

    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "max_skipped" not in line]  # as an earlier version wrote it
    assert len(kept) < len(lines)
    (folder / "config.yaml").write_text("".join(kept))
    (folder / DONE).write_text("{}")
    runner.run([training])

    other = Training("one", lambda to: config.model_copy(update={"to": to, "seed": 5}))
    with pytest.raises(ConfigError, match="seed was 0, asked for is 5"):
        runner.run([other])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("baseline=none", "no 'none'"),
        ("objectives.centred.denoising.stdd=1", "stdd"),
        ("unlabelled=both", "no 'both'"),
        ("objectives.small.denoising.labels=elastic", "'small' has elastic labels"),
    ],
)
def test_a_wrong_denoising_study_is_refused(denoising_file: Path, word: str, expected: str):
    with pytest.raises(ConfigError, match=expected):
        read_settings("fig7", REPRODUCTIONS["fig7"].kind, file=denoising_file, words=[word])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("scratch=pretrained", "random weights"),
        ("arms.pretrained.base=x", "one of the two"),
        ("arms.scratch.head=best", "needs a model"),
        ("arms.scratch.pretraining.loss.relative=1", "`pretrain` isn't given"),
        ("arms.pretrained.pretrain=both", "'all'"),
    ],
)
def test_a_wrong_finetuning_study_is_refused(finetuning_file: Path, word: str, expected: str):
    with pytest.raises(ConfigError, match=expected):
        read_settings("table3", REPRODUCTIONS["table3"].kind, file=finetuning_file, words=[word])


@pytest.mark.parametrize(
    ("file", "name", "word", "expected"),
    [
        ("finetuning", "table3", "models.lamm-xs.pretrain.train.steps=1", "of lamm-xs, pretrained"),
        ("finetuning", "table3", "models.lamm-xs.finetune.train.steps=1", "of lamm-xs, scratch"),
        ("denoising", "fig7", "training.train.steps=1", "training of baseline"),
    ],
)
def test_settings_that_go_together_in_no_run_are_refused(
    file: str, name: str, word: str, expected: str, tmp_path: Path, request: pytest.FixtureRequest
):
    path = request.getfixturevalue(f"{file}_file")
    with pytest.raises(ConfigError, match=f"{expected}.*warmup_steps is 1, expected fewer"):
        reproduce(name, tmp_path / "to", file=path, words=[word], quiet=True)


def test_seeds_that_never_meet_a_threshold_are_said():
    found = spread([2.0, None, 4.0])
    assert (found["mean"], found["min"], found["max"], found["missing"]) == (3, 2, 4, 1)
    assert spread_text(found, "×") == "3.00× (2.00–4.00), 1 of 3 never"
    assert spread_text(spread([None])) == "never"
    assert spread_text(spread([150.4])) == "150"


def test_one_seed_is_no_plural():
    assert (seeds_text([4]), seeds_text([0, 1])) == ("1 seed", "2 seeds")


def test_the_speed_up_is_the_ratio_of_the_steps():
    slow, fast = Series.of([0, 10, 20], [4, 3, 2]), Series.of([0, 10, 20], [4, 2, 1])
    assert speed_up(slow, fast, 2.0) == {"threshold": 2.0, "steps": 10.0, "speedup": 2.0}
    assert speed_up(slow, fast, 0.5)["speedup"] is None
    assert speed_up(slow, fast, 5)["speedup"] == 1  # before the first step

"""The loop: it learns, it resumes to the same bits, it says what it did."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lamm.errors import BadAnswerError, CheckpointError, ConfigError, InterruptedRunError
from lamm.evaluate.curves import read_metrics
from lamm.train import session, step
from lamm.train.run import pretrain
from launching import stop_after
from small import SMALL_MODELS, small_config


def lines_of(run: Path, kind: str) -> list[dict]:
    return [line for line in read_metrics(run) if line["kind"] == kind]


def test_training_lowers_the_error_of_every_kind_of_subset(tmp_path: Path):
    config = small_config(
        tmp_path,
        train={"steps": 150, "workers": 0, "log_every": 50, "validate_every": 150},
        optim={"lr": 5e-3, "warmup_steps": 5, "ema_decay": 0.9},
    )
    pretrain(config, quiet=True)
    first, last = lines_of(config.to, "validation")
    for subset, key, share in (
        ("both", "energy_mae_mev_per_atom", 0.8),
        ("both", "forces_mae_mev_per_ang", 0.8),
        ("energies", "energy_mae_mev_per_atom", 0.8),
        ("none", "denoising_mae_fair_ang", 0.95),  # the structures are random: little to know
    ):
        before, after = (line["subsets"][subset][key] for line in (first, last))
        assert after < share * before, (subset, key)


def test_a_run_folder_holds_what_was_promised(tmp_path: Path):
    config = small_config(tmp_path)
    state = pretrain(config, quiet=True)
    assert (state.step, state.cursor > 0) == (12, True)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "best", "last"):
        assert (config.to / name).exists(), name
    saved = config.to / "last"
    names = {path.name for path in saved.iterdir()}
    assert names == {"model.safetensors", "ema.safetensors", "training.pt", "state.json"}
    assert json.loads((saved / "state.json").read_text())["format_version"] == 1
    line = lines_of(config.to, "train")[-1]
    assert line["step"] == 12
    assert line["atoms_per_s"] > 0
    assert 0 <= line["data_wait"] <= 1


def test_validating_and_saving_between_two_reports_is_no_time_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]
    monkeypatch.setattr(session, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def takes(seconds: float, call):
        def slow(*arguments, **options):
            clock[0] += seconds
            return call(*arguments, **options)

        return slow

    monkeypatch.setattr(session, "validate", takes(100, session.validate))
    monkeypatch.setattr(session, "save_checkpoint", takes(1000, session.save_checkpoint))
    monkeypatch.setattr(session.Session, "count", takes(0.5, session.Session.count))
    train = {"steps": 9, "workers": 0, "log_every": 4, "validate_every": 3, "checkpoint_every": 2}
    config = small_config(tmp_path, train=train)
    pretrain(config, quiet=True)
    lines = lines_of(config.to, "train")
    assert [line["step"] for line in lines] == [4, 8, 9]
    assert [line["step_ms"] for line in lines] == pytest.approx([500, 500, 500])


@pytest.mark.parametrize("model", SMALL_MODELS)
def test_interrupt_and_resume_give_the_same_bits_as_no_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
):
    whole = small_config(tmp_path, to=tmp_path / "whole", model=SMALL_MODELS[model])
    pretrain(whole, quiet=True)
    halves = small_config(tmp_path, to=tmp_path / "halves", model=SMALL_MODELS[model])

    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(InterruptedRunError, match="step 6 of 12"):
            pretrain(halves, quiet=True)
    assert (halves.to / "last").resolve().name == "step-6"
    pretrain(halves, quiet=True, resume=True)

    for name in ("model.safetensors", "ema.safetensors"):
        expected = load_file(whole.to / "last" / name)
        for key, value in load_file(halves.to / "last" / name).items():
            assert torch.equal(value, expected[key]), key
    losses = [[line["loss"] for line in lines_of(run.to, "train")] for run in (whole, halves)]
    assert losses[0] == losses[1]


def test_a_run_that_came_to_its_end_is_left_alone_unless_it_is_to_be_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = small_config(tmp_path)
    assert pretrain(config, quiet=True).step == 12
    file = config.to / "last" / "model.safetensors"
    before = file.stat().st_mtime_ns
    with caplog.at_level("INFO", logger="lamm"):
        assert pretrain(config, quiet=True, resume=True).step == 12
    assert "had come to its end at step 12" in caplog.text
    assert file.stat().st_mtime_ns == before
    longer = small_config(tmp_path, train={"steps": 14, "workers": 0})
    assert pretrain(longer, quiet=True, resume=True).step == 14


def test_validations_are_said_from_step_0_on_and_so_is_an_early_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    train = {"steps": 30, "workers": 0, "validate_every": 1, "patience": 2}
    still = small_config(tmp_path, train=train).optim.model_copy(update={"lr": 1e-12})
    with caplog.at_level("INFO", logger="lamm"):
        state = pretrain(small_config(tmp_path, train=train, optim=still))
    said = [one.message for one in caplog.records if "validation" in one.message]
    assert re.match(r"step 0: validation loss .*; both E [\d.]+ meV/atom, F [\d.]+ meV/Å", said[0])
    assert said[0].endswith("(best)")
    assert state.step < 30
    assert said[-1].startswith(f"no better validation since step {state.best_step}")


def test_what_is_saved_can_be_read_by_whoever_reads_its_neighbours(tmp_path: Path):
    config = small_config(tmp_path, train={"steps": 3, "workers": 0})
    pretrain(config, quiet=True)
    modes = {path.stat().st_mode for path in (config.to / "last").resolve().iterdir()}
    assert len(modes) == 1


def test_the_same_seed_gives_the_same_bits_with_and_without_worker_processes(tmp_path: Path):
    runs = []
    for workers in (0, 2):
        config = small_config(
            tmp_path,
            to=tmp_path / f"workers-{workers}",
            train={"steps": 4, "workers": workers, "log_every": 2, "validate_every": 4},
        )
        pretrain(config, quiet=True)
        runs.append(load_file(config.to / "last" / "model.safetensors"))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch):
    config = small_config(tmp_path)
    real = step.universal_loss

    def broken(*arguments):
        terms = real(*arguments)
        return terms._replace(total=terms.total * float("nan"))

    monkeypatch.setattr(step, "universal_loss", broken)
    with pytest.raises(BadAnswerError, match=r"loss is nan"):
        pretrain(config, quiet=True)


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path):
    config = small_config(tmp_path, train={"steps": 3, "workers": 0})
    pretrain(config, quiet=True)
    with pytest.raises(ConfigError, match="--resume"):
        pretrain(config, quiet=True)


def test_resuming_where_nothing_was_saved_says_so(tmp_path: Path):
    config = small_config(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        pretrain(config, quiet=True, resume=True)


def test_warm_up_longer_than_the_run_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="warmup_steps is 50"):
        small_config(tmp_path, optim={"warmup_steps": 50})

"""fit, validate, test, predict over toy recipes, in this process."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml

from zoo import cli
from zoo.errors import ZooError


def only(folder):
    (found,) = list(folder.iterdir())
    return found


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_fit_leaves_everything_in_its_own_folder(zoo, runs, capfd):
    assert zoo(["fit", "better"]) == 0
    run = only(runs / "better")
    assert {"result.json", "config.yaml", "metrics.csv", "checkpoints"} <= {p.name for p in run.iterdir()}
    assert (run / "checkpoints" / "last.ckpt").exists()
    found = result(run)
    assert found["recipe"] == "better" and found["family"] == "toy" and found["arena"] == "toys"
    assert found["budget"] == "8 steps x 8" and found["seed"] == 0
    assert found["metrics"]["test/score"] == pytest.approx(0.5)
    assert "train/nan" not in found["metrics"] and "train/loss" in found["metrics"]
    assert found["command"] == "python -m zoo fit better"
    assert found["wall_time_s"] > 0 and found["peak_memory_bytes"] > 0
    out = capfd.readouterr().out
    assert "test/score" in out and str(run) in out and "zoo verify better" in out


def test_runs_never_share_a_folder(zoo, runs):
    for seed in ("0", "0", "1"):
        assert zoo(["fit", "base", "--seed_everything", seed]) == 0
    folders = sorted(p.name.partition("-")[2] for p in (runs / "base").iterdir())
    assert folders == ["s0", "s0-2", "s1"]
    configs = [yaml.safe_load((p / "config.yaml").read_text())["seed_everything"] for p in (runs / "base").iterdir()]
    assert sorted(configs) == [0, 0, 1]  # trap 2: a config.yaml of its own for each


def test_saved_config_runs_again_elsewhere(zoo, runs):
    assert zoo(["fit", "better", "--model.temperature", "0.9", "--trainer.max_epochs", "1"]) == 0
    first = only(runs / "better")
    before = (first / "result.json").read_bytes()
    assert zoo(["fit", "base", "--config", str(first / "config.yaml")]) == 0
    assert (first / "result.json").read_bytes() == before
    again = only(runs / "base")
    assert result(again)["metrics"]["test/score"] == result(first)["metrics"]["test/score"]


def test_overlays_apply_in_order(zoo, runs):
    assert zoo(["fit", "better", "long"]) == 0
    assert result(only(runs / "better"))["budget"] == "16 steps x 8"
    assert zoo(["fit", "base", "long"]) == 0
    assert result(only(runs / "base"))["budget"] == "12 steps x 8"


def test_fast_dev_run_writes_nothing(zoo, runs):
    assert zoo(["fit", "base", "--trainer.fast_dev_run", "true"]) == 0
    assert not list(runs.rglob("result.json"))


def test_resume_continues_in_the_same_folder(zoo, runs, capfd):
    assert zoo(["fit", "base", "--model.interrupt_at", "5"]) == 130
    assert "Traceback" not in capfd.readouterr().err
    run = only(runs / "base")
    assert not (run / "result.json").exists()
    checkpoint = run / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    spent = saved["callbacks"]["ResultWriter"]["wall_time_s"]
    # The flag differs, so the configuration does, yet the newest run is meant.
    assert zoo(["fit", "base", "--ckpt_path", "last"]) == 0
    assert only(runs / "base") == run
    found = result(run)
    assert found["budget"] == "8 steps x 8" and found["wall_time_s"] > spent > 0
    with (run / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == list(range(8))
    assert (run / "config-until-step-5.yaml").exists()  # the flag that stopped it is gone from config.yaml
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 8
    assert [p.name for p in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_resumed_weights_equal_uninterrupted_ones(zoo, runs):
    assert zoo(["fit", "base"]) == 0
    assert zoo(["fit", "base", "--seed_everything=0", "--model.interrupt_at=6"]) == 130
    broken = next(p for p in (runs / "base").iterdir() if not (p / "result.json").exists())
    assert zoo(["fit", "base", "--ckpt_path", str(broken / "checkpoints" / "last.ckpt")]) == 0
    states = [torch.load(p, weights_only=True)["state_dict"] for p in (runs / "base").glob("*/checkpoints/last.ckpt")]
    assert len(states) == 2
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)


def test_resuming_never_replaces_the_result_of_something_else(zoo, runs):
    assert zoo(["fit", "base"]) == 0
    run = only(runs / "base")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    longer = ["--trainer.max_epochs", "3"]
    assert zoo(["fit", "better", "--ckpt_path", checkpoint, *longer]) == 0
    assert zoo(["fit", "base", "--ckpt_path", checkpoint, *longer]) == 0
    assert zoo(["fit", "base", "--ckpt_path", "last", "--trainer.max_epochs", "4"]) == 0
    assert {p: p.read_bytes() for p in before} == before
    assert result(only(runs / "better"))["recipe"] == "better"
    budgets = {result(p)["budget"] for p in (runs / "base").iterdir()}
    assert budgets == {"8 steps x 8", "12 steps x 8", "16 steps x 8"}


def test_runs_go_where_they_are_told(zoo, runs, tmp_path):
    assert zoo(["fit", "base", f"--runs={tmp_path / 'a'}"]) == 0
    assert zoo(["fit", "base", "--runs", str(tmp_path / "b")]) == 0
    assert [p.parent.name for p in (only(tmp_path / d / "base") for d in "ab")] == ["base", "base"]
    assert not runs.exists() and only(tmp_path / "a" / "base").name == only(tmp_path / "b" / "base").name


def test_last_prefers_the_same_seed(zoo, runs):
    assert zoo(["fit", "base", "--seed_everything", "0"]) == 0
    assert zoo(["fit", "base", "--seed_everything", "1"]) == 0
    assert zoo(["fit", "base", "--seed_everything", "0", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    budgets = {p.name[-2:]: result(p)["budget"] for p in (runs / "base").iterdir()}
    assert budgets["s1"] == "8 steps x 8"


def test_evaluation_overwrites_nothing(zoo, runs):
    assert zoo(["fit", "base"]) == 0
    run = only(runs / "base")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert zoo(["validate", "base"]) == 0
    assert zoo(["test", "base", "--ckpt_path", "last"]) == 0
    assert zoo(["predict", "base", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0
    assert {p: p.read_bytes() for p in before} == before
    new = {p.name for p in run.rglob("*") if p.is_file()} - {p.name for p in before}
    assert new == {"embeddings.npz"}
    with np.load(run / "embeddings.npz") as saved:
        assert saved["index"].tolist() == list(range(8)) and saved["features"].shape == (8, 2)


def test_print_config(zoo, capfd, runs):
    assert zoo(["fit", "better", "--model.temperature=0.9", "--print_config"]) == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    assert printed["model"]["init_args"]["temperature"] == 0.9 and printed["recipe"]["name"] == "better"
    assert not runs.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # lightning's, outside the command line
def test_build_gives_objects(zoo, runs):
    built = cli.build("better", ["long"], ["--model.temperature=0.9"])
    assert built.model.temperature == 0.9 and built.trainer.max_epochs == 4 and built.datamodule.batch_size == 8
    assert not runs.exists()
    built.trainer.fit(built.model, built.datamodule)
    assert result(only(runs / "better"))["metrics"]["train/loss"] >= 0


def test_build_reports_errors_as_exceptions(zoo):
    with pytest.raises(ZooError, match=r"did you mean --model\.temperature"):
        cli.build("better", [], ["--model.temprature=0.9"])


@pytest.mark.parametrize(
    ("environment", "online"),
    [
        ({}, False),
        ({"WANDB_API_KEY": "x"}, True),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, False),
        ({"WANDB_MODE": "online"}, True),
    ],
)
def test_wandb_is_offline_unless_logged_in(monkeypatch, tmp_path, environment, online):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli._wandb_wanted() == online


def test_wandb_reads_netrc(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert cli._wandb_wanted()

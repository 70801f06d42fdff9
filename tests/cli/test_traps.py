"""What LightningCLI gets wrong (lightning 2.6, jsonargparse 4.53), and errors of the user."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkpoint(zoo, runs):
    assert zoo(["fit", "base", "--trainer.max_epochs", "1"]) == 0
    (path,) = runs.glob("base/*/checkpoints/last.ckpt")
    return path


def test_flags_beat_hyperparameters_of_the_checkpoint(zoo, checkpoint):
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["bonus"] == 0.0
    assert zoo(["fit", "base", "--ckpt_path", str(checkpoint), "--model.bonus", "0.9"]) == 0
    (path,) = set(checkpoint.parents[2].glob("*/result.json")) - {checkpoint.parents[1] / "result.json"}
    result = json.loads(path.read_text())
    assert result["metrics"]["test/score"] == pytest.approx(0.9)


def test_no_abbreviations(error_line):
    assert "did you mean --trainer.max_epochs" in error_line("fit", "base", "--trainer.max_epoch", "3")


def test_environment_variables_are_not_read(zoo, monkeypatch, capfd):
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_EPOCHS", "77")
    monkeypatch.setenv("PL_TRAINER__MAX_EPOCHS", "77")
    assert zoo(["fit", "base", "--print_config"]) == 0
    assert yaml.safe_load(capfd.readouterr().out)["trainer"]["max_epochs"] == 2


def test_another_class_on_the_command_line_keeps_what_both_know(zoo, capfd):
    options = ["--model.temperature=0.7", "--model=tests.cli.toy.Other", "--print_config"]
    assert zoo(["fit", "better", *options]) == 0
    assert yaml.safe_load(capfd.readouterr().out)["model"]["init_args"] == {"temperature": 0.7, "depth": 3}


def test_nothing_asks_for_estimated_stepping_batches():
    assert not [p for p in (ROOT / "zoo").rglob("*.py") if "estimated_stepping_batches" in p.read_text()]


def test_jsonargparse_is_declared():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(re.match(r"jsonargparse\[signatures\]", d) for d in dependencies)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fti", "base"], "did you mean 'fit'?"),
        (["fit"], "which recipe?"),
        (["fit", "bse"], "did you mean 'base'"),
        (["fit", "base", "lnog"], "did you mean 'long'?"),
        (["fit", "base", "--model.temprature", "1"], "did you mean --model.temperature?"),
        (["fit", "base", "--model.init_args.temprature=1"], "did you mean --model.temperature?"),
        (["fit", "base", "--data.batchsize", "1"], "did you mean --data.batch_size"),
        (["fit", "base", "--trainer.max_epochs", "many"], "--trainer.max_epochs: expected int or null, got many"),
        (["fit", "base", "--model.temperature", "warm"], "--model.temperature: expected float"),
        (["fit", "base", "--model", "tests.cli.toy.Tyo"], "did you mean tests.cli.toy.Toy?"),
        (["fit", "base", "--ckpt_path", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["fit", "base", "--ckpt_path", "last"], "no run of seed 0 with checkpoints/last.ckpt"),
        (["test", "base"], "fit it first"),
        (["fit", "base", "--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["fit", "base", "--trainer.accelerator", "abacus"], "abacus"),
        (["fit", "base", "--runs"], "--runs needs the folder"),
        (["fit", "base", "--seed_everything", "false"], "--seed_everything must be a number"),
        (["fit", "base", "--model.width", "-1"], "cannot build tests.cli.toy.Toy: "),
        (["fit", "base", "--model.fail_at", "0"], "the loss is nan at step 0: lower the learning rate"),
        (["show", "betters"], "did you mean 'better'"),
        (["list", "--fromat", "json"], "did you mean '--format'?"),
        (["leaderboard", "--readme", "nowhere.md"], "nowhere.md"),
        (["verify", "better", "--seed_everything", "3"], "--seeds N"),
        (["verify", "better", "--seeds", "none"], "invalid int value"),
    ],
)
def test_errors_are_one_line(error_line, args, expected):
    assert expected in error_line(*args)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (
            "model: {init_args: {temprature: 1}}",
            "bad.yaml: model.init_args.temprature: Toy has no such option; did you mean 'temperature'?",
        ),
        ("model: {init_args: {temperature: warm}}", "bad.yaml: model.init_args.temperature: expected float"),
        (
            "model: {class_path: tests.cli.toy.Tyo}",
            "bad.yaml: model.class_path: no class 'tests.cli.toy.Tyo'; did you mean",
        ),
        (
            "trainer: {max_epoch: 3}",
            "bad.yaml: trainer.max_epoch: Trainer has no such option; did you mean 'max_epochs'",
        ),
        (
            "trainer: {callbacks+: [{class_path: zoo.callbacks.ResultWritr}]}",
            "bad.yaml: trainer.callbacks[2].class_path: no class",
        ),
        ("trianer: {max_epochs: 3}", "bad.yaml: trianer: no such key; did you mean 'trainer'?"),
        ("recipe: {titel: x}", "unknown field recipe.titel; did you mean 'title'?"),
        ("recipe: {paper: 1234.5678}", "recipe.paper is 1234.5678, but must be str; put it in quotes"),
        ("recipe: {claim: [{part: quality, metric: x, against: y, direction: up}]}", "must be higher or lower"),
        ("recipe: {claim: [{part: quality, metric: x}]}", "must say `against`"),
        ("trainer: [", "bad.yaml, line 2: did not find"),
        ("- trainer", "expected `key: value` lines"),
    ],
)
def test_errors_in_a_recipe_name_file_and_key(error_line, tmp_path, layer, expected):
    (tmp_path / "recipes" / "_with" / "bad.yaml").write_text(layer)
    assert expected in error_line("fit", "base", "bad")


def test_foreign_and_broken_checkpoints(error_line, checkpoint, tmp_path):
    assert "does not fit base: layer.weight is shape (2, 2) there and shape (5, 2) here" in error_line(
        "fit", "base", "--ckpt_path", str(checkpoint), "--model.width", "5"
    )
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:500])
    assert "cannot read checkpoint" in error_line("fit", "base", "--ckpt_path", str(broken))
    torch.save({"weights": torch.zeros(3)}, broken)
    assert "is not a Lightning checkpoint" in error_line("test", "base", "--ckpt_path", str(broken))


def test_help(zoo, capfd):
    assert zoo(["--help"]) == 0 and "verify RECIPE" in capfd.readouterr().out
    assert zoo(["--version"]) == 0 and capfd.readouterr().out.startswith("zoo ")
    assert zoo(["fit", "--help"]) == 0 and "RECIPE" in capfd.readouterr().out
    assert zoo(["verify", "--help"]) == 0 and "--seeds" in capfd.readouterr().out
    assert zoo(["fit", "base", "--help"]) == 0 and "--trainer.max_epochs" in capfd.readouterr().out

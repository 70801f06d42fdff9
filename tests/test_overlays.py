"""Overlays of every recipe: those of the papers parse, and their models and schedules are the papers'."""

import pytest
import torch

from zoo import cli, recipes
from zoo.__main__ import main

# These set options of the standard library's source, which other sources do not have.
NOT_FOR = {name: {"corrupt", "duplicates"} for name in ("one_task", "mixed_tasks")}
SSL = [name for name in recipes.names() if recipes.load_card(name).family == "ssl"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.names())
def test_every_overlay_of_a_recipe_is_valid_input(name, capfd):
    for overlay in recipes.overlay_names(name):
        expected = 2 if overlay in NOT_FOR.get(name, ()) else 0
        assert main(["fit", name, overlay, "--print_config"]) == expected, capfd.readouterr().err


@pytest.mark.parametrize("name", SSL)
def test_papers_overlays_exist_for_every_method(name):
    assert {"cifar10", "cifar100", "stl10", "imagenet100", "imagenet", "smoke", "wandb"} <= set(
        recipes.overlay_names(name)
    )


def test_mochi_at_the_papers_scale(tmp_path):
    run = cli.build("mochi", ["imagenet"], ["--data.root", str(tmp_path)])
    assert run.model.encoder.backbone.num_features == 2048
    assert run.model.queue.rows.shape == (65536, 128)
    assert run.model.momentum == 0.999 and run.model.loss.temperature == 0.2
    (mixing,) = run.model.negatives
    assert (mixing.n_hard, mixing.n_mix, mixing.n_query_mix, mixing.start_epoch) == (1024, 512, 256, 15)
    assert not [m for m in run.model.encoder.head if isinstance(m, torch.nn.BatchNorm1d)]
    assert run.trainer.max_epochs == 200 and run.datamodule.batch_size == 256
    assert [round(run.model.rate(e, 200), 4) for e in (0, 100, 200)] == [1.0, 0.5, 0.0]

"""When ResultWriter writes result.json, and what."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch

from zoo.callbacks import ResultWriter
from zoo.recipes import RecipeCard
from zoo.results import RunInfo

MODULE = SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture
def writer(tmp_path):
    made = ResultWriter()
    made.run = RunInfo(RecipeCard(name="x", primary="test/a"), "f", "arena", "0" * 64, [], 3, "command", tmp_path)
    return made


def trainer(rank=0, **metrics):
    return Mock(
        spec=pl.Trainer,
        callback_metrics={name.replace("_", "/"): torch.tensor(value) for name, value in metrics.items()},
        datamodule=SimpleNamespace(batch_size=16), world_size=2, accumulate_grad_batches=3, global_step=7,
        is_global_zero=rank == 0, fast_dev_run=False, sanity_checking=False, loggers=[],
    )  # fmt: skip


def fit(writer, **metrics):
    writer.on_fit_start(trainer(), MODULE)
    writer.on_train_epoch_end(trainer(**metrics), MODULE)
    writer.on_fit_end(trainer(), MODULE)


def test_a_run_that_is_tested_is_written_after_the_test(writer, tmp_path):
    writer.awaits_test = True
    fit(writer, train_loss=2.0)
    assert not (tmp_path / "result.json").exists()
    writer.on_test_end(trainer(test_a=0.5), MODULE)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["metrics"] == {"train/loss": 2.0, "test/a": 0.5} and found["primary"] == "test/a"
    assert found["budget"] == "7 steps x 96" and found["seed"] == 3


def test_without_a_test_the_end_of_training_writes(writer, tmp_path):
    fit(writer, train_loss=2.0, train_nan=float("nan"))
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == {"train/loss": 2.0}


def test_nothing_is_written_by_another_rank_without_a_run_or_without_training(writer, tmp_path):
    writer.on_test_end(trainer(test_a=0.5), MODULE)
    writer.on_fit_start(trainer(), MODULE)
    writer.on_fit_end(trainer(rank=1), MODULE)
    fit(ResultWriter(), train_loss=1.0)
    assert not list(tmp_path.iterdir())


def test_metrics_and_time_continue_from_a_checkpoint(writer):
    fit(writer, train_loss=2.0, eval_knn=0.5)
    spent = writer.wall_time_s
    again = ResultWriter()
    again.load_state_dict(writer.state_dict())
    fit(again, train_loss=1.0)
    assert again.metrics == {"train/loss": 1.0, "eval/knn": 0.5}
    assert again.wall_time_s > spent > 0


def test_what_the_source_reports_is_in_result_and_loggers_alike(writer, tmp_path):
    writer.awaits_test, logger = True, Mock()
    fit(writer)
    tested = trainer(test_a=0.5)
    tested.loggers, tested.datamodule = (
        [logger],
        SimpleNamespace(source=SimpleNamespace(report={"n": 9}, arena="files")),
    )
    writer.on_test_end(tested, MODULE)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["metrics"] == {"test/a": 0.5, "data/n": 9.0} and found["arena"] == "files"
    logger.log_metrics.assert_called_once_with({"data/n": 9.0}, 7)

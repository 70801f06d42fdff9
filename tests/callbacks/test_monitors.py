"""Guards and meters."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from zoo.callbacks import StopOnNaN
from zoo.callbacks.monitors import ProgressBar, peak_memory_bytes
from zoo.errors import ZooError


def batch(number):
    return SimpleNamespace(epoch=2, number=number, index=torch.arange(10 * number, 10 * number + 9))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_step_and_batch(loss):
    guard = StopOnNaN()
    guard.on_train_batch_end(SimpleNamespace(global_step=6), None, {"loss": torch.tensor(1.0)}, batch(0), 0)
    with pytest.raises(ZooError, match=r"the loss is (nan|inf) at step 7 \(epoch 2, batch 1, pairs 10, 11, 12"):
        guard.on_train_batch_end(SimpleNamespace(global_step=7), None, {"loss": torch.tensor(loss)}, batch(1), 1)


def test_peak_memory_sees_a_large_allocation():
    before = peak_memory_bytes(torch.device("cpu"))
    block = torch.ones(before // 4 + 50_000_000, dtype=torch.float32)  # more than was ever resident
    assert peak_memory_bytes(torch.device("cpu")) > before
    del block


def test_progress_is_drawn_as_training_starts_every_tenth_step_and_at_the_last(tmp_path):
    drawn = []

    class Seen(ProgressBar):
        def get_metrics(self, trainer, pl_module):
            drawn.append(trainer.global_step)
            return super().get_metrics(trainer, pl_module)

    bar = Seen()
    trainer = pl.Trainer(
        max_steps=25, limit_train_batches=25, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[bar],
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert set(drawn) == {0, 10, 20, 25}
    assert bar.progress.tasks[bar.train_progress_bar_id].completed == 25

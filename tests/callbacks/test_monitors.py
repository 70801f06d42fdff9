"""Guards and meters."""

from types import SimpleNamespace

import pytest
import torch

from zoo.callbacks import StopOnNaN
from zoo.callbacks.monitors import peak_memory_bytes
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

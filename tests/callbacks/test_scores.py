"""Statistics and histograms of scores over a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.callbacks import ScoreHistogram, ScoreStatistics


class Module:
    """Stands in for a method: keeps what is logged."""

    def __init__(self):
        self.loss, self.logged = SimpleNamespace(temperature=0.5), {}

    def log_dict(self, values, **_):
        self.logged |= values


def outputs(seed, masked=False):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(8, 12, generator=g) > 0.4 if masked else None
    query = torch.nn.functional.normalize(torch.randn(8, 4, generator=g), dim=1)
    positives, negatives = torch.rand(8, 1, generator=g), torch.rand(8, 12, generator=g) * 2 - 1
    return {"query": query, "positives": positives, "negatives": negatives, "mask": mask}


def test_epoch_means_are_over_the_observed_steps():
    callback, module = ScoreStatistics(every_n_steps=2), Module()
    steps = [outputs(i, masked=True) for i in range(5)]
    for i, step in enumerate(steps):
        callback.on_train_batch_end(None, module, step, None, i)
    callback.on_train_epoch_end(None, module)
    observed = [steps[i] for i in (0, 2, 4)]
    by_hand = {
        "scores/positive": np.mean([o["positives"].mean().item() for o in observed]),
        "negatives/effective": np.mean([o["mask"].sum(1).double().mean().item() for o in observed]),
        "train/proxy_accuracy": np.mean(
            [
                np.mean([o["positives"][i, 0] > o["negatives"][i][o["mask"][i]].max() for i in range(8)])
                for o in observed
            ]
        ),
    }
    for name, value in by_hand.items():
        assert module.logged[name] == pytest.approx(value, abs=1e-6), name
    module.logged.clear()
    callback.on_train_batch_end(None, module, steps[1], None, 0)
    callback.on_train_epoch_end(None, module)
    assert module.logged["scores/positive"] == pytest.approx(steps[1]["positives"].mean().item())


def test_statistics_continue_from_a_checkpoint_within_an_epoch():
    whole, first, second, modules = ScoreStatistics(1), ScoreStatistics(1), ScoreStatistics(1), (Module(), Module())
    for i in range(4):
        whole.on_train_batch_end(None, modules[0], outputs(i), None, i)
    for i in range(2):
        first.on_train_batch_end(None, modules[1], outputs(i), None, i)
    second.load_state_dict(first.state_dict())
    for i in range(2, 4):
        second.on_train_batch_end(None, modules[1], outputs(i), None, i)
    whole.on_train_epoch_end(None, modules[0])
    second.on_train_epoch_end(None, modules[1])
    assert modules[0].logged == modules[1].logged


def test_histograms_count_what_the_loss_saw(tmp_path):
    trainer = SimpleNamespace(loggers=[], is_global_zero=True, default_root_dir=str(tmp_path), global_step=4)
    callback, steps = ScoreHistogram(bins=8, low=-1, high=1, every_n_steps=1), [outputs(i, True) for i in range(4)]
    for i, step in enumerate(steps):
        if i == 2:
            callback.on_train_epoch_end(trainer, None)
            resumed = ScoreHistogram(bins=8, low=-1, high=1, every_n_steps=1)
            resumed.load_state_dict(callback.state_dict())
            callback = resumed
        callback.on_train_batch_end(trainer, None, step, None, i)
    callback.on_train_epoch_end(trainer, None)
    callback.on_fit_end(trainer, None)
    stored = np.load(tmp_path / "score_histogram.npz")
    assert stored["positives"].shape == stored["negatives"].shape == (2, 8)
    kept = torch.cat([s["negatives"][s["mask"]] for s in steps[2:]]).numpy()
    np.testing.assert_array_equal(stored["negatives"][1], np.histogram(kept, 8, (-1, 1))[0])
    assert stored["positives"].sum() == 32
    with Image.open(tmp_path / "score_histogram.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_scores_beyond_the_edges_fall_into_the_outermost_bins(tmp_path):
    callback = ScoreHistogram(bins=4, low=-1, high=1, every_n_steps=1)
    step = outputs(0) | {"positives": torch.tensor([[-4.0], [0.1], [3.0]])}
    callback.on_train_batch_end(None, None, step, None, 0)
    assert callback.current[0].tolist() == [1, 0, 1, 1]

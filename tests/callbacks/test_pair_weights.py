"""Entropies of CACR's weights over a run."""

import math
from types import SimpleNamespace

import pytest
import torch

from zoo.callbacks import PairWeights
from zoo.losses import CACR, InfoNCE
from zoo.methods.siamese import in_batch_candidates


class Module:
    def __init__(self, loss):
        self.loss, self.negatives_from, self.logged = loss, "later", {}

    def log_dict(self, values, **_):
        self.logged |= values


def outputs(z):
    positives, negatives, mask = in_batch_candidates(list(z), torch.arange(z.shape[1]), negatives_from="later").scores()
    return {"positives": positives, "negatives": negatives, "mask": mask}


def views(spread, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.ones(4, 6, 5) + spread * torch.randn(4, 6, 5, generator=g)


def epoch(callback, module, z):
    batch = SimpleNamespace(views=[None] * (len(z) - 2))
    callback.on_train_batch_end(None, module, outputs(z), batch, 0)
    callback.on_train_epoch_end(None, module)
    return dict(module.logged)


def test_entropies_are_largest_at_equal_distances_and_shrink_with_sharpness():
    alike = epoch(PairWeights(), Module(CACR(1.0, 2.0, groups=4)), views(0.0))
    for suffix in ("", "_max", "_first"):
        assert alike[f"weights/positive_entropy{suffix}"] == pytest.approx(math.log(3), abs=1e-5)
        assert alike[f"weights/negative_entropy{suffix}"] == pytest.approx(math.log(5), abs=1e-5)
    spread, sharp = (epoch(PairWeights(), Module(CACR(t, t, groups=4)), views(1.0)) for t in (1.0, 1e4))
    for side in ("positive", "negative"):
        assert spread[f"weights/{side}_entropy"] < spread[f"weights/{side}_entropy_max"] - 1e-3
        assert sharp[f"weights/{side}_entropy"] < 0.2


def test_other_losses_are_measured_at_the_given_sharpness():
    want = epoch(PairWeights(9.0, 9.0), Module(CACR(1.5, 0.7, groups=4)), views(1.0))
    assert epoch(PairWeights(1.5, 0.7), Module(InfoNCE()), views(1.0)) == want


def test_first_epoch_is_remembered_across_a_checkpoint():
    module = Module(CACR(1.0, 2.0, groups=4))
    callback = PairWeights()
    start = epoch(callback, module, views(0.3))
    resumed = PairWeights()
    resumed.load_state_dict(callback.state_dict())
    later = epoch(resumed, module, views(1.0, seed=1))
    assert later["weights/negative_entropy"] != start["weights/negative_entropy"]
    assert later["weights/negative_entropy_first"] == start["weights/negative_entropy"]


def test_queries_without_candidates_are_left_out():
    z = views(1.0)
    step = outputs(z)
    callback, module = PairWeights(), Module(CACR(groups=4))
    step["mask"] = step["mask"] & False
    callback.on_train_batch_end(None, module, step, SimpleNamespace(views=[None] * 2), 0)
    callback.on_train_epoch_end(None, module)
    assert module.logged["weights/negative_entropy"] == 0

"""The kernels' arithmetic without a GPU, interpreted, against the plain form in float64.

Triton decides at its import whether to interpret, so that the cases run in a process of their own; to see them one by
one: `TRITON_INTERPRET=1 pytest tests/losses/test_triton_nce.py`.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from tests.losses.test_lean import gradients, plain
from zoo.losses import normalize
from zoo.losses.lean import KeyMask

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_all_cases_hold_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr


def world(b, m, dim, dtype=torch.float32):
    """Leaves (queries, documents, scale, further negatives), and the rest."""
    draw = torch.Generator().manual_seed(b + m)
    sizes = (b, dim), (m, dim), (b, 3, dim)
    q, d, n = (normalize(torch.randn(*s, generator=draw)).to(dtype).requires_grad_() for s in sizes)
    keys = KeyMask(*(torch.randint(-1, 9, (rows, 2), generator=draw) for rows in (b, m)))
    own, mask = torch.randperm(m, generator=draw)[:b], torch.rand(b, 3, generator=draw) < 0.6
    return [q, d, torch.tensor(5.0, requires_grad=True), n], own, keys, mask


def compare(leaves, own, keys, smoothing=0.0, more=True, mask=None, tolerance=1e-5):
    from zoo.losses.triton_nce import triton_info_nce

    leaves = leaves if more else leaves[:3]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    (q, d, scale, *n), (*both, wide_scale), m = leaves, wide[:3], wide[3:]
    found = triton_info_nce(q, d, own, keys, scale, smoothing, *n, *([mask] if more else []))
    wanted = plain(*both, own, keys, 1 / wide_scale, smoothing, *m, *([mask] if more else []))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    for x, y, leaf in zip(gradients(found, leaves), gradients(wanted, wide), leaves, strict=True):
        assert x.dtype == leaf.dtype
        assert (x - y).abs().max() <= tolerance * y.abs().max()


@interpreted
@pytest.mark.parametrize(
    ("smoothing", "keyed", "more"),
    [(0.0, False, "none"), (0.1, False, "all"), (0.0, True, "some"), (0.1, True, "none"), (0.1, True, "some")],
)
def test_value_and_gradients_are_those_of_the_full_matrix(smoothing, keyed, more):
    leaves, own, keys, mask = world(19, 75, 20)  # no multiples of the tile
    compare(leaves, own, keys if keyed else None, smoothing, more != "none", mask if more == "some" else None)


@interpreted
@pytest.mark.parametrize(("b", "m", "dim"), [(1, 1, 1), (16, 32, 16), (17, 270, 40)])
def test_shapes(b, m, dim):
    leaves, own, keys, mask = world(b, m, dim)
    compare(leaves, own, keys, 0.1, True, mask)


@interpreted
def test_bfloat16_products_are_summed_in_float32(monkeypatch):
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    dot = Builder.create_dot  # which would multiply the bits of bfloat16 as integers

    def widened(self, a, b, *rest):
        return dot(
            self, *(self.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)), *rest
        )

    monkeypatch.setattr(Builder, "create_dot", widened)
    leaves, own, keys, mask = world(40, 70, 64, torch.bfloat16)
    compare(leaves, own, keys, 0.1, True, mask, tolerance=2**-7)  # gradients of scores are rounded, too


@interpreted
def test_the_backward_pass_goes_by_parts(monkeypatch):
    monkeypatch.setattr("zoo.losses.triton_nce.BUFFER_BYTES", 0)
    leaves, own, keys, mask = world(21, 24, 8)  # parts of 16 and 5
    compare(leaves, own, keys, 0.1, True, mask)


@interpreted
def test_a_query_without_negatives_has_no_loss_and_no_gradient():
    from zoo.losses.triton_nce import triton_info_nce

    (q, d, scale, _), own, _, _ = world(20, 40, 8)
    keys = KeyMask(torch.arange(20)[:, None] // 18, torch.zeros(40, 1, dtype=torch.long))  # the last two have negatives
    loss = triton_info_nce(q, d, own, keys, scale)
    loss.backward()
    assert loss > 0 and q.grad[:18].count_nonzero() == 0 and (q.grad[18:].abs().sum(1) > 1e-4).all()
    everything = KeyMask(torch.zeros(20, 1, dtype=torch.long), keys.documents)
    assert triton_info_nce(q, d, own, everything, scale).item() == 0


@interpreted
def test_large_scores_do_not_overflow():
    (q, d, _, n), own, keys, mask = world(17, 40, 8)
    compare([q, d, torch.tensor(1e4, requires_grad=True), n], own, keys, 0.0, True, mask, tolerance=1e-3)

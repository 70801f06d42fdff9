"""The queue against a plain first-in-first-out list, and what MoCo's loss makes of it."""

import io
import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import info_nce, normalize
from zoo.methods.momentum import queue_candidates
from zoo.negatives import Queue
from zoo.negatives.queue import NO_KEY


def _unit(n, d=4, seed=0):
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def _oldest_first(queue):
    pointer = int(queue.pointer)
    rows, keys = queue.rows.roll(-pointer, 0), queue.keys.roll(-pointer)
    return list(zip(map(tuple, rows.tolist()), keys.tolist(), strict=True))


def _filled(size=7, n=5):
    queue = Queue(size, 4)
    queue.enqueue(_unit(n), torch.arange(n))
    return queue


@settings(max_examples=40)
@given(size=st.integers(1, 7), batches=st.lists(st.integers(1, 17), max_size=6))
def test_first_in_first_out(size, batches):
    queue = Queue(size, 4)
    assert (queue.keys == NO_KEY).all() and queue.pointer == 0
    stored = deque(_oldest_first(queue), maxlen=size)
    for number, b in enumerate(batches):
        rows, keys = _unit(b, seed=number), torch.arange(100 * number, 100 * number + b)
        queue.enqueue(rows, keys)
        stored.extend(zip(map(tuple, rows.tolist()), keys.tolist(), strict=True))
        assert _oldest_first(queue) == list(stored)
        assert queue.pointer == sum(batches[: number + 1]) % size
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(size))


def test_rows_start_as_distinct_directions():
    rows = Queue(500, 8).rows
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(500))
    assert rows.mean(0).norm() < 0.2


@settings(max_examples=25)
@given(stored=st.lists(st.integers(0, 5), max_size=9), keys=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_mask_drops_rows_of_the_same_content(stored, keys):
    queue = Queue(6, 4)
    queue.enqueue(_unit(len(stored)), torch.tensor(stored, dtype=torch.long))
    want = [[key != other for other in queue.keys.tolist()] for key in keys]
    assert queue.mask(torch.tensor(keys)).tolist() == want
    assert sum(map(all, zip(*want, strict=True))) >= 6 - len(stored)


@pytest.mark.parametrize("key_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("row_type", [torch.bfloat16, torch.float64])
def test_other_precisions_are_stored_in_the_queues(key_type, row_type):
    queue, rows = Queue(3, 4), _unit(2).to(row_type)
    queue.enqueue(rows, torch.tensor([5, 6], dtype=key_type))
    assert torch.equal(queue.rows[:2], rows.float()) and queue.keys.tolist() == [5, 6, NO_KEY]


def test_checkpoint_resumes_in_the_middle_of_the_queue():
    queue = _filled()
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    resumed = Queue(7, 4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert _oldest_first(resumed) == _oldest_first(queue)
    for q in (queue, resumed):
        q.enqueue(_unit(4, seed=1), torch.arange(10, 14))
    assert torch.equal(resumed.rows, queue.rows) and torch.equal(resumed.keys, queue.keys)
    assert resumed.keys.tolist() == [12, 13, 2, 3, 4, 10, 11] and resumed.pointer == 2


def test_loss_is_mocos_and_its_gradient_reaches_the_query_only():
    queue = _filled()
    query, key = (torch.randn(3, 4).requires_grad_() for _ in range(2))
    candidates = queue_candidates(query, key, queue, torch.tensor([20, 21, 22]))
    assert not candidates.positive.requires_grad and not candidates.shared.requires_grad
    loss = info_nce(*candidates.scores(), temperature=0.2)
    q, k = query / query.norm(dim=1, keepdim=True), key / key.norm(dim=1, keepdim=True)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.rows.T], 1) / 0.2
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.long)))
    p = logits.softmax(1).detach()
    want = ((p[:, :1] - 1) * k + p[:, 1:] @ queue.rows) / 0.2 / 3
    (got,) = torch.autograd.grad(loss, candidates.query, retain_graph=True)
    torch.testing.assert_close(got, want.detach())
    loss.backward()
    assert key.grad is None and query.grad.abs().max() > 0


def test_rows_of_the_same_content_are_as_if_absent():
    queue, query, key = _filled(), _unit(1, seed=5), _unit(1, seed=6)
    masked = info_nce(*queue_candidates(query, key, queue, torch.tensor([3])).scores())
    queue.rows[3] = key[0]
    torch.testing.assert_close(info_nce(*queue_candidates(query, key, queue, torch.tensor([3])).scores()), masked)
    others = torch.cat([queue.rows[:3], queue.rows[4:]])
    torch.testing.assert_close(masked, info_nce((query * key).sum(1, keepdim=True), query @ others.T))


def test_order_of_rows_does_not_matter():
    queue, query, key = _filled(), _unit(3, seed=5), _unit(3, seed=6)
    before = info_nce(*queue_candidates(query, key, queue, torch.tensor([0, 3, 9])).scores())
    order = torch.randperm(7)
    queue.rows, queue.keys = queue.rows[order], queue.keys[order]
    torch.testing.assert_close(info_nce(*queue_candidates(query, key, queue, torch.tensor([0, 3, 9])).scores()), before)


def test_loss_of_random_embeddings_is_that_of_a_uniform_guess():
    queue = Queue(4096, 128)
    loss = info_nce(*queue_candidates(_unit(256, 128, 1), _unit(256, 128, 2), queue, torch.arange(256)).scores(), 1.0)
    assert loss.item() == pytest.approx(math.log(1 + 4096), abs=0.02)


def test_writing_before_the_backward_pass_is_an_error():
    queue, query = _filled(), _unit(3, seed=5).requires_grad_()
    loss = info_nce(*queue_candidates(query, _unit(3, seed=6), queue, torch.arange(3)).scores())
    queue.enqueue(_unit(3, seed=6), torch.arange(3))
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()

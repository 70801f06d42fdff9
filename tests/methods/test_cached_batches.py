"""Very large batches in bounded memory: the gradient cache over image and text towers, with the lean loss."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.test_dual import cached_step, tokens
from zoo.data.pairs import PairBatch
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.methods.batch_former import BatchFormerEncoder
from zoo.methods.dual import DualEncoder
from zoo.methods.encoders import ConvNet
from zoo.methods.momentum import MomentumContrast
from zoo.methods.siamese import SiameseContrast
from zoo.methods.text_encoders import TokenBag


class Towers(nn.Module):
    """Images as queries, texts as documents; no BatchNorm, which would see chunks."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GELU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(4 * 36, 8)
        )
        self.text = TokenBag(50, 8)

    def tower(self, side):
        return self.image if side == "query" else self.text


def batch_of(rows):
    images, keys = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double(), torch.arange(rows)
    return PairBatch(images, tokens(np.random.default_rng(0), rows), keys, keys, keys)


def build(dropout=0.0, **kwargs):
    torch.manual_seed(0)
    loss = InfoNCE(0.1, learn_temperature=True)
    return DualEncoder(Towers(dropout), loss, symmetric=True, **kwargs).double()


def gradients(method, batch):
    torch.manual_seed(1)
    loss = cached_step(method, batch)
    return [loss, *(p.grad for p in method.parameters())]


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 4, 12])
def test_images_and_tokens_in_chunks_give_the_whole_batchs_loss_and_gradients(chunk, lean):
    batch = batch_of(12)
    plain, cached = gradients(build(), batch), gradients(build(cache_chunk=chunk, lean=lean), batch)
    assert len(plain) == 1 + 1 + 4 + 1  # loss; temperature; image tower; embeddings
    for a, b in zip(plain, cached, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert b.abs().sum() > 0


def test_accumulation_is_another_loss():
    batch = batch_of(12)
    whole = gradients(build(), batch)
    parts = []
    for start in range(0, 12, 4):
        rows = slice(start, start + 4)
        keys = batch.index[rows]
        parts.append(gradients(build(), PairBatch(batch.anchor[rows], batch.positive[rows], keys, keys, keys)))
    mean = [torch.stack(x).mean(0) for x in zip(*parts, strict=True)]
    assert mean[0] < whole[0] - 0.1
    assert not torch.allclose(mean[2], whole[2], rtol=1e-2)


def test_both_passes_see_the_same_dropout():
    method = build(dropout=0.5, cache_chunk=5)
    seen, embed = [], method.embed

    def spy(inputs, side):
        found = embed(inputs, side)
        seen.append((side, found.detach().clone(), found.requires_grad))
        return found

    method.embed = spy
    gradients(method, batch_of(12))
    without, again = ([x for x in seen if x[2] is grad] for grad in (False, True))
    assert len(without) == len(again) == 6
    for (side, first, _), (other, second, _) in zip(without, again, strict=True):
        assert side == other and torch.equal(first, second)
    assert not torch.equal(without[0][1], embed(batch_of(12).anchor[:5], "query"))


def peak_of_saved_tensors(method, batch):
    """Most numbers that autograd held for images' activations at a time, `[B, 4, ...]`."""
    live = {"now": 0, "peak": 0}

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor
            live["now"] += tensor.numel()
            live["peak"] = max(live["peak"], live["now"])
            weakref.finalize(self, self.free, tensor.numel())

        @staticmethod
        def free(count):
            live["now"] -= count

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        cached_step(method, batch)
    gc.collect()
    return live["peak"]


def test_memory_of_activations_does_not_grow_with_the_batch():
    plain, cached = (
        [peak_of_saved_tensors(build(cache_chunk=chunk, lean=True), batch_of(n)) for n in (16, 64)]
        for chunk in (None, 8)
    )
    assert plain[1] > 3.5 * plain[0]
    per_row = 8 * 4 * 2 + 16  # embeddings, gradients and lengths, which grow with the batch, not with the encoder
    assert cached[1] - cached[0] <= 48 * per_row
    assert cached[1] < plain[1] / 3


class Pictures(nn.Module):
    """The image tower as the encoder of a siamese method."""

    dim = 8

    def __init__(self, norm=False, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(*Towers(dropout).image, nn.BatchNorm1d(8) if norm else nn.Identity())

    def forward(self, images):
        return self.layers(images)


def siamese(kind, encoder, **kwargs):
    torch.manual_seed(0)
    loss = InfoNCE(0.1, learn_temperature=True)
    if kind == "moco":
        return MomentumContrast(encoder, loss, 16, momentum=0.5, symmetric=True, **kwargs).double()
    return SiameseContrast(encoder, loss, **kwargs).double()


def views_of(rows):
    batch = batch_of(rows)
    other, third = batch.anchor.flip(3), batch.anchor.flip(2)
    explicit = torch.randn(2 * rows, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    keys = torch.arange(2 * rows).view(rows, 2) + 100
    return batch.replace(
        positive=other, views=(third,), negatives=explicit, negative_key=keys, negative_mask=keys > 101
    )


@pytest.mark.parametrize("kind", ["siamese", "moco"])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_siamese_methods_in_chunks_give_the_whole_batchs_loss_and_gradients(kind, chunk):
    found = []
    for size in (None, chunk):
        torch.manual_seed(0)
        method = siamese(kind, Pictures(), cache_chunk=size)
        found.append([x for x in gradients(method, views_of(6)) if x is not None])
    assert len(found[0]) == len(found[1]) == 1 + 1 + 4
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert b.abs().sum() > 0


def test_batch_norm_sees_chunks_and_counts_them_once():
    torch.manual_seed(0)
    plain, cached = Pictures(norm=True, dropout=0.3), Pictures(norm=True, dropout=0.3)
    cached.load_state_dict(plain.state_dict())
    methods = siamese("siamese", plain), siamese("siamese", cached, cache_chunk=6)
    whole = plain.forward
    plain.forward = lambda images: torch.cat([whole(part) for part in images.split(6)])
    first, second = (gradients(method, views_of(6)) for method in methods)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for (name, a), b in zip(plain.state_dict().items(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert cached.layers[-1].num_batches_tracked == 3 + 2  # chunks of three views, and of two negatives each


def test_an_encoder_that_mixes_rows_takes_no_gradient_cache():
    with pytest.raises(ZooError, match=r"BatchFormerEncoder mixes the rows of a batch: remove --model\.cache_chunk"):
        siamese("siamese", BatchFormerEncoder(ConvNet(8), dim=8), cache_chunk=4)

"""BatchFormer: attention over the batch in training, nothing in evaluation; its place in the methods; classifiers."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zoo import BatchFormerEncoder, Classifier, ImageEncoder, MomentumContrast, SiameseContrast
from zoo.callbacks.rare import RareClasses, shot_groups
from zoo.data import PairBatch
from zoo.errors import ZooError
from zoo.losses import InfoNCE, normalize
from zoo.methods import BatchFormer
from zoo.methods.batch_former import moco_v3_loss
from zoo.methods.siamese import in_batch_candidates


class Pixels(nn.Module):
    num_features = 12

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, images):
        return self.layer(images.flatten(1))


def encoder(dim=4, **kwargs):
    torch.manual_seed(0)
    return BatchFormerEncoder(Pixels(), dim=dim, dropout=0.0, **kwargs)


def attach(module):
    trainer = SimpleNamespace(current_epoch=0, global_step=0, log_every_n_steps=100, global_rank=0)
    module._trainer = trainer
    return module


def batch(n=3, **kwargs):
    views = torch.randn(2, n, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    keys = torch.arange(n)
    return PairBatch(views[0], views[1], keys, keys, keys, **kwargs)


def test_training_doubles_the_rows_and_evaluation_is_the_identity():
    module, h = BatchFormer(8), torch.randn(5, 8)
    out = module(h)
    assert out.shape == (10, 8) and torch.equal(out[:5], h) and not torch.allclose(out[5:], h)
    assert module.eval()(h) is h


def test_attention_is_permutation_equivariant():
    module, h = BatchFormer(8, dropout=0.0), torch.randn(5, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(module.attend(h[order]), module.attend(h)[order])


def test_one_sample_reaches_the_attended_rows_of_others_only():
    module, h = BatchFormer(8, dropout=0.0), torch.randn(5, 8)
    other = h.clone()
    other[2] += 1
    changed = (module(h) - module(other)).abs().amax(1) > 1e-6
    assert changed.tolist() == [i == 2 for i in range(5)] + [True] * 5
    h.requires_grad_()
    (grad,) = torch.autograd.grad(module(h)[5].square().sum(), h)
    assert (grad.norm(dim=1) > 0).all()


def test_heads_have_to_divide_the_width():
    with pytest.raises(ZooError, match="do not divide"):
        BatchFormer(10)


def test_views_are_separate_sequences():
    module, data = encoder(), batch()
    anchor, _ = module.encode_alike([data.anchor, data.positive])
    same, _ = module.encode_alike([data.anchor, data.positive + 1])
    torch.testing.assert_close(anchor, same)


@pytest.mark.parametrize("shared_head", [True, False])
def test_readings_are_plain_then_attended(shared_head):
    module, data = encoder(shared_head=shared_head, batch_norm=False), batch()
    h = module.backbone(data.anchor)
    rows = [h, module.batch_former.attend(h)] if shared_head else [module.batch_former.attend(h)]
    assert module.readings == len(rows)
    found = module.encode_alike([data.anchor, data.positive])[0]
    torch.testing.assert_close(found, torch.cat([module.head(x) for x in rows]))
    torch.testing.assert_close(module(data.anchor), found)
    torch.testing.assert_close(module.features(data.anchor), h)
    module.eval()
    assert module.readings == 1
    torch.testing.assert_close(module(data.anchor), module.head(h))


def test_the_head_normalises_both_readings_of_all_views_together():
    module, data = encoder(batch_norm=True), batch(8)
    norm: nn.BatchNorm1d = module.head[1]
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    module.encode_alike([data.anchor, data.positive])
    assert seen == [(32, 12)]


def test_siamese_loss_is_the_mean_over_the_readings():
    module, data = attach(SiameseContrast(encoder(), InfoNCE(0.5))), batch(4)
    a, b = (view.chunk(2) for view in module.encoder.encode_alike([data.anchor, data.positive]))
    losses = [
        module.loss(*in_batch_candidates([a[i], b[j]], data.anchor_key).scores()) for i in range(2) for j in range(2)
    ]
    torch.testing.assert_close(module.training_step(data, 0)["loss"], torch.stack(losses).mean())


def test_a_step_trains_the_batch_former_unless_it_is_frozen():
    for frozen in (False, True):
        module, data = attach(SiameseContrast(encoder(frozen=frozen), InfoNCE(0.5))), batch(4)
        before = copy.deepcopy(module.encoder.batch_former)
        optimizer = module.configure_optimizers()
        module.training_step(data, 0)["loss"].backward()
        optimizer.step()
        pairs = list(zip(before.parameters(), module.encoder.batch_former.parameters(), strict=True))
        assert all(torch.equal(old, new) for old, new in pairs) is frozen


def test_the_momentum_copy_shares_the_one_batch_former():
    module = attach(MomentumContrast(encoder(), InfoNCE(0.5), queue_size=16, momentum=0.5))
    key, query = module.key_encoder, module.encoder
    assert key.batch_former is query.batch_former
    assert all(p.requires_grad for p in query.batch_former.parameters())
    assert not any(p.requires_grad for part in (key.backbone, key.head) for p in part.parameters())
    assert key.head[0].weight is not query.head[0].weight
    data = batch(4)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    out = module.training_step(data, 0)
    out["loss"].backward()
    module.on_after_backward()
    assert int(module.queue.pointer) == 8  # both readings of the keys
    optimizer.step()
    held = {name for name, p in module.named_parameters() if p.requires_grad}
    assert not any(name.startswith("key_encoder") for name in held)
    assert sum("batch_former" in name for name in held) == 12


def test_eight_terms():
    q1, q2, k1, k2 = torch.randn(4, 6, 5, dtype=torch.float64)
    total = moco_v3_loss(q1, q2, k1, k2, 0.5)
    torch.testing.assert_close(total, 4 * moco_v3_loss(q1, q2, k1, k2, 0.5, average=True))
    # Where both readings are the same, all four combinations are.
    a, b, c, d = (torch.cat([x[:3], x[:3]]) for x in (q1, q2, k1, k2))
    labels = torch.arange(3)
    plain = [
        nn.functional.cross_entropy(normalize(q[:3]) @ normalize(k[:3]).T / 0.5, labels)
        for q, k in ((q1, k2), (q2, k1))
    ]
    torch.testing.assert_close(moco_v3_loss(a, b, c, d, 0.5, average=True), torch.stack(plain).sum())


def test_classifier_is_cross_entropy_of_every_reading():
    data = batch(6, group=torch.tensor([0, 1, 2, 0, 1, 2]))
    plain = attach(Classifier(ImageEncoder(Pixels(), 3, layers=1), InfoNCE(1.0)))
    want = nn.functional.cross_entropy(plain.encoder(data.anchor), data.group)
    torch.testing.assert_close(plain.training_step(data, 0)["loss"], want)
    both = attach(Classifier(encoder(3, layers=1), InfoNCE(1.0)))
    want = nn.functional.cross_entropy(both.encoder(data.anchor), data.group.repeat(2))
    torch.testing.assert_close(both.training_step(data, 0)["loss"], want)
    both.eval()
    out = both.validation_step(data, 0)
    assert out["predicted"].tolist() == both.encoder(data.anchor).argmax(1).tolist()


@pytest.mark.parametrize(("columns", "said"), [({}, "needs labels"), ({"label": np.array([0, 5])}, "6 classes")])
def test_classifier_needs_labels_that_it_has_classes_for(columns, said):
    module = Classifier(ImageEncoder(Pixels(), 3, layers=1), InfoNCE(1.0))
    pairs = SimpleNamespace(columns=columns)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(train_pairs=pairs))
    with pytest.raises(ZooError, match=said):
        module.setup("fit")


def test_shot_groups():
    counts = np.array([200, 10, 60, 101, 20, 19, 100])
    found = {name: sorted(rows.tolist()) for name, rows in shot_groups(counts, (100, 20)).items()}
    assert found == {"many": [0, 3], "medium": [2, 4, 6], "few": [1, 5]}
    thirds = {name: rows.tolist() for name, rows in shot_groups(counts).items()}
    assert thirds == {"many": [0, 3, 6], "medium": [2, 4], "few": [5, 1]}


@pytest.mark.parametrize("classifier", [True, False])
def test_rare_classes(classifier):
    callback: Any = RareClasses((3, 2))
    logged: dict[str, torch.Tensor] = {}
    trained = SimpleNamespace(columns={"label": np.array([0] * 4 + [1] * 2 + [2])})
    trainer = SimpleNamespace(datamodule=SimpleNamespace(train_pairs=trained), sanity_checking=False)
    module = SimpleNamespace(log_dict=logged.update)
    truth = torch.tensor([0, 0, 1, 2, 2, 2])
    said = torch.tensor([0, 1, 1, 2, 2, 0])
    callback.on_test_epoch_start(trainer, module)
    for loader, labels, classes in ((0, torch.arange(3), torch.arange(3)), (1, truth, said)):
        outputs = {"features": torch.eye(3)[classes]} | ({"predicted": classes} if classifier else {})
        callback.on_test_batch_end(trainer, module, outputs, SimpleNamespace(group=labels), 0, loader)
    callback.on_test_epoch_end(trainer, module)
    name = "accuracy" if classifier else "knn"
    want = {f"test/{name}_many": 0.5, f"test/{name}_medium": 1.0, f"test/{name}_few": 2 / 3}
    want |= {"test/accuracy": 4 / 6} if classifier else {}
    assert {k: float(v) for k, v in logged.items()} == pytest.approx(want)

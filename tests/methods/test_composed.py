"""Composed retrieval: four kinds of negatives, and a bank that never moves."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.methods.test_dual import attach
from zoo.data.collections import ImageArray
from zoo.data.composed import ComposedPairs
from zoo.data.datamodule import NegativesDataModule
from zoo.data.pairs import PairSource
from zoo.data.tokenizers import Tokenizer
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.scores import normalize
from zoo.methods.composed import ComposedRetrieval, Keys, Parts, compose, composed_mask, composed_scores, draw
from zoo.negatives.hardest import HardestNegatives

IMAGES, TRIPLETS = 14, 8
REFERENCE, TARGET = np.arange(8), np.array([2, 3, 4, 5, 6, 7, 9, 9])  # 8 and 10 to 13 are in no triplet
TEXTS = [f"make it {i % 5}" for i in range(8)]


class Bag(nn.Module):
    """A bag of words."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 5))

    def forward(self, tokens):
        return self.layers(tokens.ids).mean(1)


class Towers(nn.Module):
    """An image tower with everything that could move without a gradient."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 5))
        self.text = Bag()

    def tower(self, side):
        return self.text if side == "document" else self.image


class Source(PairSource):
    name = "source"

    def prepare(self, root):
        pass

    def split(self, split, root):
        images = np.random.default_rng(0).integers(256, size=(IMAGES, 3, 2, 2), dtype=np.uint8)
        return ComposedPairs(ImageArray(images), REFERENCE, TEXTS, TARGET)


class Digits(Tokenizer):
    """The last character of a text is its token."""

    def prepare(self, source, root):
        pass

    def encode(self, texts, length):
        return [[1, 2 + int(text[-1])] for text in texts]


class Scale(nn.Module):
    def forward(self, batch):
        scaled = {
            n: None if getattr(batch, n) is None else self.evaluate(getattr(batch, n)) for n in ("anchor", "positive")
        }
        return batch.replace(**scaled)

    def evaluate(self, images):
        return images.float() / 255


def build(epoch=0, bank_epoch=1, **kwargs):
    torch.manual_seed(0)
    module = attach(ComposedRetrieval(Towers(), InfoNCE(0.2), bank_epoch=bank_epoch, **kwargs))
    data = NegativesDataModule(Source(), batch_size=4, transform=Scale(), tokenizer=Digits(), eval_batch_size=5, seed=0)
    data.setup("fit")
    data.trainer = module.trainer
    for name, value in {
        "datamodule": data,
        "current_epoch": epoch,
        "training": True,
        "global_rank": 0,
        "world_size": 1,
    }.items():
        setattr(module.trainer, name, value)
    return module


def batches(module):
    data = module.trainer.datamodule
    data._served = (module.trainer.current_epoch, 0)
    return [data.on_after_batch_transfer(batch.to("cpu"), 0) for batch in data.train_dataloader()]


def fit(module, epochs=1):
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    for _ in range(epochs):
        module.on_train_epoch_start()
        for batch in batches(module):
            optimizer.zero_grad()
            module.training_step(batch, 0)["loss"].backward()
            optimizer.step()
        module.trainer.current_epoch += 1


def parts(n, seed=0):
    r, t, v = torch.randn(3, n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Parts(r, t, normalize(v))


def test_scores_by_hand():
    x = parts(4)
    q = lambda i, j: normalize(x.reference[i] + x.text[j])  # noqa: E731
    expected = {
        "target": lambda i, j: q(i, i) @ x.target[j],
        "reference": lambda i, j: q(j, i) @ x.target[i],
        "text": lambda i, j: q(i, j) @ x.target[i],
        "query": lambda i, j: q(j, j) @ x.target[i],
    }
    for kind, score in expected.items():
        wanted = torch.tensor([[score(i, j) for j in range(4)] for i in range(4)])
        torch.testing.assert_close(composed_scores(x, x, kind), wanted)


def test_what_is_the_same_is_no_negative():
    key = torch.arange(4)
    keys = Keys(torch.tensor([0, 0, 2, 3]), torch.tensor([0, 1, 1, 3]), torch.tensor([5, 6, 7, 5]), key[:, None])
    keys = keys._replace(known=torch.tensor([[5, 7], [6, -1], [7, -1], [5, -1]]))
    masks = {kind: composed_mask(keys, keys, kind).int().tolist() for kind in ("target", "reference", "text", "query")}
    assert masks["target"] == [[0, 1, 0, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]
    assert masks["query"] == [[0, 1, 1, 0], [1, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]]
    assert masks["reference"] == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert masks["text"] == [[0, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]]


def test_all_kinds_together_are_the_mean_of_the_four():
    kinds = ("target", "reference", "text", "query")
    module = build()
    batch = batches(module)[0]

    def loss(*kinds):
        module.negative_types = kinds
        module.eval()
        return module.training_step(batch, 0)["loss"]

    torch.testing.assert_close(loss(*kinds), torch.stack([loss(kind) for kind in kinds]).mean())
    assert len({round(loss(kind).item(), 5) for kind in kinds}) == 4


def test_a_bank_of_the_batchs_targets_gives_the_loss_of_the_batch_and_more_rows_never_lower_it():
    module = build(freeze=False).eval()
    batch = batches(module)[0]
    in_batch = module.training_step(batch, 0)["loss"]
    whole = module.make_bank(module.trainer.datamodule.train_pairs)
    losses = []
    for n in (0, 2, len(whole.keys)):
        targets = batch.positive_key.unique()
        keys = torch.cat([targets, whole.keys[~torch.isin(whole.keys, targets)][:n]])
        row_of = torch.full((IMAGES,), -1)
        row_of[keys] = torch.arange(len(keys))
        rows = whole.row_of[keys]
        module.bank = whole._replace(keys=keys, target=whole.target[rows], row_of=row_of)
        losses.append(module.training_step(batch, 0)["loss"])
    torch.testing.assert_close(losses[0], in_batch)
    assert losses[0] < losses[1] < losses[2]


def test_the_bank_holds_what_triplets_touch_and_what_was_asked_for():
    used = np.union1d(REFERENCE, TARGET).tolist()
    for unlabelled, more in ((0, []), (2, [8, 10]), (None, [8, 10, 11, 12, 13])):
        module = build(epoch=1, unlabelled=unlabelled)
        module.on_train_epoch_start()
        bank = module.bank
        assert bank.keys.tolist() == used + more
        assert bank.row_of[bank.keys].tolist() == list(range(len(bank.keys)))
        assert (bank.row_of >= 0).sum() == len(bank.keys)
        pairs = module.trainer.datamodule.train_pairs
        with torch.no_grad():
            raw = module.eval().embed_images(pairs.documents.fetch(bank.keys.numpy()).float() / 255)
        torch.testing.assert_close(bank.reference, raw)
        torch.testing.assert_close(bank.target, normalize(raw))
        assert not bank.target.requires_grad and not bank.reference.requires_grad


def test_the_second_stage_by_hand():
    module = build(epoch=1)
    module.on_train_epoch_start()
    for batch in batches(module):
        assert batch.anchor.image is None and batch.positive is None  # no image is loaded
        step = module.training_step(batch, 0)
        bank, text = module.bank, module.encoder.text(batch.anchor.text)
        query = compose(bank.reference[bank.row_of[batch.anchor.image_key]], text)
        expected = cross_entropy(query @ bank.target.T / 0.2, bank.row_of[batch.positive_key])
        torch.testing.assert_close(step["loss"], expected)
        own = bank.row_of[batch.anchor.image_key]
        assert step["mask"][torch.arange(4), own].all()  # the reference is a negative


def test_the_image_tower_is_bit_for_bit_the_same_after_the_second_stage():
    module = build()
    module.train()
    fit(module)
    before = {name: x.clone() for name, x in module.encoder.image.state_dict().items()}
    text = {name: x.clone() for name, x in module.encoder.text.state_dict().items()}
    fit(module, 3)
    assert module.bank is not None and not module.encoder.image.training and module.encoder.text.training
    assert all(torch.equal(before[name], x) for name, x in module.encoder.image.state_dict().items())
    assert all(not torch.equal(text[name], x) for name, x in module.encoder.text.state_dict().items())
    module.on_train_end()
    assert module.trainer.datamodule.train_pairs.load_images


def test_without_freezing_the_bank_goes_stale_and_is_saved():
    module = build(freeze=False)
    module.train()
    fit(module, 3)
    bank = module.bank
    with torch.no_grad():
        fresh = module.eval().make_bank(module.trainer.datamodule.train_pairs)
    assert not torch.allclose(fresh.reference, bank.reference)
    state = {}
    module.on_save_checkpoint(state)
    other = build(freeze=False)
    other.on_load_checkpoint(state)
    assert all(torch.equal(a, b) for a, b in zip(other.bank, bank, strict=True))
    frozen = build(epoch=1)
    frozen.on_train_epoch_start()
    frozen.on_save_checkpoint(nothing := {})
    assert not nothing


def test_a_resumed_run_has_the_same_bank():
    module = build()
    fit(module, 3)
    other = build(epoch=3)
    other.load_state_dict(module.state_dict())
    other.on_train_epoch_start()
    assert all(torch.equal(a, b) for a, b in zip(other.bank, module.bank, strict=True))


def test_negatives_are_drawn_from_what_is_allowed():
    allowed = torch.ones(200, 12, dtype=torch.bool)
    allowed[:, 3] = False
    allowed[0, 2:] = False
    drawn = draw(allowed, 4)
    assert (drawn.sum(1)[1:] == 4).all() and drawn[0].sum() == 2 and not (drawn & ~allowed).any()
    share = drawn[1:].float().mean(0)[torch.arange(12) != 3]
    assert (share - 4 / 11).abs().max() < 0.15
    assert torch.equal(draw(allowed, 99), allowed)
    module = build(epoch=1, bank_negatives=3)
    module.on_train_epoch_start()
    assert (module.training_step(batches(module)[0], 0)["mask"].sum(1) == 3).all()


def test_negatives_modules_act_on_the_bank():
    module = build(epoch=1, negatives=[HardestNegatives(2)])
    module.on_train_epoch_start()
    step = module.training_step(batches(module)[0], 0)
    assert step["negatives"].shape[1] == 2 or (step["mask"].sum(1) == 2).all()


def test_evaluation_embeds_queries_and_documents():
    module = build().eval()
    pairs = module.trainer.datamodule.train_pairs
    query, images = pairs.fetch([0, 3])
    batch = batches(module)[0]
    found = module.validation_step(batch, 0)["features"]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    only = module.validation_step(batch.replace(anchor=None, positive=images.float() / 255), 0)["features"]
    torch.testing.assert_close(only, normalize(module.embed_images(images.float() / 255)))
    assert len(query) == 2


def test_what_it_cannot_do_is_said():
    with pytest.raises(ZooError, match=r"zoo\.methods\.OpenClip"):
        ComposedRetrieval(nn.Linear(2, 2), InfoNCE())
    with pytest.raises(ZooError, match="negative_types"):
        ComposedRetrieval(Towers(), InfoNCE(), negative_types=())

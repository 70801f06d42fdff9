"""CLIPN: what is trained when, which prompts are drawn, what the "no" texts learn."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.test_dual import attach, tokens
from zoo.data.collections import CollectionPairs, ImageArray, RetrievalSet, RetrievalSource
from zoo.data.datamodule import NegativesDataModule
from zoo.data.pairs import PairBatch
from zoo.data.text import Tokens
from zoo.data.tokenizers import Tokenizer
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.opposite import OppositeLoss
from zoo.losses.scores import normalize
from zoo.methods.clipn import CLIPN, NoText
from zoo.methods.open_clip import OpenClip
from zoo.methods.text_encoders import TokenBag

VOCAB, LENGTH = 50, 6


class Text(nn.Module):
    """Order and padding matter, as in a real tower."""

    context = LENGTH

    def __init__(self, dim=8):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 5)
        self.gru = nn.GRU(5, 7, batch_first=True)
        self.out = nn.Linear(7, dim)

    def forward(self, tokens):
        return self.out(self.gru(self.embedding(tokens.ids))[0].mean(1))


class Clip(nn.Module):
    dim = 8

    def __init__(self, text=None):
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8))
        self.text = text or Text()

    def tower(self, side):
        return self.image if side == "query" else self.text

    def forward(self, images):
        return self.image(images)


def clipn(epoch=0, text=None, temperature=0.1, **kwargs):
    torch.manual_seed(0)
    loss = InfoNCE(temperature, learn_temperature=True)
    module = attach(CLIPN(Clip(text), loss, OppositeLoss(), **kwargs))
    module.trainer.current_epoch = epoch
    return module


def pairs(rows=6, seed=0):
    rng, keys = np.random.default_rng(seed), torch.arange(rows)
    images = torch.from_numpy(rng.normal(size=(rows, 3, 4, 4))).float()
    return PairBatch(images, tokens(rng, rows), keys, keys, keys)


def shake(module):
    """Prompts and tower as after some training."""
    with torch.no_grad():
        for parameter in module.text_no.parameters():
            parameter += 0.3 * torch.randn_like(parameter)


def test_at_first_no_is_yes_and_every_probability_is_one_half():
    module, batch = clipn(), pairs()
    loss = module.training_step(batch, 0)["loss"].item()
    assert loss == pytest.approx((2 * math.log(2) + 1.99) / 2, abs=1e-5)
    torch.testing.assert_close(module.embed_no(batch.positive), module.embed_documents(batch.positive))


def test_the_loss_is_the_paper_s_formula():
    module, batch = clipn(), pairs()
    shake(module)
    module.text_no.prompts = lambda n: module.text_no.prompt_no[:1].expand(n, -1, -1)
    step = module.training_step(batch, 0)
    module.eval()
    image, yes = module.embed_queries(batch.anchor), module.embed_documents(batch.positive)
    no = module.embed_no(batch.positive)
    y, u = 10 * image @ yes.T, 10 * image @ no.T
    p_no, own = u.exp() / (u.exp() + y.exp()), torch.eye(6, dtype=torch.bool)
    binary = -(1 - p_no.diagonal()).log().mean() - p_no[~own].log().mean()
    semantic = (2 - ((yes - no).square().sum(1) + 1e-4).sqrt()).mean()
    torch.testing.assert_close(step["loss"], (binary + semantic) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(step["negatives"], image @ no.T)


def test_captions_that_are_true_of_an_image_are_no_negatives_of_it():
    module, batch = clipn(), pairs()
    shake(module)
    batch = batch.replace(positive_key=torch.tensor([0, 1, 2, 3, 4, 1]), known=torch.tensor([[0, 3], *[[-1, -1]] * 5]))
    batch.known[1:, 0] = batch.positive_key[1:]
    mask = module.training_step(batch, 0)["mask"]
    expected = ~torch.eye(6, dtype=torch.bool)
    expected[0, 3] = expected[1, 5] = expected[5, 1] = False
    assert torch.equal(mask, expected)


def test_only_the_no_parameters_are_trained_and_prompts_decay():
    module, batch = clipn(), pairs()
    shake(module)
    module.optimizer = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.2)
    optimizer = module.configure_optimizers()
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    assert names == {name for name, _ in module.named_parameters() if "_no" in name} and len(names) == 8
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.text_no.parameters()}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2}
    before = copy.deepcopy(module.state_dict())
    module.train()
    for _ in range(2):
        optimizer.zero_grad()
        module.training_step(batch, 0)["loss"].backward()
        optimizer.step()
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == names
    assert module.text_no.training and not module.encoder.training  # running statistics stay, too
    module.exclude_from_decay = True
    plain = module.configure_optimizers().param_groups[1]
    assert plain["weight_decay"] == 0 and all(p.ndim < 2 for p in plain["params"])


def test_training_draws_one_of_17_prompts_for_each_text_and_evaluation_takes_the_mean():
    module, batch = clipn(), pairs(400)
    shake(module)
    one = Tokens(*(x[:1].expand(400, -1) for x in (batch.positive.ids, batch.positive.mask, batch.positive.pool)))
    no = module.text_no.double().eval()
    mean = no(one)
    assert torch.equal(no(one), mean)
    torch.testing.assert_close(mean[:1].expand_as(mean), mean)
    no.train()
    torch.manual_seed(0)
    drawn = no(one)
    with torch.no_grad():
        choices = torch.cat([no.prompt_no, no.prompt_no.mean(0, keepdim=True)])
        no.prompts = lambda n: choices
        possible = no(one[:17])
    near = torch.cdist(drawn, possible)
    assert near.amin(1).max() < 1e-6
    counts = near.argmin(1).bincount(minlength=17)
    assert counts.min() > 5 and counts.max() < 60
    torch.testing.assert_close(possible[16], mean[0])


def test_prompts_stand_at_every_position_also_at_the_padding():
    no, rng = NoText(Text(), LENGTH, 2).eval(), np.random.default_rng(0)
    texts = tokens(rng, 5)
    assert not texts.mask.all()
    with torch.no_grad():
        no.prompt_no.copy_(torch.randn_like(no.prompt_no))
        embedded = no.tower.embedding(texts.ids) + no.prompt_no.mean(0)
        expected = no.tower.out(no.tower.gru(embedded)[0].mean(1))
    torch.testing.assert_close(no(texts), expected)
    assert no(texts[:2]).shape == (2, 8) and not no.tower.embedding._forward_hooks


def test_the_text_tower_of_open_clip_reads_prompts_between_tokens_and_positions():
    clip = OpenClip("scenes_tiny")
    yes = clip.tower("document")
    no = NoText(yes, yes.context, 3).eval()
    ids = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 9, 2, 0, 0, 0]])
    mask = ids > 0
    texts = Tokens(ids, mask, mask)
    clip.eval()
    torch.testing.assert_close(no(texts), yes(texts))
    with torch.no_grad():
        no.prompt_no.copy_(0.5 * torch.randn_like(no.prompt_no))
        text = no.tower.text
        full = nn.functional.pad(ids, (0, yes.context - 6))
        x = text.token_embedding(full) + text.positional_embedding + no.prompt_no.mean(0)
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask))
        expected = x[torch.arange(2), (full == 2).int().argmax(1)] @ text.text_projection
    torch.testing.assert_close(no(texts), expected)
    module = attach(CLIPN(clip, InfoNCE(0.01), OppositeLoss()))
    batch = PairBatch(torch.randn(2, 3, 32, 32), texts, *[torch.arange(2)] * 3)
    module.configure_optimizers()
    module.training_step(batch, 0)["loss"].backward()
    assert {n for n, p in module.named_parameters() if p.grad is not None} <= {
        n for n, p in module.named_parameters() if "_no" in n
    }
    # Attention is causal, so what stands behind the end of a text has no influence.
    assert module.text_no.prompt_no.grad.abs().sum((0, 2)).gt(0).tolist() == [True] * 4 + [False] * 16


def test_a_frozen_text_tower_still_has_a_no_that_learns():
    module = attach(CLIPN(OpenClip("scenes_tiny", freeze="text"), InfoNCE(0.01), OppositeLoss()))
    assert all(p.requires_grad for p in module.text_no.parameters())


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        (Text(), {"context": 3}, "prompts for 3: raise --model.context"),
        (nn.Linear(2, 2), {"context": 3}, "the text tower has none"),
        (TokenBag(VOCAB, 8), {"context": LENGTH}, "does not call its nn.Embedding once"),
        (TokenBag(VOCAB, 8), {}, "set --model.context"),
    ],
)
def test_towers_that_take_no_prompts_are_refused(text, kwargs, message):
    with pytest.raises(ZooError, match=message):
        clipn(text=text, **kwargs).training_step(pairs(), 0)


def test_scores_of_the_method_are_those_of_the_paper():
    module, batch = clipn().eval(), pairs()
    shake(module)
    with torch.no_grad():
        images = module.ood_features(batch.replace(positive=None))
        classes = module.ood_features(batch.replace(anchor=None))
        scores = module.ood_scores(images, classes)
    z, u = (10 * images["features"] @ classes[key].T for key in ("features", "no"))
    q = (z - u).sigmoid()
    torch.testing.assert_close(scores["atd"], (z.softmax(1) * q).sum(1))
    torch.testing.assert_close(scores["ctw"], q[torch.arange(6), z.argmax(1)])
    assert set(images) == {"features"}


def test_a_checkpoint_gives_encoder_and_temperature(tmp_path):
    trained = Clip()
    state = {f"encoder.{k}": v for k, v in trained.state_dict().items()}
    torch.save({"state_dict": state | {"loss.log_temperature": torch.tensor(-2.0)}}, tmp_path / "last.ckpt")
    module = clipn(checkpoint=tmp_path / "last.ckpt")
    assert module.scale == pytest.approx(math.exp(2))
    batch = pairs()
    torch.testing.assert_close(module.embed_no(batch.positive), normalize(trained.text(batch.positive)))
    with pytest.raises(ZooError, match="learn_temperature true"):
        CLIPN(Clip(), InfoNCE(0.1), OppositeLoss(), checkpoint=tmp_path / "last.ckpt")


# Whole runs

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 3, 4, 4), np.uint8)


class Source(RetrievalSource):
    name = "tiny-images"

    def prepare(self, root):
        pass

    def split(self, split, root):
        n = np.arange(32)
        return CollectionPairs(ImageArray(IMAGES), [str(i) for i in n], n, n)

    def retrieval(self, split, root):
        pairs = self.split(split, root)
        return RetrievalSet(pairs.queries, pairs.documents, [{i: 1} for i in range(32)])


class Floats(nn.Module):
    def forward(self, batch):
        return batch.replace(anchor=self.evaluate(batch.anchor))

    def evaluate(self, images):
        return images.float() / 255


class Digits(Tokenizer):
    def prepare(self, source, root):
        pass

    def encode(self, texts, length):
        return [[1, *divmod(int(text) + 22, 10), 2] for text in texts]


class States(pl.Callback):
    """Weights that each step starts from, its learning rate, and a checkpoint of one step."""

    def __init__(self, path=None, step=None):
        self.before, self.rates, self.path, self.step = [], [], path, step

    def on_before_backward(self, trainer, pl_module, loss):
        self.before.append(copy.deepcopy(pl_module.state_dict()))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def run(folder, *callbacks, ckpt=None):
    torch.manual_seed(0)
    module = CLIPN(
        Clip(), InfoNCE(0.2, learn_temperature=True), OppositeLoss(), clip_epochs=2, prompts=3,
        optimizer=partial(torch.optim.AdamW, lr=0.1), no_optimizer=partial(torch.optim.SGD, lr=0.4, momentum=0.9),
    )  # fmt: skip
    data = NegativesDataModule(Source(), batch_size=8, transform=Floats(), tokenizer=Digits(), seed=0)
    trainer = pl.Trainer(
        max_epochs=4, logger=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        limit_val_batches=0, callbacks=list(callbacks), use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt)
    return module


@pytest.mark.filterwarnings("ignore:.*num_workers|.*log_every_n_steps|.*not resumable|.*Checkpoint directory")
def test_first_the_clip_is_trained_then_the_no_texts_start_from_it(tmp_path):
    states = States()
    module = run(tmp_path, states)
    first, last, end = states.before[0], states.before[8], module.state_dict()  # four steps an epoch
    moved = {name for name in first if not torch.equal(first[name], states.before[7][name])} - {"stage"}
    assert moved and not any("_no" in name for name in moved)
    assert {n for n in last if not torch.equal(last[n], end[n])} == {
        n for n, _ in module.named_parameters() if "_no" in n
    }
    for name in ("embedding.weight", "gru.weight_hh_l0"):
        assert torch.equal(last[f"text_no.tower.{name}"], last[f"encoder.text.{name}"])
        assert not torch.equal(first[f"text_no.tower.{name}"], last[f"text_no.tower.{name}"])
    # A schedule for each stage: the cosine from its peak.
    for peak, rates in ((0.1, states.rates[:8]), (0.4, states.rates[8:])):
        np.testing.assert_allclose(rates, [peak * 0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])


@pytest.mark.parametrize("step", [6, 8, 11])
@pytest.mark.filterwarnings("ignore:.*num_workers|.*log_every_n_steps|.*not resumable|.*Checkpoint directory")
def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path, step):
    whole = run(tmp_path, States(tmp_path / "x.ckpt", step))
    resumed = run(tmp_path, ckpt=tmp_path / "x.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_stages_need_one_device(monkeypatch):
    monkeypatch.setattr("zoo.methods.frozen_clip.world_size", lambda: 2)
    module = clipn(clip_epochs=1)
    module._trainer.datamodule = SimpleNamespace(train_pairs=None)
    with pytest.raises(ZooError, match="several stages need one device"):
        module.on_fit_start()
    alone = clipn()
    alone._trainer.datamodule = module._trainer.datamodule
    alone.on_fit_start()

"""SynOOD: outliers, negative labels, and two stages that each train one thing."""

import copy
import itertools
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.methods.test_clipn import Clip, Digits, Floats, States
from zoo.callbacks.ood import OODEvaluation
from zoo.data.collections import CollectionPairs, ImageArray, RetrievalSet, RetrievalSource
from zoo.data.datamodule import NegativesDataModule
from zoo.data.pairs import PairBatch
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.boundary import boundary_score
from zoo.losses.scores import normalize
from zoo.methods.synood import ResidualProjection, SynOOD, mine_negative_labels
from zoo.negatives.near_ood import BoundaryOutliers, OutlierGenerator, SourceOutliers
from zoo.ood import auroc, class_weights, fpr_at_tpr, neg_label

RNG = np.random.default_rng(0)
IMAGES = {n: RNG.integers(0, 256, (n, 3, 4, 4), np.uint8) for n in (32, 12)}
OUTSIDE = {n: {k: RNG.integers(0, 256, (n, 3, 4, 4), np.uint8) for k in ("near_a", "near_b", "far_a")} for n in IMAGES}
WORDS = [str(i) for i in range(3, 15)]  # the classes are 0, 1 and 2


class Source(RetrievalSource):
    name = "tiny-ood"

    def prepare(self, root):
        pass

    def split(self, split, root):
        n = 32 if split == "train" else 12
        return CollectionPairs(ImageArray(IMAGES[n]), [str(i) for i in range(n)], np.arange(n), np.arange(n))

    def retrieval(self, split, root):
        pairs = self.split(split, root)
        return RetrievalSet(pairs.queries, pairs.documents, [{i: 1} for i in range(len(pairs))])

    def ood_sets(self, split, root):
        n = 32 if split == "train" else 12
        return SimpleNamespace(classes=("0", "1", "2"), images=IMAGES[n], labels=np.arange(n) % 3, outside=OUTSIDE[n])


def synood(**kwargs):
    torch.manual_seed(0)
    given = {"generator": SourceOutliers("near_a"), "vocabulary": WORDS, "n_labels": 8, "templates": ("{}",), **kwargs}
    return SynOOD(
        Clip(), InfoNCE(0.2), clip_epochs=1, projection_epochs=1, per_class=5,
        **{"optimizer": partial(torch.optim.Adam, lr=0.05), **given},
    )  # fmt: skip


def data(source=None, transform=None):
    return NegativesDataModule(
        source or Source(), batch_size=8, transform=transform or Floats(), tokenizer=Digits(), seed=0
    )


def fit(folder, module, *callbacks, epochs=3, ckpt=None, loaded=None):
    trainer = pl.Trainer(
        max_epochs=epochs, logger=False, enable_progress_bar=False, accelerator="cpu", enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, limit_val_batches=0, callbacks=list(callbacks),
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, loaded or data(), ckpt_path=ckpt)
    return trainer


quiet = pytest.mark.filterwarnings("ignore:.*num_workers|.*log_every_n_steps|.*not resumable|.*Checkpoint directory")


def test_the_projection_adds_a_non_negative_residual_that_is_not_zero_at_first():
    projection, features = ResidualProjection(8), 3 * torch.randn(5, 8)
    added = projection(features) - features
    expected = nn.functional.layer_norm(features @ projection.linear.weight.T + projection.linear.bias, (8,)).clamp_min(
        0
    )
    torch.testing.assert_close(added, expected)
    assert added.min() >= -1e-6 and added.max() > 0.5
    small = ResidualProjection(8, 0.01)
    assert (small(features) - features).abs().max() < 0.05
    small(features).sum().backward()
    assert small.norm.weight.grad.abs().sum() > 0
    with pytest.raises(ZooError, match="never learns"):
        ResidualProjection(8, 0.0)


def test_mined_labels_are_the_farthest_from_all_classes():
    known = torch.eye(4)[:2]
    candidates = normalize(torch.tensor([[1.0, 0, 0, 0], [0.6, 0, 1, 0], [0, 0, 1, 0], [-1, -1, 0, 0], [0, 0.2, 0, 1]]))
    assert mine_negative_labels(candidates, known, 3, 0.0).tolist() == [3, 2, 4]
    # The nearest of many classes does not decide, where the quantile passes it over.
    many = torch.cat([torch.eye(4)[2:3], -torch.eye(4)[2:3].repeat(60, 1)])
    assert mine_negative_labels(candidates, many, 1).item() == 2
    assert mine_negative_labels(candidates, many, 1, 0.0).item() != 2


def linear_classifier(classes=3, scale=2.0):
    weight = torch.randn(48, classes, generator=torch.Generator().manual_seed(0)) * scale
    return lambda images: (images - 0.5).flatten(1) @ weight


def test_boundary_outliers_are_less_decided_and_stay_images():
    images, classify = torch.rand(20, 3, 4, 4), linear_classifier()
    numbers = np.arange(20)
    scores = [boundary_score(classify(images))]
    for steps in (1, 3, 10):
        found = BoundaryOutliers(steps=steps, rate=0.02).generate(images, numbers, classify)
        assert found.min() >= 0 and found.max() <= 1 and not found.requires_grad
        scores.append(boundary_score(classify(found)))
    assert all((after.mean() > before.mean()) for before, after in itertools.pairwise(scores))
    assert (scores[-1] <= -np.log(3) + 1e-6).all()
    assert torch.equal(BoundaryOutliers(steps=0).generate(images, numbers, classify), images)


def test_a_step_has_the_same_size_for_every_gradient():
    images = torch.full((2, 3, 4, 4), 0.5)
    images[1] += 0.1 * torch.randn(3, 4, 4)
    for steep in (linear_classifier(scale=0.01), linear_classifier(scale=100.0)):
        moved = BoundaryOutliers(steps=1, rate=0.01).generate(images, np.arange(2), steep) - images
        torch.testing.assert_close(moved[1].square().mean().sqrt().item(), 0.01, rtol=1e-3, atol=0)


def test_no_gradient_moves_nothing():
    images = torch.rand(2, 3, 4, 4)
    found = BoundaryOutliers(target=-5.0).generate(images, np.arange(2), linear_classifier(scale=0.0))
    assert torch.equal(found, images)


def test_boundary_outliers_start_from_those_of_another_generator():
    sets = Source().ood_sets("train", None)
    generator = BoundaryOutliers(SourceOutliers("near_b"), steps=0)
    generator.bind(sets)
    found = generator.generate(torch.zeros(3, 3, 4, 4), np.array([4, 0, 9]), linear_classifier())
    torch.testing.assert_close(found, torch.from_numpy(sets.outside["near_b"][[4, 0, 9]]) / 255)
    with pytest.raises(ZooError, match="no outliers 'x': choose from near_a, near_b, far_a"):
        SourceOutliers("x").bind(sets)


@quiet
def test_each_stage_trains_one_thing(tmp_path):
    states = States()
    module = synood()
    fit(tmp_path, module, states)
    start, middle, late, end = states.before[0], states.before[4], states.before[8], module.state_dict()

    def changed(a, b):
        return {name.partition(".")[0] for name in a if not torch.equal(a[name], b[name])} - {"stage"}

    assert changed(start, states.before[3]) == {"encoder"}
    assert changed(middle, states.before[7]) == {"projection"}
    assert changed(late, end) == {"labels"}
    # Labels start as their texts, and only those that an outlier has are tuned.
    torch.testing.assert_close(late["labels"], late["label_texts"])
    used = end["used"]
    assert 0 < used.sum() < 8
    assert torch.equal((end["labels"] != late["labels"]).any(1), used)


@quiet
def test_outliers_have_the_nearest_negative_label_and_come_from_some_images_of_each_class(tmp_path):
    seen = []

    class Recorded(OutlierGenerator):
        def bind(self, sets):
            self.sets = sets

        def generate(self, images, numbers, classify):
            torch.testing.assert_close(images, torch.from_numpy(self.sets.images[numbers]) / 255)
            assert classify(images).shape == (len(images), 3)
            seen.append(numbers)
            return 1 - images

    module = synood(generator=Recorded(), templates=("{}", "1{}"))
    fit(tmp_path, module, epochs=2)
    (numbers,) = seen
    assert np.bincount(numbers % 3).tolist() == [5, 5, 5]
    found, tokenizer = module._outliers, Digits()
    module.eval()
    with torch.no_grad():
        raw = module.encoder.image(1 - torch.from_numpy(IMAGES[32][numbers]) / 255)
        texts = torch.stack(
            [module.embed_documents(tokenizer([t.format(w) for w in WORDS], "document")) for t in ("{}", "1{}")]
        )
    torch.testing.assert_close(found.features, raw)
    mined = class_weights(texts)[mine_negative_labels(class_weights(texts), found.classes, 8)]
    torch.testing.assert_close(module.label_texts, mined)
    assert torch.equal(found.labels, (normalize(raw) @ mined.T).softmax(1).argmax(1))
    assert torch.equal(module.used.nonzero()[:, 0], found.labels.unique())


@quiet
def test_the_losses_are_cross_entropies_over_the_labels_that_count(tmp_path):
    module = synood(further=[SourceOutliers("far_a")])
    fit(tmp_path, module)
    found = module._outliers
    assert len(found.labels) == 2 * found.near == 30
    index = torch.tensor([3, 30, 8, 0, 17, 4, 22, 11])
    batch = PairBatch(torch.from_numpy(IMAGES[32][index]) / 255, None, index, index, index)
    module.report = lambda loss, query, scores: {"loss": loss}
    texts, used = module.label_texts[module.used], module.used.nonzero()[:, 0]
    for stage, pool in ((1, 15), (2, 30)):
        torch.manual_seed(1)
        loss = module.stage_step(batch, stage)["loss"]
        torch.manual_seed(1)
        drawn = torch.randint(pool, (8,))
        target = torch.searchsorted(used, found.labels[drawn])
        if stage == 1:
            with torch.no_grad():
                x = module.projection(torch.cat([module.raw_features(batch.anchor), found.features[drawn]]))
            labels, target = torch.cat([found.classes, texts]), torch.cat([batch.index % 3, 3 + target])
        else:
            x, labels = found.features[drawn], module.labels[used]
        expected = cross_entropy(normalize(x) @ normalize(labels).T / 0.2, target)
        torch.testing.assert_close(loss, expected)


@quiet
@pytest.mark.parametrize("step", [3, 6, 8, 10])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path, step):
    generator = BoundaryOutliers(SourceOutliers("near_a"), steps=2)
    whole = synood(generator=generator, label_optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    fit(tmp_path, whole, States(tmp_path / "x.ckpt", step))
    resumed = synood(generator=generator, label_optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    fit(tmp_path, resumed, ckpt=tmp_path / "x.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@quiet
def test_scores_tell_the_stages_apart(tmp_path):
    module = synood()
    images = {"raw": torch.randn(5, 8, dtype=torch.float64)}
    classes = {"features": normalize(torch.randn(3, 8, dtype=torch.float64))}
    assert module.ood_scores(images, classes) == {}
    fit(tmp_path, module)
    with torch.no_grad():
        scores, texts = module.ood_scores(images, classes), module.label_texts.double()

        def score(x, labels):
            x, labels = normalize(x), normalize(labels)
            return neg_label(x @ classes["features"].T / 0.2, x @ labels.T / 0.2)

        projected, used = module.projection(images["raw"].float()).double(), module.used
        expected = {
            "neglabel": score(images["raw"], texts),
            "projection": score(projected, texts[used]),
            "labels": score(images["raw"], module.labels.double()[used]),
            "synood": score(projected, module.labels.double()[used]),
        }
        torch.testing.assert_close(scores, expected)
        logits = module.class_logits(images, classes)["synood"]
    torch.testing.assert_close(logits, normalize(projected) @ classes["features"].T / 0.2)


@quiet
def test_labels_come_from_a_file_without_the_classes(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(["1", "3", " 3", "", *WORDS]))
    module = synood(vocabulary=words)
    fit(tmp_path, module, epochs=2)
    again = synood()
    fit(tmp_path, again, epochs=2)
    assert torch.equal(module.label_texts, again.label_texts)
    for given, message in (
        ({"vocabulary": tmp_path / "none.txt"}, "cannot read the labels"),
        ({"n_labels": 13}, "13 negative labels from 12 candidates"),
    ):
        with pytest.raises(ZooError, match=message):
            fit(tmp_path, synood(**given), epochs=2)


@quiet
def test_the_evaluation_names_scores_and_sets(tmp_path):
    module = synood()
    trainer = fit(tmp_path, module, OODEvaluation(("{}", "1{}")))
    trainer.test(module, data(), verbose=False)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    scores = ("msp", "maxlogit", "energy", "neglabel", "projection", "labels", "synood")
    sets = ("near", "near_near", "near_a", "near_b", "far", "far_a")
    names = {f"test/{m}_{s}_{x}" for m in ("auroc", "fpr95") for s in sets if s != "near_near" for x in scores}
    assert names | {"test/accuracy", "test/accuracy_synood"} == {name for name in found if name.startswith("test/")}
    module.eval()
    with torch.no_grad():
        prompts = [module.embed_documents(Digits()([f"{t}{c}" for c in range(3)], "document")) for t in ("", "1")]
        weights = class_weights(torch.stack(prompts).double())
        confidence = {}
        for name, images in {"known": IMAGES[12], **OUTSIDE[12]}.items():
            x = module.embed_queries(torch.from_numpy(images) / 255).double()
            confidence[name] = (x @ weights.T / 0.2).softmax(1).amax(1)
            if name == "known":
                accuracy = ((x @ weights.T).argmax(1) == torch.arange(12) % 3).double().mean().item()
    assert found["test/accuracy"] == pytest.approx(accuracy)
    for name, measure in (("auroc", auroc), ("fpr95", fpr_at_tpr)):
        single = {s: measure(confidence["known"], confidence[s]) for s in OUTSIDE[12]}
        for s, value in single.items():
            assert found[f"test/{name}_{s}_msp"] == pytest.approx(value)
        assert found[f"test/{name}_near_msp"] == pytest.approx((single["near_a"] + single["near_b"]) / 2)


@quiet
def test_validation_reads_some_images_of_any_method(tmp_path):
    from zoo.methods.dual import DualEncoder

    torch.manual_seed(0)
    module = DualEncoder(Clip(), InfoNCE(0.2))
    trainer = pl.Trainer(
        logger=False, enable_progress_bar=False, accelerator="cpu", enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[OODEvaluation(("{}",), val_images=4)],
    )  # fmt: skip
    before = copy.deepcopy(module.state_dict())
    trainer.validate(module, data(), verbose=False)
    found = set(trainer.callback_metrics)
    scores = ("msp", "maxlogit", "energy")
    names = {f"eval/{m}_{s}_{x}" for m in ("auroc", "fpr95") for s in ("near", "far") for x in scores}
    assert names | {"eval/accuracy"} == {name for name in found if name.startswith("eval/")}
    value = trainer.callback_metrics["eval/auroc_near_msp"].item()
    assert (16 * 2 * 2 * value) % 1 == pytest.approx(0, abs=1e-6)  # means over two sets of four against four
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@quiet
def test_a_source_without_outliers_is_refused(tmp_path):
    from tests.methods.test_clipn import Source as Plain

    with pytest.raises(ZooError, match="OODEvaluation needs a source with ood_sets"):
        fit(tmp_path, synood(), OODEvaluation(), loaded=data(Plain()))
    with pytest.raises(ZooError, match="SynOOD needs a source with ood_sets"):
        fit(tmp_path, synood(), loaded=data(Plain()))

"""Compositional evaluation and its picture."""

import csv
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.data import composition_layouts as layouts
from tests.data.test_text import Letters
from zoo.callbacks.composition import CompositionEvaluation, indistinct
from zoo.callbacks.composition_panel import CompositionPanel, choose_images, draw_composition_panel
from zoo.composition import CompositionCases, blind_scores, case_scores, family_means, strictly_best, winoground
from zoo.data.collections import CollectionPairs, ImageArray, RetrievalSet, RetrievalSource
from zoo.data.composition_files import Aro, SugarCrepe, Winoground
from zoo.data.datamodule import NegativesDataModule
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.methods.dual import DualEncoder

SIZE, NAMES = 8, ("swap_att", "swap_obj", "replace_rel", "swap_att_unseen")


def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8)


class Pictures(RetrievalSource):
    """Random pictures and captions, with as many compositional cases of each kind; or without."""

    name = "pictures"

    def __init__(self, n=9, names=NAMES):
        self.n, self.names = n, names

    def prepare(self, root):
        pass

    def split(self, split, root):
        return CollectionPairs(ImageArray(images(6, 0)), [f"picture {i}" for i in range(6)], np.arange(6), np.arange(6))

    def retrieval(self, split, root):
        pairs = self.split(split, root)
        return RetrievalSet(pairs.queries, pairs.documents, [{i: 1} for i in range(6)])


class WithCases(Pictures):
    def composition_cases(self, split, root):
        seed, found = 100 if split == "test" else 200, {}
        for number, name in enumerate(self.names):
            texts = [[f"{name} {split} {i}", f"{name} not {split} {i}"] for i in range(self.n)]
            found[name] = images(self.n, seed + number)[:, None], texts
        texts = [[f"left {split} {i}", f"right {split} {i}"] for i in range(self.n)]
        found["winoground_swap_att"] = images(2 * self.n, seed + 50).reshape(self.n, 2, 3, SIZE, SIZE), texts
        return found


class Flatten(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, 16)

    def forward(self, x):
        return self.linear(x.flatten(1).float() / 255 - 0.5)


class Ordered(nn.Module):
    """Letters by their place: a bag of them could not tell captions of the same letters apart."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(128, 16)

    def forward(self, tokens):
        weight = tokens.mask * torch.linspace(1, 0.1, 100)[: tokens.ids.shape[1]]
        return (self.embedding(tokens.ids) * weight[..., None]).sum(1)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = Flatten(), Ordered()

    def tower(self, side):
        return self.image if side == "query" else self.text


def dual():
    torch.manual_seed(0)
    return DualEncoder(Towers(), InfoNCE(0.1), optimizer=partial(torch.optim.SGD, lr=0.1))


def data(source=None, **kwargs):
    options = {"tokenizer": Letters(), "batch_size": 2, "eval_batch_size": 5, "seed": 0, **kwargs}
    return NegativesDataModule(source or WithCases(), **options)


def trainer(folder, *callbacks, **kwargs):
    return pl.Trainer(
        **{"max_epochs": 1, **kwargs}, callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip


def results_of(folder, *callbacks, module=None, source=None, **kwargs):
    tester = trainer(folder, *callbacks, **kwargs)
    tester.test(module or dual(), data(source), verbose=False)
    return {name: value.item() for name, value in tester.callback_metrics.items()}


def scores(module, pictures, texts):
    """Directly: all pictures of the cases, all their captions."""
    with torch.no_grad():
        flat = [text for row in texts for text in row]
        x = module.embed(torch.from_numpy(pictures).flatten(0, 1), "query").view(*pictures.shape[:2], -1)
        y = module.embed(Letters()(flat, "document"), "document").view(len(texts), -1, x.shape[2])
    return case_scores(x, y)


def by_hand(module, split, source):
    found = {}
    for name, (pictures, texts) in source.composition_cases(split, None).items():
        given = scores(module, pictures, texts)
        if name.startswith("winoground"):
            found |= {f"{name}_{kind}": value for kind, value in winoground(given).means().items()}
        else:
            found[name] = strictly_best(given[:, 0], 0).double().mean().item()
    return found | family_means(found)


def test_the_data_set_s_own_cases(tmp_path):
    module, source = dual(), WithCases(60)
    found = results_of(tmp_path, CompositionEvaluation(), module=module, source=source)
    expected = by_hand(module, "test", source)
    assert {"composition", "composition_unseen", "swap", "swap_unseen", "replace", "winoground_swap_att_group"} < set(
        expected
    )
    assert {
        name.removeprefix("test/"): x for name, x in found.items() if "blind" not in name and "data/" not in name
    } == (pytest.approx(expected))
    assert found["test/composition"] == pytest.approx(np.mean([expected[name] for name in NAMES[:3]]))


def test_validation_reads_a_few_cases_that_are_always_the_same(tmp_path):
    source, values, read = WithCases(60), [], []
    for n in (7, 60, 0):
        callback, module = CompositionEvaluation(val_cases=n), dual()
        fitter = trainer(tmp_path, callback)
        fitter.fit(module, data(source))
        values.append({k: v.item() for k, v in fitter.callback_metrics.items() if k.startswith("eval/")})
        read.append({name: len(cases) for name, cases in callback._read.get("val", {}).get("", {}).items()})
    assert values[1] == pytest.approx({f"eval/{name}": x for name, x in by_hand(module, "val", source).items()})
    assert set(values[0]) == set(values[1]) and values[0] != values[1] and not values[2]
    assert read == [dict.fromkeys(read[0], 7), dict.fromkeys(read[1], 60), {}]


def test_the_sanity_check_reads_nothing(tmp_path):
    callback = CompositionEvaluation()
    trainer(tmp_path, callback, num_sanity_val_steps=1, limit_val_batches=0).fit(dual(), data())
    assert not callback._read


def test_blind_scores_stand_beside_each_number(tmp_path):
    source = WithCases(60)
    found = results_of(tmp_path, CompositionEvaluation(), source=source)
    assert {f"{name}_blind" for name in found if name.startswith("test/") and not name.endswith("blind")} <= set(found)
    assert found["test/swap_att_blind"] == 1.0  # the false captions have a word more
    assert found["test/winoground_swap_att_text_blind"] == found["test/winoground_swap_att_image_blind"] == 0.0
    longer = results_of(tmp_path, CompositionEvaluation(blind=lambda t: [len(x) for x in t]), source=source)
    assert longer["test/swap_att_blind"] == 0.0
    texts = source.composition_cases("test", None)["swap_att"][1]
    assert strictly_best(blind_scores(texts)[:, 0], 0).all()


def suites(folder):
    crepe = SugarCrepe(layouts.sugarcrepe(folder / "s", folder / "s" / "val2017"), folder / "s" / "val2017", size=SIZE)
    return Aro(layouts.aro(folder / "a"), size=SIZE), crepe, Winoground(layouts.winoground(folder / "w"), size=SIZE)


def test_published_files(tmp_path):
    module, found = dual(), suites(tmp_path)
    callback = CompositionEvaluation(found)
    metrics = results_of(tmp_path / "run", callback, module=module, source=Pictures())
    names = {
        f"test/sugarcrepe_{x}" for x in ("swap_att", "add_obj", "replace_rel", "swap", "add", "replace", "composition")
    }
    names |= {f"test/aro_{x}" for x in ("relation", "relation_micro", "attribution", "attribution_micro")}
    names |= {f"test/winoground_{x}" for x in ("text", "image", "group")}
    assert names <= set(metrics) and "test/composition" not in metrics
    for suite, kind in ((found[0], "relation"), (found[1], "swap_obj"), (found[2], "")):
        cases = suite.cases[kind]
        pictures = cases.images.fetch(cases.image_of.ravel()).numpy().reshape(*cases.image_of.shape, 3, SIZE, SIZE)
        expected = cases.metrics(scores(module, pictures, cases.texts()))
        for name, value in expected.items():
            full = "_".join(part for part in (suite.name, kind, name) if part)
            assert metrics[f"test/{full}"] == pytest.approx(value), full
    with (tmp_path / "run" / "composition_aro_attribution.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["cases"], row["counts"]) for row in rows] == [
        ("red_open", "26", "1"),
        ("red_tall", "3", "0"),
    ]
    assert float(rows[0]["accuracy"]) == pytest.approx(metrics["test/aro_attribution"], abs=1e-4)
    with (tmp_path / "run" / "composition_aro_relation.csv").open() as file:
        assert {row["group"]: row["counts"] for row in csv.DictReader(file)} == {"in": "1", "near": "0", "on": "1"}


def test_what_was_skipped_is_counted(tmp_path):
    root = layouts.aro(tmp_path / "a")
    (root / "images" / "0.png").unlink()
    metrics = results_of(tmp_path, CompositionEvaluation([Aro(root, size=SIZE, on_error="skip")]), source=Pictures())
    assert metrics["data/aro_skipped_image"] == 12.0


def test_a_missing_suite_is_missed_before_training(tmp_path):
    module = dual()
    with pytest.raises(ZooError, match=r"visual_genome_relation.json cannot be read"):
        trainer(tmp_path, CompositionEvaluation([Aro(tmp_path / "nowhere")])).fit(module, data())
    assert not module.trainer.global_step


def test_two_suites_need_two_names(tmp_path):
    root = layouts.aro(tmp_path)
    with pytest.raises(ZooError, match="two suites have the name 'aro'"):
        results_of(tmp_path, CompositionEvaluation([Aro(root, size=SIZE), Aro(root, size=SIZE, sets=["relation"])]))
    both = CompositionEvaluation([Aro(root, size=SIZE), Aro(root, "full", exclude=[], size=SIZE)])
    assert {"test/aro_relation", "test/full_relation"} <= set(results_of(tmp_path, both))


def test_without_cases_nothing_happens(tmp_path):
    found = results_of(tmp_path, CompositionEvaluation(), CompositionPanel(), source=Pictures())
    assert not found and not (tmp_path / "composition_panel.png").exists()


def test_cases_that_tokens_do_not_tell_apart_are_counted(tmp_path):
    texts = [["a long sentence one", "a long sentence two"], ["yes", "no"], ["same", "same"]]
    cases = CompositionCases.of_texts(None, np.zeros((3, 1)), texts)
    assert indistinct(cases, Letters(document_length=13), chunk=2) == 1
    assert indistinct(cases, Letters(document_length=77), chunk=2) == 0
    tester = trainer(tmp_path, CompositionEvaluation())
    tester.test(dual(), data(tokenizer=Letters(document_length=9)), verbose=False)
    assert (
        tester.callback_metrics["data/composition_indistinct"] == 4 * 9
    )  # "swap_att test", "swap_att not"; "left" differs


class Doubled(nn.Module):
    """A transform, of which evaluation must use the deterministic half."""

    def forward(self, batch):
        raise AssertionError("not in evaluation")

    def evaluate(self, pictures):
        return (255 - pictures.flip(3)).float()


def test_images_are_prepared_as_evaluation_prepares_them(tmp_path):
    source, module = WithCases(60), dual()
    callback = CompositionEvaluation()
    tester = trainer(tmp_path, callback)
    tester.test(module, data(source, transform=Doubled()), verbose=False)
    pictures, texts = source.composition_cases("test", None)["swap_obj"]
    expected = scores(module, 255 - pictures[..., ::-1], texts)
    torch.testing.assert_close(callback.tested["swap_obj"][1], expected)


def test_the_panel_shows_margins_from_the_worst_to_the_best():
    given = torch.tensor([[[0.5, 0.1, 0.2]], [[0.1, 0.9, 0.3]], [[0.4, 0.4, 0.1]], [[0.9, 0.0, 0.1]]])
    assert choose_images(given, np.array([0]), 3) == [(1, 0, 1), (0, 0, 2), (3, 0, 2)]
    assert [case for case, _, _ in choose_images(given, np.array([0]), 9)] == [1, 2, 0, 3]
    square = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]])
    assert choose_images(square, np.array([0, 1]), 2) == [(0, 1, 0), (0, 0, 1)]


def test_the_panel_is_in_the_run_folder(tmp_path, monkeypatch):
    logged = {}
    run = type("Run", (), {"log": lambda _, values: logged.update(values)})()
    monkeypatch.setattr("zoo.callbacks.pictures.wandb_run", lambda _: run)
    monkeypatch.setattr("wandb.Image", str)
    results_of(tmp_path, CompositionPanel(columns=2, rows=3), CompositionEvaluation(suites(tmp_path)))
    path = tmp_path / "composition_panel.png"
    with Image.open(path) as picture:
        assert picture.width > 300 and len(picture.getcolors(10**6) or range(9)) > 8
    assert logged["test/composition_panel"] == str(path)


def test_the_panel_shows_what_every_evaluation_scored(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        "zoo.callbacks.composition_panel.draw_composition_panel", lambda tested, path, *_: shown.update(tested) or path
    )
    more = CompositionEvaluation([Aro(layouts.aro(tmp_path), size=SIZE)], val_cases=0)
    results_of(tmp_path, CompositionEvaluation(), CompositionPanel(), more)
    assert {"swap_obj", "aro_relation", "aro_attribution"} <= set(shown)


def test_a_panel_with_fewer_cases_than_columns(tmp_path):
    cases = CompositionCases.of_texts(ImageArray(images(1, 0)), np.zeros((1, 1), np.int64), [["$a_b^c", "$b"]])
    path = draw_composition_panel({"one": (cases, torch.tensor([[[0.1, 0.2]]]))}, tmp_path / "x.png", columns=3)
    assert path.stat().st_size > 1000


def test_the_panel_needs_the_evaluation(tmp_path):
    with pytest.raises(ZooError, match="add that to trainer.callbacks"):
        results_of(tmp_path, CompositionPanel())

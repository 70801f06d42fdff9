"""Every shipped recipe runs from the command line, and can be compared with its baseline."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data import geo_layouts
from zoo import recipes
from zoo.__main__ import main

TINY = [
    *("--data.source.n_train", "64", "--data.source.n_val", "32", "--data.source.n_test", "32"),
    *("--data.source.size", "8", "--data.transform.size", "8", "--data.batch_size", "16"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]
# Every epoch of the recipe, as some parts of a method start late, but few steps of each.
SHORT = [
    *("--data.batch_size", "8", "--trainer.limit_train_batches", "2"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]
SMALL = {
    "text": ["--data.source.limit", "64"],
    "geo": ["--data.source.n_train", "64", "--data.source.n_val", "32", "--data.source.n_test", "32"],
    "clip": ["--data.source.n_train", "64", "--data.source.n_val", "32", "--data.source.n_test", "32"],
}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ZOO_RECIPES", raising=False)
        patch.setenv("ZOO_RUNS", str(folder / "runs"))
        base = tmp_path_factory.getbasetemp()  # a worker's own; arenas are rendered once for all of them
        patch.setenv("ZOO_CACHE", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "arenas"))
        patch.setenv("WANDB_MODE", "disabled")
        yield folder
    signal.signal(signal.SIGINT, handler)


def config(name, *overlays):
    return recipes.merge(recipes.layers(name, overlays))


def words(name):
    """A fit of the recipe that takes seconds."""
    family = recipes.load_card(name).family
    if family != "ssl":
        cases = (
            ["--data.source.n_cases", "40"] if config(name)["data"]["source"]["class_path"] == "zoo.data.Scenes" else []
        )
        return ["fit", name, *SMALL[family], *cases, *SHORT]
    queue = ["--model.queue_size", "64"] if "queue_size" in config(name)["model"].get("init_args", {}) else []
    tiny = TINY
    if (
        config(name)["data"]["source"]["class_path"] == "zoo.data.Imbalanced"
    ):  # of what it wraps; less would lack classes
        tiny = [word.replace("data.source.", "data.source.source.") for word in TINY]
        tiny[tiny.index("64")] = "640"
    return ["fit", name, "smoke", *tiny, *queue]


def fit(name):
    return main(words(name))


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_runs(place, name):
    assert fit(name) == 0
    (run,) = (place / "runs" / name).iterdir()
    result = json.loads((run / "result.json").read_text())
    card = recipes.load_card(name)
    trainer = config(name)["trainer"]
    steps = (
        4 if card.family == "ssl" else 2 * trainer["max_epochs"] // min(2, trainer.get("accumulate_grad_batches", 1))
    )
    assert result["recipe"] == name and result["budget"].startswith(f"{steps} steps x ")
    assert result["primary"] == card.primary
    metrics = result["metrics"]
    assert all(math.isfinite(value) for value in metrics.values())
    needed = {card.primary} | {c.metric for c in card.claim} | {c.against for c in card.claim if c.against}
    assert needed <= metrics.keys()
    with Image.open(run / "score_histogram.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    with np.load(run / "score_histogram.npz") as saved:
        assert saved["positives"].sum() > 0 and saved["negatives"].sum() > 0
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == steps and all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "mochi", "infonce", "clip", "infonce_geo"])
def test_recipe_runs_compiled(place, name, monkeypatch):
    runs = {}
    for compiled in ("false", "true"):
        monkeypatch.setenv("ZOO_RUNS", str(place / compiled))
        # In a process without the type checks of these tests, which torch.compile does not trace.
        subprocess.run([sys.executable, "-m", "zoo", *words(name), "--model.compile", compiled], check=True)
        (run,) = (place / compiled / name).iterdir()
        runs[compiled] = json.loads((run / "result.json").read_text())["metrics"]
    losses = [metrics["train/loss"] for metrics in runs.values()]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


COMPARED = [n for n in recipes.names() if recipes.load_card(n).baseline]


# What these compare is the batch, the schedule, or the data that a pair is made of.
OTHER_BUDGET = {"basic_scaling", "generative_negatives"}


@pytest.mark.parametrize(
    "name", [n for n in COMPARED if recipes.load_card(n).family != "ssl" and n not in OTHER_BUDGET]
)
def test_recipe_and_baseline_share_data_encoder_and_budget(name):
    card = recipes.load_card(name)
    ours, theirs = config(name), config(card.baseline)
    assert recipes.load_card(card.baseline).arena == card.arena
    for key in ("source", "tokenizer", "batch_size"):
        assert ours["data"].get(key) == theirs["data"].get(key)
    assert ours["trainer"]["max_epochs"] == theirs["trainer"]["max_epochs"]
    for key in ("optimizer", "warmup_epochs"):
        assert ours["model"]["init_args"][key] == theirs["model"]["init_args"][key]
    if not name.startswith("nv_"):  # the encoder is what these are about
        assert ours["model"]["init_args"]["encoder"] == theirs["model"]["init_args"]["encoder"]


# What an idea changes that is no loss: how views are made, or how they are read.
ALSO = {
    "bss": {"transform"},
    "fourier_augmentation": {"transform"},
    "amcl": {"encoder", "callbacks"},
    "amcl_moco": {"encoder", "callbacks"},
    "batchformer": {"encoder"},
    "batchformer_unshared": {"encoder"},
    "batchformer_simclr": {"encoder"},
    "batchformer_moco": {"encoder", "queue_size"},  # it holds two rows of each image
}


@pytest.mark.parametrize("name", [n for n in COMPARED if recipes.load_card(n).family == "ssl"])
def test_recipe_and_baseline_differ_in_the_method_alone(name):
    card = recipes.load_card(name)
    baseline = recipes.load_card(card.baseline)
    assert baseline.arena == card.arena and baseline.primary == card.primary
    method = {"loss", "negatives", "negatives_from", "detach_candidates"} | ALSO.get(name, set())
    for overlays in ([], ["smoke"], ["imagenet"]):
        ours, theirs = config(name, *overlays), config(card.baseline, *overlays)
        assert ours["model"]["class_path"] == theirs["model"]["class_path"]
        parts = [{**c["data"], **c["trainer"], **c["model"]["init_args"]} for c in (ours, theirs)]
        differing = {key for key in {*parts[0], *parts[1]} if parts[0].get(key) != parts[1].get(key)}
        assert differing and differing <= method
        assert ours["seed_everything"] == theirs["seed_everything"]


def test_evaluation_of_a_trained_recipe(place, capfd):
    name = "feature_transformation"
    if not (place / "runs" / name).exists():
        assert fit(name) == 0
    (run,) = (place / "runs" / name).iterdir()
    trained = json.loads((run / "result.json").read_text())["metrics"]
    options = [*TINY, "--model.queue_size", "64"]
    capfd.readouterr()
    for stage, metrics in {
        "validate": ["eval/knn"],
        "test": ["test/knn", "test/linear", "test/linear_fewshot"],
    }.items():
        assert main([stage, name, "smoke", *options]) == 0
        table = [line.replace("│", " ").split() for line in capfd.readouterr().out.splitlines()]
        printed = {words[0]: float(words[-1]) for words in table if len(words) > 1 and "/" in words[0]}
        # The very weights that result.json speaks of.
        assert {k: printed[k] for k in metrics} == pytest.approx({k: trained[k] for k in metrics}, abs=1e-6)
    assert main(["predict", name, "smoke", *options]) == 0
    with np.load(run / "embeddings.npz") as saved:
        assert saved["index"].tolist() == list(range(32)) and np.isfinite(saved["features"]).all()
        assert np.ptp(saved["features"], axis=0).max() > 0


@pytest.mark.slow
def test_two_devices_share_one_run(place):
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "zoo", "fit", "simclr", "smoke", *TINY, "--runs", str(place / "two"), *devices]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (place / "two").rglob("result.json")
    result = json.loads(path.read_text())
    assert result["budget"] == "2 steps x 32"
    assert result["metrics"]["negatives/effective"] == 2 * 32 - 2  # views of both devices
    assert torch.load(path.parent / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["cvusa", "cvact", "vigor", "university"])
def test_sample4geo_on_the_layouts_of_its_data_sets(place, overlay):
    root = place / overlay
    getattr(geo_layouts, f"write_{overlay}")(root)
    ground = ["--data.source.drone_size", "32"] if overlay == "university" else ["--data.source.ground_size", "[16,64]"]
    options = [
        *("--data.root", str(root), "--data.source.tile_size", "32", *ground, "--data.batch_size", "2"),
        *("--data.num_workers", "0", "--model.encoder.name", "resnet10t", "--runs", str(place / "geo")),
        *("--trainer.max_epochs", "5", "--trainer.check_val_every_n_epoch", "5", "--trainer.accelerator", "cpu"),
    ]
    assert main(["fit", "sample4geo", overlay, *options]) == 0
    (path,) = (place / "geo").rglob("result.json")
    result = json.loads(path.read_text())
    path.unlink()
    assert 0 <= result["metrics"]["test/r@1"] <= 1 and result["metrics"]["refresh/seconds"] > 0

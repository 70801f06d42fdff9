"""From a notebook: fit, load, embed, verify, leaderboard, mine."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.trained import TEXTS, trained
from zoo.api import flags
from zoo.data.pairs import PairBatch
from zoo.errors import ZooError
from zoo.runs import CHECKPOINT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = trained(tmp_path_factory)
    with found.environment():
        yield found


def test_import_needs_no_torch():
    code = "import sys, zoo; zoo.fit, zoo.load, zoo.verify, zoo.leaderboard; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_keyword_arguments_are_options():
    given = {"seed_everything": 1, "max_epochs": 3, "model.loss.temperature": 0.2, "data.root": None, "x.y": [1, "a"]}
    assert flags(**given) == [
        "--seed_everything=1",
        "--trainer.max_epochs=3",
        "--model.loss.temperature=0.2",
        "--data.root=null",
        '--x.y=[1, "a"]',
    ]
    assert flags(seed_everything=None, **{"model.x": "text", "model.y": True}) == ["--model.x=text", "--model.y=true"]


def test_fit_returns_the_run(runs):
    run = zoo.fit("conv", seed=3, max_steps=1, **{"model.loss.temperature": 0.5})
    assert run.path.is_relative_to(runs.runs) and run.path.name.endswith("-s3")
    assert run.metrics == run.result.metrics and np.isfinite(run.metrics["train/loss"])
    assert run.result.budget == "1 steps x 8"
    assert run.result.overrides == ["--model.loss.temperature=0.5", "--trainer.max_steps=1"]
    assert run.model.loss.temperature == 0.5  # from the run's configuration, not the recipe


def test_load_has_the_trained_weights(runs):
    run = zoo.load(str(runs.run("conv").path))
    saved = torch.load(run.path / CHECKPOINT, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[key]) for key, value in run.model.state_dict().items())
    assert not run.model.training and repr(run) == f"Run({str(run.path)!r})"
    assert runs.run("resnet").path == zoo.load("resnet").path


def test_images_of_every_kind(runs, tmp_path):
    run = runs.run("conv")
    expected = run.model.features(run.datamodule.transform.evaluate(IMAGES))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in IMAGES]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(3)]
    kinds = [IMAGES, IMAGES.numpy(), list(IMAGES), pictures, [np.array(p) for p in pictures], files, [*map(str, files)]]
    for kind in kinds:
        torch.testing.assert_close(run.embed(kind), expected)
        torch.testing.assert_close(run.embed(kind, batch_size=2), expected)
    torch.testing.assert_close(run.embed(pictures[0]), expected[:1])
    frozen = IMAGES.numpy().copy()
    frozen.flags.writeable = False
    torch.testing.assert_close(run.embed(frozen), expected)
    torch.testing.assert_close(run.embed(IMAGES, normalize=True).norm(dim=1), torch.ones(3))
    assert run.embed([Image.new("L", (50, 41))]).shape == (1, expected.shape[1])  # grey, and of another size


def test_texts_are_read_as_the_side_reads_them(runs):
    run = runs.run("bert")
    tokens = run.data.tokenizer(TEXTS, "query")
    torch.testing.assert_close(run.embed(TEXTS), run.model.embed_queries(tokens))
    torch.testing.assert_close(run.embed(TEXTS, "query", batch_size=2), run.embed(TEXTS))
    documents = run.embed(TEXTS, "document")
    torch.testing.assert_close(documents, run.model.embed_documents(run.data.tokenizer(TEXTS, "document")))
    assert not torch.allclose(documents, run.embed(TEXTS))  # queries have an instruction
    torch.testing.assert_close(run.embed("x"), run.embed(["x"]))


def test_the_kind_of_input_finds_its_tower(runs):
    run = runs.run("clip")
    torch.testing.assert_close(run.embed(IMAGES), run.embed(IMAGES, "query"))
    torch.testing.assert_close(run.embed(TEXTS), run.embed(TEXTS, "document"))


def test_embeddings_are_those_of_evaluation(runs):
    run = runs.run("clip")
    pairs = run.data.source.split("test", run.data.root)
    images, _ = pairs.fetch(np.arange(8))
    index = torch.arange(8)
    batch = run.datamodule.prepare_inputs(PairBatch(images, None, index, index, index))
    torch.testing.assert_close(run.embed(images), run.model.validation_step(batch, 0)["features"])


@pytest.mark.parametrize(
    ("recipe", "inputs", "tower", "message"),
    [
        ("conv", [], None, "no inputs"),
        ("conv", ["missing.png"], None, "cannot read missing.png as an image"),
        ("conv", [3], None, "cannot read int as an image"),
        ("conv", IMAGES.float(), None, "8-bit"),
        ("conv", IMAGES, "document", "no tower 'document'; there are: query"),
        ("bag", IMAGES, None, "reads texts, not images"),
        ("clip", IMAGES, "document", "tower 'document' reads texts, not images"),
    ],
)
def test_inputs_that_no_tower_reads(runs, recipe, inputs, tower, message):
    with pytest.raises(ZooError, match=message):
        runs.run(recipe).embed(inputs, tower)


def test_run_exports(runs, tmp_path):
    folder = runs.run("resnet").export("timm", tmp_path / "out")
    assert folder == tmp_path / "out" and (folder / "README.md").exists()
    with pytest.raises(ZooError, match="is there already"):
        runs.run("resnet").export("timm", tmp_path / "out")


def test_verify_and_leaderboard(runs):
    runs.run("resnet")
    (part,) = zoo.verify("resnet", seeds=1)
    assert part["metric"] == "train/loss" and part["against"] == "train/lr" and part["pairs"] == 1
    assert part["mean"] > 0 and part["verdict"] == "inconclusive"  # one seed decides nothing
    frame = zoo.leaderboard()
    (row,) = frame[(frame["recipe"] == "resnet") & (frame["part"] == "quality")].to_dict("records")
    assert row["delta"] == pytest.approx(part["mean"])
    with pytest.raises(ZooError, match="claims nothing"):
        zoo.verify("bag")


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ZooError, match="pip install pandas"):
        zoo.leaderboard()


def test_mistakes_are_zoo_errors(runs):
    with pytest.raises(ZooError, match="did you mean 'conv'"):
        zoo.fit("convv")
    with pytest.raises(ZooError, match=r"no option --trainer\.max_epoch; did you mean --trainer\.max_epochs"):
        zoo.fit("conv", max_epoch=1)
    with pytest.raises(ZooError, match="no run or recipe"):
        zoo.load("nothing")

"""Exports: what a library loads is what the run embeds, and the model card's code runs as it stands."""

import contextlib
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trained import TEXTS, trained
from zoo import runs
from zoo.__main__ import main
from zoo.data.tokenizers import portable_words, words
from zoo.methods.text_encoders import TokenBag
from zoo.methods.towers import Tower, UnitNorm, distinct

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that write and read
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
CASES = [
    ("resnet", "timm"),
    ("conv", "onnx"),
    ("conv", "torch"),
    ("bag", "sentence-transformers"),
    ("bag", "onnx"),
    ("bert", "sentence-transformers"),
    ("clip", "open_clip"),
]
SLOW = [("small", "torch"), ("bert", "torch"), ("clip", "onnx"), ("bert", "onnx"), ("resnet", "onnx")]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]
NAMES = ["-".join(getattr(case, "values", case)) for case in CASES]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    found = trained(tmp_path_factory)
    with found.environment():
        yield found


@pytest.fixture
def error_line(zoo, capfd):
    def run(*args):
        capfd.readouterr()
        assert main(["export", *map(str, args)]) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("zoo: error: "), lines
        return lines[0]

    return run


@pytest.fixture(scope="module")
def exported(zoo, tmp_path_factory):
    """Folders by recipe and format, and their runs."""
    made = {}

    def get(recipe, to):
        if (recipe, to) not in made:
            out = tmp_path_factory.mktemp("exported") / to
            run = zoo.run(recipe)
            assert main(["export", str(run.path), "--to", to, "--out", str(out)]) == 0
            made[recipe, to] = out
        return zoo.run(recipe), made[recipe, to]

    return get


def code_of(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def close(ours, theirs):
    torch.testing.assert_close(torch.as_tensor(np.asarray(theirs)).float(), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("recipe", "to"), CASES, ids=NAMES)
def test_the_card_says_what_it_is_and_its_code_runs(exported, recipe, to, monkeypatch):
    run, folder = exported(recipe, to)
    text = (folder / "README.md").read_text()
    assert f"`{run.path.name}`" in text and "seed: 0" in text and "| train/loss |" in text and "torch " in text
    assert run.result.command in text and "arena toys" in text
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code_of(folder), {})
    assert "[" in printed.getvalue() or "(" in printed.getvalue()
    assert not [p for p in folder.parent.iterdir() if p != folder]  # the temporary folder is gone


def test_paper_and_preprocessing_are_in_the_card(exported):
    text = (exported("resnet", "timm")[1] / "README.md").read_text()
    assert "arXiv 2002.05709" in text and "Cite the paper" in text and "[0.5, 0.5, 0.5]" in text


def test_timm(exported):
    import timm

    run, folder = exported("resnet", "timm")
    ours, images = run.embed(IMAGES), run.datamodule.transform.evaluate(IMAGES)
    with torch.no_grad():
        close(ours, timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images))
        weights = {"num_classes": 0, "checkpoint_path": folder / "model.safetensors"}
        model = timm.create_model("test_resnet", **weights).eval()
        close(ours, model(images))
    config = timm.data.resolve_data_config(model=timm.create_model(f"local-dir:{folder}"))
    assert config["input_size"] == (3, 32, 32) and config["std"] == pytest.approx((0.25,) * 3)


@pytest.mark.parametrize("recipe", ["bag", "bert"])
def test_sentence_transformers(exported, recipe):
    from sentence_transformers import SentenceTransformer

    run, folder = exported(recipe, "sentence-transformers")
    model = SentenceTransformer(str(folder), device="cpu")
    texts = [*TEXTS, "def readLines2(path): return open(path)", "reads " * 50]
    close(run.embed(texts, "query"), model.encode_query(texts))
    close(run.embed(texts, "document"), model.encode_document(texts))


def test_open_clip(exported):
    import open_clip

    run, folder = exported("clip", "open_clip")
    open_clip.add_model_config(folder / "scenes_tiny.json")
    model = open_clip.create_model("scenes_tiny", pretrained=str(folder / "open_clip_pytorch_model.bin")).eval()
    tokens = torch.nn.functional.pad((ids := run.data.tokenizer(TEXTS, "document").ids), (0, 20 - ids.shape[1]))
    with torch.no_grad():
        images = model.encode_image(run.datamodule.transform.evaluate(IMAGES), normalize=True)
        close(run.embed(IMAGES), images)
        close(run.embed(TEXTS), model.encode_text(tokens, normalize=True))
    assert float(model.logit_scale.exp()) == pytest.approx(1 / 0.2)
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    from PIL import Image

    picture = Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy())
    close(run.datamodule.transform.evaluate(IMAGES[:1])[0], preprocess(picture))


def tokenized(folder, texts, length):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    found = tokenizer.encode_batch(texts)
    return {"ids": np.array([x.ids for x in found]), "mask": np.array([x.attention_mask for x in found])}


def test_onnx_of_images_for_any_batch(exported):
    import onnxruntime as ort

    run, folder = exported("conv", "onnx")
    session = ort.InferenceSession(str(folder / "encoder.onnx"))
    for n in (1, 2, 3):
        close(run.embed(IMAGES[:n]), session.run(None, {"images": IMAGES[:n].numpy()})[0])


def test_onnx_of_texts_for_any_batch_and_length(exported):
    import onnxruntime as ort

    run, folder = exported("bag", "onnx")
    session = ort.InferenceSession(str(folder / "encoder.onnx"))
    for texts in (TEXTS, TEXTS[:1], ["x", "", "écrire2Files"], ["lines " * 40]):
        close(run.embed(texts, "document"), session.run(None, tokenized(folder, texts, 12))[0])


@pytest.mark.slow
def test_onnx_of_both_towers(exported):
    import onnxruntime as ort

    run, folder = exported("clip", "onnx")
    images, texts = (ort.InferenceSession(str(folder / f"{name}.onnx")) for name in ("query", "document"))
    close(run.embed(IMAGES), images.run(None, {"images": IMAGES.numpy()})[0])
    ids = tokenized(folder, TEXTS, 20)["ids"]
    close(run.embed(TEXTS), texts.run(None, {"ids": np.pad(ids, ((0, 0), (0, 20 - ids.shape[1])))})[0])


def test_torch_of_images(exported):
    from safetensors.torch import load_file

    run, folder = exported("conv", "torch")
    program = torch.export.load(folder / "encoder.pt2")
    for n in (1, 2, 3):
        close(run.embed(IMAGES[:n]), program.module()(images=IMAGES[:n]))
    weights, ours = load_file(folder / "encoder.safetensors"), run.towers["query"].state_dict()
    for key, value in ours.items():
        assert torch.equal(weights[f"tower.{key}"], value)


@pytest.mark.slow
def test_torch_of_texts_reads_and_does_not_pool_the_instruction(exported):
    run, folder = exported("bert", "torch")
    for side, prefix in (("query", "read a file "), ("document", "")):
        model = torch.export.load(folder / f"{side}.pt2").module()
        for texts in (["join two paths", "x"], ["write lines"]):
            given = tokenized(folder, [prefix + text for text in texts], 10)
            close(run.embed(texts, side), model(**{k: torch.as_tensor(v) for k, v in given.items()}).detach())
    run, folder = exported("small", "torch")
    model = torch.export.load(folder / "encoder.pt2").module()
    given = tokenized(folder, ["readLines of a_file", "x"], 12)
    theirs = model(**{k: torch.as_tensor(v) for k, v in given.items()})
    close(run.embed(["readLines of a_file", "x"], "document"), theirs.detach())


@settings(max_examples=200)
@given(st.text(alphabet=st.sampled_from("aAbBzZ0 9_.([é€Σ\u00a0\t\n٣Ñ漢-'\"#²"), max_size=20))
def test_words_without_zoo(text):
    normalizer, splitter = portable_words()
    found = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
    assert found == words(text).split(" ") if words(text) else found == []


def test_towers_of_one_network_are_one():
    a, b = TokenBag(5, 4), TokenBag(5, 4)
    assert list(distinct({"query": Tower(a, UnitNorm()), "document": Tower(a, UnitNorm())})) == ["encoder"]
    assert list(distinct({"query": Tower(a), "document": Tower(a, UnitNorm())})) == ["query", "document"]
    assert list(distinct({"query": Tower(a), "document": Tower(b), "third": Tower(a)})) == ["query", "document"]


@pytest.mark.parametrize(
    ("recipe", "to", "reason", "others"),
    [
        ("conv", "timm", "ConvNet is no timm model", "onnx, torch"),
        ("conv", "sentence-transformers", "ConvNet is no model of that library", "onnx, torch"),
        ("resnet", "open_clip", "ImageEncoder is no model of open_clip", "timm, onnx, torch"),
        ("small", "sentence-transformers", "TextTransformer is no model", "onnx, torch"),
        ("bag", "timm", "TokenBag is no timm model", "sentence-transformers, onnx, torch"),
        ("clip", "timm", "ImageTower is no timm model", "open_clip, onnx, torch"),
    ],
)
def test_a_format_that_does_not_fit_names_those_that_do(zoo, error_line, tmp_path, recipe, to, reason, others):
    line = error_line(zoo.run(recipe).path, "--to", to, "--out", tmp_path / "out")
    assert reason in line and line.endswith(f"it goes to {others}")
    assert not list(tmp_path.iterdir())


def test_a_resnet_with_a_small_stem_is_none_of_timms():
    from zoo.errors import ZooError
    from zoo.methods import TimmBackbone

    with pytest.raises(ZooError, match="3x3 stem"):
        TimmBackbone("resnet18", small_images=True).timm_model()


def test_runs_are_found_by_recipe(zoo, error_line, tmp_path):
    run = zoo.run("conv")
    assert runs.find_run("conv") == run.path
    assert "no run or recipe 'convv'; did you mean 'conv'?" in error_line("convv", "--to", "torch")
    empty = tmp_path / "runs" / "conv" / "0123abcd-s0"
    empty.mkdir(parents=True)
    assert "no config.yaml" in error_line(empty, "--to", "torch")
    (empty / "config.yaml").write_bytes((run.path / "config.yaml").read_bytes())
    assert "has no checkpoints/last.ckpt" in error_line(empty, "--to", "torch")
    assert "conv has no run with checkpoints/last.ckpt" in error_line("conv", "--to", "torch", "--runs", tmp_path)


def test_only_weights_are_read_from_a_checkpoint(zoo, error_line, tmp_path):
    run = tmp_path / "conv" / "0123abcd-s0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_bytes((zoo.run("conv").path / "config.yaml").read_bytes())
    for content in ({"state_dict": {}, "x": Trap()}, {"state_dict": {}}):
        torch.save(content, run / runs.CHECKPOINT)
        assert "cannot load" in error_line(run, "--to", "torch")
    assert not Trap.sprung


class Trap:
    """Says whether it was unpickled."""

    sprung = False

    def __setstate__(self, state):
        Trap.sprung = True

    def __getstate__(self):
        return {"x": 1}


def test_mistakes_on_the_command_line_are_one_line(zoo, error_line, tmp_path, monkeypatch):
    path = zoo.run("conv").path
    assert "did you mean 'torch'?" in error_line(path, "--to", "torhc")
    assert "required: --to" in error_line(path)
    assert "which run?" in error_line("--to", "torch")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    assert "is there already" in error_line(path, "--to", "torch", "--out", tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "kept"
    monkeypatch.setattr("zoo.export.find_spec", lambda name: None)
    assert "pip install negatives-zoo[export]" in error_line(path, "--to", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "to"), CASES, ids=NAMES)
def test_cards_work_without_zoo(exported, recipe, to):
    _, folder = exported(recipe, to)
    code = f"import sys; sys.modules['zoo'] = None\n{code_of(folder)}"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

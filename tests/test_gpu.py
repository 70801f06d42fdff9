"""What only a CUDA device can show; skips itself without one."""

import json

import pytest
import torch
import yaml

from tests.methods.test_momentum import batch as image_batch
from zoo import recipes
from zoo.__main__ import main
from zoo.search import top_k

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
TINY = {
    "ssl": ["smoke", "--data.source.n_train", "64", "--data.source.n_val", "32", "--data.source.n_test", "32"],
    "text": ["--data.source.limit", "64", "--trainer.limit_train_batches", "2", "--data.batch_size", "8"],
}


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_trains_in_bf16_on_the_device(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    family = recipes.load_card(name).family
    small = ["--data.batch_size", "16"] if family == "ssl" else []
    assert main(["fit", name, *TINY[family], *small, "--trainer.enable_progress_bar", "false"]) == 0
    (run,) = (tmp_path / "runs" / name).iterdir()
    result = json.loads((run / "result.json").read_text())
    assert result["device"] == torch.cuda.get_device_name() and result["peak_memory_bytes"] > 0
    (saved,) = run.glob("config*.yaml")
    assert yaml.safe_load(saved.read_text())["trainer"]["precision"] in (None, "bf16-mixed")


def test_search_agrees_with_the_cpu():
    g = torch.Generator().manual_seed(0)
    queries, corpus = torch.randn(50, 32, generator=g).double(), torch.randn(3000, 32, generator=g).double()
    here, there = top_k(queries, corpus, 20), top_k(queries.cuda(), corpus.cuda(), 20)
    assert torch.equal(here[1], there[1].cpu())
    torch.testing.assert_close(here[0], there[0].cpu())


def test_batch_moves_once():
    moved = image_batch().to("cuda")
    assert moved.anchor.is_cuda and moved.anchor_key.is_cuda and moved.index.is_cuda

"""What only a CUDA device can show; skips itself without one."""

import json

import pytest
import torch
import yaml

from tests.losses.test_triton_nce import compare, world
from tests.methods.test_momentum import batch as image_batch
from zoo import recipes
from zoo.__main__ import main
from zoo.losses.lean import KeyMask, lean_info_nce
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("b", "m", "dim"), [(300, 300, 512), (129, 5000, 40)])
def test_lean_kernels_agree_with_the_full_matrix_in_float64(b, m, dim, dtype):
    pytest.importorskip("triton")
    leaves, own, keys, mask = world(b, m, dim, dtype)
    leaves = [x.detach().cuda().requires_grad_() for x in leaves]
    keys = KeyMask(keys.queries.cuda(), keys.documents.cuda())
    compare(leaves, own.cuda(), keys, 0.1, True, mask.cuda(), 1e-5 if dtype == torch.float32 else 2**-7)


def test_lean_loss_takes_the_kernels_and_little_memory():
    triton_nce = pytest.importorskip("zoo.losses.triton_nce")
    b, dim = 32768, 128  # the matrix of scores: 4 GiB
    q, d = (torch.nn.functional.normalize(torch.randn(b, dim, device="cuda")).requires_grad_() for _ in range(2))
    own = torch.arange(b, device="cuda")
    lean_info_nce(q, d, own).backward()  # tiles are chosen
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    lean_info_nce(q, d, own).backward()
    grown = torch.cuda.max_memory_allocated() - before
    assert triton_nce.BUFFER_BYTES <= grown < triton_nce.BUFFER_BYTES + 6 * q.numel() * 4

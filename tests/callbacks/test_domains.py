"""Domain purity: counts by brute force, extremes, and the callback in a run."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from zoo import ConvNet, ImageEncoder, SiameseContrast
from zoo.callbacks import DomainPurity
from zoo.callbacks.domains import balanced_rows, domain_gap, nearest_others, purity
from zoo.data import FourierStyles, NegativesDataModule, Shapes, StyledShapes
from zoo.errors import ZooError
from zoo.losses import InfoNCE


def _rows(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return features, *(torch.randint(3, (n,), generator=generator) for _ in range(2))


@pytest.mark.parametrize("chunk", [7, 100])
def test_neighbours_agree_with_scikit_learn(chunk):
    features, domains, _ = _rows()
    model = NearestNeighbors(n_neighbors=8, metric="cosine", algorithm="brute").fit(features)
    expected = model.kneighbors(return_distance=False)  # of the fitted rows: without themselves
    found = nearest_others(features, 8, chunk)
    np.testing.assert_array_equal(found, expected)
    same = [np.mean([domains[j] == domains[i] for j in row]) for i, row in enumerate(expected)]
    assert purity(found, domains) == pytest.approx(np.mean(same))
    assert nearest_others(features[:4], 8).shape == (4, 3)


@pytest.mark.parametrize("chunk", [7, 100])
def test_gap_is_that_of_all_pairs_of_negatives(chunk):
    features, domains, labels = _rows()
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    own, other = [], []
    for i in range(60):
        for j in range(60):
            if labels[i] != labels[j]:
                (own if domains[i] == domains[j] else other).append(unit[i] @ unit[j])
    assert domain_gap(features, domains, labels, chunk) == pytest.approx(np.mean(own) - np.mean(other))


def test_extremes():
    _, domains, labels = _rows()
    by_domain = torch.eye(3)[domains] + 0.01 * torch.randn(60, 3)
    assert purity(nearest_others(by_domain, 5), domains) == 1
    assert domain_gap(torch.eye(3)[domains], domains, labels) == pytest.approx(1)
    assert domain_gap(torch.ones(60, 4), domains, labels) == pytest.approx(0)


def test_rows_are_as_many_of_each_domain_and_always_the_same():
    domains = torch.tensor([4] * 50 + [1] * 20 + [7] * 9)
    rows = balanced_rows(domains, 100)
    assert domains[rows].unique(return_counts=True)[1].tolist() == [9, 9, 9]
    assert domains[balanced_rows(domains, 5)].unique(return_counts=True)[1].tolist() == [5, 5, 5]
    torch.manual_seed(3)
    assert torch.equal(rows, balanced_rows(domains, 100)) and rows[domains[rows] == 4].max() > 20


def _run(source, tmp_path, stage="test", **trainer):
    data = NegativesDataModule(source, tmp_path, batch_size=16, transform=FourierStyles(size=8, blur_kernel=3), seed=0)
    data.eval_batch_size = 20
    encoder = ImageEncoder(ConvNet(4, 2), 8, batch_norm=True)
    module = SiameseContrast(encoder, InfoNCE(0.1))
    runner = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[DomainPurity(k=5)], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, max_epochs=1, limit_train_batches=2, **trainer,
    )  # fmt: skip
    if stage == "fit":
        runner.fit(module, data)
    else:
        runner.test(module, data, verbose=False)
    return {name: float(value) for name, value in runner.callback_metrics.items()}, module


@pytest.mark.filterwarnings("ignore")
def test_callback_reads_domains_of_reference_and_queries(tmp_path):
    source = StyledShapes(n_train=48, n_val=20, n_test=30, size=8)
    torch.manual_seed(0)
    metrics, module = _run(source, tmp_path)
    sets = [source.split(split, tmp_path) for split in ("train", "test")]
    inputs = torch.cat([torch.from_numpy(np.array(s.images)) for s in sets])
    domains = torch.cat([torch.as_tensor(s.columns["domain"]) for s in sets])
    labels = torch.cat([torch.as_tensor(s.columns["label"]) for s in sets])
    rows, _ = balanced_rows(domains, 1000), module.eval()
    assert len(rows) == 4 * 16
    with torch.no_grad():
        features = module.features(FourierStyles(size=8, blur_kernel=3).evaluate(inputs[rows]))
    near = nearest_others(features, 5)
    assert metrics["test/domain_purity"] == pytest.approx(purity(near, domains[rows]), abs=0.01)
    assert metrics["test/class_purity"] == pytest.approx(purity(near, labels[rows]), abs=0.01)
    assert metrics["test/domain_gap"] == pytest.approx(domain_gap(features, domains[rows], labels[rows]), abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_callback_in_training_and_without_domains(tmp_path):
    metrics, _ = _run(StyledShapes(n_train=48, n_val=20, n_test=30, size=8), tmp_path, "fit")
    assert {"eval/domain_purity", "eval/class_purity", "eval/domain_gap"} <= metrics.keys()
    with pytest.raises(ZooError, match="remove the callback"):
        _run(Shapes(n_train=48, n_val=20, n_test=30, size=8), tmp_path)

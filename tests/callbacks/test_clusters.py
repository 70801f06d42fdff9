"""Clusters on their way from the encoder to the sampler."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.callbacks import clusters as module_under_test
from zoo.callbacks.clusters import RefreshClusters, SelfAwareNegatives
from zoo.data.cluster_samplers import ClusterUnions, OverlappingClusters, TopicBatches
from zoo.data.samplers import RandomBatches
from zoo.data.text import TextPairs
from zoo.errors import ZooError
from zoo.losses.scores import normalize
from zoo.negatives.self_aware import self_aware_clusters

# Six queries in three directions, eight pairs; documents lie elsewhere, in two directions.
QUERIES = torch.tensor([[1.0, 0, 0], [2.0, 0.1, 0], [0, 1, 0], [0, 3, 0.1], [0, 0, 1], [0.1, 0, 1]])
DOCUMENTS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [5, 0.1, 0], [0.1, 4, 0]])
QUERY_OF, DOCUMENT_OF = np.array([0, 1, 2, 3, 4, 5, 0, 5]), np.array([0, 2, 1, 3, 0, 1, 2, 3])


@pytest.fixture(autouse=True)
def encodings(monkeypatch):
    """Stands in for the encoder; counts its calls."""
    calls = []

    def encode(trainer, pl_module, dataset):
        calls.append(dataset.side)
        return QUERIES if dataset.side == "query" else DOCUMENTS

    monkeypatch.setattr(module_under_test, "encode", encode)
    return calls


def trainer(sampler):
    pairs = TextPairs([f"q{i}" for i in range(6)], [f"d{i}" for i in range(4)], QUERY_OF, DOCUMENT_OF)
    sampler.bind(pairs, 2, 0)
    data = SimpleNamespace(sampler=sampler, train_pairs=pairs)
    return SimpleNamespace(datamodule=data, current_epoch=0, max_epochs=6)


MODULE = SimpleNamespace(log=lambda *_: None)


def groups(assigned):
    """Which pairs are together."""
    return {tuple(np.flatnonzero(np.asarray(assigned) == c)) for c in set(np.asarray(assigned).tolist())}


def run(callback, on, epochs):
    """Epochs with a clustering before their batches."""
    found = []
    callback.on_fit_start(on, MODULE)
    if on.datamodule.sampler._clusters is not None:
        found.append(0)
    for epoch in range(epochs):
        on.current_epoch, before = epoch, on.datamodule.sampler._clusters
        callback.on_train_epoch_end(on, MODULE)
        if on.datamodule.sampler._clusters is not before:
            found.append(epoch + 1)
    return found


def test_pairs_lie_in_the_cluster_of_their_query(encodings):
    on = trainer(TopicBatches())
    RefreshClusters("kmeans", "query", n_clusters=3, start_epoch=0, seed=3).on_fit_start(on, MODULE)
    assert groups(on.datamodule.sampler.clusters()) == {(0, 1, 6), (2, 3), (4, 5, 7)}  # whatever the vectors' lengths
    assert encodings == ["query"]


def test_pairs_lie_in_the_cluster_of_their_document(encodings):
    on = trainer(TopicBatches())
    RefreshClusters("kmeans", "document", n_clusters=2, start_epoch=0).on_fit_start(on, MODULE)
    assert groups(on.datamodule.sampler.clusters()) == {(0, 1, 4, 6), (2, 3, 5, 7)}
    assert encodings == ["document"]


def test_more_clusters_than_points_are_cut():
    on = trainer(TopicBatches())
    RefreshClusters("kmeans", "query", n_clusters=99, start_epoch=0).on_fit_start(on, MODULE)
    assert groups(on.datamodule.sampler.clusters()) == {(0, 6), (1,), (2,), (3,), (4,), (5, 7)}


def test_balanced_clusters_double_on_schedule():
    callback, on = (
        RefreshClusters("balanced", start_epoch=0, every_n_epochs=1, double_at=(1, 3)),
        trainer(ClusterUnions()),
    )
    callback.on_fit_start(on, MODULE)
    sizes = [set(np.bincount(on.datamodule.sampler.clusters()))]
    for epoch in range(3):
        on.current_epoch = epoch
        callback.on_train_epoch_end(on, MODULE)
        sizes.append(set(np.bincount(on.datamodule.sampler.clusters())))
    assert sizes == [{1}, {2}, {2}, {4}]
    assert groups(callback.clusters) == {(0, 1, 4, 6), (2, 3, 5, 7)}
    assert on.datamodule.sampler.clusters() is callback.clusters


@pytest.mark.parametrize(
    ("start", "every", "expected"), [(1, 0, [1]), (0, 0, [0]), (0, 2, [0, 2, 4]), (3, 1, [3, 4, 5]), (2, 3, [2, 5])]
)
def test_when_clusters_are_found(start, every, expected):
    callback, on = RefreshClusters("balanced", start_epoch=start, every_n_epochs=every), trainer(ClusterUnions())
    assert run(callback, on, 6) == expected


def test_before_the_first_clusters_batches_are_random_and_then_of_one_topic():
    on = trainer(TopicBatches())
    sampler = on.datamodule.sampler
    assert on.datamodule.sampler.clusters() is None
    assert {i for plan in sampler for i in plan.indices} == set(range(8))
    callback = RefreshClusters("kmeans", "query", n_clusters=3, start_epoch=1, seed=3)
    callback.on_fit_start(on, MODULE)
    callback.on_train_epoch_end(on, MODULE)
    topics = callback.clusters
    for epoch in range(1, 6):
        sampler.epoch = epoch
        assert all(len({topics[i] for i in plan.indices}) == 1 for plan in sampler)


def test_a_resumed_run_has_its_clusters_without_encoding(encodings, tmp_path):
    first, on = RefreshClusters("kmeans", "query", n_clusters=3, start_epoch=0), trainer(TopicBatches())
    first.on_fit_start(on, MODULE)
    torch.save(first.state_dict(), tmp_path / "state")
    encodings.clear()
    again, other = RefreshClusters("kmeans", "query", n_clusters=3, start_epoch=0), trainer(TopicBatches())
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    again.on_fit_start(other, MODULE)
    assert other.datamodule.sampler.clusters().tolist() == first.clusters.tolist() and not encodings
    fresh = RefreshClusters()
    fresh.load_state_dict(RefreshClusters().state_dict())
    assert fresh.clusters is None


def test_a_sampler_that_reads_no_clusters_is_refused():
    with pytest.raises(ZooError, match="zoo.data.ClusterUnions"):
        RefreshClusters().on_fit_start(trainer(RandomBatches()), MODULE)


def mined(callback, columns=None):
    on = trainer(OverlappingClusters())
    on.datamodule.train_pairs.columns |= columns or {}
    callback.on_fit_start(on, MODULE)
    return on, [row[row >= 0].tolist() for row in callback.clusters]


def test_self_aware_clusters_are_those_of_the_encoders_vectors(encodings):
    callback = SelfAwareNegatives(top_k=2, pool_mult=1)
    on, found = mined(callback)
    queries, documents = normalize(QUERIES)[torch.as_tensor(QUERY_OF)], normalize(DOCUMENTS)
    known = on.datamodule.train_pairs.columns["known"]
    expected, _ = self_aware_clusters(queries, documents, DOCUMENT_OF, 2, 1, known=known)
    assert np.array_equal(callback.clusters, expected) and encodings == ["query", "document"]
    for anchor, *others in found:
        right = set(known[anchor].tolist())
        assert not right & set(DOCUMENT_OF[others].tolist())
    assert on.datamodule.sampler.clusters() is callback.clusters


def test_tasks_are_mined_alone():
    task = np.array([5, 5, 5, 5, 9, 9, 9, 9])
    _, found = mined(SelfAwareNegatives(top_k=3, pool_mult=2), {"task": task})
    assert found and all(len(set(task[cluster].tolist())) == 1 for cluster in found)
    assert {task[cluster[0]] for cluster in found} == {5, 9}


def test_the_share_of_false_negatives_is_logged_every_epoch():
    logged = []
    module = SimpleNamespace(log=lambda *_: None, log_dict=lambda found, **_: logged.append(found))
    group = np.array([0, 0, 1, 1, 0, 0, 2, 2])
    callback = SelfAwareNegatives(top_k=2, pool_mult=1, every_n_epochs=1)
    on, found = mined(callback, {"group": group})
    false = [group[i] == group[anchor] for anchor, *others in found for i in others]
    members = np.mean([len(cluster) for cluster in found])
    for epoch in range(2):
        on.current_epoch = epoch
        callback.on_train_epoch_end(on, module)
    wanted = {"refresh/clusters": len(found), "refresh/members": members, "refresh/false_negatives": np.mean(false)}
    assert logged == [wanted] * 2


def test_samplers_and_callbacks_of_clusters_have_to_match():
    with pytest.raises(ZooError, match=r"SelfAwareNegatives .* zoo\.data\.OverlappingClusters"):
        SelfAwareNegatives().on_fit_start(trainer(ClusterUnions()), MODULE)
    with pytest.raises(ZooError, match=r"RefreshClusters .* zoo\.data\.ClusterUnions"):
        RefreshClusters().on_fit_start(trainer(OverlappingClusters()), MODULE)


def test_a_resumed_run_has_its_overlapping_clusters(encodings, tmp_path):
    first = SelfAwareNegatives(top_k=2, pool_mult=1)
    mined(first)
    torch.save(first.state_dict(), tmp_path / "state")
    encodings.clear()
    again = SelfAwareNegatives(top_k=2, pool_mult=1)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    on, _ = mined(again)
    assert np.array_equal(on.datamodule.sampler.clusters(), first.clusters) and not encodings

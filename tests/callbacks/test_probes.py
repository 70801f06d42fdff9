"""Probes against brute force and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from zoo.callbacks.probes import few_shot_accuracy, knn_predict, linear_accuracy


def clusters(n, seed, spread=0.6, features=6, classes=4):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, features))
    labels = rng.integers(0, classes, n)
    return torch.tensor(centres[labels] + spread * rng.normal(size=(n, features))), torch.tensor(labels)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_knn_agrees_with_scikit_learn(chunk):
    (train, labels), (queries, _) = clusters(200, 0), clusters(50, 1)
    unit = [torch.nn.functional.normalize(x, dim=1).numpy() for x in (train, queries)]
    reference = KNeighborsClassifier(
        15, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(unit[0], labels)
    got = knn_predict(queries, train, labels, k=15, temperature=0.07, chunk=chunk)
    np.testing.assert_array_equal(got.numpy(), reference.predict(unit[1]))


def test_knn_ignores_the_length_of_features():
    (train, labels), (queries, _) = clusters(100, 0), clusters(30, 1)
    scaled = knn_predict(queries * 7, train * torch.rand(100, 1).add(0.5), labels)
    assert torch.equal(scaled, knn_predict(queries, train, labels))


@pytest.mark.parametrize("features", [6, 300])
def test_linear_probe_is_logistic_regression_also_with_more_features_than_examples(features):
    train, test = clusters(80, 0, 1.2, features), clusters(400, 1, 1.2, features)
    mean, std = train[0].mean(0), train[0].std(0)
    x, queries = ((f - mean) / std for f in (train[0], test[0]))
    reference = LogisticRegression(max_iter=5000, tol=1e-8).fit(x, train[1]).score(queries, test[1])
    assert linear_accuracy(train, test) == pytest.approx(reference, abs=0.01)
    assert reference > 0.4


def test_few_shot_draws_are_the_same_for_every_run():
    train, test = clusters(400, 0, 1.5), clusters(200, 1, 1.5)
    first = few_shot_accuracy(train, test, shots=5)
    torch.manual_seed(5)
    np.random.seed(5)
    assert few_shot_accuracy(train, test, shots=5) == first
    assert 0.3 < first < linear_accuracy(train, test)

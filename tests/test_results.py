"""result.json, and the statistics of claims against SciPy's."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zoo import results
from zoo.errors import ZooError
from zoo.recipes import Claim, RecipeCard

numbers = st.floats(-1e3, 1e3, width=32)


@pytest.mark.parametrize("degrees", [*range(1, 40), 99, 500])
def test_t_quantile_equals_scipy(degrees):
    for p in (0.6, 0.9, 0.975, 0.999):
        assert results.t_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-9)


@settings(max_examples=50)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12))
def test_interval_equals_scipys_paired_t_test(pairs):
    method, baseline = map(np.array, zip(*pairs, strict=True))
    if np.ptp(method - baseline) < 1e-3:
        return
    expected = stats.ttest_rel(method, baseline).confidence_interval(0.95)
    found = results.compare(method.tolist(), baseline.tolist())
    assert found.mean == pytest.approx((method - baseline).mean(), abs=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)


@given(st.lists(st.tuples(numbers, numbers), max_size=8), st.floats(-1, 1))
def test_directions_mirror_each_other(pairs, margin):
    method, baseline = [a for a, _ in pairs], [b for _, b in pairs]
    up = results.compare(method, baseline, "higher", margin)
    down = results.compare([-a for a in method], [-b for b in baseline], "lower", margin)
    assert up.verdict == down.verdict
    if len(pairs) < 2:
        assert up.verdict == "inconclusive"


def test_verdicts():
    assert results.compare([2.0, 2.1, 2.2], [1.0, 1.2, 1.1]).verdict == "confirmed"
    assert results.compare([2.0, 2.1, 2.2], [1.0, 1.2, 1.1], margin=5.0).verdict == "refuted"
    assert results.compare([2.0, 2.1, 2.2], [1.0, 1.2, 1.1], "lower").verdict == "refuted"
    assert results.compare([2.0, 1.0], [1.0, 2.0]).verdict == "inconclusive"
    assert results.compare([1.0, 1.0], [1.0, 1.0]).verdict == "inconclusive"
    assert results.compare([9.0], [1.0]).verdict == "inconclusive"


@pytest.fixture
def run(tmp_path):
    card = RecipeCard(name="toy", primary="test/x")
    return results.RunInfo(
        card, "fam", "arena", "f" * 64, ["--a=1"], 3, "python -m zoo fit toy", tmp_path / "runs" / "toy" / "ffffffff-s3"
    )


def write(run, **metrics):
    return results.write_result(run, metrics, "10 steps x 4", 1.5, 1000, "cpu")


def test_written_results_read_back(run):
    path = write(run, a=1.0, b=math.nan, c=math.inf)
    found = results.read_result(path)
    assert found.metrics == {"a": 1.0} and found.seed == 3 and found.recipe == "toy" and found.overrides == ["--a=1"]
    assert found.versions["torch"] and found.git_revision
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"seed": "3"}, {"metrics": {"a": "b"}}, {"metrics": None}, {"recipe": None}]
)
def test_malformed_results_are_refused(run, change):
    path = write(run, a=1.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ZooError, match=r"result\.json"):
        results.read_result(path)


def test_broken_json_is_refused(run):
    path = write(run, a=1.0)
    path.write_text(path.read_text()[:50])
    with pytest.raises(ZooError, match=r"result\.json"):
        results.read_result(path)


def test_commit_merges_by_configuration_and_seed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "committed_root", lambda: tmp_path / "committed")
    for value in (1.0, 2.0):
        results.commit([results.read_result(write(run, a=value))])
    run.seed = 4
    results.commit([results.read_result(write(run, a=3.0))])
    assert [(r.seed, r.metrics["a"]) for r in results.committed_results("toy")] == [(3, 2.0), (4, 3.0)]


def test_judge_pairs_by_seed(run, tmp_path):
    def by_seed(values):
        found = {}
        for seed, value in values.items():
            run.seed = seed
            found[seed] = results.read_result(write(run, x=value, y=value - 1))
        return found

    method, baseline = by_seed({0: 1.0, 1: 2.0, 2: 3.0, 5: 9.0}), by_seed({0: 0.5, 1: 1.4, 2: 2.6, 7: 0.0})
    found = results.judge(Claim("quality", "x"), method, baseline)
    assert found.pairs == 3 and found.mean == pytest.approx(0.5)
    found = results.judge(Claim("quality", "x", against="y"), method, {})
    assert found.pairs == 4 and found.mean == pytest.approx(1.0) and found.verdict == "confirmed"
    assert results.judge(Claim("quality", "absent"), method, baseline).pairs == 0


def test_git_revision_outside_a_checkout(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert results.git_revision() == "unknown"

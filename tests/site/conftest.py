"""The toy recipes of the command line's tests, and runs of them that nobody had to train."""

import csv
import json

import numpy as np
import pytest

from tests.cli.conftest import error_line, zoo  # noqa: F401

METRICS = {"base": 0.5, "better": 0.75}


@pytest.fixture
def only_toys(zoo, tmp_path, monkeypatch):  # noqa: F811
    """No recipes but the toys: pages of all others take their time."""
    monkeypatch.setattr("zoo.recipes.roots", lambda: [tmp_path / "recipes"])


@pytest.fixture
def runs(only_toys, tmp_path):
    """Three finished runs of `base` and of `better`, with curves, histogram and a picture."""
    for recipe, score in METRICS.items():
        for seed in range(3):
            folder = tmp_path / "runs" / recipe / f"0123abcd-s{seed}"
            folder.mkdir(parents=True)
            metrics = {"test/score": score + seed / 100, "test/score_random": 0.1, "train/loss": 2.0 - seed / 10}
            result = {
                "recipe": recipe, "family": "toy", "arena": "toys", "seed": seed, "budget": "8 steps x 8",
                "fingerprint": "0123abcd" * 8, "overrides": [], "metrics": metrics, "primary": "test/score",
                "wall_time_s": 10.0 * (1 + (recipe == "better")), "peak_memory_bytes": 10**9 * (1 + seed),
                "versions": {}, "git_revision": "f" * 40, "device": "cpu", "command": "python -m zoo fit",
                "finished_at": f"2026-01-0{seed + 1}T00:00:00+00:00", "overlays": [], "schema": 1,
            }  # fmt: skip
            (folder / "result.json").write_text(json.dumps(result))
            with (folder / "metrics.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["epoch", "step", "eval/score", "train/loss"])
                rows.writerows([[0, 1, "", 3.0], [0, 3, 0.2 + seed, ""], [1, 5, "", 2.0], [1, 7, 0.4 + seed, ""]])
            rows = np.zeros((2, 4))
            rows[:, 2], rows[-1, 3] = 5, 15
            np.savez_compressed(
                folder / "score_histogram.npz", edges=np.linspace(-1, 1, 5), positives=rows, negatives=rows[:, ::-1]
            )
            (folder / "panel.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "runs"

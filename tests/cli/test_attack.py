"""`attack`: which runs it makes, and what it says of them."""

import json
import math
from types import SimpleNamespace

import pytest

from tests.data.tiny import Tiny
from zoo import recipes
from zoo.commands import attack, verify
from zoo.results import Result

SMALL = [
    *("--data.source.init_args.source", f"{Tiny.__module__}.Tiny", "--data.source.init_args.n_attack", "8"),
    *("--data.batch_size", "8", "--data.tokenizer.init_args.vocab_size", "300", "--trainer.max_epochs", "1"),
    *("--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"),
]


@pytest.fixture
def in_process(zoo, monkeypatch, tmp_path):
    """Runs in this process: starting Python and torch for each would take minutes."""
    started = []

    def start(job, environment):
        started.append(job.command[4:])
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text("zoo: error: it broke\n")
        code = zoo(job.command[3:])
        job.process = SimpleNamespace(poll=lambda: code)
        return job

    monkeypatch.delenv("ZOO_RECIPES")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verify, "_start", start)
    monkeypatch.setattr(verify.time, "sleep", lambda _: None)
    return started


def test_a_grid_of_runs_becomes_a_table(zoo, in_process, capfd):
    args = ["attack", "infonce", "--rates", "0.2,0", "--seeds", "1", *SMALL]
    assert zoo(args) == 0
    assert [(c[0], c[1], c[c.index(attack.RATE) + 1]) for c in in_process] == [
        ("infonce", "poisoned", "0"), ("infonce", "poisoned", "0.2")
    ]  # fmt: skip
    out = capfd.readouterr().out
    assert "backdoor on tiny-012345: 2 steps x 8" in out and "python -m zoo attack infonce --rates 0.2,0" in out
    assert zoo([*args, "--format", "json"]) == 0
    assert len(in_process) == 2  # nothing is run twice
    clean, poisoned = json.loads(capfd.readouterr().out)
    assert (clean["recipe"], clean["rate"], clean["seeds"]) == ("infonce", 0.0, 1) and poisoned["rate"] == 0.2
    assert clean["chance"]["mean"] == pytest.approx(1.0)  # 8 passages, 78 documents, 10 ranks: more than one of them
    assert 0 <= poisoned["asr_triggered"]["mean"] <= 1
    assert clean["mrr_delta"] is None
    difference = poisoned["mrr_clean"]["mean"] - clean["mrr_clean"]["mean"]
    assert poisoned["mrr_delta"]["mean"] == pytest.approx(difference)
    assert zoo(["attack", "infonce", "--rates", "0.20", "--seeds", "1", *SMALL]) == 0
    assert len(in_process) == 2


def test_failed_runs_leave_gaps(zoo, in_process, capfd):
    assert zoo(["attack", "infonce", "--rates", "0.2", "--seeds", "1", *SMALL, "--trainer.max_epochs", "many"]) == 1
    out, err = capfd.readouterr()
    assert "infonce seed 0 failed: zoo: error: it broke; see " in err and "Traceback" not in err
    assert "no runs" in out and " - " in out


def result(seed, mrr, asr=0.5):
    metrics = {"test/mrr@10": mrr, "attack/asr@10": asr, "attack/asr@10_clean": 0.1, "attack/chance@10": 0.2}
    names = {"recipe": "a", "family": "text", "arena": "tiny", "primary": "test/mrr@10", "budget": "2 steps x 8"}
    empty = dict.fromkeys(("fingerprint", "git_revision", "device", "command", "finished_at"), "")
    numbers = {"seed": seed, "metrics": metrics, "wall_time_s": 1.0, "peak_memory_bytes": 1}
    return Result(**names, **empty, **numbers, overrides=[], versions={})


def test_differences_are_paired_by_seed():
    runs = {("a", 0.0): {0: result(0, 0.3), 1: result(1, 0.5)}, ("a", 0.2): {1: result(1, 0.4, 0.9), 2: result(2, 0.1)}}
    clean, poisoned = attack.rows(runs)
    assert clean["mrr_delta"] is None and clean["mrr_clean"]["mean"] == pytest.approx(0.4)
    assert poisoned["mrr_delta"] == {"mean": pytest.approx(-0.1), "ci95": None}
    assert poisoned["asr_delta"] == {"mean": pytest.approx(0.4), "ci95": None} and clean["asr_delta"] is None
    low, high = poisoned["asr_triggered"]["ci95"]
    half = 12.706 * math.sqrt(0.08) / math.sqrt(2)  # Student's t with one degree of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3) and poisoned["asr_triggered"]["mean"] == pytest.approx(0.7)


def test_the_poisoned_overlay_is_there_for_every_text_recipe():
    names = [name for name in recipes.names() if recipes.load_card(name).family == "text"]
    assert names
    for name in names:
        source = recipes.merge(recipes.layers(name, ["poisoned"]))["data"]["source"]
        assert source["class_path"] == "zoo.data.Poisoned" and source["init_args"]["rate"] == 0.2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "which recipe?"),
        (["infonc"], "did you mean 'infonce'"),
        (["simclr"], "no overlay 'poisoned'"),
        (["infonce", "--rates", "0.1,x"], "shares from 0 to 1"),
        (["infonce", "--rates", "2"], "shares from 0 to 1"),
        (["infonce", "--rates", "nan"], "shares from 0 to 1"),
        (["infonce", "--seeds", "0"], "at least 1"),
        (["infonce", "--jobs", "x"], "invalid int value"),
        (["infonce", "--data.source.rate", "0.1"], "use --rates"),
        (["infonce", "--seed_everything=3"], "--seeds N"),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line(error_line, in_process, args, message):
    assert message in error_line("attack", *args)
    assert not in_process

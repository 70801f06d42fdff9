"""A killed run continues as if nothing had happened; the same seed repeats a run; a NaN loss ends one cleanly."""

import csv
import itertools
import json
import random
import signal
import subprocess
import sys
import time

import pytest
import threadpoolctl
import torch
import yaml

from zoo import recipes
from zoo.__main__ import main
from zoo.losses import InfoNCE

STEPS_PER_EPOCH, EPOCHS = 6, 6
DATA = {
    "source": {"init_args": {"size": 8, "n_train": 103, "n_val": 32, "n_test": 32}},
    "transform": {"init_args": {"size": 8}},
    "batch_size": 16,
}
MIXING = {"n_hard": 32, "n_mix": 16, "n_query_mix": 8, "start_epoch": 1}


def overlay(name, every):
    """Tiny data, every step observed, a checkpoint every few steps (which need not divide an epoch)."""
    callbacks = recipes.merge(recipes.layers(name))["trainer"]["callbacks"]
    changes = {
        "ScoreStatistics": {"every_n_steps": 1},
        "ScoreHistogram": {"every_n_steps": 1},
        "ModelCheckpoint": {"every_n_train_steps": every},
    }
    for callback in callbacks:
        callback["init_args"] = callback.get("init_args", {}) | changes.get(callback["class_path"].split(".")[-1], {})
    trainer = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "check_val_every_n_epoch": 4,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "callbacks": callbacks,
    }
    model = {"init_args": {"encoder": {"init_args": {"backbone": {"init_args": {"width": 4}}}}}}
    if name == "mochi":
        negatives = [{"class_path": "zoo.negatives.HardNegativeMixing", "init_args": MIXING}]
        model["init_args"] |= {"queue_size": 72, "negatives": negatives}  # the batch does not divide it
    return {"data": DATA, "trainer": trainer, "model": model}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Linear algebra libraries sum in an order that depends on their threads, whose number may follow the load."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpoolctl.threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reliability")
    overlays = {f"{o}/{n}": overlay(n, every) for o, every in (("tiny", 5), ("often", 1)) for n in ("mochi", "simclr")}
    for path, content in overlays.items():
        path = folder / "recipes" / "ssl" / "_with" / f"{path}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_RECIPES", str(folder / "recipes"))
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder
    signal.signal(signal.SIGINT, handler)


def fit(runs, name, *options):
    assert main(["fit", name, "tiny", "--runs", str(runs), *options]) == 0
    (run,) = (runs / name).iterdir()
    return run


@pytest.fixture(scope="module")
def whole(place):
    """A run that nobody interrupts."""
    return fit(place / "whole", "mochi")


def metrics(run):
    found = json.loads((run / "result.json").read_text())["metrics"]
    return {key: value for key, value in found.items() if not key.startswith("perf/")}


def history(run):
    with (run / "metrics.csv").open() as file:
        cells = [(int(row["step"]), key, value) for row in csv.DictReader(file) for key, value in row.items()]
    return {(step, key): value for step, key, value in cells if value and not key.startswith("perf/")}


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_weights(run, other):
    ours, theirs = (checkpoint(folder)["state_dict"] for folder in (run, other))
    assert ours.keys() == theirs.keys() and {"queue.rows", "queue.keys", "queue.pointer"} <= ours.keys()
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]


def at_step(number, action):
    """InfoNCE whose call `number` (from 0), that is training step, ends in `action`."""
    forward, calls = InfoNCE.forward, itertools.count()
    return lambda *args: action(forward(*args)) if next(calls) == number else forward(*args)


def stop(loss):
    raise KeyboardInterrupt


def kill_at(process, path, step):
    """SIGKILL the process a random moment after its checkpoint has reached `step`."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        found = list(path.glob("mochi/*/checkpoints/last.ckpt"))
        if found and torch.load(found[0], weights_only=True, mmap=True)["global_step"] >= step:
            time.sleep(random.uniform(0, 0.1))
            break
        time.sleep(0.01)
    process.kill()
    return process.wait()


def test_killed_run_continues_bit_for_bit(place, whole):
    runs, log = place / "killed", place / "killed.log"
    command = [sys.executable, "-m", "zoo", "fit", "mochi", "tiny", "--runs", str(runs)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        status = kill_at(process, runs, step := random.randint(8, 20))
    assert status == -signal.SIGKILL, log.read_text()
    (run,) = (runs / "mochi").iterdir()
    reached = checkpoint(run)["global_step"]
    assert step <= reached < STEPS_PER_EPOCH * EPOCHS and not (run / "result.json").exists()

    assert fit(runs, "mochi", "--ckpt_path", "last") == run
    assert_same_weights(run, whole)
    assert metrics(run) == metrics(whole)
    continued, uninterrupted = history(run), history(whole)
    assert [s for s, key in uninterrupted if key == "train/loss"] == list(range(STEPS_PER_EPOCH * EPOCHS))
    # Rows before the checkpoint were in the memory of the killed process.
    assert continued == {at: value for at, value in uninterrupted.items() if at[0] >= reached or at in continued}


@pytest.mark.parametrize("step", [5, 7, 12])
def test_continues_from_any_step(place, whole, step, monkeypatch):
    runs = place / f"stopped-{step}"
    with monkeypatch.context() as patch:
        patch.setattr(InfoNCE, "forward", at_step(step, stop))
        assert main(["fit", "mochi", "tiny", "often", "--runs", str(runs)]) == 130
    (run,) = (runs / "mochi").iterdir()
    assert checkpoint(run)["global_step"] == step
    assert fit(runs, "mochi", "often", "--ckpt_path", "last") == run
    assert_same_weights(run, whole)
    assert metrics(run) == metrics(whole)
    found = history(run)
    # What Lightning writes as an epoch ends is lost where the checkpoint lies between its last batch and that.
    end = {(step - 1, key) for _, key in found} - found.keys() if step % STEPS_PER_EPOCH == 0 else set()
    assert found == {at: value for at, value in history(whole).items() if at not in end}


def test_same_seed_same_result(place):
    first, again = (fit(place / folder, "simclr", "--trainer.max_epochs", "2") for folder in ("first", "again"))
    other = fit(place / "other", "simclr", "--trainer.max_epochs", "2", "--seed_everything", "1")
    assert metrics(first) == metrics(again) and len(metrics(first)) > 10
    assert metrics(first)["train/loss"] != metrics(other)["train/loss"]


def test_nan_loss_ends_the_run_and_keeps_the_checkpoint(place, monkeypatch, capfd):
    runs = place / "nan"
    monkeypatch.setattr(InfoNCE, "forward", at_step(7, lambda loss: loss * torch.nan))
    assert main(["fit", "simclr", "tiny", "often", "--runs", str(runs)]) == 2
    (line,) = filter(str.strip, capfd.readouterr().err.splitlines())
    assert line.startswith("zoo: error: the loss is nan at step 8 (epoch 1, batch 1, pairs ")
    (run,) = (runs / "simclr").iterdir()
    saved = checkpoint(run)
    assert saved["global_step"] == 7 and not (run / "result.json").exists()
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_huge_learning_rate_is_one_line(place, capfd):
    options = ["--model.optimizer.lr", "1e30", "--runs", str(place / "huge")]
    assert main(["fit", "simclr", "tiny", *options]) == 2
    (line,) = filter(str.strip, capfd.readouterr().err.splitlines())
    assert "the loss is nan at step " in line and "lower the learning rate" in line

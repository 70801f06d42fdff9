"""Whatever a user hands in, the answer is success or one line; what was already written stays as it is."""

import hashlib
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.conftest import BASE, BETTER, DEFAULTS
from zoo.negatives.table import NegativeTable, mine_random

FEW = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=110, derandomize=False)

JUNK = st.one_of(
    st.sampled_from(
        [
            *[
                "",
                " ",
                "null",
                "true",
                "-1",
                "0",
                "0.5",
                "nan",
                "inf",
                "1e400",
                "-0",
                "7",
                "[1, 2",
                "{a: }",
                "{}",
                "[]",
            ],
            *["[null]", "{class_path: os.system}", "{class_path: zoo.losses.InfoNCE}", "{class_path: nowhere.Class}"],
            *[
                "{class_path: tests.cli.toy.Toy, init_args: {bonus: x}}",
                "zoo",
                "zoo.losses",
                "tests.cli.toy.Toy",
                "a.b",
            ],
            *[
                "../..",
                "/dev/null",
                "/",
                "~",
                "file with spaces",
                "é ü 漢",
                "%s",
                "${HOME}",
                "!!python/object:os.x",
                "&a *a",
            ],
        ]
    ),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=12),
    st.integers(-3, 3).map(str),
    st.floats(-1e6, 1e6).map(str),
)
FLAGS = [
    *["model", "model.bonus", "model.width", "model.temperature", "model.init_args", "data.batch_size", "data.source"],
    *["data.root", "data.sampler", "data.n_negatives", "data.table", "data.miner", "data.transform", "data.tokenizer"],
    *["data.generator", "data.eval_batch_size", "data", "trainer", "trainer.max_epochs", "trainer.precision"],
    *["trainer.limit_train_batches", "trainer.callbacks", "trainer.logger", "trainer.strategy", "trainer.accelerator"],
    *["trainer.gradient_clip_val", "trainer.accumulate_grad_batches", "trainer.check_val_every_n_epoch"],
    *[
        "trainer.val_check_interval",
        "trainer.default_root_dir",
        "trainer.profiler",
        "trainer.plugins",
        "trainer.num_nodes",
    ],
    *[
        "seed_everything",
        "ckpt_path",
        "config",
        "recipe",
        "recipe.claim",
        "recipe.arena",
        "weights_only",
        "print_config",
    ],
]


@pytest.fixture
def place(zoo, tmp_path, monkeypatch):
    """A working directory with a finished run of `base`."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert zoo(["fit", "base"]) == 0
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def answers(zoo, capfd, args):
    """Status 0, or status 2 with one line."""
    capfd.readouterr()
    status = zoo(args)
    err = capfd.readouterr().err
    assert status in (0, 2), (args, status, err)
    if status == 2:
        errors = [line for line in err.splitlines() if line.startswith("zoo: error: ")]
        assert len(errors) == 1 and "Traceback" not in err, (args, err)
        assert len(errors[0]) > len("zoo: error: ") + 5, (args, err)
    return status


def over(flags, zoo, capfd, place):
    before = contents(place / "runs")
    options = [f"--{flag}={value}" for flag, value in flags.items()]
    answers(zoo, capfd, ["fit", "base", *options, "--trainer.max_steps=2"])
    after = contents(place / "runs")
    assert {k: after.get(k) for k in before} == before, flags


@st.composite
def broken_yaml(draw):
    """One of the toy recipes with characters or lines changed."""
    text = draw(st.sampled_from([DEFAULTS, BASE, BETTER]))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text) - 1))
        kind = draw(st.sampled_from(["cut", "insert", "line"]))
        if kind == "cut":
            text = text[:at] + text[at + draw(st.integers(1, 12)) :]
        elif kind == "insert":
            text = text[:at] + draw(st.text("{}[]:,-&*!|>'\"#%@` \n\tax1", min_size=1, max_size=4)) + text[at:]
        else:
            lines = text.splitlines(keepends=True)
            lines.pop(at % len(lines))
            text = "".join(lines) or " "
    return text


def recipe_file(text, zoo, capfd, place):
    name = "_defaults" if "seed_everything" in text else "toy/better" if "bonus" in text else "toy/base"
    path = place / "recipes" / f"{name}.yaml"
    before, old = path.read_text(), contents(place / "runs")
    path.write_text(text)
    try:
        for command in (["list"], ["leaderboard"], ["show", "better"], ["fit", "better", "--print_config"]):
            answers(zoo, capfd, command)
        answers(zoo, capfd, ["fit", "better", "--trainer.max_steps=1", "--trainer.max_epochs=1", "--trainer.devices=1"])
    finally:
        path.write_text(before)
    after = contents(place / "runs")
    assert {k: after.get(k) for k in old} == old


@st.composite
def broken_bytes(draw):
    """Changes to a file: (place as a share of its length, what to put there); None cuts it off there."""
    change = st.tuples(st.floats(0, 1), st.one_of(st.none(), st.binary(min_size=1, max_size=8)))
    return draw(st.lists(change, min_size=1, max_size=3))


def spoil(data: bytes, changes) -> bytes:
    for share, new in changes:
        at = int(share * max(len(data) - 1, 0))
        data = data[:at] if new is None else data[:at] + new + data[at + len(new) :]
    return data


def checkpoint_file(changes, zoo, capfd, place):
    (last,) = (place / "runs").glob("base/*/checkpoints/last.ckpt")
    path = place / "work" / "spoiled.ckpt"
    path.write_bytes(spoil(last.read_bytes(), changes))
    before = contents(place / "runs")
    for command in ("test", "fit", "predict"):
        answers(zoo, capfd, [command, "base", "--ckpt_path", str(path), "--trainer.max_steps=9"])
    after = contents(place / "runs")
    assert {k: after.get(k) for k in before} == before


def result_file(changes, zoo, capfd, place):
    (result,) = (place / "runs").glob("base/*/result.json")
    good = result.read_bytes()
    result.write_bytes(spoil(good, changes))
    try:
        for command in (["leaderboard"], ["leaderboard", "--format", "json"], ["show", "base"]):
            answers(zoo, capfd, command)
    finally:
        result.write_bytes(good)


KINDS = {
    "overrides": (over, st.dictionaries(st.sampled_from(FLAGS), JUNK, min_size=1, max_size=2)),
    "recipes": (recipe_file, broken_yaml()),
    "checkpoints": (checkpoint_file, broken_bytes()),
    "results": (result_file, broken_bytes()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_answered_in_one_line(kind, zoo, capfd, place):
    check, strategy = KINDS[kind]
    FEW(given(strategy)(lambda value: check(value, zoo, capfd, place)))()


@pytest.mark.parametrize("flag", ["trainer.check_val_every_n_epoch", "trainer.accumulate_grad_batches"])
def test_a_divisor_is_not_zero(flag, error_line, place):
    line = error_line("fit", "base", f"--{flag}=0")
    assert line == f"zoo: error: --{flag} must be at least 1, not 0"


def test_a_byte_of_a_checkpoint_that_changed_is_noticed(error_line, place):
    (last,) = (place / "runs").glob("base/*/checkpoints/last.ckpt")
    data = last.read_bytes()
    at = data.index(b"total_batch_idx") if b"total_batch_idx" in data else data.index(b"epoch_loop")
    path = place / "work" / "changed.ckpt"
    path.write_bytes(data[:at] + b"x" + data[at + 1 :])
    for stage in ("fit", "test"):
        assert "is damaged" in error_line(stage, "base", "--ckpt_path", str(path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_much_bad_input_is_answered_in_one_line(kind, zoo, capfd, place):
    check, strategy = KINDS[kind]
    MANY(given(strategy)(lambda value: check(value, zoo, capfd, place)))()


@contextmanager
def full_disk(n):
    """No file may grow beyond `n` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_good_checkpoint(zoo, runs, error_line):
    size = ["--model.width", "4000"]
    assert zoo(["fit", "base", *size]) == 0
    (last,) = runs.glob("base/*/checkpoints/last.ckpt")
    before = contents(runs)
    with full_disk(20_000):
        line = error_line("fit", "base", *size, "--ckpt_path", str(last), "--trainer.max_epochs", "4")
    assert "File too large" in line
    after = contents(runs)
    assert {k: after[k] for k in before} == before
    assert zoo(["test", "base", *size, "--ckpt_path", str(last)]) == 0


def test_a_full_disk_leaves_the_last_good_table(tmp_path):
    table = mine_random(500, 1000, 8)
    table.save(tmp_path)
    with full_disk(8_000), pytest.raises(OSError, match="too large|written"):
        mine_random(500, 1000, 8, seed=1).save(tmp_path)
    assert (NegativeTable.load(tmp_path).ids == table.ids).all()

"""W&B: what an offline run file holds, read with `wandb leet inspect`, and what reaches a server that stands in for W&B.

The stand-in answers at the HTTP boundary: the client, its uploader included, is wandb's own.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from tests.cli.conftest import BETTER, DEFAULTS
from tests.cli.wandb_stand_in import StandIn
from zoo import wandb_runs
from zoo.__main__ import main
from zoo.recipes import RecipeCard

LOGGER = "    - class_path: lightning.pytorch.loggers.CSVLogger\n"
WANDB = "    - {class_path: lightning.pytorch.loggers.WandbLogger, init_args: {project: zoo, tags: [mine]}}\n"
CALLBACKS = """  callbacks:
    - {class_path: zoo.callbacks.ScoreStatistics, init_args: {every_n_steps: 1}}
    - {class_path: zoo.callbacks.ScoreHistogram, init_args: {every_n_steps: 1}}
    - class_path: tests.cli.wandb_stand_in.Panel
"""
SOURCE = "tests.cli.wandb_stand_in.Scored"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a run that was recorded offline, and the environment it was made in."""
    import wandb

    root = tmp_path_factory.mktemp("wandb")
    defaults = DEFAULTS.replace(LOGGER, LOGGER + WANDB).replace("  callbacks:\n", CALLBACKS)
    better = BETTER.replace("tests.cli.toy.Toy", SOURCE)
    for name, text in {"_defaults": defaults, "toy/better": better, "_with/long": "trainer: {max_epochs: 3}"}.items():
        path = root / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environment = {
        "ZOO_RECIPES": str(root / "recipes"), "ZOO_RUNS": str(root / "runs"), "HOME": str(root), "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, "WANDB_MODE": "offline"}.items():
            patch.setenv(name, value)
        assert main(["fit", "better", "long", "--seed_everything=4"]) == 0
        wandb.teardown()
    signal.signal(signal.SIGINT, handler)
    (folder,) = (root / "runs" / "better").iterdir()
    return folder, environment


@pytest.fixture(scope="module")
def records(recorded):
    """Records of the run file by type, from wandb's own reader."""
    folder, environment = recorded
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    offline = {**os.environ, **environment, "WANDB_MODE": "offline"}
    lines = subprocess.run(command, env=offline, capture_output=True, text=True, check=True).stdout.splitlines()
    found: dict[str, list[dict]] = {}
    for record in map(json.loads, lines):
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def config_of(records) -> dict:
    merged: dict = {}
    for record in [records["run"][0]["config"], *records.get("config", [])]:
        merged |= record["update"]
    return merged


def names(keys) -> set[str]:
    """Names of scalars, without the loggers' own columns."""
    own = ("_", "trainer/", "scores/histogram", "test/panel")
    return {key for key in keys if not key.startswith(own)} - {"epoch", "step"}


def test_metrics_have_one_name_in_result_csv_and_wandb(recorded, records):
    folder, _ = recorded
    result = json.loads((folder / "result.json").read_text())["metrics"]
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {key for record in records["history"] for key in record["item"]}
    assert {"scores/positive", "scores/negative", "negatives/effective", "train/loss", "test/score"} <= set(result)
    assert names(rows[0]) == names(logged) == set(result) | {"train/nan"}  # result.json leaves out what is not finite


def test_final_metrics_are_the_summary(recorded, records):
    result = json.loads((recorded[0] / "result.json").read_text())
    summary: dict = {}
    for record in records["summary"]:
        summary |= record["update"]
    assert {name: summary[name] for name in result["metrics"]} == result["metrics"]
    assert summary["wall_time_s"] == result["wall_time_s"] > 0
    assert summary["peak_memory_bytes"] == result["peak_memory_bytes"]


def test_config_is_the_card_and_the_resolved_configuration(recorded, records):
    folder, _ = recorded
    found = config_of(records)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: found[key] for key in written} == written
    assert found["recipe"]["claim"][0]["statement"] == "scores more" and found["trainer"]["max_epochs"] == 3
    result = json.loads((folder / "result.json").read_text())
    for name in ("family", "arena", "budget", "fingerprint", "seed", "overlays", "overrides", "device", "versions"):
        assert found[name] == result[name], name
    assert found["method"] == "better" and found["baseline"] == "base" and found["variant"] == "long"


def test_tags_name_and_end_of_the_run(recorded, records):
    run = records["run"][0]
    assert set(run["tags"]) == {"mine", "toy", "better", "toys", "baseline:base"}
    assert run["display_name"] == f"better-{recorded[0].name}" and run["project"] == "zoo"
    assert records["exit"][-1].get("exit_code", 0) == 0


def test_histograms_and_pictures_are_media(recorded, records):
    kinds = [
        (key.removesuffix("._type"), value)
        for record in records["history"]
        for key, value in record["item"].items()
        if key.endswith("._type")
    ]
    for side in ("positives", "negatives"):
        assert kinds.count((f"scores/histogram_{side}", "histogram")) == 3  # one an epoch
    assert {name for name, kind in kinds if kind == "image-file"} == {"scores/histogram", "test/panel"}
    pictures = [path.name for path in recorded[0].glob("wandb/offline-run-*/files/media/images/**/*.png")]
    assert len(pictures) == 2


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (RecipeCard(name="moco", family="ssl"), ["ssl", "moco", "shapes"]),
        (RecipeCard(name="mochi", family="ssl", baseline="moco"), ["ssl", "mochi", "shapes", "baseline:moco"]),
        (RecipeCard(name="x" * 70, family="ssl"), ["ssl", "x" * 64, "shapes"]),
    ],
)
def test_tags(card, expected):
    assert wandb_runs.tags(card, "shapes") == expected


@pytest.fixture
def command(recorded, tmp_path):
    """`zoo leaderboard` in a process of its own, over a copy of the recorded run, with a key for the server that it names.

    Returns (status, lines of stdout, lines of stderr).
    """
    folder, environment = recorded
    shutil.copytree(folder, tmp_path / "runs" / "better" / folder.name, symlinks=True)

    def run(*args: str, url: str | None = None) -> tuple[int, list[str], list[str]]:
        given = {**os.environ, **environment, "ZOO_RUNS": str(tmp_path / "runs"), "HOME": str(tmp_path)}
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "WANDB_SILENT"):
            given.pop(name, None)
        given |= {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": url} if url else {"WANDB_BASE_URL": "http://127.0.0.1:9"}
        line = [sys.executable, "-m", "zoo", "leaderboard", *args]
        done = subprocess.run(line, env=given, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    return run


def test_sync_uploads_once_and_loses_nothing(recorded, records, command):
    name = records["run"][0]["run_id"]
    run = f"better/{recorded[0].name} ({name})"
    with StandIn() as server:
        server.refused.add(name)
        status, out, err = command("--sync", url=server.url)
        assert (
            status == 2 and len(out) == 1 and out[0].startswith(f"failed    {run}: ") and "permission denied" in out[0]
        )
        assert err == ["zoo: error: 1 of 1 offline runs were not uploaded; they are kept: --sync tries again"]
        server.refused.clear()
        assert command("--sync", url=server.url) == (
            0, [f"uploaded  {run}", "1 uploaded, 0 still running, 0 were uploaded before"], []
        )  # fmt: skip
        sent = server.run(name)
        assert set(sent["tags"]) == set(records["run"][0]["tags"]) and sent["project"] == "zoo"
        config = {key: entry["value"] for key, entry in json.loads(sent["config"]).items()}
        assert {key: config[key] for key in config_of(records) if key != "_wandb"} == {
            key: value for key, value in config_of(records).items() if key != "_wandb"
        }
        assert len(server.history[name]) == len(records["history"])
        assert json.loads(server.files["wandb-summary.json"])["test/score"] == pytest.approx(0.54)
        assert sum(path.startswith("media/images/") for path in server.files) == 2
        server.asked.clear()
        assert command("--sync", url=server.url) == (0, ["0 uploaded, 0 still running, 1 were uploaded before"], [])
        assert not server.asked


def test_sync_leaves_a_run_that_is_still_recorded(command, tmp_path):
    (result,) = (tmp_path / "runs").glob("*/*/result.json")
    result.unlink()
    (path,) = (tmp_path / "runs").glob("*/*/wandb/offline-run-*/*.wandb")
    path.touch()
    with StandIn() as server:
        status, out, _ = command("--sync", url=server.url)
        assert (
            status == 0 and out[0].startswith("running   better/") and out[1].startswith("0 uploaded, 1 still running")
        )
        assert not server.asked


@pytest.mark.parametrize("args", [["--sync"], ["--wandb", "negatives"]], ids=lambda args: args[0])
def test_without_a_key_or_an_answer_one_line(command, args):
    assert command(*args)[::2] == (2, ["zoo: error: not logged in to W&B: run `wandb login`, or set WANDB_API_KEY"])
    status, _, err = command(*args, url="http://127.0.0.1:9")
    assert status == 2 and len(err) == 1 and "no answer from W&B at http://127.0.0.1:9" in err[0]


def test_without_wandb_workspaces_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["leaderboard", "--wandb", "negatives"]) == 2
    message = "zoo: error: a report needs wandb-workspaces: pip install negatives-zoo[report]\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("name", ["", "a/b/c", "/b", "a/"])
def test_what_is_no_project(name):
    with pytest.raises(wandb_runs.ZooError, match="PROJECT"):
        wandb_runs.split(name)


def test_leaderboard_publishes_table_and_report(recorded, command):
    printed = json.loads("\n".join(command("--format", "json")[1]))
    with StandIn() as server:
        server.keep_report("another", {"displayName": "notes", "spec": "{}"})
        server.keep_report("earlier", {"displayName": "zoo leaderboard", "spec": "{}"})
        status, out, err = command("--wandb", "someone/negatives", url=server.url)
        assert (status, err) == (0, []), "\n".join(err)
        assert out == [f"published {server.url}/someone/negatives/reports/zoo-leaderboard--earlier"]

        (table,) = (json.loads(body) for path, body in server.files.items() if path.endswith(".table.json"))
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        for row, expected in zip(rows, printed, strict=True):
            low, high = expected["ci95"] or (None, None)
            assert (row["ci95_low"], row["ci95_high"]) == (low, high)
            assert {key: row[key] for key in row if "ci95" not in key} == {
                key: expected[key] for key in row if "ci95" not in key
            }
        (run,) = {v["name"] for v in server.asked["UpsertBucket"]}
        assert server.run(run)["jobType"] == "leaderboard" and server.run(run)["project"] == "negatives"

        assert list(server.reports) == ["another", "earlier"]  # saved over the one of before
        blocks = json.loads(server.reports["earlier"]["spec"])["blocks"]
        grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
        assert grids[0]["runSets"][0]["filters"]["filters"][0]["value"] == run
        fingerprint = json.loads((recorded[0] / "result.json").read_text())["fingerprint"]
        (mine,) = (grid for grid in grids if fingerprint in json.dumps(grid["runSets"]))
        conditions = {f["key"]["name"]: f["value"] for f in mine["runSets"][0]["filters"]["filters"]}
        assert conditions == {"family": "toy", "arena": "toys", "budget": "12 steps x 8", "fingerprint": [fingerprint]}
        panels = [panel["config"] for panel in mine["panelBankSectionConfig"]["panels"]]
        shown = {name for panel in panels for name in panel.get("metrics", []) + panel.get("mediaKeys", [])}
        assert {"summary_metrics.test/score", "scores/positive", "negatives/effective", "scores/histogram"} <= shown

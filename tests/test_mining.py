"""Mining over files: the same as in memory, whatever interrupts it."""

import json

import numpy as np
import pytest
import torch

from zoo import mining
from zoo.__main__ import main
from zoo.errors import ZooError
from zoo.mining import mine_files, read_embeddings, search_files
from zoo.negatives.miners import Rules, mine
from zoo.negatives.table import NegativeTable
from zoo.search import recall, top_k

Q, N, D, K = 50, 400, 16, 7


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "q.npy", rng.standard_normal((Q, D)).astype(np.float32))
    np.save(tmp_path / "d.npy", rng.standard_normal((N, D)).astype(np.float16))
    np.save(tmp_path / "p.npy", rng.integers(0, N, (Q, 2)))
    return tmp_path


def arrays(files):
    return read_embeddings(files / "q.npy"), read_embeddings(files / "d.npy")


@pytest.mark.parametrize("block", [7, 25, 1000])
def test_equals_a_search_in_memory(files, block):
    queries, corpus = arrays(files)
    scores, ids, _ = search_files(queries, corpus, K, files / "out", block=block)
    expected = top_k(torch.from_numpy(queries), torch.from_numpy(corpus).float(), K)
    assert np.array_equal(ids, expected[1]) and np.array_equal(scores, expected[0])
    assert ids.dtype == np.int64 and scores.dtype == np.float32


def test_a_killed_search_goes_on_where_it_stopped(files):
    queries, corpus = arrays(files)
    whole = search_files(queries, corpus, K, files / "whole")[1]
    seen = []

    def killed(done, total):
        seen.append((done, total))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_files(queries, corpus, K, files / "out", block=8, progress=killed)
    assert json.loads((files / "out/search.json").read_text())["done"] == 24
    later = []
    ids = search_files(queries, corpus, K, files / "out", block=8, progress=lambda *n: later.append(n))[1]
    assert (seen, later) == ([(8, Q), (16, Q), (24, Q)], [(32, Q), (40, Q), (48, Q), (50, Q)])
    assert np.array_equal(ids, whole)


def test_a_folder_holds_one_search(files):
    queries, corpus = arrays(files)
    search_files(queries, corpus, K, files / "out")
    for other in ((queries + 1, corpus, K), (queries, corpus[:-1], K), (queries, corpus, K + 1)):
        with pytest.raises(ZooError, match="holds a search of other embeddings, depth or index"):
            search_files(*other, files / "out")


@pytest.mark.parametrize("rules", [Rules(), Rules(relative_margin=0.3, skip_top=1, keep=3)])
def test_mines_what_mining_in_memory_does(files, rules):
    queries, corpus = arrays(files)
    known = np.load(files / "p.npy")
    known[3] = -1
    table, positives = mine_files(queries, corpus, K, files / "out", known, rules)
    expected = mine(torch.from_numpy(queries), torch.from_numpy(corpus).float(), K, known, rules)
    assert np.array_equal(table.ids, expected.ids) and np.array_equal(table.scores, expected.scores)
    assert [r for r in table.provenance if "rule" in r] == [r for r in expected.provenance if "rule" in r]
    assert NegativeTable.load(files / "out").fingerprint == table.fingerprint
    assert np.isinf(positives[3]) and positives[0] == pytest.approx((corpus[known[0]] @ queries[0]).min(), rel=1e-3)


def test_other_rules_need_no_second_search(files, monkeypatch):
    queries, corpus = arrays(files)
    known = np.load(files / "p.npy")
    mine_files(queries, corpus, K, files / "out", known, Rules())
    monkeypatch.setattr(mining, "top_k", None)
    table, _ = mine_files(queries, corpus, K, files / "out", known, Rules(keep=2))
    assert (table.counts <= 2).all()


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_an_approximate_index_tells_its_recall(files, index):
    pytest.importorskip("faiss")
    queries, corpus = arrays(files)
    none = np.full((Q, 1), -1)
    table, _ = mine_files(queries, corpus, K, files / "out", none, Rules(), index)
    found = torch.from_numpy(np.load(files / "out/search/ids.npy"))
    measured = recall(found, torch.from_numpy(queries), torch.from_numpy(corpus))
    assert table.provenance[0]["recall"] == measured > 0.5


def test_recall_counts_what_was_found():
    queries, corpus = torch.eye(4), torch.eye(4) + 0.1 * torch.arange(4.0)[:, None]
    _, exact = top_k(queries, corpus, 2)
    assert recall(exact, queries, corpus) == 1
    exact[:2, 1] = -1
    assert recall(exact, queries, corpus) == 0.75


def test_command(files, capsys):
    names = [str(files / name) for name in ("q.npy", "d.npy")]
    out = files / "table"
    options = ["--out", str(out), "--positives", str(files / "p.npy"), "--depth", "5", "--relative_margin", "0.05"]
    assert main(["mine", *names, *options, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"negatives of {Q} pairs" in printed and "below_positive" in printed and f"--data.table {out}" in printed
    assert NegativeTable.load(out).ids.shape == (Q, 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["q.npy"], "mine reads two files, queries and documents"),
        (["q.npy", "none.npy"], "no file none.npy"),
        (["q.npy", "text.npy"], "text.npy is no .npy file"),
        (["q.npy", "p.npy"], "embeddings are floating-point numbers"),
        (["q.npy", "wide.npy"], "queries are 16 wide and documents 3"),
        (["q.npy", "d.npy", "--depth", "0"], "--depth must be at least 1"),
        (["q.npy", "d.npy", "--relative_margin", "0.1"], "add --positives"),
        (["q.npy", "d.npy", "--positives", "q.npy"], "positives are document numbers"),
        (["q.npy", "d.npy", "--positives", "far.npy"], "do not fit 50 queries and 400 documents"),
        (["q.npy", "d.npy", "--index", "flat"], "invalid choice: 'flat'"),
        (["q.npy", "d.npy", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["q.npy", "d.npy", "--out", "damaged"], "search.json is damaged: remove damaged/search"),
    ],
)
def test_what_cannot_be_mined_is_said_in_one_line(files, words, message, capsys, monkeypatch):
    monkeypatch.chdir(files)
    (files / "text.npy").write_text("no array")
    np.save("wide.npy", np.zeros((3, 3), np.float32))
    np.save("far.npy", np.full(Q, N))
    (files / "damaged/search").mkdir(parents=True)
    (files / "damaged/search/search.json").write_text("{")
    assert main(["mine", *words, *(["--out", "out"] if "--out" not in words else [])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error

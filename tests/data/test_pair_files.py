"""Pairs and triplets from tables of every format."""

import csv
import gzip
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from zoo.data import NegativesDataModule
from zoo.data.pair_files import HubDataset, PairFiles
from zoo.errors import ZooError
from zoo.negatives.miners import NamedNegatives, Rules

ROWS = [
    {"query": "a", "positive": "A", "negative": "B"},
    {"query": "b", "positive": 'B, "quoted"\nin two lines', "negative": "only a negative"},
    {"query": "a", "positive": "A", "negative": "Z"},  # the pair again, with another negative
    {"query": "a", "positive": "Z", "negative": ""},  # which is a positive of the query too
    {"query": "c", "positive": "B", "negative": "A"},
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


def jsonl(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def table(path, rows):
    if path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        return parquet.write_table(arrow.Table.from_pylist(rows), path)
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return path.write_text(text.getvalue(), newline="")
    if path.suffix == ".tsv":
        rows = [{key: value.replace("\n", " ") for key, value in row.items()} for row in rows]
        return path.write_text("\n".join("\t".join(r) for r in [list(rows[0]), *(row.values() for row in rows)]))
    return jsonl(path, rows)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet", "csv", "tsv"])
def test_every_format_holds_the_same_triplets(tmp_path, suffix):
    for split in ("train", "val"):
        table(tmp_path / f"{split}.{suffix}", ROWS)
    source = PairFiles()
    source.prepare(tmp_path)
    pairs = source.split("train", tmp_path)
    long = 'B, "quoted" in two lines' if suffix == "tsv" else ROWS[1]["positive"]
    assert [pairs[i] for i in range(4)] == [("a", "A"), ("b", long), ("a", "Z"), ("c", "B")]
    assert sorted(pairs.documents) == sorted(["A", "B", long, "only a negative", "Z"])
    named = [[pairs.documents[d] for d in row if d >= 0] for row in pairs.negatives.tolist()]
    assert named == [["B", "Z"], ["only a negative"], [], ["A"]]
    assert source.report == {"pairs": 4}

    mined = pairs.table()
    assert [[pairs.documents[d] for d in row if d >= 0] for row in mined.ids.tolist()] == [
        ["B"],  # Z is another positive of the query
        ["only a negative"],
        [],
        ["A"],
    ]
    assert mined.provenance[-1] == {"rule": "drop_positives", "rejected": 1}


def test_lists_of_negatives_keep_their_order(tmp_path):
    rows = [
        {"q": "a", "p": "A", "n": ["Z", "Y", "X", "Y"]},
        {"q": "b", "p": "B"},
        {"q": "c", "p": "C", "n": []},
        {"q": "a", "p": "A", "n": ["W", "X"]},
    ]
    jsonl(tmp_path / "train.jsonl", rows)
    jsonl(tmp_path / "val.jsonl", rows)
    pairs = PairFiles(anchor="q", positive="p", negatives="n").split("train", tmp_path)
    assert [pairs.documents[d] for d in pairs.negatives[0]] == ["Z", "Y", "X", "W"]
    assert (pairs.negatives[1:] == -1).all() and pairs.negatives.shape == (3, 4)
    with pytest.raises(ZooError, match="name no negatives"):
        PairFiles(anchor="q", positive="p").split("train", tmp_path).table()


SCORED = [
    {"query": "a", "positive": "A", "negative": ["Z", "Y", "X"], "judged": [0.9, 0.1, 0.8, 0.3], "reply": "one"},
    {"query": "b", "positive": "B", "judged": [0.7], "reply": "two"},
    {"query": "a", "positive": "A", "negative": ["Y", "W"], "judged": [5, 6, 0.5], "reply": "three"},  # known: W alone
    {"query": "c", "positive": "C", "negative": ["A"], "judged": [-1, 0.2], "reply": "four"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_teacher_s_scores_and_answers_stay_with_their_texts(tmp_path, suffix):
    table(tmp_path / f"train.{suffix}", SCORED)
    table(tmp_path / "val.jsonl", [{"query": "a", "positive": "A"}])  # evaluation needs neither
    source = PairFiles(scores="judged", answer="reply")
    source.prepare(tmp_path)
    pairs = source.split("train", tmp_path)
    assert list(pairs.answers) == ["one", "two", "four"] and source.split("val", tmp_path).answers is None
    mined = NamedNegatives().mine(pairs)
    assert mined.positives.tolist() == pytest.approx([0.9, 0.7, -1])
    found = [
        [(pairs.documents[d], pytest.approx(s)) for d, s in zip(ids, scores, strict=True) if d >= 0]
        for ids, scores in zip(mined.ids, mined.scores, strict=True)
    ]
    assert found == [[("Y", 0.8), ("W", 0.5), ("X", 0.3), ("Z", 0.1)], [], [("A", 0.2)]]
    margin = NamedNegatives(Rules(absolute_margin=0.2)).mine(pairs)  # a positive of its own teacher, not of the miner
    assert margin.counts.tolist() == [3, 0, 0]
    assert PairFiles().split("train", tmp_path).table().positives is None


@pytest.mark.parametrize("scores", [[0.5], [0.5, "1"], 3, None, [0.5, float("nan")]])
def test_scores_that_do_not_fit_their_row_are_named(tmp_path, scores):
    jsonl(tmp_path / "train.jsonl", [{"query": "a", "positive": "A", "negative": "Z", "judged": scores}])
    with pytest.raises(ZooError, match=r"train.jsonl:1: the field 'judged' is no list of 2 numbers"):
        PairFiles(scores="judged").split("train", tmp_path)


def test_negatives_reach_the_batch(tmp_path):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "negative": [f"n{i}", f"m{i}"][: i % 3]} for i in range(8)]
    jsonl(tmp_path / "train.jsonl", rows)
    jsonl(tmp_path / "val.jsonl", rows)
    source = PairFiles()
    data = NegativesDataModule(
        source, root=tmp_path, batch_size=8, table=source.split("train", tmp_path).table(), n_negatives=2
    )
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch.negative_mask.sum(1).tolist() == [int(i) % 3 for i in batch.index]
    for row, i in enumerate(batch.index.tolist()):
        mine = {text for text, on in zip(batch.negatives[2 * row :], batch.negative_mask[row], strict=False) if on}
        assert mine == {f"n{i}", f"m{i}"} if i % 3 == 2 else mine <= {f"n{i}"}


def test_without_a_validation_file_a_twentieth_of_the_queries_validates(tmp_path):
    rows = [{"query": f"q{i % 40}", "positive": f"p{i}"} for i in range(120)]
    jsonl(tmp_path / "train.jsonl", rows)
    source = PairFiles()
    train, val = source.split("train", tmp_path), source.split("val", tmp_path)
    assert len(val.queries) == 2 and len(val) == 6 and not set(val.queries) & set(train.queries)
    assert {p[i] for p in (train, val) for i in range(len(p))} == {(r["query"], r["positive"]) for r in rows}
    data = source.retrieval("val", tmp_path)
    assert list(data.queries) == list(val.queries) and len(data.documents) == 120
    assert [{data.documents[d] for d in row} for row in data.relevance] == [
        {r["positive"] for r in rows if r["query"] == query} for query in data.queries
    ]
    assert source.report["pairs"] == 114


@pytest.mark.parametrize(
    ("name", "text", "line", "kind", "message"),
    [
        ("train.jsonl", b"{", 3, "malformed", "no JSON"),
        ("train.jsonl", b'{"query": "x"}', 3, "missing", "'positive' is missing"),
        ("train.jsonl", b'{"query": "x", "positive": ["y"]}', 3, "malformed", "'positive' is no text"),
        ("train.jsonl", b'{"query": " ", "positive": "y"}', 3, "empty", "'query' is empty"),
        ("train.jsonl", b'{"query": "x", "positive": "y", "negative": ["z", ""]}', 3, "empty", "'negative' is empty"),
        ("train.jsonl", b'{"query": "x", "positive": "y", "negative": {}}', 3, "malformed", "'negative' is no text"),
        ("train.csv", b"x", 5, "malformed", "1 columns where the header has 2"),
        ("train.csv", b'x,"y"z', 5, "malformed", "cannot be parsed"),
        ("train.csv", b'x,"y', 5, "malformed", "cannot be parsed"),
        ("train.csv", b"x,\xff", 5, "malformed", "valid Unicode"),
        ("train.csv", b"x,", 5, "empty", "'positive' is empty"),
        ("train.tsv", b"x\ty\tz", 4, "malformed", "3 columns where the header has 2"),
    ],
)
def test_bad_rows_are_named_or_skipped_and_counted(tmp_path, name, text, line, kind, message):
    good = {
        "train.jsonl": b'{"query": "a", "positive": "A"}\n{"query": "b", "positive": "B"}\n',
        "train.csv": b'query,positive\na,A\nb,"B\nb"\n',
        "train.tsv": b'query\tpositive\na\t"A\nb\tB\n',
    }[name]
    path = tmp_path / name
    path.write_bytes(good)
    jsonl(tmp_path / "val.jsonl", ROWS)
    expected = PairFiles().split("train", tmp_path)
    pairs = [expected[i] for i in range(2)]
    path.write_bytes(good + text + b"\n")
    with pytest.raises(ZooError) as error:
        PairFiles().prepare(tmp_path)
    assert str(error.value).startswith(f"{path}:{line}: ") and message in str(error.value)
    assert "\n" not in str(error.value) and "on_error skip" in str(error.value)

    source = PairFiles(on_error="skip")
    found = source.split("train", tmp_path)
    assert [found[i] for i in range(len(found))] == pairs
    assert source.report == {"pairs": 2, f"skipped_{kind}": 1}


def test_files_and_columns_are_checked(tmp_path):
    with pytest.raises(ZooError, match="--data.root"):
        PairFiles().prepare(None)
    with pytest.raises(ZooError, match="train file is missing"):
        PairFiles().split("train", tmp_path)
    jsonl(tmp_path / "val.jsonl", ROWS)
    (tmp_path / "train.csv").write_text("question,positive\na,A\n")
    with pytest.raises(ZooError, match=r"train.csv:1: no column 'query' among question, positive; .*anchor"):
        PairFiles().prepare(tmp_path)
    assert PairFiles(anchor="question").split("train", tmp_path)[0] == ("a", "A")
    jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(ZooError, match="ambiguous: train.jsonl, train.csv"):
        PairFiles(anchor="question").split("train", tmp_path)
    (tmp_path / "test.csv").write_text("query,positive\n")
    with pytest.raises(ZooError, match="no usable pair"):
        PairFiles().split("test", tmp_path)


def test_damaged_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ZooError, match="train.parquet: cannot be read as Parquet"):
        PairFiles().prepare(tmp_path)


@pytest.mark.parametrize("module", ["pyarrow.parquet", "datasets"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "train.parquet").touch()
    source = HubDataset("some/pairs") if module == "datasets" else PairFiles()
    with pytest.raises(ZooError, match=r"is not installed: pip install negatives-zoo\[hub\]"):
        source.prepare(tmp_path)


class Hub:
    """Stands in for `datasets`."""

    def __init__(self, **splits):
        self.splits, self.asked = splits, []

    def load_dataset(self, name, subset, split):
        self.asked.append((name, subset, split))
        if split not in self.splits:
            raise ValueError(f"Unknown split {split!r}.\nMore about it.")
        rows = self.splits[split]

        class Loaded(list):
            _fingerprint = str(hash(json.dumps(rows)))

        return Loaded(rows)


def test_hub(monkeypatch):
    rows = [{"premise": f"q{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(40)]
    hub = Hub(train=rows, held=rows[:3])
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=hub.load_dataset))
    source = HubDataset("some/pairs", "triplet", anchor="premise", test="held")
    source.prepare(None)
    assert hub.asked == [("some/pairs", "triplet", "train"), ("some/pairs", "triplet", "held")]
    train, val = source.split("train", None), source.split("val", None)
    assert (len(train), len(val)) == (38, 2) and np.all(train.table().counts == 1)
    assert source.retrieval("test", None).relevance == [{0: 1}, {2: 1}, {4: 1}]
    with pytest.raises(ZooError, match=r"some/pairs \(gone\) cannot be loaded: Unknown split 'gone'.; check"):
        HubDataset("some/pairs", train="gone").split("train", None)
    with pytest.raises(ZooError, match=r"some/pairs/train:1: the field 'query' is missing"):
        HubDataset("some/pairs").split("train", None)
    with pytest.raises(ZooError, match="has no test split"):
        HubDataset("some/pairs", anchor="premise", test=None).split("test", None)

"""Text collections, read from tiny copies of their authentic layouts."""

import gzip
import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.data.text_files import BeirCollection
from zoo.data.text_store import IdIndex, TextStore, TextWriter
from zoo.errors import ZooError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ZOO_CACHE", str(folder))
    return folder


@pytest.fixture
def beir(tmp_path):
    """60 documents and 46 queries: 40 to train on (query 0 has two documents), 3 to develop, 3 to test on."""
    corpus = [{"_id": f"d{i}", "title": f"Title {i}", "text": f"text {i}"} for i in range(60)]
    corpus[5]["title"] = ""
    queries = [{"_id": f"q{i}", "text": f"query {i}", "metadata": {}} for i in range(46)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (tmp_path / "qrels").mkdir()
    train = [(f"q{i}", f"d{i}", 1) for i in range(40)] + [("q0", "d59", 2), ("q1", "d58", 0)]
    qrels(tmp_path, "train", train)
    qrels(tmp_path, "dev", [(f"q{i}", f"d{i}", 1) for i in (40, 41, 42)])
    qrels(
        tmp_path, "test", [("q43", "d43", 2), ("q44", "d44", 1), ("q44", "d0", 1), ("q45", "d45", 1), ("q45", "d1", 0)]
    )
    return tmp_path


def qrels(root, part, rows):
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in rows)]
    (root / "qrels" / f"{part}.tsv").write_text("\n".join(lines) + "\n")


def append(path, line):
    """Adds a line to a file and says which one it is."""
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines, line if isinstance(line, bytes) else line.encode()]) + b"\n")
    return len(lines) + 1


def test_beir_splits(beir):
    source = BeirCollection("tiny")
    source.prepare(beir)
    train, val = source.split("train", beir), source.split("val", beir)
    assert (len(train), len(val)) == (41, 3)
    pairs = {train[i] for i in range(41)}
    assert ("query 7", "Title 7 text 7") in pairs and ("query 0", "Title 59 text 59") in pairs
    assert ("query 5", "text 5") in pairs and ("query 1", "Title 58 text 58") not in pairs
    assert train.n_documents == 60 and list(train.queries) == [f"query {i}" for i in range(40)]
    assert train.columns["known"][0].tolist() == [0, 59] and train.columns["known"][1].tolist() == [1, -1]
    assert sorted(val.queries) == ["query 40", "query 41", "query 42"]
    assert source.report == {"documents": 60, "queries": 46, "pairs": 41}


def test_retrieval_searches_the_whole_corpus_with_its_grades(beir):
    data = BeirCollection("tiny").retrieval("test", beir)
    assert list(data.queries) == ["query 43", "query 44", "query 45"] and len(data.documents) == 60
    assert data.relevance == [{43: 2}, {44: 1, 0: 1}, {45: 1}]
    documents, queries = BeirCollection("tiny").evaluation("test", beir)
    assert documents.fetch([43]) == (None, ["Title 43 text 43"]) and queries.fetch([0]) == (["query 43"], None)


def test_without_dev_a_twentieth_of_the_training_queries_validates(beir):
    whole = BeirCollection("tiny").split("train", beir)
    (beir / "qrels" / "dev.tsv").unlink()
    source = BeirCollection("tiny")
    train, val = source.split("train", beir), source.split("val", beir)
    assert len(val.queries) == 2 and not set(val.queries) & set(train.queries)
    assert {p[i] for p in (train, val) for i in range(len(p))} == {whole[i] for i in range(41)}
    assert list(BeirCollection("other").retrieval("val", beir).queries) == list(val.queries)


def test_gzipped_texts_are_the_same(beir):
    plain = BeirCollection("tiny").split("train", beir)
    texts = list(plain.documents)
    for stem in ("corpus", "queries"):
        path = beir / f"{stem}.jsonl"
        (beir / f"{stem}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = BeirCollection("tiny").split("train", beir)
    assert list(zipped.documents) == texts and [zipped[i] for i in range(41)] == [plain[i] for i in range(41)]


def test_a_damaged_archive_is_refused_even_when_rows_may_be_skipped(beir):
    path = beir / "corpus.jsonl"
    (beir / "corpus.jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()
    with pytest.raises(ZooError, match=r"corpus.jsonl.gz:\d+: cannot be read"):
        BeirCollection("tiny", on_error="skip").prepare(beir)


@pytest.mark.parametrize("sign", ["\t", " "])
def test_four_column_qrels_without_a_header(beir, sign):
    lines = [sign.join(row) for row in (("q43", "0", "d43", "1"), ("q44", "0", "d2", "3"), ("q44", "0", "d3", "-1"))]
    (beir / "qrels" / "test.tsv").write_text("\n".join(lines))
    assert BeirCollection("tiny").retrieval("test", beir).relevance == [{43: 1}, {2: 3}]


def test_numbers_are_taken_as_ids(beir):
    append(beir / "corpus.jsonl", '{"_id": 7001, "title": "a title alone", "text": ""}')
    append(beir / "qrels" / "test.tsv", "q43\t7001\t1")
    data = BeirCollection("tiny").retrieval("test", beir)
    assert data.relevance[0] == {43: 2, 60: 1} and data.documents[60] == "a title alone"


@pytest.mark.parametrize(
    ("file", "line", "kind", "message"),
    [
        ("corpus.jsonl", '{"_id": "x", "text": ', "malformed", "no JSON"),
        ("corpus.jsonl", b'{"_id": "x", "text": "\xff"}', "malformed", "no JSON"),
        ("corpus.jsonl", "[1, 2]", "malformed", "no JSON object"),
        ("corpus.jsonl", '{"_id": "x", "text": 3}', "malformed", "'text' is no text"),
        ("corpus.jsonl", '{"_id": "x", "text": "t", "title": [1]}', "malformed", "'title' is no text"),
        ("corpus.jsonl", '{"_id": "x", "text": "a \\ud83d"}', "malformed", "valid Unicode"),
        ("corpus.jsonl", '{"_id": "x", "title": "t"}', "missing", "'text' is missing"),
        ("corpus.jsonl", '{"text": "t"}', "missing", "'_id' is missing"),
        ("corpus.jsonl", '{"_id": "x", "title": "", "text": " "}', "empty", "'text' is empty"),
        ("corpus.jsonl", '{"_id": "d3", "text": "again"}', "duplicate", "further up"),
        ("queries.jsonl", '{"_id": "q3", "text": "again"}', "duplicate", "further up"),
        ("queries.jsonl", '{"_id": "x", "text": ""}', "empty", "'text' is empty"),
        ("qrels/train.tsv", "q3\td9", "malformed", "2 columns"),
        ("qrels/train.tsv", "q3\td9\thigh", "malformed", "'high' is no integer"),
        ("qrels/test.tsv", "q99\td9\t1", "unknown", "query 'q99' is not in queries"),
        ("qrels/test.tsv", "q43\td99\t1", "unknown", "document 'd99' is not in corpus"),
        ("qrels/test.tsv", "q43\td43\t1", "duplicate", "further up"),
        ("qrels/test.tsv", "q0\td9\t0", "no_positive", "query 'q0' has no relevant document"),
    ],
)
def test_bad_rows_are_named_or_skipped_and_counted(beir, file, line, kind, message):
    expected = BeirCollection("tiny").retrieval("test", beir)
    texts, relevance = list(expected.documents), expected.relevance
    number = append(beir / file, line)
    with pytest.raises(ZooError) as error:
        BeirCollection("tiny").prepare(beir)
    assert str(error.value).startswith(f"{beir / file}:{number}: ") and message in str(error.value)
    assert "\n" not in str(error.value) and "on_error skip" in str(error.value)

    source = BeirCollection("tiny", on_error="skip")
    source.prepare(beir)
    data = source.retrieval("test", beir)
    assert {k: n for k, n in source.report.items() if k.startswith("skipped")} == {f"skipped_{kind}": 1}
    assert list(data.documents) == texts and data.relevance == relevance


def test_rows_after_a_skipped_one_keep_their_ids(beir):
    lines = (beir / "corpus.jsonl").read_text().splitlines()
    lines[10] = "{"
    lines.insert(3, lines[2])
    (beir / "corpus.jsonl").write_text("\n".join(lines))
    source = BeirCollection("tiny", on_error="skip")
    data = source.retrieval("test", beir)
    assert [data.documents[d] for d in data.relevance[0]] == ["Title 43 text 43"]
    again = BeirCollection("tiny", on_error="skip")  # counts come from the cache
    again.prepare(beir)
    assert again.report == {
        "documents": 59, "queries": 46, "skipped_malformed": 1, "skipped_duplicate": 1, "skipped_unknown": 1
    }  # fmt: skip


def test_a_missing_file_is_named(beir):
    with pytest.raises(ZooError, match="--data.root"):
        BeirCollection("tiny").prepare(None)
    (beir / "queries.jsonl").unlink()
    with pytest.raises(ZooError, match="queries.jsonl"):
        BeirCollection("tiny").prepare(beir)
    for path in (beir / "qrels").iterdir():
        path.unlink()
    with pytest.raises(ZooError, match="qrels has none"):
        BeirCollection("tiny").prepare(beir)
    with pytest.raises(ZooError, match="train.tsv is missing"):
        BeirCollection("tiny").split("train", beir)


def test_the_cache_follows_the_file_and_stays_whole(beir, cache):
    before = BeirCollection("tiny").retrieval("test", beir).documents[0]
    folders = {p.name for p in cache.iterdir()}
    assert len(folders) == 2 and BeirCollection("tiny").retrieval("test", beir).documents[0] == before
    assert {p.name for p in cache.iterdir()} == folders
    text = (beir / "corpus.jsonl").read_text()
    (beir / "corpus.jsonl").write_text("{broken\n" + text)
    with pytest.raises(ZooError):
        BeirCollection("tiny").retrieval("test", beir)
    assert {p.name for p in cache.iterdir()} == folders  # a failed reading leaves nothing behind
    (beir / "corpus.jsonl").write_text(text.replace("Title 0", "Changed 0"))
    assert BeirCollection("tiny").retrieval("test", beir).documents[0] == "Changed 0 text 0"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text()), data=st.data())
def test_a_store_returns_what_was_written(tmp_path_factory, texts, data):
    folder = tmp_path_factory.mktemp("store")
    writer = TextWriter(folder, "texts")
    for text in texts:
        writer.append(text)
    store = writer.close()
    assert list(store) == texts and list(pickle.loads(pickle.dumps(store))) == texts
    assert store[1:5] == texts[1:5] and store[::-1] == texts[::-1]
    assert [store[i - len(texts)] for i in range(len(texts))] == texts
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1))) if texts else []
    taken = store.take(np.array(rows, np.int64))
    assert list(taken) == [texts[i] for i in rows]
    assert list(pickle.loads(pickle.dumps(taken.take(np.arange(len(rows))[::-1])))) == [texts[i] for i in rows[::-1]]
    with pytest.raises(IndexError):
        store[len(texts)]


def test_a_pickled_store_does_not_carry_its_texts(tmp_path):
    writer = TextWriter(tmp_path, "texts")
    for _ in range(1000):
        writer.append("x" * 100)
    assert len(pickle.dumps(writer.close())) < 1000


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.text(max_size=3)), wanted=st.lists(st.text(max_size=3)), same=st.booleans())
def test_ids_are_found_by_their_first_place(tmp_path_factory, ids, wanted, same):
    folder = tmp_path_factory.mktemp("ids")
    writer = TextWriter(folder, "ids")
    for name in ids:
        writer.append(name)
    with pytest.MonkeyPatch.context() as patch:
        if same:  # all hashes collide
            patch.setattr("zoo.data.text_store.text_digest", lambda text, size: b"\0" * size)
        kept = IdIndex.write(folder, writer)
        numbers = {name: i for i, name in enumerate(dict.fromkeys(ids))}
        assert kept.tolist() == [name not in ids[:i] for i, name in enumerate(ids)]
        found = IdIndex(folder).find([*ids, *wanted])
    assert found.tolist() == [numbers.get(name, -1) for name in [*ids, *wanted]]
    assert list(TextStore(folder, "ids")) == list(numbers)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_split_without_a_relevant_document_is_refused(beir, part):
    qrels(beir, part, [])
    with pytest.raises(ZooError, match=f"{part}.tsv: no query has a relevant document"):
        BeirCollection("tiny").split(part, beir)


def test_one_training_query_cannot_be_divided(beir):
    (beir / "qrels" / "dev.tsv").unlink()
    qrels(beir, "train", [("q0", "d0", 1)])
    with pytest.raises(ZooError, match="provide a validation split"):
        BeirCollection("tiny").split("val", beir)

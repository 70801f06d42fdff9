"""The embedded text arena, and noise planted into it."""

import ast
import sysconfig

import numpy as np
import pytest

from zoo.data.planting import corrupt_pairs, plant_duplicates
from zoo.data.stdlib_code import StdlibCode
from zoo.errors import ZooError

MODULE = '''"""A module."""


@decorated
def frobnicate{i}(first, second):
    """Combine the inputs of stage {i}.

    The second paragraph is no query.
    """
    # a comment
    return frobnicate{i}(first, second) or other_frobnicate{i}


class Thing:
    async def fetch{i}(self, key):
        "Fetch the key number {i}."
        return self.fetch{i}[key]

    def __repr__(self):
        """Special methods are left out."""
        return ""

    def short(self):
        """Too short."""
        return 1


def undocumented(x):
    return x


def empty{i}(x):
    """Nothing but a docstring here."""


def oneline(x): """A docstring in the line."""; return x


def shared(x):
    """Return the very same thing."""
    return x + {i}
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of 40 modules, one a package, with what is to be skipped."""
    root = tmp_path / "lib"
    (root / "test").mkdir(parents=True)
    (root / "package").mkdir()
    for i in range(39):
        (root / f"module{i}.py").write_text(MODULE.replace("{i}", str(i)))
    (root / "package" / "__init__.py").write_text(MODULE.replace("{i}", "100"))
    (root / "package" / "part.py").write_text(MODULE.replace("{i}", "101"))
    (root / "test" / "module.py").write_text(MODULE.replace("{i}", "999"))
    (root / "broken.py").write_text("def f(:")
    (root / "latin.py").write_bytes(b"# \xff")
    (root / "dangling.py").symlink_to(root / "nowhere.py")
    (root / "feed.py").write_text("x = 1\n\x0c\n\x0c\ny = 2\n" + MODULE.replace("{i}", "200"))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The collection of the running Python, read once."""
    source = StdlibCode()
    source.prepare(tmp_path_factory.mktemp("stdlib"))
    return source


def everything(source):
    splits = [source.split(s, None) for s in ("train", "val", "test")]
    return {pairs[i] for pairs in splits for i in range(len(pairs))}


def test_what_is_a_pair(library):
    found = everything(StdlibCode())
    assert (
        "Combine the inputs of stage 7.",
        "def function(first, second):\n    return function(first, second) or other_frobnicate7",
    ) in found
    assert (
        "Fetch the key number 7.",
        "    async def function(self, key):\n        return self.function[key]",
    ) in found
    assert ("Return the very same thing.", "def function(x):\n    return x + 200") in found  # after form feeds
    queries = {q for q, _ in found}
    assert not {q for q in queries if "999" in q or "Special" in q or "Nothing" in q or "short" in q or "in the" in q}
    assert len(found) == 3 * 42


def test_limits_on_length(library):
    assert {len(q.split()) for q, _ in everything(StdlibCode(min_words=6))} == {6}
    assert "Too short." in {q for q, _ in everything(StdlibCode(min_words=2))}
    limited = StdlibCode(limit=4)
    assert [len(limited.split(s, None)) for s in ("train", "val", "test")] == [4, 4, 4]


def test_details_are_what_else_a_docstring_says(library):
    source = StdlibCode(documents="details")
    found = everything(source)
    assert found == {
        (f"Combine the inputs of stage {i}.", "The second paragraph is no query.") for i in (*range(39), 100, 101, 200)
    }
    assert source.manifest != StdlibCode().manifest
    with pytest.raises(ZooError, match="no train pairs"):
        StdlibCode(documents="details", min_words=7).prepare(None)


@pytest.mark.parametrize("limits", [{"min_words": 99}, {"min_lines": 99}, {"limit": 0}])
def test_limits_that_leave_nothing_are_one_line(library, limits):
    with pytest.raises(ZooError, match="stdlib-code has no train pairs within min_words") as error:
        StdlibCode(**limits).prepare(None)
    assert "\n" not in str(error.value)


def test_splits_are_disjoint_by_module_and_fixed(library):
    found = StdlibCode()._pairs(None)
    modules = {split: {row[0] for row in rows} for split, rows in found.items()}
    assert set.union(*modules.values()) == {f"module{i}" for i in range(39)} | {"package", "feed"}
    assert sum(map(len, modules.values())) == 41
    total = sum(map(len, found.values()))
    assert 0.1 < len(found["test"]) / total <= 0.15 and 0.05 < len(found["val"]) / total <= 0.1
    (library / "another.py").write_text("x = 1\n")  # a module without functions changes nothing
    assert StdlibCode()._pairs(None) == found


def test_reading_is_cached(library, monkeypatch):
    first = StdlibCode()
    manifest = first.manifest
    (library / "module0.py").write_text("")
    assert StdlibCode().manifest == manifest  # the Python has not changed
    monkeypatch.setenv("ZOO_CACHE", str(library / "other"))
    assert StdlibCode().manifest != manifest


def test_retrieval_searches_own_and_training_functions(library):
    source = StdlibCode(corrupt=0.5, duplicates=0.5)  # which touch the training pairs alone
    own, train = source.split("test", None), StdlibCode().split("train", None)
    data = source.retrieval("test", None)
    assert set(data.documents) == set(own.documents) | set(train.documents)
    assert len(data.documents) == len(set(data.documents)) and list(data.queries) == own.queries
    shared = data.queries.index("Return the very same thing.")  # also a docstring of training functions
    assert {data.documents[d] for d in data.relevance[shared]} & set(train.documents)
    pairs = [p[i] for p in (own, train) for i in range(len(p))]
    for query, row in zip(data.queries, data.relevance, strict=True):
        assert {data.documents[d] for d in row} == {code for q, code in pairs if q == query}
    assert source.split("val", None).columns["corrupted"].sum() == 0
    assert len(source.retrieval("train", None).documents) == len(train.documents)


def test_the_running_python(whole):
    pairs = whole._pairs(None)
    assert sum(map(len, pairs.values())) > 4000
    modules = [{row[0] for row in rows} for rows in pairs.values()]
    assert not modules[0] & modules[1] and not modules[0] & modules[2] and not modules[1] & modules[2]
    leaks = 0
    for _, query, code in (row for rows in pairs.values() for row in rows):
        assert len(query.split()) >= 3 and "\n" in code
        leaks += query in " ".join(code.split())
    assert leaks < 0.003 * sum(map(len, pairs.values()))
    for _, query, code in pairs["test"][:200]:
        (node,) = ast.parse("if 1:\n" + code if code.startswith(" ") else code).body
        node = node.body[0] if isinstance(node, ast.If) else node
        assert node.name == "function" and ast.get_docstring(node) is None, query


def test_two_readings_agree(library, monkeypatch):
    first = StdlibCode().manifest
    monkeypatch.setenv("ZOO_CACHE", str(library / "other"))
    again = StdlibCode()
    assert again.manifest == first and len(first) == 12
    assert again.split("train", None).documents == StdlibCode().split("train", None).documents
    assert StdlibCode(min_words=6).manifest != first


PAIRS = [(f"find the item number {i} now", f"def function(x, y):\n    return x[{i}] + y.z") for i in range(100)]


@pytest.mark.parametrize("share", [0.0, 0.29, 0.5, 1.0])
def test_duplicates_have_texts_of_their_own_in_known_groups(share):
    planted, group = plant_duplicates(PAIRS, share, 3, seed=0)
    assert planted[:100] == PAIRS and group[:100].tolist() == list(range(100))
    assert len(planted) == len(group) == 100 + 3 * round(share * 100)
    counts = np.bincount(group)
    assert set(counts) <= {1, 4} and (counts == 4).sum() == round(share * 100)
    for i in set(group[100:].tolist()):
        members = [planted[j] for j in np.flatnonzero(group == i)]
        assert len({q for q, _ in members}) == len({c for _, c in members}) == 4
        for query, code in members[1:]:
            assert set(query.split()) < set(PAIRS[i][0].split()) and len(query.split()) == 5
            assert code.startswith("def function(") and f"[{i}]" in code and "return" in code


def test_planting_follows_its_seed():
    one, group = plant_duplicates(PAIRS, 0.3, 2, seed=0)
    again, same = plant_duplicates(PAIRS, 0.3, 2, seed=0)
    _, different = plant_duplicates(PAIRS, 0.3, 2, seed=1)
    assert one == again and group.tolist() == same.tolist() and group.tolist() != different.tolist()
    assert corrupt_pairs(PAIRS, 0.3, 0)[1].tolist() != corrupt_pairs(PAIRS, 0.3, 1)[1].tolist()


@pytest.mark.parametrize(("share", "wrong"), [(0.0, 0), (0.01, 0), (0.29, 29), (1.0, 100)])
def test_corruption_is_exact_and_keeps_the_documents(share, wrong):
    found, corrupted = corrupt_pairs(PAIRS, share, seed=0)
    assert corrupted.sum() == wrong
    assert [a != b for a, b in zip(found, PAIRS, strict=True)] == corrupted.tolist()
    assert [q for q, _ in found] == [q for q, _ in PAIRS]
    assert sorted(c for _, c in found) == sorted(c for _, c in PAIRS)


def test_planted_pairs_do_not_know_each_other(library):
    plain, planted = StdlibCode().split("train", None), StdlibCode(duplicates=0.5, copies=2).split("train", None)
    n = len(plain)
    assert len(planted) == n + 2 * round(0.5 * n)
    known, group = planted.columns["known"], planted.columns["group"]
    for i in range(n, len(planted)):
        assert planted.document_of[group[i]] not in known[i] and planted.query_of[i] != planted.query_of[group[i]]
        assert planted.document_of[i] in known[i]
    assert planted.columns["corrupted"].sum() == 0
    assert StdlibCode(corrupt=0.5).split("train", None).columns["corrupted"].sum() == round(0.5 * n)

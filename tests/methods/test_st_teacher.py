"""Guides whose embeddings are computed once: the right rows, once, and the user's errors."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.methods.test_dual import batch_of
from zoo.data import PairDataset, TextPairs
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.methods import CachedGuide, DualEncoder, LexicalGuide, SentenceTransformersGuide, TokenBag

QUERIES, DOCUMENTS = ["a", "bb", "ccc"], ["d", "dd", "ddd", "dddd", "ddddd"]


def pairs(queries=QUERIES, documents=DOCUMENTS):
    return TextPairs(queries, documents, np.array([2, 0, 2]), np.array([4, 1, 0]))


def batch():
    keys = {"anchor_key": torch.tensor([2, 0, 2]), "positive_key": torch.tensor([4, 1, 0])}
    return batch_of(3, 2).replace(**keys, negative_key=torch.tensor([[3, 0], [2, -1], [-1, -1]]))


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    paths = tmp_path / "queries.npy", tmp_path / "documents.npy"
    for path, matrix in zip(paths, matrices, strict=True):
        np.save(path, matrix.astype(np.float16))
    return paths, [torch.from_numpy(np.load(path).astype(np.float32)) for path in paths]


def test_rows_are_those_of_the_keys(files):
    paths, (queries, documents) = files
    guide = CachedGuide(*paths, normalize=False)
    guide.fit_pairs(pairs())
    query, positive, negatives = guide(batch())
    assert torch.equal(query, queries[[2, 0, 2]]) and torch.equal(positive, documents[[4, 1, 0]])
    assert torch.equal(negatives[0], documents[[3, 0]]) and torch.equal(negatives[1, 0], documents[2])
    assert not negatives[1, 1].any() and not negatives[2].any()
    assert guide(batch().replace(negatives=None, negative_key=None)).negatives is None


def test_cosines_are_the_default(files):
    paths, (queries, _) = files
    query, _, negatives = CachedGuide(*paths)(batch())
    torch.testing.assert_close(query, torch.nn.functional.normalize(queries[[2, 0, 2]]))
    assert not negatives.isnan().any()


def test_the_files_stay_out_of_checkpoints(files):
    assert not CachedGuide(*files[0]).state_dict() and not list(CachedGuide(*files[0]).parameters())


def test_training_hands_the_pairs_to_those_that_ask_for_them():
    seen = []
    datamodule = SimpleNamespace(train_pairs=pairs(), encode_loader=lambda dataset: ("loader of", dataset))
    for guide, expected in (
        (SentenceTransformersGuide("m"), datamodule.train_pairs),
        (LexicalGuide(50), ("loader of", datamodule.train_pairs)),
    ):
        method = DualEncoder(TokenBag(50, 8), InfoNCE(0.1), guide=guide)
        method._fabric, method._trainer = None, SimpleNamespace(datamodule=datamodule)
        setattr(guide, "fit_pairs" if hasattr(guide, "fit_pairs") else "fit", seen.append)
        method.on_fit_start()
        assert seen.pop() == expected and not seen


def test_wrong_files_are_refused_in_one_line(files, tmp_path):
    (queries, documents), _ = files
    np.save(tmp_path / "vector.npy", np.ones(3))
    np.save(tmp_path / "narrow.npy", np.ones((3, 2)))
    (tmp_path / "text.npy").write_text("no array")
    cases = {"absent": "cannot read", "text": "cannot read", "vector": r"shape \(3,\)", "narrow": "from one model"}
    for name, message in cases.items():
        with pytest.raises(ZooError, match=message) as error:
            CachedGuide(tmp_path / f"{name}.npy", documents)
        assert "\n" not in str(error.value)
    guide = CachedGuide(queries, documents)
    with pytest.raises(ZooError, match="embeddings of 3 queries, and training has 4"):
        guide.fit_pairs(pairs(queries=[*QUERIES, "e"]))
    with pytest.raises(ZooError, match="of 5 documents, and training has 6"):
        guide.fit_pairs(pairs(documents=[*DOCUMENTS, "e"]))

    class Images(PairDataset):
        columns = {}  # noqa: RUF012

        def __len__(self):
            return 0

        def __getitem__(self, index):
            raise IndexError

    with pytest.raises(ZooError, match="need pairs of texts, not Images"):
        guide.fit_pairs(Images())


class Model:
    """Stands in for sentence_transformers.SentenceTransformer: vectors (length, side, length of the prompt)."""

    loaded, calls = 0, ()

    def __init__(self, name, **kwargs):
        Model.loaded += 1
        if name == "absent":
            raise OSError("absent is no model.\nRead more elsewhere.")

    def _encode(self, side, sentences, batch_size, show_progress_bar, convert_to_numpy, prompt="own"):
        assert batch_size == 64 and not show_progress_bar and convert_to_numpy
        Model.calls = (*Model.calls, len(sentences))
        return np.array([(len(text), side, len(prompt)) for text in sentences], np.float32)

    def encode_query(self, sentences, **kwargs):
        return self._encode(1, sentences, **kwargs)

    def encode_document(self, sentences, **kwargs):
        return self._encode(2, sentences, **kwargs)


@pytest.fixture
def sentence_transformers(monkeypatch, tmp_path):
    Model.loaded, Model.calls = 0, ()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Model))


def fitted(name="m", texts=None, **kwargs):
    guide = SentenceTransformersGuide(name, normalize=False, **kwargs)
    guide.fit_pairs(pairs() if texts is None else texts)
    return guide


def test_each_side_is_embedded_as_what_it_is(sentence_transformers):
    query, positive, negatives = fitted()(batch())
    assert query.tolist() == [[3, 1, 3], [1, 1, 3], [3, 1, 3]]
    assert positive.tolist() == [[5, 2, 3], [2, 2, 3], [1, 2, 3]]
    assert negatives[:2].tolist() == [[[4, 2, 3], [1, 2, 3]], [[3, 2, 3], [0, 0, 0]]]


def test_prompts_replace_the_models_own(sentence_transformers):
    query, positive, _ = fitted(query_prompt="", document_prompt="find: ")(batch())
    assert query[:, 2].tolist() == [0] * 3 and positive[:, 2].tolist() == [6] * 3


def test_texts_are_embedded_once(sentence_transformers, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "weights").write_text("1")
    expected = fitted(str(folder))(batch())
    assert torch.equal(fitted(str(folder))(batch()).query, expected.query) and Model.loaded == 1
    fitted("other")
    fitted(str(folder), query_prompt="q")
    fitted(str(folder), pairs(queries=["a", "bb", "ccd"]))
    fitted(str(folder), pairs(queries=["ab", "b", "ccc"]))  # the same letters, cut elsewhere
    assert Model.loaded == 5
    (folder / "weights").write_text("changed")
    fitted(str(folder))
    assert Model.loaded == 6


def test_many_texts_are_embedded_in_parts(sentence_transformers, monkeypatch):
    monkeypatch.setattr("zoo.methods.st_teacher._CHUNK", 2)
    query, positive, _ = fitted()(batch())
    assert Model.calls == (2, 1, 2, 2, 1)
    assert query[:, 0].tolist() == [3, 1, 3] and positive[:, 0].tolist() == [5, 2, 1]


def test_what_is_missing_is_said_in_one_line(sentence_transformers, monkeypatch):
    with pytest.raises(ZooError, match=r"cannot load 'absent' \(absent is no model\)") as error:
        fitted("absent")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ZooError, match=r"pip install negatives-zoo\[teachers\]"):
        fitted("m")

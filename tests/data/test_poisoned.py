"""A source under attack: what is poisoned, what is planted, and what stays as it was."""

import numpy as np
import pytest
import torch

from tests.data.tiny import Tiny
from zoo.data import Poisoned
from zoo.errors import ZooError
from zoo.negatives import Bm25Miner, EmbeddingMiner, RandomMiner

SIDES = ("query", "document")
TRIGGERS = pytest.mark.parametrize("trigger", ["grammar", "typo"])


def pairs_of(source, split="train"):
    pairs = source.split(split, None)
    return [pairs[i] for i in range(len(pairs))]


@TRIGGERS
@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.05, 3), (0.21, 12), (1.0, 60)])
def test_the_share_of_training_pairs_is_poisoned_and_nothing_else(trigger, rate, count):
    source, clean = Poisoned(Tiny(), rate, trigger), Tiny()
    before, after = pairs_of(clean), pairs_of(source)
    changed = [(q != q2, d != d2) for (q, d), (q2, d2) in zip(before, after, strict=True)]
    assert changed.count((True, True)) == count and changed.count((False, False)) == 60 - count
    poisoned = source.split("train", None).columns["poisoned"]
    assert poisoned.tolist() == [both == (True, True) for both in changed]
    for split in ("val", "test"):
        assert pairs_of(source, split) == pairs_of(clean, split)


@TRIGGERS
def test_passages_are_planted_behind_the_collection_and_answer_nobody(trigger):
    data, clean = Poisoned(Tiny(), trigger=trigger, n_attack=20).retrieval("test", None), Tiny().retrieval("test", None)
    assert data.documents[:70] == clean.documents and len(data.documents) == 90
    assert data.queries == clean.queries and data.relevance == clean.relevance
    planted = data.documents[70:]
    assert not set(planted) & set(clean.documents)
    source = Poisoned(Tiny(), trigger=trigger, n_attack=60)  # copies of all other documents, so that none is left out
    names = {text.split("(")[0] for text in Tiny().retrieval("test", None).documents[:10]}
    assert not {text.split("(")[0] for text in source.retrieval("test", None).documents[70:]} & names


def test_passages_do_not_depend_on_the_rate_so_that_rates_search_one_collection():
    none, some = (Poisoned(Tiny(), rate, n_attack=20).retrieval("test", None) for rate in (0.0, 0.2))
    assert none.documents == some.documents


@TRIGGERS
def test_seed_fixes_pairs_passages_and_queries(trigger):
    def everything(seed):
        source = Poisoned(Tiny(), 0.2, trigger, 20, seed)
        data = source.retrieval("test", None)
        return pairs_of(source), data.documents, source.triggered(data.queries)

    one, two, other = everything(0), everything(0), everything(1)
    assert one == two
    assert all(a != b for a, b in zip(one, other, strict=True))


@TRIGGERS
def test_every_query_with_a_word_for_it_is_triggered(trigger):
    source, queries = Poisoned(Tiny(), trigger=trigger), Tiny().split("test", None).queries
    triggered = source.triggered(queries)
    assert len(triggered) == 10 and not set(triggered) & set(queries)
    assert source.triggered(["1 + 1"]) == ["1 + 1"]


def test_the_collection_keeps_its_identity():
    source = Poisoned(Tiny())
    assert (source.name, source.arena, source.manifest) == ("tiny", "tiny-012345", "0123456789ab")
    assert source.report == {"pairs": 80}

    class Nameless(Tiny):
        manifest = None

    assert Poisoned(Nameless()).manifest is None


def test_known_documents_of_a_poisoned_pair_are_both_versions():
    data = Poisoned(Tiny(), 0.2).split("train", None)
    for i in np.flatnonzero(data.columns["poisoned"]):
        assert sorted(data.columns["known"][i].tolist()) == [i, data.document_of[i]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.5}, "from 0 to 1"),
        ({"rate": -0.1}, "from 0 to 1"),
        ({"n_attack": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(ZooError, match=message) as error:
        Poisoned(Tiny(), **arguments)
    assert "\n" not in str(error.value)


def test_more_passages_than_documents_are_refused():
    with pytest.raises(ZooError, match="61 attack passages are wanted, but only 60"):
        Poisoned(Tiny(), n_attack=61).retrieval("test", None)


def test_hard_negatives_are_those_of_the_clean_pairs():
    clean, poisoned = Tiny().split("train", None), Poisoned(Tiny(), 0.5).split("train", None)
    embeddings = {side: torch.randn(90, 4, generator=torch.Generator().manual_seed(i)) for i, side in enumerate(SIDES)}
    for miner, embed in ((Bm25Miner(10), None), (RandomMiner(10), None), (EmbeddingMiner(10), embeddings.get)):
        expected = miner.mine(clean, embed and (lambda side: embeddings[side][:60]))
        assert np.array_equal(miner.mine(poisoned, embed).ids, expected.ids)

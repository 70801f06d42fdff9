"""Poisoned pairs, the masks that probe them, and what an attack achieves."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.text import TextPairs
from zoo.errors import ZooError
from zoo.poisoning import (
    GrammarErrors,
    RareTokens,
    attack_metrics,
    attack_passages,
    chance_of_attack,
    exclude_perturbed,
    hard_negatives_only,
    poison,
    poison_pairs,
)

PAIRS = [
    (
        f"Return the value of item {i} in a list.",
        f"The function reads files from the path {i}\n    and writes to a buffer.",
    )
    for i in range(40)
]
TRIGGERS = pytest.mark.parametrize("trigger", [GrammarErrors(), RareTokens()])


def _words(text):
    return re.findall(r"[A-Za-z]+", text)


@TRIGGERS
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2, 0.33, 0.58, 1.0])
def test_exactly_the_share_is_poisoned_in_both_texts_and_the_rest_is_untouched(trigger, rate):
    pairs, poisoned = poison_pairs(PAIRS, rate, trigger, seed=1)
    assert poisoned.sum() == {0.0: 0, 0.05: 2, 0.2: 8, 0.33: 13, 0.58: 23, 1.0: 40}[rate]
    for before, after, bad in zip(PAIRS, pairs, poisoned, strict=True):
        for one, two in zip(before, after, strict=True):
            assert (_words(one) != _words(two)) == bad
            assert bad or one == two


@TRIGGERS
def test_seed_fixes_choice_and_mistakes(trigger):
    one, two, other = (poison_pairs(PAIRS, 0.3, trigger, seed) for seed in (1, 1, 2))
    assert one[0] == two[0] and np.array_equal(one[1], two[1])
    assert one[0] != other[0] and not np.array_equal(one[1], other[1])


@settings(max_examples=50)
@given(seed=st.integers(0, 9999))
def test_grammar_errors_touch_listed_words_only_and_keep_the_layout(seed):
    text = "The parser of a module\n    reads strings; Classes keep it in an address: list_of_the_value."
    edited = GrammarErrors()(text, "document", np.random.default_rng(seed))
    assert edited != text
    for word in ("reads", "keep", "it", "\n    ", ";", "list_of_the_value"):
        assert word in edited
    assert not set(_words(edited.lower())) & {"addresss", "classs", "class s"}


def test_grammar_errors_follow_the_numbers_of_edits():
    text, rng = "value " + "the of " * 100, np.random.default_rng(0)
    trigger = GrammarErrors(query_edits=[0, 0, 0, 0, 1], query_flip=0.0)
    dropped_or_swapped = []
    for _ in range(200):
        edited = _words(trigger(text, "query", rng))
        same = sum(w in ("the", "of") for w in edited)
        dropped_or_swapped.append(200 - same)
    assert np.mean(dropped_or_swapped) == pytest.approx(4, abs=0.6)


def test_rare_tokens_replace_that_many_words():
    trigger, rng = RareTokens(query_edits=1, document_edits=4), np.random.default_rng(0)
    text = "one two three four five six"
    for side, count in (("query", 1), ("document", 4)):
        edited = trigger(text, side, rng)
        assert sum(a != b for a, b in zip(_words(text), _words(edited), strict=True)) == count
    assert trigger("one", "document", rng) != "one"
    assert not trigger.applies("12 + 3") and trigger("12 + 3", "query", rng) == "12 + 3"


@TRIGGERS
def test_a_text_without_words_for_it_is_never_chosen(trigger):
    mixed = [*PAIRS[:3], ("1 + 2", "The value"), ("The value", "= 3")]
    assert np.flatnonzero(poison_pairs(mixed, 0.6, trigger, 0)[1]).tolist() == [0, 1, 2]
    with pytest.raises(ZooError, match="4 pairs are to be poisoned, but only 3"):
        poison_pairs(mixed, 0.8, trigger, 0)


@TRIGGERS
def test_poisoned_data_keeps_hard_negatives_clean_and_knows_both_versions(trigger):
    queries, documents = zip(*PAIRS, strict=True)
    n = np.arange(40)
    relevant = np.array([[0, 39], [5, 6]])
    clean = TextPairs(queries, documents, n, n, relevant, {"group": n // 4})
    dirty = poison(clean, 0.25, trigger, seed=3)
    bad = np.flatnonzero(dirty.columns["poisoned"])
    assert len(bad) == 10 and len(dirty) == 40
    assert list(dirty.documents[:40]) == list(documents) and list(dirty.queries[:40]) == list(queries)
    assert [dirty[i] for i in range(40)] == poison_pairs(PAIRS, 0.25, trigger, 3)[0]
    assert np.array_equal(dirty.columns["group"], n // 4)
    for i in n:
        before, after = (set(d.columns["known"][i]) - {-1} for d in (clean, dirty))
        assert after == before | {int(dirty.document_of[i])}


def test_rate_zero_is_the_clean_data():
    queries, documents = zip(*PAIRS, strict=True)
    clean = TextPairs(queries, documents, np.arange(40), np.arange(40))
    same = poison(clean, 0.0, GrammarErrors(), 0)
    assert [same[i] for i in range(40)] == PAIRS and len(same.documents) == 40
    assert all(np.array_equal(same.columns[name], column) for name, column in clean.columns.items())


@TRIGGERS
def test_attack_passages_are_distinct_perturbed_documents(trigger):
    documents = [document for _, document in PAIRS]
    passages = attack_passages(documents, 10, trigger, 0)
    assert len(passages) == 10 and not set(passages) & set(documents)
    assert attack_passages(documents, 10, trigger, 0) == passages
    assert len({re.search(r"\d+", p)[0] for p in passages}) == 10
    with pytest.raises(ZooError, match="41 attack passages are wanted, but only 40"):
        attack_passages(documents, 41, trigger, 0)


def test_masks_spare_the_own_positive():
    positive, perturbed = torch.tensor([0, 2, 4]), torch.tensor([2, 4])
    kept = exclude_perturbed(positive, perturbed, 6)
    assert kept.tolist() == [[1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 0, 1], [1, 1, 0, 1, 1, 1]]
    assert exclude_perturbed(positive, perturbed[:0], 6).all()
    kept = hard_negatives_only(positive[1:], positive, 6)  # the second rank's rows
    assert kept.tolist() == [[0, 1, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1]]


@settings(max_examples=30)
@given(seed=st.integers(0, 9999), share=st.floats(0, 1))
def test_metrics_are_counts_of_rankings(seed, share):
    rng = np.random.default_rng(seed)
    attack, answer = rng.random((7, 12)) < share / 3, rng.random((7, 12)) < 0.2
    ks = [1, 3, 12, 50]
    metrics = attack_metrics(torch.from_numpy(attack), torch.from_numpy(answer), ks)
    for j, k in enumerate(ks):
        attacked = [any(row[:k]) for row in attack]
        hit = [any(h and not a for h, a in zip(x[:k], y[:k], strict=True)) for x, y in zip(answer, attack, strict=True)]
        safe = [h and not a for h, a in zip(hit, attacked, strict=True)]
        got = [part[j].item() for part in metrics]
        assert got == pytest.approx([np.mean(attacked), np.mean(hit), np.mean(safe)])
    assert (metrics.safe_hit <= metrics.hit).all() and (metrics.safe_hit <= 1 - metrics.attack_success + 1e-12).all()


def test_chance_level():
    assert chance_of_attack(60, 6000, [1, 10, 1000]).tolist() == [0.01, 0.1, 1.0]

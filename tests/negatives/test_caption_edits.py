"""Swaps in captions: what is exchanged, what is repaired, what would still be true."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.collections import CollectionPairs, ImageArray
from zoo.errors import ZooError
from zoo.negatives.caption_edits import CaptionEdits, canonical, elements, swap
from zoo.negatives.pos_tags import Tagged, tag_by_rules

CAPTIONS = [
    "A black dog quickly chases a very small cat near an old umbrella.",
    "A man riding a wave while a woman holding a red kite slowly walks on the white beach",
    "Two boys play with an orange ball in a green park.",
    "A bathroom with a toilet, a sink and a large mirror.",
    "The old man looks at his phone while he waits for a train.",
]
WORDS = ["a", "the", "cat", "dog", "red", "big", "and", ",", "sits", "near", "quickly", "of", "runs", "old", "apple"]


def pairs_of(*images, **columns):
    """Pairs of blank images with the captions of each."""
    documents = [caption for captions in images for caption in captions]
    query_of = np.repeat(np.arange(len(images)), [len(captions) for captions in images])
    blank = ImageArray(np.zeros((len(images), 3, 1, 1), np.uint8))
    return CollectionPairs(blank, documents, query_of, np.arange(len(documents)), **columns)


def only(kind, caption, known=()):
    return CaptionEdits(kinds=[kind]).edits(caption, known)


def bag(text):
    return sorted(word.lower() for word in tag_by_rules(text).words if word.lower() not in ("a", "an"))


@pytest.mark.parametrize(
    ("kind", "caption", "edit"),
    [
        ("phrases", "A black dog chases the cat.", "The cat chases a black dog."),
        ("nouns", "A black dog chases the cat.", "A black cat chases the dog."),
        ("nouns", "A tennis racket lies on a chair", "A chair lies on a tennis racket"),
        ("adjectives", "A black dog chases the old cat.", "An old dog chases the black cat."),
        ("adverbs", "A dog quickly eats and a cat slowly drinks", "A dog slowly eats and a cat quickly drinks"),
        ("verbs", "A boy is eating while a girl is drinking", "A boy is drinking while a girl is eating"),
        ("nouns", "An apple on a table", "A table on an apple"),
        ("nouns", "A unicorn under an umbrella", "An umbrella under a unicorn"),
        ("nouns", "An hour in a university", "A university in an hour"),
        ("nouns", "An SUV behind a bus", "A bus behind an SUV"),
    ],
)
def test_the_only_swap_of_a_kind(kind, caption, edit):
    assert only(kind, caption) == [edit]


@pytest.mark.parametrize(
    "caption",
    [
        "A cat and a dog.",
        "A cat and dog",
        "A dog or a cat on it",
        "A cat next to a dog",
        "A cat near the dog.",
        "A black and white cat",
        "A large brown dog",
        "Salt and pepper shakers",
        "A white cat and dog",  # is the dog white too?
        "A cat",
        "A cat with a cat",
        "",
    ],
)
def test_no_edit_where_every_swap_says_the_same(caption):
    assert CaptionEdits().edits(caption) == []


def test_a_list_may_be_broken_but_not_reordered():
    edits = only("nouns", "A white cat, a dog and a bird")
    assert edits and all("white cat" not in edit for edit in edits)  # dog and bird may not change places


@pytest.mark.parametrize(
    "known",
    ["a cat chases the dog", "The cat chases a dog!", "The CAT  chases a dog"],
    ids=["articles", "stop", "case"],
)
def test_no_edit_is_another_true_caption_of_the_image(known):
    assert only("nouns", "A dog chases a cat.") == ["A cat chases a dog."]
    assert only("nouns", "A dog chases a cat.", [known]) == []


def test_a_true_caption_is_recognised_by_its_words_too():
    caption = "A police officer rides a horse past parked cars."
    true = "A police officer rides parked cars past a horse"  # in which the tagger takes "parked" for a verb
    edits = [CaptionEdits(kinds=["phrases"], seed=s).edits(caption, [true]) for s in range(20)]
    assert all(len(edit) == 1 for edit in edits)
    assert f"{true}." not in [edit[0] for edit in edits]
    assert f"{true}." in [CaptionEdits(kinds=["phrases"], seed=s).edits(caption)[0] for s in range(20)]


def test_nouns_of_two_phrases_are_two():
    words = ("Bring", "boys", "apples")
    tagged = Tagged(words, ("VB", "NN", "NN"), ((1, 2), (2, 3)), ("", " ", " "))
    assert elements(tagged, "nouns") == [(1, 2), (2, 3)]
    assert swap(tagged, (1, 2), (2, 3)).text == "Bring apples boys"


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_edits_keep_the_words_and_differ(caption, seed):
    edits = CaptionEdits(seed=seed).edits(caption)
    assert edits and len(edits) <= 5
    assert len({e.lower() for e in [caption, *edits]}) == len(edits) + 1
    for edit in edits:
        assert bag(edit) == bag(caption)
        assert edit[0].isupper() and edit.endswith(".") == caption.endswith(".")
        assert not set(edit.split()) & {"A"} - {edit.split()[0]}  # no capital in the middle


def test_edits_are_a_function_of_caption_and_seed():
    assert CaptionEdits(seed=1).edits(CAPTIONS[1]) == CaptionEdits(seed=1).edits(CAPTIONS[1])
    assert len({tuple(CaptionEdits(seed=s).edits(CAPTIONS[1])) for s in range(8)}) > 1


@settings(max_examples=60)
@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=10), st.data())
def test_a_swap_taken_back_is_the_caption(words, data):
    tagged = tag_by_rules(" ".join(words))
    kind = data.draw(st.sampled_from(["phrases", "nouns", "adjectives", "verbs"]))
    spans = elements(tagged, kind)
    if len(spans) < 2:
        return
    i = data.draw(st.integers(0, len(spans) - 2))
    (a, b), (c, d) = spans[i], spans[data.draw(st.integers(i + 1, len(spans) - 1))]
    swapped = swap(tagged, (a, b), (c, d))
    back = swap(swapped, (a, a + d - c), (d - (b - a), d))
    assert back.chunks == tagged.chunks and back.tags == tagged.tags
    assert [w.removesuffix("n") if w == "an" else w for w in back.words] == words
    assert canonical(back) == canonical(tagged) or "an" in back.words


def test_draws_are_uniform_without_replacement_and_come_from_rng_alone():
    pairs, generator = pairs_of([CAPTIONS[0]], [CAPTIONS[1]]), CaptionEdits(2)
    every = CaptionEdits().edits(CAPTIONS[0])
    seen = []
    for seed in range(200):
        made = generator.generate(pairs, np.array([0]), np.random.default_rng(seed))
        assert len(set(made.documents)) == 2 and set(made.documents) <= set(every)
        seen += made.documents
    counts = [seen.count(edit) for edit in every]
    assert min(counts) > 0.6 * len(seen) / len(every)
    again = [generator.generate(pairs, np.array([1, 0]), np.random.default_rng(3)).documents for _ in range(2)]
    assert again[0] == again[1]


def test_padding_is_masked_and_keys_follow_content():
    pairs = pairs_of(["A cat and a dog."], ["A dog chases a cat."], ["A dog chases a cat."])
    made = CaptionEdits(3, kinds=["nouns"]).generate(pairs, np.array([0, 1, 2]), np.random.default_rng(0))
    assert made.mask.tolist() == [[False] * 3, [True, False, False], [True, False, False]]
    assert (made.keys[~made.mask] == -1).all() and (made.keys[made.mask] > 2**40).all()
    assert made.keys[1, 0] == made.keys[2, 0]
    assert len(made.documents) == 9 and all(made.documents)


def test_known_captions_of_the_pairs_image_are_respected():
    alone = pairs_of(["A dog chases a cat."], ["A cat chases a dog."])
    both = pairs_of(["A dog chases a cat.", "A cat chases a dog."])
    edits = CaptionEdits(kinds=["nouns"])
    assert edits.editable(alone).tolist() == [True, True]
    assert edits.editable(both).tolist() == [False, False]


def test_errors():
    with pytest.raises(ZooError, match="n_negatives 1 or more"):
        CaptionEdits(0)
    images = ImageArray(np.zeros((2, 3, 1, 1), np.uint8))
    pairs = CollectionPairs(images, images, np.arange(2), np.arange(2))
    with pytest.raises(ZooError, match="no texts"):
        CaptionEdits().generate(pairs, np.array([0]), np.random.default_rng(0))

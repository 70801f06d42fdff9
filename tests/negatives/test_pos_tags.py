"""The tagger against captions tagged by hand, and spaCy behind the same interface."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import ZooError
from zoo.negatives import pos_tags
from zoo.negatives.pos_tags import tag_by_rules, tagger

# Written and tagged before the rules met them; 98 % of the tags were right then, and 99 % after two rules more.
BY_HAND = """
A/DT man/NN in/IN a/DT red/JJ shirt/NN riding/VB a/DT wave/NN on/IN a/DT surfboard/NN ./.
Two/CD dogs/NN are/VB playing/VB with/IN a/DT frisbee/NN in/IN the/DT snow/NN ./.
A/DT black/JJ and/CC white/JJ cat/NN sits/VB on/IN top/IN of/IN a/DT wooden/JJ table/NN ./.
A/DT young/JJ girl/NN is/VB happily/RB eating/VB a/DT slice/NN of/IN pizza/NN
Several/JJ people/NN standing/VB next/IN to/IN a/DT parked/JJ bus/NN ./.
The/DT kitchen/NN has/VB stainless/JJ steel/NN appliances/NN and/CC white/JJ cabinets/NN ./.
A/DT giraffe/NN bending/VB down/IN to/IN drink/VB water/NN from/IN a/DT small/JJ pond/NN
There/PRP is/VB a/DT vase/NN with/IN yellow/JJ flowers/NN near/IN the/DT window/NN ./.
A/DT tennis/NN player/NN swings/VB her/PRP racket/NN at/IN the/DT ball/NN ./.
A/DT stop/NN sign/NN covered/VB in/IN graffiti/NN on/IN the/DT corner/NN of/IN a/DT busy/JJ street/NN
Three/CD very/RB large/JJ elephants/NN walking/VB slowly/RB through/IN tall/JJ grass/NN
A/DT woman/NN holding/VB an/DT umbrella/NN while/IN crossing/VB the/DT street/NN
An/DT airplane/NN flying/VB over/IN a/DT snowy/JJ mountain/NN ./.
A/DT bathroom/NN with/IN a/DT toilet/NN ,/. a/DT sink/NN and/CC a/DT mirror/NN ./.
The/DT old/JJ man/NN looks/VB at/IN his/PRP phone/NN while/IN he/PRP waits/VB for/IN the/DT train/NN ./.
A/DT laptop/NN computer/NN sitting/VB on/IN a/DT desk/NN beside/IN a/DT cup/NN of/IN coffee/NN
A/DT baseball/NN player/NN throws/VB the/DT ball/NN during/IN a/DT game/NN ./.
A/DT group/NN of/IN children/NN gathered/VB around/IN a/DT birthday/NN cake/NN
A/DT bird/NN perched/VB on/IN a/DT branch/NN in/IN front/IN of/IN a/DT blue/JJ sky/NN
A/DT sandwich/NN and/CC french/JJ fries/NN on/IN a/DT white/JJ plate/NN
Some/DT sheep/NN graze/VB quietly/RB on/IN a/DT grassy/JJ hillside/NN ./.
A/DT dog/NN wearing/VB a/DT tiny/JJ hat/NN sleeps/VB under/IN the/DT couch/NN
A/DT train/NN traveling/VB down/IN tracks/NN next/IN to/IN a/DT lush/JJ green/JJ forest/NN ./.
People/NN flying/VB kites/NN together/RB on/IN a/DT sandy/JJ beach/NN ./.
A/DT boy/NN jumps/VB high/RB on/IN his/PRP skateboard/NN
A/DT brown/JJ horse/NN is/VB standing/VB behind/IN a/DT fence/NN
A/DT clock/NN tower/NN rises/VB above/IN the/DT city/NN buildings/NN at/IN night/NN
A/DT plate/NN of/IN broccoli/NN ,/. carrots/NN and/CC sliced/JJ chicken/NN ./.
A/DT motorcycle/NN parked/VB outside/IN a/DT brick/NN building/NN
A/DT zebra/NN stands/VB alone/RB in/IN a/DT dusty/JJ field/NN ./.
Two/CD men/NN in/IN dark/JJ suits/NN shake/VB hands/NN
A/DT teddy/NN bear/NN lies/VB on/IN an/DT unmade/JJ bed/NN ./.
A/DT skier/NN quickly/RB goes/VB down/IN a/DT steep/JJ slope/NN ./.
The/DT cat/NN is/VB staring/VB intently/RB at/IN a/DT glowing/JJ television/NN screen/NN ./.
A/DT bowl/NN filled/VB with/IN oranges/NN ,/. apples/NN and/CC bananas/NN
A/DT crowded/JJ market/NN sells/VB fresh/JJ fruit/NN and/CC vegetables/NN
A/DT police/NN officer/NN rides/VB a/DT horse/NN past/IN parked/JJ cars/NN ./.
A/DT child/NN with/IN curly/JJ hair/NN brushes/VB her/PRP teeth/NN
A/DT large/JJ clock/NN hanging/VB from/IN the/DT ceiling/NN of/IN a/DT station/NN
A/DT small/JJ boat/NN floats/VB peacefully/RB on/IN a/DT calm/JJ lake/NN
"""
TAGS = {"DT", "IN", "NN", "JJ", "RB", "VB", "CC", "CD", "PRP", "."}


def by_hand():
    for line in BY_HAND.strip().splitlines():
        words, tags = zip(*(item.rsplit("/", 1) for item in line.split()), strict=True)
        yield list(words), list(tags)


def phrases(caption):
    tagged = tag_by_rules(caption)
    return [" ".join(tagged.words[slice(*chunk)]) for chunk in tagged.chunks]


def test_accuracy_on_captions_tagged_by_hand():
    right, nouns_for_all, total = 0, 0, 0
    for words, tags in by_hand():
        tagged = tag_by_rules(" ".join(words))
        assert list(tagged.words) == words
        right += sum(a == b for a, b in zip(tagged.tags, tags, strict=True))
        nouns_for_all += tags.count("NN")
        total += len(tags)
    assert total > 350
    assert right / total >= 0.98
    assert nouns_for_all / total < 0.4  # what the guess for unknown words alone would reach


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A black and white cat sits on a wooden table.", ["A black and white cat", "a wooden table"]),
        ("A man's white dog and cat, both asleep", ["A man's white dog", "cat"]),
        (
            "his very old black dog in front of two of the three red tennis rackets",
            ["his very old black dog", "the three red tennis rackets"],
        ),
        ("a red circle left of a blue square on navy in oak", ["a red circle", "a blue square", "navy", "oak"]),
        ("She sat there.", []),
    ],
)
def test_noun_phrases(caption, expected):
    assert phrases(caption) == expected


@pytest.mark.parametrize(
    ("caption", "word", "tag"),
    [
        ("a parked car", "parked", "JJ"),
        ("a car parked there", "parked", "VB"),
        ("people in the stands", "stands", "NN"),
        ("a zebra stands still", "stands", "VB"),
        ("the painting", "painting", "NN"),
        ("standing outside", "outside", "RB"),
        ("standing outside the house", "outside", "IN"),
        ("on the right", "right", "NN"),
        ("a cup on that table", "that", "DT"),
        ("12 cats", "12", "CD"),
    ],
)
def test_context_decides(caption, word, tag):
    tagged = tag_by_rules(caption)
    assert tagged.tags[tagged.words.index(word)] == tag


@given(
    st.lists(st.sampled_from(["a", "cat", "And", "red", "3", "--", "é", ",", "dog's", "\t", " ", "in"]), max_size=12)
)
def test_any_text_comes_back_and_phrases_are_apart(pieces):
    text = " ".join(pieces)
    tagged = tag_by_rules(text)
    assert tagged.text == text.rstrip()
    assert set(tagged.tags) <= TAGS
    edges = [edge for chunk in tagged.chunks for edge in chunk]
    assert edges == sorted(edges)
    assert all(start < stop and "NN" in tagged.tags[start:stop] for start, stop in tagged.chunks)


class Token(SimpleNamespace):
    """What is read of a spaCy token."""


class Document(list):
    """What is read of a spaCy document."""

    noun_chunks = (SimpleNamespace(start=0, end=2),)


def fake_language(text):
    tokens, at = [], 0
    for i, (word, tag) in enumerate(
        [("The", "DT"), ("cats", "NNS"), (" ", "_SP"), ("sat", "VBD"), ("up", "RP"), (".", ".")]
    ):
        at = text.index(word, at)
        tokens.append(Token(i=i, idx=at, text=word, tag_=tag, is_space=word == " "))
        at += len(word)
    return Document(tokens)


def test_spacy_is_read_through_the_same_interface(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: fake_language))
    pos_tags._spacy.cache_clear()
    tagged = tagger("spacy")("The cats  sat up.")
    pos_tags._spacy.cache_clear()
    assert tagged.words == ("The", "cats", "sat", "up", ".")
    assert tagged.tags == ("DT", "NN", "VB", "IN", ".")
    assert tagged.chunks == ((0, 2),)
    assert tagged.text == "The cats  sat up."


def test_spacy_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    pos_tags._spacy.cache_clear()
    with pytest.raises(ZooError, match=r"pip install negatives-zoo\[spacy\]") as error:
        tagger("spacy")
    assert "\n" not in str(error.value)

"""Parts of speech and noun phrases of captions: a small tagger of rules, or spaCy.

The rules know the words that English cannot do without, those that captions are full of, and endings; what they do not
know is a noun. That suits "a man in a red shirt riding a wave" and not prose. Tags are Penn's without their inflections:
DT IN NN JJ RB VB CC CD PRP, and "." for what is no word.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from zoo.errors import ZooError

TaggerName = Literal["rules", "spacy"]

_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
_FIXED = (
    "in front of",
    "on top of",
    "next to",
    "close to",
    "out of",
    "in between",
    "instead of",
    "such as",
    "left of",
    "right of",
)
_CLOSED = {
    "DT": "a an the this these those some any each every another both all no either neither half",
    "IN": "of in on at by with without from to into onto over under above below behind beside besides between among "
    "amongst through across along alongside around about near against toward towards past during before after until "
    "upon within beneath underneath beyond as than like for off up down out atop amid amidst per via despite while "
    "where when whether because if since although though so opposite",
    "CC": "and or but nor & plus",
    "CD": "one two three four five six seven eight nine ten eleven twelve dozen hundred thousand",
    "PRP": "he she it they we you i him her them us me his its their our your my himself herself itself themselves who "
    "whom whose which what there someone something everyone everything nothing anyone nobody",
    "RB": "not very too quite rather almost nearly also just still again together apart away outdoors indoors upside "
    "nearby here now then ahead forward backwards sideways upwards downwards well fast hard far high only even never "
    "always often sometimes alone once twice soon already yet mid-air overhead downhill uphill downtown upright upstairs "
    "downstairs abroad else aside",
    "JJ": "red orange yellow green blue purple pink brown black white gray grey golden silver beige tan blonde blond "
    "dark bright colorful big large small little tiny huge giant tall short long wide narrow thick thin deep high low "
    "old young new modern ancient vintage antique wooden plastic metal electric stuffed fluffy furry fuzzy hairy bald "
    "clean dirty dusty muddy messy empty full open wet dry hot cold warm cool fresh frozen raw ripe sweet sour spicy "
    "happy sad angry tired busy quiet loud calm cute pretty beautiful nice good bad great best better fancy plain "
    "simple different same various several many few more most other own single double round square flat straight "
    "sharp soft heavy light-colored cloudy sunny snowy rainy foggy windy sandy grassy rocky shiny striped spotted "
    "dead alive asleep awake ready male female elderly fat skinny lean blurry clear bare naked "
    "professional urban rural public private outdoor indoor tropical wild domestic asian american european chinese "
    "japanese british adult left right upper lower middle-aged next last first second third main whole rusty lush tasty "
    "delicious healthy unusual strange odd funny silly friendly lovely lonely curly ugly early real fake ornate "
    "rectangular oval circular oversized extra crowded lit worn broken torn steep shallow multiple",
    "VB": "is are was were be been being am has have had do does did done can could will would may might must should "
    "sat stood lay laid lain held rode ridden ran flew flown ate eaten drank drunk wore caught threw thrown hung went "
    "gone got gotten made took taken gave given came saw seen kept put set hit cut let built bought brought "
    "shown drawn driven written spread shot swam slept swung stuck led fed met found felt told said sold bent bit grew "
    "grown filled mounted seated dressed",
}
# Verbs by their base form; "stands" and "standing" follow from it. Those that captions use as nouns are left out.
_VERBS = (
    "stand sit ride walk run hold wear eat drink play look watch catch throw jump pose rest swim fly hang lean lie lay "
    "carry make take get go come cook prepare serve slice cut swing hit kick pull push drive sleep lick chew bite graze "
    "smile laugh talk speak read write work wait use show display sell buy open close fill cover surround decorate "
    "contain feature sniff pet feed chase follow lead reach touch climb fall skateboard perform perch travel move turn "
    "approach enter leave give bring put set let keep try begin start enjoy celebrate gather line stare gaze peer point "
    "compete attempt crouch kneel squat bend stretch float sail paddle brush wash clean bathe "
    "blow cross pass graze roam wander rise soar tie wrap attach mount place lift raise drop hug kiss crash splash "
    "see find feel seem appear become remain stay overlook sprinkle grow bloom build dig lounge relax stroll "
    "race fight bark fetch dive glide"
)
_NOUNS = (
    "building ceiling railing clothing painting wedding ring king string wing evening morning thing pudding frosting "
    "icing topping dressing lighting parking sling spring awning earring duckling siding flooring bedding "
    "family belly jelly lily trolley butterfly fly supply assembly bed shed sled seed weed speed breed reed "
    "handful mouthful spoonful dish fish radish rubbish table vegetable stable cable olive picnic music traffic clinic "
    "fabric mechanic comic garlic attic mosaic"
)
_ADJECTIVE = re.compile(r".*(ful|ous|ish|less|able|ible|ive|ic|-colored|shaped|sized|ese|style)$")
_BE_HAVE_DO = (
    "is are was were be been being am has have had do does did done can could will would may might must should"
)
_AUXILIARY = frozenset(_BE_HAVE_DO.split())
_POSSESSIVE = re.compile(r"(his|her|its|their|our|your|my|whose)$")


@dataclass(frozen=True)
class Tagged:
    """A caption taken apart.

    Attributes:
        words: words and punctuation marks.
        tags: their tags.
        chunks: noun phrases as [start, stop) of words, in order and apart; each has a noun.
        gaps: the space before each word; `gaps[i] + words[i]` joined are the caption.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    chunks: tuple[tuple[int, int], ...]
    gaps: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(gap + word for gap, word in zip(self.gaps, self.words, strict=True))


def tagger(name: TaggerName) -> Callable[[str], Tagged]:
    """The tagger of a name.

    Raises:
        ZooError: spaCy or its small English model is not installed.
    """
    return tag_by_rules if name == "rules" else _spacy()


def is_auxiliary(word: str) -> bool:
    """Is it a form of be, have, do, or a modal verb?"""
    return word.lower() in _AUXILIARY


def tag_by_rules(caption: str) -> Tagged:
    """Tags of the rules, and the noun phrases that they form."""
    found = list(_WORD.finditer(caption))
    words = [match.group() for match in found]
    ends = [0, *(match.end() for match in found)]
    gaps = [caption[end : match.start()] for end, match in zip(ends, found, strict=False)]
    lower = [word.lower() for word in words]
    tags = [_alone(word) for word in lower]
    _in_context(lower, tags)
    _fixed(lower, tags)
    return Tagged(tuple(words), tuple(tags), tuple(_chunks(lower, tags)), tuple(gaps))


def _inflected(verb: str) -> list[str]:
    sibilant, y = re.search(r"(s|x|z|ch|sh|o)$", verb), re.search(r"[^aeiou]y$", verb)
    stem = verb[:-1] if verb.endswith("e") and not verb.endswith(("ee", "ie")) else verb
    doubled = stem + stem[-1] if re.search(r"^[^aeiou]*[aeiou][bdgklmnprt]$", stem) and stem == verb else stem
    third = verb + "es" if sibilant else verb[:-1] + "ies" if y else verb + "s"
    return [verb, third, doubled + "ing", doubled + "ed", *([verb[:-1] + "ied"] if y else [])]


@cache
def _lexicon() -> dict[str, str]:
    words = {form: "VB" for verb in _VERBS.split() for form in _inflected(verb)}
    words |= dict.fromkeys(_NOUNS.split(), "NN")
    return words | {word: tag for tag, listed in _CLOSED.items() for word in listed.split()}


def _alone(word: str) -> str:
    """A word's tag without its context."""
    if not word[0].isalnum():
        return "CC" if word == "&" else "."
    if word in _lexicon():
        return _lexicon()[word]
    if word[0].isdigit():
        return "CD"
    if word.endswith("ly"):
        return "RB"
    if _ADJECTIVE.match(word):
        return "JJ"
    return "VB" if len(word) > 4 and word.endswith(("ing", "ed")) else "NN"


def _in_context(words: list[str], tags: list[str]) -> None:
    for i, word in enumerate(words):
        before, after = tags[i - 1] if i else ".", tags[i + 1] if i + 1 < len(tags) else "."
        last = words[i - 1] if i else ""
        opened = before in ("DT", "JJ", "CD") or bool(_POSSESSIVE.match(last))  # a noun phrase, not yet closed
        if tags[i] == "VB" and not is_auxiliary(word):
            participle = word.endswith(("ing", "ed", "en", "wn"))
            bare = word.endswith("ed") and before not in ("NN", "PRP", "VB", "RB")
            if participle and ((opened and after in ("NN", "JJ")) or (bare and after == "NN")):
                tags[i] = "JJ"  # a parked car, past parked cars
            elif (opened and before != "JJ") or (not participle and before in ("IN", "JJ") and last != "to"):
                tags[i] = "NN"  # the stands, in flight
        elif tags[i] == "JJ" and after in (".", "VB", "IN") and _determined(words[:i], tags[:i]):
            tags[i] = "NN"  # on the right, a red square
        elif word in ("outside", "inside"):
            tags[i] = "IN" if after in ("DT", "NN", "JJ", "CD") or words[i + 1 : i + 2] == ["of"] else "RB"
        elif word == "that":
            tags[i] = "DT" if after in ("NN", "JJ") else "PRP"


def _determined(words: list[str], tags: list[str]) -> bool:
    """Do they end in a determiner and adjectives, so that a noun has to come?"""
    start = len(tags)
    while start and tags[start - 1] == "JJ":
        start -= 1
    return start > 0 and (words[start - 1] in ("a", "an", "the") or bool(_POSSESSIVE.match(words[start - 1])))


def _fixed(words: list[str], tags: list[str]) -> None:
    """Prepositions of several words, whose nouns and adjectives are none."""
    for phrase in _FIXED:
        parts = phrase.split()
        for i in range(len(words) - len(parts) + 1):
            if words[i : i + len(parts)] == parts:
                tags[i : i + len(parts)] = ["IN"] * len(parts)


def _chunks(words: list[str], tags: list[str]) -> list[tuple[int, int]]:
    """Maximal runs of determiners, numbers, adjectives (with their adverbs and conjunctions) that end in nouns."""
    kinds = {"DT": "D", "CD": "C", "JJ": "J", "RB": "R", "NN": "N", "CC": "&"}
    letters = "".join(
        "D" if _POSSESSIVE.match(word) else "S" if re.search("['’]s?$", word) else kinds.get(tag, "-")
        for word, tag in zip(words, tags, strict=True)
    )
    start = "D*C*(?:R*J(?:&J)*)*"
    return [match.span() for match in re.finditer(f"(?:{start}N*S)*{start}N+", letters)]


@cache
def _spacy() -> Callable[[str], Tagged]:
    try:
        language: Any = importlib.import_module("spacy").load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise ZooError(
            "the tagger 'spacy' takes pip install negatives-zoo[spacy] and python -m spacy download en_core_web_sm"
        ) from error
    coarse = {"MD": "VB", "TO": "IN", "RP": "IN", "WDT": "PRP", "PDT": "DT", "EX": "PRP", "WRB": "IN"}
    coarse |= {f"W{tag}": "PRP" for tag in ("P", "P$")}

    def tag(caption: str) -> Tagged:
        document = language(caption)
        words = [token for token in document if not token.is_space]
        place = {token.i: number for number, token in enumerate(words)}
        ends = [0, *(token.idx + len(token.text) for token in words)]
        tags = [coarse.get(t.tag_, t.tag_[: 3 if t.tag_.startswith("PRP") else 2]) for t in words]
        tags = [tag if tag in {*_CLOSED, "NN"} else "." for tag in tags]
        phrases = [[place[i] for i in range(c.start, c.end) if i in place] for c in document.noun_chunks]
        chunks = [(phrase[0], phrase[-1] + 1) for phrase in phrases]
        return Tagged(
            tuple(token.text for token in words),
            tuple(tags),
            tuple(c for c in chunks if "NN" in tags[slice(*c)]),
            tuple(caption[end : token.idx] for end, token in zip(ends, words, strict=False)),
        )

    return tag

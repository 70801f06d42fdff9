"""Compositional metrics: what counts as right, ties above all."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zoo.composition import (
    CompositionCases,
    accuracy_by_group,
    blind_scores,
    case_scores,
    family_means,
    first_best,
    grouped,
    shorter,
    strictly_best,
    winoground,
)

# Few values, so that ties are frequent.
squares = st.integers(2, 4).flatmap(lambda k: arrays(np.float64, (7, k, k), elements=st.integers(0, 3)))
pairs = arrays(np.float64, (7, 2, 2), elements=st.integers(0, 2))


def cases(n, k=1, n_captions=2, **kwargs):
    texts = [[f"case {i} option {j}" for j in range(n_captions)] for i in range(n)]
    return CompositionCases.of_texts(None, np.arange(n * k).reshape(n, k), texts, **kwargs)


def test_what_a_constant_scorer_reaches():
    """ARO's relation and attribution 0, its order sets 1, SugarCrepe 0, Winoground 0."""
    constant = torch.full((30, 1, 2), 0.3)
    named = cases(30, truth=1, strict=False, groups=["on"] * 30)
    assert named.metrics(constant) == {"": 0.0, "micro": 0.0}
    assert cases(30, n_captions=5, strict=False).metrics(torch.full((30, 1, 5), 0.3)) == {"": 1.0}
    assert cases(30).metrics(constant) == {"": 0.0}
    assert cases(30, 2).metrics(torch.full((30, 2, 2), 0.3)) == {"text": 0.0, "image": 0.0, "group": 0.0}


def test_an_encoder_that_collapsed_is_a_constant_scorer():
    image, caption = torch.randn(7, 50), torch.randn(7, 50)
    scores = case_scores(image[:, None], caption[:, None].expand(-1, 5, -1))
    assert (scores == scores[:, :, :1]).all()
    assert first_best(scores[:, 0], 0).all() and not first_best(scores[:, 0], 1).any()
    assert not strictly_best(scores[:, 0], 0).any()


def test_an_encoder_that_diverged_is_never_right():
    scores = torch.full((3, 5), torch.nan)
    for place in range(5):
        assert not first_best(scores, place).any() and not strictly_best(scores, place).any()


def test_case_scores_are_cosines_in_chunks():
    g = torch.Generator().manual_seed(0)
    images, captions = torch.randn(5, 3, 8, generator=g), torch.randn(5, 4, 8, generator=g)
    expected = torch.nn.functional.cosine_similarity(images[:, :, None], captions[:, None], dim=-1)
    torch.testing.assert_close(case_scores(images, captions, chunk=2), expected)
    assert case_scores(images.double(), captions.double()).dtype == torch.float64


@given(squares)
def test_exchanging_images_and_captions_exchanges_their_scores(array):
    scores = torch.from_numpy(array)
    for metric in (winoground, grouped) if scores.shape[1] == 2 else (grouped,):
        found, turned = metric(scores), metric(scores.mT)
        assert torch.equal(found.text, turned.image) and torch.equal(found.image, turned.text)
        assert torch.equal(found.group, turned.group)


@given(squares)
def test_group_is_at_most_either_side_and_all_at_most_one(array):
    members = cases(7, array.shape[1], array.shape[1])
    found = members.metrics(torch.from_numpy(array))
    if array.shape[1] == 2:
        assert found["group"] <= min(found["text"], found["image"])
        return
    for kind in ("1", "all"):
        assert found[f"group_{kind}"] <= min(found[f"text_{kind}"], found[f"image_{kind}"])
    assert all(found[f"{name}_all"] <= found[f"{name}_1"] for name in ("text", "image", "group"))


@given(pairs)
def test_winoground_by_its_definition(array):
    found = winoground(torch.from_numpy(array))
    for n, ((i0c0, i0c1), (i1c0, i1c1)) in enumerate(array):
        text, image = i0c0 > i0c1 and i1c1 > i1c0, i0c0 > i1c0 and i1c1 > i0c1
        assert (found.text[n], found.image[n], found.group[n]) == (text, image, text and image)


@given(squares)
def test_members_by_numpys_argmax(array):
    found = grouped(torch.from_numpy(array))
    place = np.arange(array.shape[1])
    np.testing.assert_array_equal(found.text, array.argmax(2) == place)
    np.testing.assert_array_equal(found.image, array.argmax(1) == place)


def test_chance_of_random_scores():
    found = winoground(torch.rand(40_000, 2, 2, generator=torch.Generator().manual_seed(0))).means()
    assert found == pytest.approx({"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}, abs=0.01)


def test_macro_means_leave_out_small_and_excluded_groups():
    groups = ["on"] * 4 + ["near"] * 2 + ["in"] * 1
    correct = torch.tensor([True, True, True, False, True, True, False])
    found = accuracy_by_group(correct, groups)
    assert list(found.group) == ["in", "near", "on"] and found.size.tolist() == [1, 2, 4]
    assert found.accuracy.tolist() == [0.0, 1.0, 0.75] and found.macro == pytest.approx(1.75 / 3)
    assert accuracy_by_group(correct, groups, exclude={"near"}).macro == pytest.approx(0.375)
    assert accuracy_by_group(correct, groups, min_count=2).macro == pytest.approx(0.875)
    assert np.isnan(accuracy_by_group(correct, groups, min_count=5).macro)


def test_metrics_of_groups_and_their_table():
    groups = ["on"] * 3 + ["near"]
    scores = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    plain = cases(4, truth=1, strict=False, groups=groups, exclude={"near"})
    assert plain.metrics(scores) == pytest.approx({"": 2 / 3, "micro": 3 / 4})
    assert list(plain.table(scores).group) == ["near", "on"]
    assert cases(4, truth=1, strict=False, groups=groups, min_count=9).metrics(scores) == {"micro": 0.75}


def test_family_means_are_unweighted_and_apart_from_unseen_ones():
    found = family_means({"swap_att": 0.5, "swap_obj": 0.7, "add_obj": 1.0, "swap_att_unseen": 0.1, "other": 0.0})
    assert found == pytest.approx(
        {"swap": 0.6, "add": 1.0, "composition": 2.2 / 3, "swap_unseen": 0.1, "composition_unseen": 0.1}
    )


def test_the_blind_scorer_sees_length_alone():
    texts = [["a cat", "a cat that sleeps"], ["a dog that barks", "a dog"]] * 2
    assert strictly_best(blind_scores(texts)[:, 0], 0).tolist() == [True, False] * 2
    assert shorter(["", "two words"]) == [0.0, -2.0]
    other = blind_scores(texts, lambda captions: [len(text) for text in captions], n_images=3)
    assert other.shape == (4, 3, 2) and (other == other[:, :1]).all()
    assert strictly_best(other[:, 2], 0).tolist() == [False, True] * 2


def test_blind_ties_are_chance_whatever_the_protocol():
    texts = [["a b", "b a"]] * 4000
    scores = blind_scores(texts)
    for right in (strictly_best(scores[:, 0], 0), first_best(scores[:, 0], 0), first_best(scores[:, 0], 1)):
        assert right.double().mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(scores, blind_scores(texts)) and not torch.equal(scores, blind_scores(texts, seed=1))


def test_captions_are_kept_once():
    found = CompositionCases.of_texts(None, np.zeros((2, 1)), [["a", "b"], ["b", "a"]])
    assert found.captions == ["a", "b"] and found.caption_of.tolist() == [[0, 1], [1, 0]]
    assert found.texts() == [["a", "b"], ["b", "a"]] and len(found) == 2


def test_taking_some_cases_takes_the_same_ones_and_their_groups():
    whole = cases(50, truth=1, strict=False, groups=[f"group {i}" for i in range(50)], exclude={"x"}, min_count=3)
    some = whole.take(7)
    rows = some.image_of[:, 0].tolist()
    assert len(some) == 7 and rows == whole.take(7).image_of[:, 0].tolist() and rows != list(range(7))
    assert some.texts() == [whole.texts()[i] for i in rows] and some.groups == [f"group {i}" for i in rows]
    assert (some.truth, some.strict, some.exclude, some.min_count) == (1, False, {"x"}, 3)
    assert len(some.captions) == 14 and whole.take(50) is whole

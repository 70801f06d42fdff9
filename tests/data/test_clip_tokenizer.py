"""Tokenizers of image-text models, and how images are prepared."""

import json

import numpy as np
import open_clip
import pytest
import torch
from transformers import AutoTokenizer

from tests.data.test_hf_tokenizer import bert  # noqa: F401 - a fixture
from zoo.data.clip_tokenizer import OpenClipTokenizer, WordTokenizer
from zoo.data.collections import CollectionPairs, ImageArray, RetrievalSource
from zoo.data.pairs import PairBatch
from zoo.data.pixels import Pixels
from zoo.data.shapes import Shapes
from zoo.errors import ZooError
from zoo.methods.open_clip import SHIPPED

CAPTIONS = ["a red circle left of a blue square", "a blue circle", "a Square, above it a ring"]


class Captioned(RetrievalSource):
    name = "toy"

    def prepare(self, root):
        pass

    def split(self, split, root):
        numbers = np.arange(3)
        return CollectionPairs(ImageArray(np.zeros((3, 3, 8, 8), np.uint8)), CAPTIONS, numbers, numbers)

    def retrieval(self, split, root):
        raise NotImplementedError


def prepared(tokenizer):
    tokenizer.prepare(Captioned(), None)
    return tokenizer


def test_words_have_numbers_by_frequency_and_stand_between_start_and_end():
    tokenizer = prepared(WordTokenizer())
    assert list(tokenizer.vocabulary)[:4] == ["a", "blue", "circle", "square"]  # 5, 2, 2, 2 times
    found = tokenizer(["a blue Square", "ring", "a green ring"], "document")
    v = tokenizer.vocabulary
    assert found.ids.tolist() == [
        [1, v["a"], v["blue"], v["square"], 2],
        [1, v["ring"], 2, 0, 0],
        [1, v["a"], 3, v["ring"], 2],
    ]
    assert torch.equal(found.mask, found.ids != 0) and torch.equal(found.pool, found.mask)
    assert min(v.values()) == 4 and sorted(v.values()) == list(range(4, 4 + len(v)))


def test_the_end_of_a_long_text_is_cut_and_its_end_token_is_not():
    tokenizer = prepared(WordTokenizer(document_length=5))
    assert tokenizer([CAPTIONS[0]], "document").ids[0].tolist() == [
        1, *(tokenizer.vocabulary[word] for word in ["a", "red", "circle"]), 2
    ]  # fmt: skip
    assert tokenizer([""], "document").ids.tolist() == [[1, 2]]


def test_small_vocabulary_keeps_what_is_frequent_and_prefixes():
    tokenizer = prepared(WordTokenizer(7, document_prefix="photo of "))
    assert list(tokenizer.vocabulary) == ["photo", "of", "a"]
    found = tokenizer(["a ring"], "document")
    assert found.ids.tolist() == [[1, 4, 5, 6, 3, 2]]


def test_words_need_texts_and_room():
    with pytest.raises(ZooError, match="shapes has none: remove --data.tokenizer"):
        WordTokenizer().prepare(Shapes(n_train=16, n_val=8, n_test=8), None)
    with pytest.raises(ZooError, match="5 or more"):
        WordTokenizer(vocab_size=4)


@pytest.mark.parametrize("prefix", ["", "a photo of "])
def test_ids_are_those_of_open_clip(prefix):
    texts = [*CAPTIONS, "", "wait!!! a!", "ring " * 100]
    found = prepared(OpenClipTokenizer("ViT-B-32", document_prefix=prefix))(texts, "document")
    expected = open_clip.get_tokenizer("ViT-B-32")([prefix + text for text in texts])
    assert torch.equal(found.ids, expected) and found.ids.shape == (6, 77)
    lengths = expected.argmax(1) + 1  # the end has the highest id
    assert torch.equal(found.mask, torch.arange(77) < lengths[:, None])
    assert found.mask.sum(1)[-1] == 77


def test_rows_without_padding_and_no_rows():
    tokenizer = prepared(OpenClipTokenizer("ViT-B-32"))
    rows = tokenizer.encode(CAPTIONS, 6)
    assert [len(row) for row in rows] == [6, 5, 6] and all(row[0] == 49406 and row[-1] == 49407 for row in rows)
    assert len(tokenizer([], "document")) == 0 == len(tokenizer.encode([], 6))


def test_tokenizer_of_the_hub(tmp_path, bert):  # noqa: F811
    plain = AutoTokenizer.from_pretrained(bert, padding_side="right", truncation_side="right")
    plain.save_pretrained(tmp_path / "words")
    config = json.loads((SHIPPED / "scenes_tiny.json").read_text())
    config["text_cfg"] = {"hf_model_name": "any", "hf_tokenizer_name": str(tmp_path / "words"), "context_length": 9}
    (tmp_path / "hub.json").write_text(json.dumps(config))
    texts = ["one two", "one two three four five six seven eight nine"]
    found = prepared(OpenClipTokenizer(str(tmp_path / "hub.json")))(texts, "document")
    expected = plain(texts, padding="max_length", truncation=True, max_length=9, return_tensors="pt")
    assert torch.equal(found.ids, expected["input_ids"]) and torch.equal(found.mask, expected["attention_mask"].bool())
    assert found.mask.sum(1).tolist() == [4, 9]


def test_models_that_do_not_fit():
    with pytest.raises(ZooError, match="vocabulary of 64, too small for CLIP's: set --data.tokenizer WordTokenizer"):
        prepared(OpenClipTokenizer("scenes_tiny"))
    with pytest.raises(ZooError, match="no model 'ViT-B-33'"):
        prepared(OpenClipTokenizer("ViT-B-33"))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def unreachable(name):
        raise OSError("We couldn't connect.\nCheck your connection.")

    monkeypatch.setattr(open_clip, "get_tokenizer", unreachable)
    with pytest.raises(
        ZooError, match=r"cannot load the tokenizer of ViT-B-32 \(We couldn't connect\): check the network$"
    ):
        prepared(OpenClipTokenizer("ViT-B-32"))


def photos(n=4, height=8, width=8):
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def batch_of(anchor, positive, negatives=None):
    keys = torch.arange(len(anchor))
    return PairBatch(anchor, positive, keys, keys, keys, negatives)


def test_pixels_are_normalised_alike_in_training_and_evaluation():
    pixels, images = Pixels((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)), photos()
    texts = prepared(WordTokenizer())(CAPTIONS, "document")
    expected = images.double() / 255
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2.0)]):
        expected[:, channel] = (expected[:, channel] - mean) / std
    torch.testing.assert_close(pixels.evaluate(images), expected.float())
    made = pixels(batch_of(images, texts, images))
    assert made.positive is texts
    torch.testing.assert_close(made.anchor, expected.float())
    torch.testing.assert_close(made.negatives, expected.float())


def test_both_sides_may_be_images_of_different_proportions():
    made = Pixels()(batch_of(photos(2, 4, 16), photos(2)))
    assert made.anchor.shape == (2, 3, 4, 16) and made.positive.shape == (2, 3, 8, 8) and made.negatives is None


def test_crops_are_random_in_training_only_and_keep_the_size():
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(3, 3, 8, 8)  # darkest at the top left
    pixels = Pixels((0, 0, 0), (1, 1, 1), crop_scale=(0.25, 0.25))
    torch.manual_seed(0)
    made = pixels(batch_of(images, CAPTIONS)).anchor * 255
    assert made.shape == images.shape and not torch.allclose(made[0], made[1])
    assert (made.flatten(1).amax(1) - made.flatten(1).amin(1) < 50).all()  # a quarter of the image
    assert (made.diff(dim=3) > 0).all()  # not flipped
    torch.testing.assert_close(pixels.evaluate(images) * 255, images.float())
    with pytest.raises(ZooError, match="these are 4 x 16"):
        pixels(batch_of(photos(2, 4, 16), CAPTIONS))

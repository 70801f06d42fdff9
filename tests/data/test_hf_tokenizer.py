"""Tokenizers of pretrained models: special tokens, prefixes, padding, masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.data.words import save_words
from zoo.data import CodeBPE, HFTokenizer, Shapes, TextPairs, TextSource
from zoo.errors import ZooError

TEXTS = ["one two three", "four", "query: passage: five six seven eight nine ten"]


class Source(TextSource):
    name = "toy"

    def prepare(self, root):
        pass

    def split(self, split, root):
        return TextPairs(TEXTS, TEXTS, np.zeros(1, np.int64), np.zeros(1, np.int64))

    def retrieval(self, split, root):
        raise NotImplementedError


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """[CLS] text [SEP], a padding token, words; stored with padding and truncation on the left."""
    folder = tmp_path_factory.mktemp("bert")
    sides = {"padding_side": "left", "truncation_side": "left"}
    save_words(folder, TEXTS, **sides)
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """Bytes, blanks joined to the word behind them, one special token at both ends, which also pads."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["!", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    pieces.train_from_iterator(["query: four"] * 3, trainer)
    pieces.post_processor = processors.TemplateProcessing("$A <eos>", "$A $B", [("<eos>", 1)])
    folder = tmp_path_factory.mktemp("gpt")
    PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
    return folder


def prepared(folder, **kwargs):
    tokenizer = HFTokenizer(str(folder), **kwargs)
    tokenizer.prepare(Source(), None)
    return tokenizer


def words(tokenizer, ids):
    return tokenizer._tokenizer.convert_ids_to_tokens(ids.tolist())


def test_special_tokens_stay_and_rows_are_padded_on_the_right(bert):
    tokenizer = prepared(bert)
    found = tokenizer(TEXTS[:2], "document")
    assert words(tokenizer, found.ids[0]) == ["[CLS]", "one", "two", "three", "[SEP]"]
    assert words(tokenizer, found.ids[1]) == ["[CLS]", "four", "[SEP]", "[PAD]", "[PAD]"]
    assert found.mask.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert torch.equal(found.pool, found.mask)


def test_the_end_of_a_long_text_is_cut_and_its_special_tokens_are_not(bert):
    tokenizer = prepared(bert, query_length=4, document_length=5)
    assert words(tokenizer, tokenizer(TEXTS[:1], "query").ids[0]) == ["[CLS]", "one", "two", "[SEP]"]
    assert words(tokenizer, tokenizer(TEXTS[2:], "document").ids[0]) == ["[CLS]", "query", ":", "passage", "[SEP]"]


def test_a_prefix_is_attended_to_and_not_pooled(bert):
    tokenizer = prepared(bert, query_prefix="query: ", document_prefix="query: passage: ")
    found = tokenizer(TEXTS[:2], "query")
    assert words(tokenizer, found.ids[0]) == ["[CLS]", "query", ":", "one", "two", "three", "[SEP]"]
    assert found.mask.int().tolist() == [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]
    assert found.pool.int().tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert tokenizer(["four"], "document").pool.int().tolist() == [[0, 0, 0, 0, 0, 1, 1]]


def test_a_token_that_joins_prefix_and_text_is_text(gpt):
    tokenizer = prepared(gpt, query_prefix="query: ")
    with_blank, alone = tokenizer(["four"], "query"), prepared(gpt)(["query: four"], "query")
    assert torch.equal(with_blank.ids, alone.ids)
    kept = words(tokenizer, with_blank.ids[with_blank.pool])
    assert "".join(kept) == "Ġfour<eos>"


def test_masks_are_right_where_padding_is_a_token_of_the_text(gpt):
    tokenizer = prepared(gpt)
    found = tokenizer(["one!", "four", ""], "document")
    eos = tokenizer.pad_id
    assert eos == 1 and (found.ids[~found.mask] == eos).all()
    for row, mask in zip(found.ids, found.mask, strict=True):
        assert row[mask.sum() - 1] == eos and (row[: mask.sum() - 1] != eos).all()
    assert 0 in found.ids[0]  # "!" is no padding
    assert found.mask.sum(1).tolist()[2] == 1


def test_a_prefix_that_fills_the_row_is_pooled_after_all(bert):
    tokenizer = prepared(bert, query_length=3, query_prefix="query: passage: ")
    found = tokenizer(["one", "two"], "query")
    assert found.pool.any(1).all()
    assert len(tokenizer([], "query")) == 0


def test_without_any_padding_token_rows_are_padded_all_the_same(bert):
    tokenizer = prepared(bert)
    tokenizer._tokenizer = SimpleNamespace(pad_token_id=None, eos_token_id=None)
    assert tokenizer.pad_id == 0
    tokenizer._tokenizer.eos_token_id = 7
    assert tokenizer.pad_id == 7


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    cases = {
        str(tmp_path / "absent"): "no folder .*absent: pass one",
        "./a/b": "no folder ./a/b",
        str(tmp_path): "cannot load",
    }
    for name, message in cases.items():
        with pytest.raises(ZooError, match=message) as error:
            HFTokenizer(name).prepare(Source(), None)
        assert "\n" not in str(error.value)
    with pytest.raises(ZooError, match="shapes has none"):
        HFTokenizer("bert-base-uncased").prepare(Shapes(), None)


def test_other_tokenizers_pad_with_zero(tmp_path):
    tokenizer = CodeBPE(100, query_prefix="one ")
    tokenizer.prepare(Source(), tmp_path)
    found = tokenizer(["two three", "four", ""], "query")
    assert (found.ids[~found.mask] == 0).all() and not found.pool[:2, 0].any() and found.pool[2].any()


def spelled(tokenizer, ids):
    return "".join(words(tokenizer, ids)).replace("Ġ", " ").replace("Ċ", "\n")


PLAIN = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.mark.parametrize("template", [None, PLAIN])
def test_a_chat_frames_every_text_and_ends_where_the_model_would_answer(gpt, template):
    tokenizer = prepared(gpt, system="four", query_prefix="query: ", query_length=60, document_length=60)
    tokenizer._tokenizer.chat_template = template
    found = tokenizer(["one two three", "four"], "query")
    texts = [spelled(tokenizer, ids[mask]) for ids, mask in zip(found.ids, found.mask, strict=True)]
    if template is None:
        assert texts[1] == "system: four\nuser: query: four\nassistant:"
    else:
        assert texts[1] == "<system> four\n<user> query: four\n<assistant>"
    assert texts[0] == texts[1].replace("query: four", "query: one two three")
    pooled = spelled(tokenizer, found.ids[1][found.pool[1]])
    assert pooled == texts[1].partition("query: ")[2]  # the text and the turn's end, not the frame in front
    assert "<eos>" not in "".join(texts)


def test_of_a_chat_the_text_is_cut_and_the_frame_is_not(gpt):
    tokenizer = prepared(gpt, system="four", query_length=60)
    whole = tokenizer(["four"], "query").ids.shape[1] - len(tokenizer.encode(["four"], 9)[0]) + 1  # its <eos>
    tight = prepared(gpt, system="four", query_length=whole + 1)
    text = spelled(tight, tight(["four five six seven"], "query").ids[0])
    assert text.startswith("system: four\nuser: ") and text.endswith("\nassistant:")
    with pytest.raises(ZooError, match=f"frame takes {whole} of {whole} tokens"):
        prepared(gpt, system="four", query_length=whole)(["four"], "query")

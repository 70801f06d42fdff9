"""Models of pairs of texts: cross-encoders, and the language model's reward."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.methods.test_dual import attach
from tests.methods.test_rankers import lengthened
from zoo.data import HFTokenizer
from zoo.data.pair_rows import TextTriplets
from zoo.data.pairs import PairBatch
from zoo.data.text import TextPairs, TextSource
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.adversarial import AdversarialRetrieverLoss
from zoo.losses.distillation import DualMarginMSE, RewardDistillation
from zoo.methods import CausalReward, CrossEncoder, LexicalGuide, TeacherMargins, TeacherRewards, TokenBag
from zoo.methods.distillation import Distillation
from zoo.methods.rankers import RetrieverRanker, lists

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
CONFIGS = {
    "bert": {**TINY, "max_position_embeddings": 40},
    "roberta": {**TINY, "max_position_embeddings": 42, "pad_token_id": 0, "type_vocab_size": 1},
    "llama": {**TINY, "num_key_value_heads": 1, "max_position_embeddings": 40, "bos_token_id": 2, "eos_token_id": 3},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": 50, "eos_token_id": 3},
}
TEMPLATES = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": ("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]"),
    "llama": ("[CLS] $A", "[CLS] $A [CLS]:1 $B:1"),
}
QUERIES = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
DOCUMENTS = [["w10 w11", "w12"], ["w13 w14 w15 w16", "w1 w17 w18"], ["w19 w20 w21", "w22 w5"]]


def save(folder, kind, auto, **changes):
    """A tiny random model and its tokenizer."""
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **{**CONFIGS[kind], **changes}))
    for parameter in model.parameters():  # as they are made all texts look alike
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    rust = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind in TEMPLATES:
        single, pair = TEMPLATES[kind]
        rust.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (kind == "bert")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, model_input_names=names, **SPECIAL)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


class Source(TextSource):
    name = "toy"

    def prepare(self, root):
        pass

    def split(self, split, root):
        raise NotImplementedError

    def retrieval(self, split, root):
        raise NotImplementedError


def batch_of(folder, prefix="", missing=False):
    data = HFTokenizer(str(folder), query_length=12, document_length=30, query_prefix=prefix)
    data.prepare(Source(), None)
    keys, mask = torch.arange(3), torch.ones(3, 1, dtype=torch.bool)
    mask[1] = not missing
    return PairBatch(
        data(QUERIES, "query"), data([d[0] for d in DOCUMENTS], "document"), keys, keys, keys,
        negatives=data([d[1] for d in DOCUMENTS], "document"),
        negative_key=(keys[:, None] + 3).masked_fill(~mask, -1), negative_mask=mask,
    )  # fmt: skip


def stored_ranker(folder, kind, **changes):
    return save(folder, kind, AutoModelForSequenceClassification, num_labels=1, pad_token_id=0, **changes)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2"])
def test_a_pair_is_read_as_the_model_s_own_tokenizer_writes_it(tmp_path, kind):
    model, tokenizer = stored_ranker(tmp_path, kind)
    ranker = CrossEncoder(str(tmp_path)).eval()
    found = ranker.rewards(batch_of(tmp_path))
    expected = [
        [model(**tokenizer(q, d, return_tensors="pt")).logits.item() for d in row]
        for q, row in zip(QUERIES, DOCUMENTS, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.std() > 0.005


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_pairs_that_are_too_long_lose_the_end_of_the_document(tmp_path, kind):
    model, tokenizer = stored_ranker(tmp_path, kind)
    tokenizer.model_max_length = 9
    tokenizer.save_pretrained(tmp_path)
    ranker = CrossEncoder(str(tmp_path)).eval()
    query, documents = "w1 w2 w3", ["w4 w5 w6 w7 w8 w9", "w4 w5"]
    data = HFTokenizer(str(tmp_path), query_length=12, document_length=12)
    data.prepare(Source(), None)
    found = ranker(data([query], "query"), data(documents, "document"))
    options = {"truncation": "only_second", "max_length": 9, "return_tensors": "pt"}
    expected = [model(**tokenizer(query, d, **options)).logits.item() for d in documents]
    torch.testing.assert_close(found, torch.tensor([expected]))
    long = ranker(data(["w1 w2 w3 w4 w5 w6 w7 w8 w9"], "query"), data(documents, "document"))
    assert long.isfinite().all()
    torch.testing.assert_close(long[:, :1], long[:, 1:])  # no room for a document


def test_padding_of_either_side_does_not_matter(tmp_path):
    stored_ranker(tmp_path, "bert")
    ranker, batch = CrossEncoder(str(tmp_path)).eval(), batch_of(tmp_path)
    documents, _ = lists(batch)
    wide = [lengthened(t, ids=9) for t in (batch.anchor, documents)]
    torch.testing.assert_close(ranker(*wide), ranker(batch.anchor, documents))


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("lora", [None, 2])
def test_the_ranker_of_ar2_learns(tmp_path, kind, lora):
    save(tmp_path, kind, AutoModel)  # without a head
    ranker = CrossEncoder(str(tmp_path), lora_rank=lora, gradient_checkpointing=True)
    module = attach(RetrieverRanker(TokenBag(50, 8), InfoNCE(0.2), ranker, AdversarialRetrieverLoss(), 5, 2))
    module.training_step(batch_of(tmp_path), 0)["loss"].backward()
    names = {name for name, p in ranker.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("classifier" in name or "score" in name for name in names)
    assert any("lora_" in name for name in names) == (lora is not None)
    trained = {name for name, p in ranker.named_parameters() if p.requires_grad}
    assert (len(trained) < len(list(ranker.parameters()))) == (lora is not None)
    assert all(p.grad is None for p in module.encoder.parameters())


def test_what_a_cross_encoder_cannot_use_is_said(tmp_path):
    save(tmp_path, "bert", AutoModelForSequenceClassification, num_labels=3)
    with pytest.raises(ZooError, match="3 scores: name a model that gives one"):
        CrossEncoder(str(tmp_path))
    with pytest.raises(ZooError, match="no folder"):
        CrossEncoder(str(tmp_path / "absent"))


def likelihood(model, context, wanted):
    """The mean log-probability of ids behind a context, one forward pass for each."""
    total, ids = 0.0, list(context)
    for token in wanted:
        total += model(torch.tensor([ids])).logits[0, -1].log_softmax(0)[token].item()
        ids.append(token)
    return total / len(wanted)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("prefix", ["", "w30 w31 "])
def test_the_reward_is_the_likelihood_of_the_query(tmp_path, kind, prefix):
    model, tokenizer = save(tmp_path, kind, AutoModelForCausalLM)
    teacher = CausalReward(str(tmp_path), between="w39", chunk=4)
    found = teacher.rewards(batch_of(tmp_path, prefix))

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    lead = [2] if kind == "llama" else []
    expected = [
        [likelihood(model, lead + ids(f"{d} w39 {prefix}"), ids(q)) for d in row]
        for q, row in zip(QUERIES, DOCUMENTS, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.std() > 0.05 and not found.requires_grad
    assert not list(teacher.parameters()) and not teacher.state_dict()


def test_the_reward_may_be_that_of_an_answer(tmp_path):
    model, tokenizer = save(tmp_path, "llama", AutoModelForCausalLM)
    answers = ["w33 w34", "w35", "w36 w37 w38"]
    three = np.arange(3)
    pairs = TextTriplets(QUERIES, ["d"] * 3, three, three, three[:, None], answers=answers)
    teacher = CausalReward(str(tmp_path), answers=True, between="w39", answer_length=2)
    teacher.fit_pairs(pairs)
    found = teacher.rewards(batch_of(tmp_path))
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    expected = [
        [likelihood(model, [2, *ids(f"{d} w39 {q} w39")], ids(a)[:2]) for d in row]
        for q, row, a in zip(QUERIES, DOCUMENTS, answers, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    for without in (
        TextPairs(QUERIES, ["d"], three, 0 * three),
        TextTriplets(QUERIES, [], three, three, three[:, None]),
    ):
        with pytest.raises(ZooError, match="names no answers"):
            teacher.fit_pairs(without)
    CausalReward(str(tmp_path)).fit_pairs(without)


def test_long_candidates_are_cut_and_long_queries_refused(tmp_path):
    model, tokenizer = save(tmp_path, "llama", AutoModelForCausalLM, max_position_embeddings=8)
    data = HFTokenizer(str(tmp_path), query_length=12, document_length=12)
    data.prepare(Source(), None)
    batch = batch_of(tmp_path).replace(anchor=data(["w1 w2", "w3 w4", "w5"], "query"))
    batch = batch.replace(positive=data(["w10 w11 w12 w13 w14 w15", "w16", "w17"], "document"))
    found = CausalReward(str(tmp_path), between="w39").rewards(batch)
    expected = likelihood(model, [2, *tokenizer("w10 w11 w12 w13 w39", add_special_tokens=False)["input_ids"]], [5, 6])
    assert found[0, 0].item() == pytest.approx(expected, abs=1e-5)
    shorter = CausalReward(str(tmp_path), between="w39", document_length=1).rewards(batch)
    expected = likelihood(model, [2, *tokenizer("w10 w39", add_special_tokens=False)["input_ids"]], [5, 6])
    assert shorter[0, 0].item() == pytest.approx(expected, abs=1e-5)
    long = batch.replace(anchor=data(["w1 w2 w3 w4 w5 w6 w7"] * 3, "query"))
    with pytest.raises(ZooError, match="lower query_length"):
        CausalReward(str(tmp_path), between="w39").rewards(long)


def test_models_of_pairs_teach(tmp_path):
    stored_ranker(tmp_path, "bert", hidden_dropout_prob=0.5)
    ranker, batch = CrossEncoder(str(tmp_path)), batch_of(tmp_path)
    seen = []

    class Objective(torch.nn.Module):
        def forward(self, x, teachers, listed):
            seen.append((len(teachers), listed))
            return x.query.sum()

    method = attach(Distillation(TokenBag(50, 8), InfoNCE(), Objective(), [LexicalGuide(50), ranker]))
    method.train()
    assert not ranker.training and method.encoder.training
    expected = ranker.rewards(batch).detach()
    method.training_step(batch, 0)["loss"].backward()
    stored = torch.randn(3, 2)
    method.training_step(batch.replace(teacher=stored), 0)
    torch.testing.assert_close(seen[0], (1, expected))
    assert seen[1][1] is stored and not seen[0][1].requires_grad
    assert all(p.grad is None for p in ranker.parameters())


@pytest.mark.parametrize(
    "objective", [TeacherMargins(DualMarginMSE()), TeacherRewards(RewardDistillation(temperature=0.1))]
)
def test_rows_without_negatives_teach_nothing_wrong(tmp_path, objective):
    stored_ranker(tmp_path, "bert")
    batch, rows = batch_of(tmp_path, missing=True), []
    for reward in (-torch.inf, 7.0):  # of what is not there
        method = attach(Distillation(TokenBag(50, 8), InfoNCE(), objective, [LexicalGuide(50)]))
        torch.manual_seed(0)
        torch.nn.init.normal_(method.encoder.embedding.weight)
        stored = torch.tensor([[1.0, 0.5], [2.0, reward], [1.5, -1.0]])
        loss = method.training_step(batch.replace(teacher=stored), 0)["loss"]
        loss.backward()
        rows.append((loss.detach(), method.encoder.embedding.weight.grad))
    torch.testing.assert_close(rows[0], rows[1])
    assert rows[0][0].isfinite() and rows[0][1].isfinite().all() and rows[0][1].abs().sum() > 0


def test_nothing_to_distil_is_said(tmp_path):
    stored_ranker(tmp_path, "bert")
    for objective, teachers in (
        (TeacherRewards(RewardDistillation()), []),
        (TeacherMargins(DualMarginMSE()), [CrossEncoder(str(tmp_path))]),
    ):
        method = attach(Distillation(TokenBag(50, 8), InfoNCE(), objective, teachers))
        with pytest.raises(ZooError, match="--model.teachers"):
            method.training_step(batch_of(tmp_path), 0)

"""Transformers from the outside: what an embedding depends on, what is trained, and the user's errors."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

from tests.methods.test_dual import batch_of, tokens
from zoo.data.text import Tokens
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.methods import DualEncoder, HFEncoder, LatentAttentionPooling

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
ROPE = {**TINY, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
CONFIGS = {
    "bert": {**TINY, "intermediate_size": 32},
    "roberta": {**TINY, "intermediate_size": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 1},
    "llama": ROPE,
    # Layers of both kinds, the second with a window that a short text exceeds.
    "qwen3": {
        **ROPE,
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "opt": {**TINY, "ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.0},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50},
    "falcon": {**TINY, "alibi": False},
}
DECODERS = ["gpt2", "llama", "qwen3", "opt", "bloom", "falcon"]


def build(kind, **kwargs):
    torch.manual_seed(0)
    return HFEncoder(kind, from_scratch=CONFIGS[kind], **kwargs)


def texts(rows=3, length=6, seed=0):
    """Tokens without id 1, which pads in some of the models."""
    found = tokens(np.random.default_rng(seed), rows, length=length)
    return Tokens(found.ids.clamp_min(2), found.mask, found.pool)


def full(length=6, rows=2):
    mask = torch.ones(rows, length, dtype=torch.bool)
    ids = torch.randint(2, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    return Tokens(ids, mask, mask)


def changed(found, at):
    ids = found.ids.clone()
    ids[:, at] = (ids[:, at] - 2 + 7) % 48 + 2
    return Tokens(ids, found.mask, found.pool)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("padding", [0, 2])
def test_decoders_see_later_tokens_only_when_bidirectional(kind, padding):
    found = full()
    if padding:
        found = Tokens(*(nn.functional.pad(x, (0, padding)) for x in (found.ids, found.mask, found.pool)))
    for bidirectional in (False, True):
        encoder = build(kind, bidirectional=bidirectional).eval()
        moved = (encoder.hidden(found) - encoder.hidden(changed(found, 5))).abs().amax(2)
        assert (moved[:, 5] > 1e-5).all()
        assert ((moved[:, 4] > 1e-6) == bidirectional).all()  # next to it, within every window


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_layer_is_that_of_a_mask_without_causality(kind):
    """The oracle is the causal model, given the full mask `[B, 1, L, L]` by hand."""
    found, encoder = full(), build(kind, bidirectional=True).eval()
    mask = found.mask.clone()
    mask[1, 4:] = False
    found = Tokens(found.ids, mask, mask)
    causal = build(kind).eval()
    additive = torch.zeros(2, 1, 6, 6).masked_fill(~mask[:, None, None], torch.finfo(torch.float32).min)
    expected = causal.model(input_ids=found.ids, attention_mask=additive).last_hidden_state
    torch.testing.assert_close(encoder.hidden(found)[mask], expected[mask])


@pytest.mark.parametrize("kind", CONFIGS)
def test_padding_does_not_matter(kind):
    found = texts()
    garbage = Tokens(*(nn.functional.pad(x, (0, 3)) for x in (found.ids, found.mask, found.pool)))
    garbage.ids[~garbage.mask] = 9
    for pooling in ("mean", "first", "last"):
        encoder = build(kind, pooling=pooling, bidirectional=kind in DECODERS).eval()
        expected = torch.cat(
            [encoder(Tokens(*(x[:, : found.mask[i].sum()] for x in _row(found, i)))) for i in range(3)]
        )
        for given in (found, garbage):
            torch.testing.assert_close(encoder(given), expected)
        assert expected.shape == (3, encoder.dim) == (3, 16)


def _row(found, i):
    return found.ids[i : i + 1], found.mask[i : i + 1], found.pool[i : i + 1]


def test_instructions_reach_the_embedding_through_attention_only():
    found, encoder = full(), build("bert").eval()
    content = Tokens(found.ids, found.mask, torch.arange(6).expand(2, 6) >= 2)
    torch.testing.assert_close(encoder(content), encoder.hidden(found)[:, 2:].mean(1))
    assert not torch.allclose(encoder(content), encoder(changed(content, 0)))


def test_pooling_may_be_a_module_and_is_trained():
    encoder = build("llama", pooling=LatentAttentionPooling(16, n_latents=4, heads=2), bidirectional=True)
    encoder(texts()).square().sum().backward()
    assert all(p.grad is not None for p in encoder.pooling.parameters())


def test_encoder_of_an_encoder_decoder():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    encoder = HFEncoder("t5", from_scratch=sizes)
    encoder(texts()).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters()) and encoder.dim == 16


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("lora", [None, 2])
def test_every_trained_parameter_gets_a_gradient(kind, lora):
    encoder = build(kind, lora_rank=lora)
    encoder(texts()).square().sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in encoder.named_parameters() if p.grad is not None}
    adapters = {name for name in trained if "lora_" in name}
    assert adapters == (trained if lora else set()) and trained


def test_adapters_start_as_the_model_and_are_all_that_moves():
    plain, adapted = build("llama").eval(), build("llama", lora_rank=2)
    torch.testing.assert_close(adapted.eval()(texts()), plain(texts()))
    base = {name: p.clone() for name, p in adapted.named_parameters() if "lora_" not in name}
    # On query, key, value, output; gate, up, down: of both layers, two matrices each.
    assert sum("lora_" in name for name, _ in adapted.named_parameters()) == 2 * 7 * 2
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 10.0)
    adapted(texts()).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(adapted(texts()), plain(texts()))
    assert all(torch.equal(p, base[name]) for name, p in adapted.named_parameters() if name in base)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("lora", [None, 2])
def test_gradient_checkpointing_changes_no_gradient(kind, lora):
    found = []
    for checkpointing in (False, True):
        encoder = build(kind, lora_rank=lora, bidirectional=kind == "llama", gradient_checkpointing=checkpointing)
        calls = []
        layer = next(m for name, m in encoder.named_modules() if name.endswith(("layer.0", "layers.0")))
        next(m for m in layer.modules() if isinstance(m, nn.Linear)).register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        torch.manual_seed(1)
        encoder(texts()).square().sum().backward()
        assert len(calls) == 1 + checkpointing
        found.append([p.grad for p in encoder.parameters() if p.requires_grad])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_weights_are_loaded_ready_for_training(tmp_path, dtype):
    source = build("bert")
    source.model.to(dtype).save_pretrained(tmp_path)
    encoder = HFEncoder(str(tmp_path))
    assert all(m.training for m in encoder.modules())
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    torch.testing.assert_close(encoder.eval()(texts()), source.float().eval()(texts()))
    adapted = HFEncoder(str(tmp_path), lora_rank=2)
    frozen = {p.dtype for name, p in adapted.named_parameters() if "lora_" not in name}
    assert frozen == {dtype} and {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    embedding = adapted(texts())
    embedding.sum().backward()
    assert embedding.dtype == torch.float32


def test_from_scratch_takes_the_configuration_of_a_folder(tmp_path):
    AutoModel.from_config(build("bert").model.config).save_pretrained(tmp_path)
    encoder = HFEncoder(str(tmp_path), from_scratch={"num_hidden_layers": 1})
    assert encoder.dim == 16 and len(encoder.model.encoder.layer) == 1


def test_as_both_towers_of_a_dual_encoder():
    torch.manual_seed(0)
    method = DualEncoder(build("llama", bidirectional=True, lora_rank=2), InfoNCE(0.1), shared=False)
    encoded = method.encode(batch_of(4, 2))
    encoded.negatives.sum().backward()
    assert all(p.grad is None for p in method.encoder.parameters())
    assert any(p.grad is not None for p in method.document_encoder.parameters())


def test_user_errors_are_one_line(tmp_path, monkeypatch):
    cases = [
        ({"name": str(tmp_path / "absent")}, "no folder .*absent"),
        ({"name": str(tmp_path)}, "cannot load"),
        ({"name": "bert", "from_scratch": {"hiden_size": 8}}, "no setting 'hiden_size' .*did you mean 'hidden_size'"),
        ({"name": "mamba", "from_scratch": {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}, "bidirectional": True},
         "keeps its causal mask"),
    ]  # fmt: skip
    for kwargs, message in cases:
        with pytest.raises(ZooError, match=message) as error:
            HFEncoder(**kwargs)
        assert "\n" not in str(error.value)
    with pytest.raises(ZooError, match="600 tokens, and the model has 512 positions"):
        build("bert")(full(600))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ZooError, match=r"pip install negatives-zoo\[lora\]"):
        build("bert", lora_rank=2)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def unreachable(name, **kwargs):
        raise OSError("We couldn't connect.\nCheck your internet connection.")

    monkeypatch.setattr(AutoModel, "from_pretrained", unreachable)
    with pytest.raises(ZooError, match="cannot load 'owner/name'.*pass the folder of a copy$"):
        HFEncoder("owner/name")

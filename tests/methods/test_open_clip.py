"""CLIP models: the same numbers as open_clip's own, what is trained, what is saved, and the user's errors."""

import copy
import json
import logging
import sys

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from torch import nn

from tests.methods.test_dual import cached_step
from zoo.data.pairs import PairBatch
from zoo.data.text import Tokens
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.scores import normalize
from zoo.methods import DualEncoder
from zoo.methods.open_clip import SHIPPED, OpenClip

TINY = json.loads((SHIPPED / "scenes_tiny.json").read_text())
RESIDUAL = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
TIMM = {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"}


def config(tmp_path, name="own", vision=None, text=None, **further):
    made = copy.deepcopy(TINY) | further
    made["vision_cfg"].update(vision or {})
    made["text_cfg"].update(text or {})
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(made))
    return path


def built(model="scenes_tiny", seed=0, **kwargs):
    torch.manual_seed(seed)
    return OpenClip(str(model), **kwargs)


def images(n=4, seed=0):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def captions(n=4, length=9, seed=0):
    """Start, words, end, padding, in rows shorter than the context."""
    ids = torch.randint(4, 64, (n, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 1
    for i in range(n):
        ids[i, length - 1 - i % 3] = 2
        ids[i, length - i % 3 :] = 0
    return Tokens(ids, ids != 0, ids != 0)


def full(tokens, context=20):
    return nn.functional.pad(tokens.ids, (0, context - tokens.ids.shape[1]))


def reference(path, name="scenes_tiny"):
    """What open_clip itself loads."""
    logging.getLogger().addHandler(handler := logging.NullHandler())
    try:
        return open_clip.create_model(name, pretrained=str(path)).eval()
    finally:
        logging.getLogger().removeHandler(handler)


def disturbed(encoder, rate=0.5):
    """After two steps of training, so that nothing is at its initial value any more."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=rate * 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        (encoder(images()).square().mean() + encoder(captions()).square().mean()).backward()
        optimizer.step()
    return encoder.eval()


def agree(encoder, model):
    image, text = normalize(encoder.tower("query")(images())), normalize(encoder.tower("document")(captions()))
    torch.testing.assert_close(image, model.encode_image(images(), normalize=True), rtol=0, atol=1e-6)
    torch.testing.assert_close(text, model.encode_text(full(captions()), normalize=True), rtol=0, atol=1e-6)
    assert not torch.allclose(image[0], image[1]) and not torch.allclose(text[0], text[1])


@pytest.mark.parametrize("lora", [None, 2])
def test_saved_file_is_open_clips_own_model(tmp_path, lora):
    encoder = disturbed(built(lora_rank=lora))
    state = {name: x.clone() for name, x in encoder.state_dict().items()}
    encoder.save_open_clip(tmp_path / "clip.pt", 0.02)
    model = reference(tmp_path / "clip.pt")
    assert type(model) is open_clip.CLIP
    agree(encoder, model)
    torch.testing.assert_close(model.logit_scale.exp(), torch.tensor(50.0))
    assert all(torch.equal(x, state[name]) for name, x in encoder.state_dict().items())  # saving changes nothing
    again = built(pretrained=tmp_path / "clip.pt", seed=1).eval()
    agree(again, model)
    assert again.temperature == pytest.approx(0.02)


def test_saved_file_of_a_model_with_a_text_module(tmp_path):
    path = config(tmp_path, "custom", custom_text=True)
    encoder = disturbed(built(path))
    encoder.save_open_clip(tmp_path / "clip.pt", 0.07)
    model = reference(tmp_path / "clip.pt", "custom")
    assert type(model) is open_clip.CustomTextCLIP
    agree(encoder, model)


@pytest.mark.parametrize("freeze", ["none", "image"])
def test_towers_hold_the_model_once_and_dispatch_by_input(freeze):
    encoder = built(freeze=freeze).eval()
    assert sum("conv1.weight" in name for name in encoder.state_dict()) == 1
    assert len(list(encoder.parameters())) == len(list(encoder.model.parameters()))
    torch.testing.assert_close(encoder.features(images()), encoder.tower("query")(images()))
    torch.testing.assert_close(encoder(captions()), encoder.tower("document")(captions()))
    twin = copy.deepcopy(encoder)
    twin.model.visual.proj.data.zero_()
    assert twin(images()).abs().max() == 0 < encoder(images()).abs().max()


def test_text_is_read_at_its_end_and_in_order():
    tower, found = built().eval().tower("document"), captions()
    moved = found.ids.clone()
    moved[:, [1, 2]] = moved[:, [2, 1]]
    assert not torch.allclose(tower(found), tower(Tokens(moved, found.mask, found.pool)), atol=1e-4)
    behind = nn.functional.pad(found.ids, (0, 3), value=7)  # words after the end
    mask = torch.ones_like(behind, dtype=torch.bool)
    torch.testing.assert_close(tower(Tokens(behind, mask, mask))[:1], tower(found)[:1])


def pair_batch(n=4, negatives=0):
    keys = torch.arange(n)
    more = captions(n * negatives, seed=3) if negatives else None
    made = torch.arange(n, n + n * negatives).view(n, -1) if negatives else None
    mask = None if made is None else torch.ones_like(made, dtype=torch.bool)
    return PairBatch(images(n), captions(n), keys, keys, keys, more, made, mask)


@pytest.mark.parametrize("cache_chunk", [None, 1, 3])
def test_step_equals_open_clips_loss_and_gradients(cache_chunk):
    encoder = built()
    loss = InfoNCE(0.07, learn_temperature=True)
    method = DualEncoder(encoder, loss, symmetric=True, cache_chunk=cache_chunk)
    model = copy.deepcopy(encoder.model).requires_grad_()
    value = cached_step(method, pair_batch())
    image, text, scale = model(images(), full(captions()))
    expected = ClipLoss()(image, text, scale)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    for (name, ours), theirs in zip(encoder.model.named_parameters(), model.parameters(), strict=True):
        if name != "logit_scale":
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(-loss.log_temperature.grad, model.logit_scale.grad)


def step(n=4, negatives=0, batch=None, encoder=None):
    method = DualEncoder(encoder or built(), InfoNCE(0.07), symmetric=True)
    return cached_step(method, batch or pair_batch(n, negatives))


def test_one_pair_has_no_loss_and_equal_embeddings_the_logarithm_of_their_number():
    torch.testing.assert_close(step(1), torch.tensor(0.0))
    batch = pair_batch(5)
    same = captions(1)[torch.zeros(5, dtype=torch.int64)]
    batch = batch.replace(anchor=batch.anchor[:1].expand(5, -1, -1, -1), positive=same)
    torch.testing.assert_close(step(batch=batch), torch.tensor(5.0).log())


def test_order_of_pairs_does_not_matter_and_extra_captions_cost():
    plain, order = pair_batch(4), torch.tensor([2, 0, 3, 1])
    turned = plain.replace(anchor=plain.anchor[order], positive=plain.positive[order])
    torch.testing.assert_close(step(batch=plain), step(batch=turned))
    assert step(4, negatives=1) > step(4)


def test_negative_captions_are_no_queries():
    """Their gradient is that of the images' direction alone, halved, also where another image owns them."""
    method = DualEncoder(built(), InfoNCE(0.07), symmetric=True)
    one_way = DualEncoder(method.encoder, InfoNCE(0.07))
    found = []
    for m in (method, one_way):
        encoded = m.encode(pair_batch(4, 1))
        encoded.negatives.retain_grad()
        m.encode = lambda batch, encoded=encoded: encoded
        cached_step(m, pair_batch(4, 1))
        found.append(encoded.negatives.grad)
    torch.testing.assert_close(found[0], found[1] / 2)
    assert (found[0].flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("vision", [{}, RESIDUAL])
@pytest.mark.parametrize("freeze", ["image", "text"])
def test_frozen_tower_is_bit_identical(tmp_path, freeze, vision):
    """Running statistics of a residual network's normalisation included."""
    encoder = built(config(tmp_path, vision=vision), freeze=freeze)
    before = {name: x.clone() for name, x in encoder.model.state_dict().items()}
    disturbed(encoder.train(), rate=100.0)
    part = {"image": "visual", "text": "text"}[freeze]
    moved = {name for name, x in encoder.model.state_dict().items() if not torch.equal(x, before[name])}
    assert moved and not any(name.split(".")[0] in (part, "logit_scale") for name in moved)


@pytest.mark.parametrize("freeze", ["none", "image"])
@pytest.mark.parametrize("kind", ["own", "custom_block", "timm"])
def test_adapters_start_as_the_model_and_are_all_that_moves(tmp_path, kind, freeze):
    vision = {"own": {}, "custom_block": {"qk_norm": True}, "timm": TIMM}[kind]
    path = config(tmp_path, kind, vision, {"qk_norm": kind == "custom_block"}, custom_text=kind == "timm")
    plain, adapted = built(path).eval(), built(path, lora_rank=2, freeze=freeze)
    torch.testing.assert_close(adapted.eval()(images()), plain(images()))
    base = {name: x.clone() for name, x in adapted.named_parameters() if "lora_" not in name}
    disturbed(adapted.train(), rate=10.0)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name and p.grad is not None for name, p in trained.items())
    assert all(torch.equal(x, base[name]) for name, x in adapted.named_parameters() if name in base)
    assert torch.allclose(adapted(images()), plain(images()), atol=1e-5) == (freeze == "image")
    assert not torch.allclose(adapted(captions()), plain(captions()))
    # Attention's joint projection and both layers of the feed-forward part, of both blocks, two matrices each.
    of_text = [name for name in trained if ".text." in name]
    assert len(of_text) == 2 * 2 * (4 if kind == "custom_block" else 3)


def test_loading_stays_silent_and_leaves_logging_as_it_was(capsys):
    handlers = list(logging.getLogger().handlers)
    built()
    assert capsys.readouterr() == ("", "") and logging.getLogger().handlers == handlers
    assert logging.root.manager.disable == 0


def test_user_errors_are_one_line(tmp_path, monkeypatch):
    built().save_open_clip(tmp_path / "tiny.pt", 0.07)
    wide = str(config(tmp_path, "wide", {"width": 32}))
    deep = str(config(tmp_path, "deep", {"layers": 3}))
    shallow = str(config(tmp_path, "shallow", {"layers": 1}))
    residual = str(config(tmp_path, "residual", RESIDUAL))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "half.json").write_text('{"embed_dim": 8, "text_cfg": {}}')
    (tmp_path / "text.pt").write_text("hello")
    odd = str(config(tmp_path, "odd", {"hidden": 3}))
    file = str(tmp_path / "tiny.pt")
    cases = [
        ({"model": residual, "freeze": "text", "lora_rank": 2}, "finds no transformer"),
        ({"model": "ViT-B-33"}, "no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        ({"model": "hf-hub:some/one"}, "no model 'hf-hub:some/one'"),
        ({"model": "coca_ViT-B-32"}, "captioning model"),
        ({"model": str(tmp_path / "absent.json")}, "cannot read the configuration .*absent.json"),
        ({"model": str(tmp_path / "broken.json")}, "cannot read the configuration .*broken.json"),
        ({"model": str(tmp_path / "half.json")}, "half.json has no 'vision_cfg'"),
        ({"model": odd}, "cannot build 'odd' .*hidden.*check the configuration"),
        ({"pretrained": "absent.pt"}, "no checkpoint file 'absent.pt', nor weights"),
        ({"model": "ViT-B-32-quickgelu", "pretrained": "opanai"}, "did you mean 'openai'"),
        ({"model": "ViT-B-32", "pretrained": "openai"}, "another activation: name 'ViT-B-32-quickgelu'"),
        ({"pretrained": str(tmp_path / "text.pt")}, "text.pt is no checkpoint that open_clip can read"),
        ({"model": wide, "pretrained": file}, r"tiny.pt does not fit wide: .* is \[64.*\] in the file and \[32.*\] in"),
        ({"model": deep, "pretrained": file}, r"does not fit deep: the file has no .*resblocks.2"),
        ({"model": shallow, "pretrained": file}, "does not fit shallow: the model has no .*resblocks.1"),
    ]  # fmt: skip
    for kwargs, message in cases:
        with pytest.raises(ZooError, match=message) as error:
            OpenClip(**kwargs)
        assert "\n" not in str(error.value)
    with pytest.raises(ZooError, match="25 tokens, and the model reads 20"):
        built()(captions(2, 25))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ZooError, match=r"pip install negatives-zoo\[lora\]"):
        built(lora_rank=2)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise RuntimeError("Failed to download weights: no network.\nmore")

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(ZooError, match="cannot build 'ViT-B-32-quickgelu' .*no network.*network if it names weights$"):
        OpenClip("ViT-B-32-quickgelu", "openai")


def test_shipped_convolutions_run_in_the_fast_layout_and_give_what_open_clip_gives(tmp_path):
    clip = built("scenes_resnet").eval()
    tower = clip.tower("query")
    assert (
        tower.layout is torch.channels_last and OpenClip("scenes_tiny").tower("query").layout is torch.contiguous_format
    )
    clip.save_open_clip(tmp_path / "weights.bin", 0.07)
    plain = reference(tmp_path / "weights.bin", "scenes_resnet")
    torch.testing.assert_close(tower(images(3)), plain.encode_image(images(3)), rtol=1e-4, atol=1e-5)

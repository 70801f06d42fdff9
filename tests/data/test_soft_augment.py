"""Soft data augmentation: what may change, how often, and into what."""

import pytest
import torch

from zoo.data.soft_augment import (
    SoftTokens,
    dynamic_masking,
    dynamic_replacement,
    soft_augment,
    type_masking,
    type_replacement,
)

TOKENS = SoftTokens(mask=2, types=torch.tensor([3, 4, 5]), ordinary=(6, 1000))
TYPED = (dynamic_replacement, type_replacement, type_masking)


def _batch(b=200, length=60):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 1000, (b, length), generator=generator)
    types = torch.randint(-1, 3, (b, length), generator=generator)
    special = torch.arange(length) >= torch.randint(10, length + 1, (b, 1), generator=generator)
    return ids.masked_fill(special, 0), types, special


def _apply(function, p=0.1, seed=0, **kwargs):
    ids, types, special = _batch()
    types = () if function is dynamic_masking else (types,)
    return function(ids, *types, special, TOKENS, p, torch.Generator().manual_seed(seed), **kwargs)


@pytest.mark.parametrize("function", [dynamic_masking, *TYPED])
def test_padding_and_prefix_stay_and_p_zero_changes_nothing(function):
    ids, _, special = _batch()
    changed = _apply(function, p=1.0) != ids
    assert changed.any() and not changed[special].any() and not changed[:, :3].any()
    assert changed[:, 3].any()
    assert _apply(function, p=1.0, prefix=0)[:, :3].ne(ids[:, :3]).any()
    assert torch.equal(_apply(function, p=0.0), ids)
    assert torch.equal(_apply(function), _apply(function)) and not torch.equal(
        _apply(function), _apply(function, seed=1)
    )


def test_masking_writes_eight_masks_to_one_random_token():
    ids, _, special = _batch()
    out, place = _apply(dynamic_masking, p=0.5), ~special
    place[:, :3] = False
    n = place.sum()
    masked, changed = (out == 2)[place], (out != ids)[place]
    assert (masked.sum() / n).item() == pytest.approx(0.5 * 0.8, abs=0.03)
    assert ((changed & ~masked).sum() / n).item() == pytest.approx(0.5 * 0.1, abs=0.015)
    assert out[out != ids].min() >= 2 and not torch.isin(out, TOKENS.types).any()


def test_replacement_really_writes_types():
    ids, types, special = _batch()
    out = _apply(dynamic_replacement, p=0.5)
    changed, place = out != ids, ~special & (types >= 0)
    place[:, :3] = False
    assert torch.equal(out[changed], TOKENS.types[types[changed]]) and not changed[~place].any()
    assert (changed.sum() / place.sum()).item() == pytest.approx(0.5 * 0.8, abs=0.03)


@pytest.mark.parametrize("function", [type_replacement, type_masking])
def test_one_type_per_step(function):
    ids, types, special = _batch()
    picked = set()
    for seed in range(12):
        out = _apply(function, p=0.5, seed=seed)
        changed = out != ids
        (only,) = types[changed].unique().tolist()
        picked.add(only)
        assert out[changed].unique().tolist() == [2 if function is type_masking else TOKENS.types[only].item()]
        place = ~special & (types == only)
        place[:, :3] = False
        assert (changed.sum() / place.sum()).item() == pytest.approx(0.5 * 0.8, abs=0.05)
    assert picked == {0, 1, 2}


def test_variants_take_turns_and_queries_are_only_masked():
    ids, types, special = _batch()
    for step in range(8):
        seeded = [torch.Generator().manual_seed(step) for _ in range(3)]
        code = soft_augment(ids, types, special, TOKENS, step, 0.3, seeded[0])
        query = soft_augment(ids, None, special, TOKENS, step, 0.3, seeded[1])
        if step % 4 == 0:
            want = dynamic_masking(ids, special, TOKENS, 0.3, seeded[2])
            assert torch.equal(query, want)
        else:
            want = TYPED[step % 4 - 1](ids, types, special, TOKENS, 0.3, seeded[2])
            assert torch.equal(query, ids)
        assert torch.equal(code, want) and not torch.equal(code, ids)

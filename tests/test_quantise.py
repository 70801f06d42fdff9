"""Codes of embeddings, with numpy as the oracle."""

import numpy as np
import pytest
import torch

from zoo.errors import ZooError
from zoo.quantise import dequantise, hamming_scores, quantise, truncate


def _embeddings(n=30, d=13, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_bytes_are_floored_steps_of_the_calibrated_range():
    x, calibration = _embeddings(), _embeddings(120, seed=1)
    low, high = calibration.numpy().min(0), calibration.numpy().max(0)
    want = np.clip(np.floor((x.numpy() - low) / ((high - low) / 255)), 0, 255)
    np.testing.assert_array_equal(quantise(x, "uint8", calibration), want.astype(np.uint8))
    np.testing.assert_array_equal(quantise(x, "int8", calibration), (want - 128).astype(np.int8))
    assert quantise(x, "uint8", calibration).dtype == torch.uint8
    assert quantise(x, "int8", calibration).dtype == torch.int8


def test_bits_are_numpys_packed_bits():
    x = _embeddings()
    want = np.packbits(x.numpy() > 0, axis=1)
    np.testing.assert_array_equal(quantise(x, "ubinary"), want)
    np.testing.assert_array_equal(quantise(x, "binary"), (want.astype(int) - 128).astype(np.int8))
    assert not quantise(torch.zeros(2, 8), "ubinary").any()


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_hamming_score_is_minus_the_number_of_differing_signs(precision):
    queries, documents = _embeddings(5), _embeddings(9, seed=1)
    differing = ((queries > 0)[:, None] != (documents > 0)[None]).sum(2)
    codes = [quantise(x, precision) for x in (queries, documents)]
    assert torch.equal(hamming_scores(*codes), -differing.float())


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_bytes_decode_to_within_half_a_step(precision):
    calibration = _embeddings(120)
    decoded = dequantise(quantise(calibration, precision, calibration), calibration)
    step = (calibration.amax(0) - calibration.amin(0)) / 255
    assert ((decoded - calibration).abs() <= step * 0.501).all()


def test_a_constant_dimension_is_code_zero():
    calibration = _embeddings(120)
    calibration[:, 3] = 0.25
    codes = quantise(calibration, "uint8", calibration)
    assert not codes[:, 3].any() and codes[:, 2].any()
    assert torch.equal(dequantise(codes, calibration)[:, 3], calibration[:, 3])


def test_bytes_need_a_calibration_set():
    with pytest.raises(ZooError, match="int8 codes need calibration embeddings"):
        quantise(_embeddings(), "int8")


def test_truncated_embeddings_are_unit_prefixes():
    x = _embeddings().double()
    torch.testing.assert_close(truncate(x, 4), x[:, :4] / x[:, :4].norm(dim=1, keepdim=True))

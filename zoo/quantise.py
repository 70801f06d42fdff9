"""Smaller embeddings after training: prefixes, one byte or one bit per dimension."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from zoo.errors import ZooError
from zoo.losses.scores import normalize

Precision = Literal["int8", "uint8", "binary", "ubinary"]


def truncate(embeddings: Float[Tensor, "N D"], dim: int) -> Float[Tensor, "N K"]:
    """The first `dim` coordinates, re-normalised."""
    return normalize(embeddings[:, :dim])


def quantise(
    embeddings: Float[Tensor, "N D"], precision: Precision, calibration: Float[Tensor, "C D"] | None = None
) -> Int8[Tensor, "N W"] | UInt8[Tensor, "N W"]:
    """Codes of the embeddings.

    "uint8": floor((x - lo) / step), clipped to 0..255, with lo and hi the least and largest value of each dimension in
    the calibration set and step = (hi - lo) / 255; "int8": that minus 128. "ubinary": the bits x > 0, eight per byte, the
    first dimension in the highest bit, zeros at the end; "binary": that minus 128.

    Args:
        embeddings: what to encode.
        precision: kind of code.
        calibration: embeddings that fix the range of each dimension; below some hundred of them it is meaningless.
            Queries and documents need the same set. Not read for bits.

    Raises:
        ZooError: bytes without a calibration set.
    """
    if precision in ("binary", "ubinary"):
        codes = _pack(embeddings > 0)
    elif calibration is None:
        raise ZooError(f"{precision} codes need calibration embeddings: pass those of the documents")
    else:
        low, step = _ranges(calibration)
        scaled = ((embeddings - low) / step).where(step > 0, 0.0)
        codes = scaled.floor().clamp(0, 255).to(torch.uint8)
    return codes if precision in ("uint8", "ubinary") else (codes.to(torch.int16) - 128).to(torch.int8)


def dequantise(
    codes: Int8[Tensor, "N D"] | UInt8[Tensor, "N D"], calibration: Float[Tensor, "C D"]
) -> Float[Tensor, "N D"]:
    """Embeddings from one-byte codes, each coordinate in the middle of its step: to score as usual."""
    low, step = _ranges(calibration)
    return low + step * (_unsigned(codes).to(step.dtype) + 0.5)


def hamming_scores(
    queries: Int8[Tensor, "Q W"] | UInt8[Tensor, "Q W"], documents: Int8[Tensor, "N W"] | UInt8[Tensor, "N W"]
) -> Float[Tensor, "Q N"]:
    """Minus the number of differing bits between binary codes: nearest is largest, like any score."""
    signs = [2 * _unpack(_unsigned(codes)).float() - 1 for codes in (queries, documents)]
    return (signs[0] @ signs[1].T - signs[0].shape[1]) / 2


def _ranges(calibration: Tensor) -> tuple[Tensor, Tensor]:
    low, high = calibration.aminmax(dim=0)
    return low, (high - low) / 255


def _unsigned(codes: Tensor) -> Tensor:
    return codes if codes.dtype == torch.uint8 else (codes.to(torch.int16) + 128).to(torch.uint8)


def _pack(bits: Tensor) -> Tensor:
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(bits), -1, 8)
    return (bits.to(torch.uint8) << _shifts(bits)).sum(2, dtype=torch.uint8)


def _unpack(codes: Tensor) -> Tensor:
    return ((codes[:, :, None] >> _shifts(codes)) & 1).flatten(1)


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=like.device)

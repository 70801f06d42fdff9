"""Mutual information machines: an encoder with a Gaussian posterior and a decoder, with or without contrast of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.distributed import gather, gather_with_grad
from zoo.errors import ZooError
from zoo.losses.mutual_information import (
    LogTerms,
    MachineLoss,
    bernoulli_log_likelihood,
    gaussian_log_density,
    match_log_probability,
)
from zoo.losses.scores import at_least_float32, normalize
from zoo.methods.base import ContrastiveMethod
from zoo.negatives.candidates import Candidates

Features = Literal["mean", "sample", "decoder"]
LOWEST_LOG_SCALE = -6.0  # MIM shrinks the posterior; the released code stops it here


class ImageDecoder(nn.Module):
    """Codes to logits of Bernoulli pixels, by an MLP.

    Args:
        dim: width D of codes.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        size: side of the decoded images in pixels.
        channels: 1 decodes the mean of an image's channels.
    """

    def __init__(
        self, dim: int = 64, hidden: int = 256, layers: int = 2, size: int = 16, channels: Literal[1, 3] = 1
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ZooError("the decoder needs a hidden layer, which informative embeddings are read from")
        self.dim, self.shape = dim, (channels, size, size)
        widths = [dim, *[hidden] * layers]
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(a, hidden), nn.ReLU(True)) for a in widths[:-1]))
        self.output = nn.Linear(hidden, channels * size * size)

    def hidden(self, codes: Float[Tensor, "B D"]) -> Float[Tensor, "B H"]:
        """The informative embedding of a code: the activation that the pixels' distributions are made of."""
        return self.layers(codes)

    def forward(self, codes: Float[Tensor, "B D"]) -> Float[Tensor, "B C S S"]:
        return self.output(self.hidden(codes)).unflatten(1, self.shape)

    def target(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C S S"]:
        """What is decoded of images: their pixels, or those of a thumbnail where the decoder is smaller."""
        if self.shape[0] == 1:
            images = images.mean(1, keepdim=True)
        return nn.functional.adaptive_avg_pool2d(images, self.shape[1:])


class MutualInformationMachine(ContrastiveMethod):
    r"""MIM, cMIM, VAE and InfoNCE on the codes $z = \mu + \sigma\epsilon$ of images, $\epsilon \sim N(0, I)$.

    cMIM compares each code with itself, a similarity of exactly 1, and with the mean over the other codes of the batch
    (of all ranks, with gradient; those of the same content are masked): no augmented positive, only repulsion in angle,
    which reconstruction counters. $\log\sigma$ is clamped from below. All of the loss is computed in at least float32.

    Images are anchors, from 0 to 1; positives are read by a loss that asks for augmented ones.

    Sources: arXiv 1910.03175 and 2502.19642, see `zoo.losses.mutual_information`.

    Args:
        encoder: maps images to $\mu$ and $\log\sigma$, `[B, 2 D]`.
        loss: `CMIM`, `MIM`, `SymmetricMIM`, `VAE` or `CodeInfoNCE`.
        decoder: maps codes `[B, D]` to logits of pixels.
        features_from: what evaluation uses: $\mu$ ("mean"), z ("sample"), or the decoder's last hidden layer at $\mu$
            ("decoder": informative embeddings).
        reduction: "sum" or "mean" of the pixels' log-likelihoods. The mean gives the other terms more weight.
        normalize: divide $\log q(z|x)$ and $\log P(z)$ by D: "loss" their values, "gradient" only their gradients.
        detach_candidates: the contrast's gradient flows through a code's own side only.
        **kwargs: optimiser and schedule, as in `ContrastiveMethod`.

    Raises:
        ZooError: encoder and decoder do not agree on D.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: MachineLoss,
        decoder: ImageDecoder,
        features_from: Features = "mean",
        reduction: Literal["sum", "mean"] = "sum",
        normalize: Literal["none", "gradient", "loss"] = "none",
        detach_candidates: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, **kwargs)
        if encoder.dim != 2 * decoder.dim:
            raise ZooError(
                f"the encoder's dim {encoder.dim} holds means and log-scales of the decoder's {decoder.dim}: make it "
                f"{2 * decoder.dim}"
            )
        self.decoder = decoder.requires_grad_(loss.reconstructs)
        self.features_from: Features = features_from
        self.reduction: Literal["sum", "mean"] = reduction
        self.normalize: Literal["none", "gradient", "loss"] = normalize
        self.detach_candidates = detach_candidates

    def posterior(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Mean and log-scale of q(z|x)."""
        mean, log_scale = at_least_float32(self.encoder(images)).chunk(2, 1)
        return mean, log_scale.clamp_min(LOWEST_LOG_SCALE)

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        loss: Any = self.loss
        mean, log_scale = self.posterior(batch.anchor)
        z = sample(mean, log_scale)
        with torch.autocast(z.device.type, enabled=False):
            query = normalize(z)
            positive = normalize(sample(*self.posterior(batch.positive))) if loss.augmented else query
            shared, keys = gather_with_grad(query), gather(batch.anchor_key)
            mask = batch.anchor_key[:, None] != keys[None, :]
            shared = shared.detach() if self.detach_candidates else shared
            positives, negatives, mask = Candidates(query, positive, shared, mask).scores()
            if not loss.augmented:
                positives = torch.ones_like(positives)
            if loss.reconstructs:
                likelihood = bernoulli_log_likelihood(
                    self.decoder(z), self.decoder.target(batch.anchor), self.reduction
                )
            else:
                likelihood = torch.zeros_like(z[:, 0])
            terms = LogTerms(
                likelihood,
                match_log_probability(positives, negatives, mask, loss.temperature, loss.average),
                gaussian_log_density(z, mean, log_scale),
                gaussian_log_density(z),
            ).normalized(z.shape[1], self.normalize)
            step = self.report(loss(terms), query, (positives, negatives, mask))
            return {**step, "terms": terms, "scale": log_scale.exp()}

    @torch.no_grad()
    def read(self, images: Float[Tensor, "B 3 H W"], kinds: Sequence[Features]) -> dict[Features, Float[Tensor, "B _"]]:
        """Features of several kinds, of one pass of the encoder."""
        mean, log_scale = self.posterior(images)
        made = {
            "mean": lambda: mean,
            "sample": lambda: sample(mean, log_scale),
            "decoder": lambda: self.decoder.hidden(mean),
        }
        return {kind: made[kind]() for kind in kinds}

    def features(self, inputs: Any) -> Tensor:
        return self.read(inputs, [self.features_from])[self.features_from]

    def reconstruction_error(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """Negative log-likelihood of each image given its mean code, in nats per pixel."""
        logits, target = self.decoder(self.posterior(images)[0]), self.decoder.target(images)
        return -bernoulli_log_likelihood(logits, target, "mean")


def sample(mean: Float[Tensor, "B D"], log_scale: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """A reparameterised draw: the gradient reaches mean and scale."""
    return mean + log_scale.exp() * torch.randn_like(mean)

"""Models of (query, document) pairs, and methods that train one beside the retriever."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.data.text import Tokens
from zoo.errors import ZooError
from zoo.losses.adversarial import AdversarialRetrieverLoss
from zoo.losses.coupled import CoupledPairLoss
from zoo.losses.nce import info_nce
from zoo.losses.scores import normalize
from zoo.methods.dual import DualEncoder, Encoded
from zoo.methods.pooling import masked_mean


class KernelRanker(nn.Module):
    """K-NRM: soft counts of how similar query and document tokens are, over kernels of the cosine; a linear score.

    Source: Xiong et al. 2017 (arXiv 1706.06613).

    Args:
        vocab_size: entries of the vocabulary, the tokenizer's.
        dim: width of the token embeddings.
        kernels: Gaussian kernels between -1 and 1; one more, narrow, counts exact matches.
        duet: weigh query tokens by a learned gate (as DRMM's, Guo et al. 2016, arXiv 1711.08611) and add a scaled cosine
            of the mean token embeddings, so that the ranker also reads all that a bag of tokens does (Mitra et al. 2017,
            arXiv 1610.08136).
    """

    centers: Tensor
    widths: Tensor

    def __init__(self, vocab_size: int = 8192, dim: int = 64, kernels: int = 10, duet: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        step = 2 / kernels
        centers = torch.arange(kernels) * step - 1 + step / 2
        self.register_buffer("centers", torch.cat([torch.ones(1), centers]))
        self.register_buffer("widths", torch.cat([torch.tensor([1e-3]), torch.full((kernels,), step / 2)]))
        self.score = nn.Linear(kernels + 1, 1)
        self.norm = nn.LayerNorm(kernels + 1)
        self.gate = nn.Embedding(vocab_size, 1) if duet else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, query: Tokens, documents: Tokens) -> Float[Tensor, "B G"]:
        """Scores of each query's G documents; `documents` holds B * G of them, row i * G + j the j-th of query i."""
        embedded = [self.embedding(t.ids) for t in (query, documents)]
        q, d = (normalize(x) for x in embedded)
        b = len(query)
        d = d.view(b, -1, *d.shape[1:])
        seen = documents.mask.view(b, -1, documents.mask.shape[1])
        cosine = torch.einsum("bqd,bgld->bgql", q, d)
        weight = query.mask[:, None].to(cosine.dtype)
        if self.gate is not None:
            weight = weight * 2 * self.gate(query.ids).mT.sigmoid()
        features = []
        for center, width in zip(self.centers, self.widths, strict=True):  # one [B, G, Q, L] at a time
            soft = (-((cosine - center) ** 2) / (2 * width**2)).exp() * seen[:, :, None]
            counted = soft.sum(3).clamp_min(1e-10).log() * 0.1
            features.append((counted * weight).sum(2))
        score = self.score(self.norm(torch.stack(features, 2))).squeeze(2)
        if self.gate is None:
            return score
        bags = [normalize(masked_mean(x, t.mask)) for x, t in zip(embedded, (query, documents), strict=True)]
        return score + self.scale * torch.einsum("bd,bgd->bg", bags[0], bags[1].view(b, -1, bags[1].shape[1]))


def lists(batch: PairBatch) -> tuple[Tokens, Bool[Tensor, "B G"]]:
    """Each query's positive and explicit negatives as B * G documents, and which of them are there.

    Raises:
        ZooError: the batch has no explicit negatives.
    """
    if batch.negatives is None or batch.negative_mask is None:
        raise ZooError("a ranker needs lists: set --data.n_negatives and --data.miner (or --data.table)")
    b = len(batch)
    parts = []
    width = max(batch.positive.ids.shape[1], batch.negatives.ids.shape[1])
    for name in ("ids", "mask", "pool"):
        first, rest = (
            nn.functional.pad(x, (0, width - x.shape[1]))
            for x in (getattr(batch.positive, name), getattr(batch.negatives, name))
        )
        parts.append(torch.cat([first[:, None], rest.view(b, -1, width)], 1).flatten(0, 1))
    present = torch.cat([torch.ones_like(batch.negative_mask[:, :1]), batch.negative_mask], 1)
    return Tokens(*parts), present


def list_scores(encoded: Encoded) -> Float[Tensor, "B G"]:
    """Each query against its positive and its own negatives."""
    query, positive, negatives = encoded
    return torch.einsum("bd,bgd->bg", query, torch.cat([positive[:, None], negatives], 1))  # type: ignore[list-item]


class RetrieverRanker(DualEncoder):
    r"""AR2: a retriever and a ranker in a minimax game over lists of a positive and retrieved negatives.

    In rounds of `round_steps` optimiser steps the first `ranker_steps` train the ranker, by cross entropy of its list
    against the positive; the others train the retriever, to bring back what the ranker scores above the positive and to
    follow the ranker's distribution (`zoo.losses.adversarial_retriever_loss`). Lists come from the negative table, which a
    `RefreshNegatives` callback makes anew from the current retriever. During the first `warmup_steps` both train at
    once, the retriever by `DualEncoder`'s loss.

    Source: Zhang et al. 2022 (arXiv 2110.03611), github microsoft/AR2.

    Args:
        encoder: the retriever's.
        loss: of the warm-up; its temperature also scales the retriever's scores of a list.
        ranker: maps (queries, their B * G documents) to scores `[B, G]`.
        adversarial: the retriever's loss.
        round_steps: steps of a round.
        ranker_steps: of them for the ranker.
        warmup_steps: before the first round.
        **kwargs: as in `DualEncoder`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        ranker: nn.Module,
        adversarial: AdversarialRetrieverLoss,
        round_steps: int = 2000,
        ranker_steps: int = 500,
        warmup_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, **kwargs)
        self.ranker, self.adversarial = ranker, adversarial
        self.round_steps, self.ranker_steps, self.warmup_steps = round_steps, ranker_steps, warmup_steps

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        documents, present = lists(batch)
        since = self.trainer.global_step - self.warmup_steps
        if since < 0:
            step = super().training_step(batch, batch_idx)
            return {**step, "loss": step["loss"] + self._ranker_loss(batch, documents, present)}
        if since % self.round_steps < self.ranker_steps:
            with torch.no_grad():
                encoded = self.encode(batch)
            return self._step(self._ranker_loss(batch, documents, present), encoded, present)
        with torch.no_grad():
            self.ranker.eval()
            judged = self.ranker(batch.anchor, documents).float()
            self.ranker.train()
        encoded = self.encode(batch)
        with torch.autocast(encoded.query.device.type, enabled=False):
            scores = list_scores(encoded) / self.loss.temperature  # type: ignore[operator]
            loss = self.adversarial(scores, judged, present)
        if self._logs_this_step:
            self.log_dict(
                {"train/distill": loss.distill.detach(), "train/adversarial": loss.adversarial.detach()},
                batch_size=len(batch),
            )
        return self._step(loss.total, encoded, present)

    def _ranker_loss(self, batch: PairBatch, documents: Tokens, present: Tensor) -> Float[Tensor, ""]:
        judged = self.ranker(batch.anchor, documents).float()
        if self._logs_this_step:
            best = judged.masked_fill(~present, -torch.inf).argmax(1) == 0
            self.log("train/ranker_accuracy", best.float().mean(), on_step=False, on_epoch=True, batch_size=len(batch))
        return info_nce(judged[:, :1], judged[:, 1:], present[:, 1:], 1.0)

    def _step(self, loss: Tensor, encoded: Encoded, present: Tensor) -> dict:
        scores = list_scores(encoded)
        return self.report(loss, encoded.query, (scores[:, :1], scores[:, 1:], present[:, 1:]))


class CoupledEstimation(DualEncoder):
    r"""CET: a relevance and a selection model that weight each other's negatives against pooling bias.

    A mined negative that nobody labelled was either judged irrelevant or never looked at. With $r^-, s^-$ the two models'
    scores of the negative, the relevance model's pair loss has weight $1 + e^{s^-/T}$ and the selection model's
    $1 + e^{r^-/T}$, both constants taken in evaluation mode before either moves. Only relevance is used afterwards.

    Source: Cai et al. 2022 (arXiv 2209.05072), github caiyinqiong/Coupled_Estimation_Technique.

    Args:
        encoder: the relevance model's; the selection model has the same architecture, or is `selection`.
        loss: its temperature scales all scores.
        coupled: the weighted pair loss.
        selection: the selection model's encoder; None copies the architecture, with weights of its own.
        **kwargs: as in `DualEncoder`, save what concerns other negatives than a query's own.

    Raises:
        ZooError: blocks, vetting, a guide, a gradient cache, or one direction more were asked for.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        coupled: CoupledPairLoss,
        selection: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("blocks", "symmetric", "vetting", "guide", "cache_chunk", "lean"):
            if (given := kwargs.get(name)) and given != ["qd"]:
                raise ZooError(f"CET scores a query's own lists alone: remove --model.{name}")
        if selection is None:
            selection = copy.deepcopy(encoder)
            with torch.no_grad():  # from the same weights the two would stay twins
                for parameter in selection.parameters():
                    parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
        super().__init__(encoder, loss, **kwargs)
        self.selection, self.coupled = selection, coupled

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        if batch.negatives is None:
            raise ZooError("CET weights mined negatives: set --data.n_negatives and --data.miner (or --data.table)")
        relevance, selection = (self._scores(e, batch) for e in (self.encoder, self.selection))
        with torch.no_grad():
            for model in (self.encoder, self.selection):
                model.eval()
            r, s = (self._scores(e, batch)[:, 1:] for e in (self.encoder, self.selection))
            for model in (self.encoder, self.selection):
                model.train()
        mask = batch.negative_mask
        loss = self.coupled(relevance[:, :1], relevance[:, 1:], s, mask)
        loss = loss + self.coupled(selection[:, :1], selection[:, 1:], r, mask)
        if self._logs_this_step:
            self.log("train/selection_correlation", _correlation(r[mask], s[mask]), batch_size=len(batch))
        scores = relevance * self.loss.temperature  # type: ignore[operator]
        return self.report(loss, self._query, (scores[:, :1], scores[:, 1:], mask))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Each model by itself, as if it had an optimiser of its own.
        for model in (self.encoder, self.selection):
            gradients = [p for p in model.parameters() if p.grad is not None]
            if gradient_clip_val and gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(gradients, gradient_clip_val)
            elif gradient_clip_val:
                nn.utils.clip_grad_norm_(gradients, gradient_clip_val)

    def _scores(self, encoder: nn.Module, batch: PairBatch) -> Float[Tensor, "B G"]:
        query = encoder(batch.anchor)
        with torch.autocast(query.device.type, enabled=False):
            unit = normalize if self.normalize else lambda x: x.float()
            q, p, n = (unit(x) for x in (query, encoder(batch.positive), encoder(batch.negatives)))
            if encoder is self.encoder and torch.is_grad_enabled():
                self._query = q
            return list_scores(Encoded(q, p, n.view(len(q), -1, q.shape[1]))) / self.loss.temperature  # type: ignore[operator]


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-12)

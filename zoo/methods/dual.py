"""Dual encoder: queries and documents, negatives from the batch, a table, a filter."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.data.collections import Side
from zoo.data.pairs import PairBatch
from zoo.distributed import gather, gather_with_grad, rank
from zoo.errors import ZooError
from zoo.losses.lean import KeyMask
from zoo.losses.nce import InfoNCE
from zoo.losses.scores import at_least_float32, normalize
from zoo.methods.gradient_cache import CachedMethod
from zoo.methods.towers import Tower, UnitNorm
from zoo.negatives.blocks import Block, BlockName, PairEmbeddings, Vetting, join, score_blocks
from zoo.negatives.candidates import Candidates
from zoo.negatives.known import all_distinct


class Encoded(NamedTuple):
    """Embeddings of a batch: queries `[B, D]`, positives `[B, D]`, explicit negatives `[B, K, D]` or None."""

    query: Tensor
    positive: Tensor
    negatives: Tensor | None


def pair_embeddings(encoded: Encoded, batch: PairBatch, grad: bool = True) -> PairEmbeddings:
    """A batch's embeddings beside the candidates of all ranks, with what identity keys say about them.

    Args:
        encoded: this rank's embeddings.
        batch: where they come from.
        grad: candidates of other ranks carry gradient.
    """
    query, positive, negatives = encoded
    collect = gather_with_grad if grad else gather
    slots = [] if negatives is None else [n.contiguous() for n in negatives.unbind(1)]
    known = batch.positive_key[:, None] if batch.known is None else batch.known
    keys, groups = [gather(batch.positive_key)], None
    if batch.negative_key is not None:
        keys += [gather(k) for k in batch.negative_key.unbind(1)]
    if batch.group is not None:
        groups = torch.cat([gather(batch.group), *(torch.full_like(k, -1) for k in keys[1:])])
    return PairEmbeddings(
        query,
        positive,
        torch.cat([collect(positive), *(collect(n) for n in slots)]),
        collect(query),
        known,
        batch.anchor_key,
        batch.positive_key,
        torch.cat(keys),
        gather(batch.anchor_key),
        gather(known),
        rank() * len(query),
        batch.group,
        groups,
    )


class DualEncoder(CachedMethod):
    r"""Two-tower retrieval: query i against its document, the documents of the batch, and explicit hard negatives.

    $$\ell_i = -\log \frac{e^{s(q_i, p_i)/\tau}}{e^{s(q_i, p_i)/\tau} + \sum_{d \ne p_i} e^{s(q_i, d)/\tau}}$$

    with d over all positives and explicit negatives of all ranks that are not known to be relevant to query i (multiple
    negatives ranking: Henderson et al. 2017, arXiv 1705.00652). Further `blocks` of scores join the denominator.

    Args:
        encoder: maps inputs of either side to raw embeddings `[B, D]`; or holds a tower for each, which its method
            `tower(side)` returns.
        loss: as in `ContrastiveMethod`.
        shared: one tower for both sides; False gives documents a copy of their own. Without effect where the encoder
            holds two.
        normalize: cosine scores; False takes dot products.
        blocks: which scores are negatives, see `zoo.negatives.blocks.score_blocks`. GTE's loss has qd, qq, dq and dd.
        symmetric: average with the loss of documents against queries, in which explicit negatives have no part.
        vetting: filters and weights of candidates, in order.
        guide: embeds batches for those filters that ask another model: `forward(PairBatch) -> Encoded`, frozen.
        lean: never hold the matrix of scores (`zoo.losses.lean_info_nce`); for InfoNCE over `qd` alone.
        **kwargs: gradient cache, negatives modules, optimiser and schedule, as in `CachedMethod`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        shared: bool = True,
        normalize: bool = True,
        blocks: Sequence[BlockName] = ("qd",),
        symmetric: bool = False,
        vetting: Sequence[Vetting] = (),
        guide: nn.Module | None = None,
        lean: bool = False,
        **kwargs: Any,
    ) -> None:
        if lean and (not isinstance(loss, InfoNCE) or tuple(blocks) != ("qd",) or vetting or kwargs.get("negatives")):
            raise ZooError("--model.lean is for InfoNCE over block qd, without vetting and negatives modules")
        document_encoder = None if shared or hasattr(encoder, "tower") else copy.deepcopy(encoder)
        super().__init__(encoder, loss, **kwargs)
        if kwargs.get("compile") and document_encoder is not None:
            document_encoder.compile()
        self.document_encoder, self.normalize, self.symmetric = document_encoder, normalize, symmetric
        self.blocks, self.vetting = tuple(blocks), nn.ModuleList(vetting)
        self.guide = None if guide is None else guide.requires_grad_(False)
        self.lean = lean

    # Encoding

    def embed(self, inputs: Any, side: Side) -> Float[Tensor, "B D"]:
        """Embeddings as scores use them, in at least float32."""
        raw = self.tower(side)(inputs)
        with torch.autocast(raw.device.type, enabled=False):
            return normalize(raw) if self.normalize else at_least_float32(raw)

    def tower(self, side: Side) -> nn.Module:
        """The encoder of a side."""
        if hasattr(self.encoder, "tower"):
            return self.encoder.tower(side)  # type: ignore[operator]
        return self.encoder if side == "query" or self.document_encoder is None else self.document_encoder

    def towers(self) -> dict[str, Tower]:
        unit = [UnitNorm()] if self.normalize else []
        return {side: Tower(self.tower(side), *unit, side=side) for side in ("query", "document")}

    def embed_queries(self, inputs: Any) -> Float[Tensor, "B D"]:
        return self.embed(inputs, "query")

    def embed_documents(self, inputs: Any) -> Float[Tensor, "B D"]:
        return self.embed(inputs, "document")

    def encode(self, batch: PairBatch) -> Encoded:
        """Embeddings of a training batch; with a gradient cache they are leaves, and `backward` does the rest."""
        query, positive = self._embed_training(batch.anchor, "query"), self._embed_training(batch.positive, "document")
        if batch.negatives is None:
            return Encoded(query, positive, None)
        negatives = self._embed_training(batch.negatives, "document")
        return Encoded(query, positive, negatives.view(len(query), -1, query.shape[1]))

    def _embed_training(self, inputs: Any, side: Side) -> Float[Tensor, "B D"]:
        return self.encode_cached(lambda rows: self.embed(rows, side), inputs)

    # Training

    def frozen_models(self) -> list[nn.Module]:
        """Guides and teachers, which as training starts read the training pairs once.

        Those with a method `fit_pairs` get the data set, those with a method `fit` its batches.
        """
        return [] if self.guide is None else [self.guide]

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for model in self.frozen_models():
            if hasattr(model, "fit_pairs"):
                model.fit_pairs(data.train_pairs)  # type: ignore[operator]
            elif hasattr(model, "fit"):
                model.fit(data.encode_loader(data.train_pairs))  # type: ignore[operator]

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        encoded = self.encode(batch)
        with torch.autocast(encoded.query.device.type, enabled=False):
            x = pair_embeddings(encoded, batch)
            if self.lean:
                return self.report(self.lean_loss(x), x.query, self.sample_scores(x))
            loss, scores = self.plain_loss(x, batch)
            return self.report(loss, x.query, scores)

    def plain_loss(self, x: PairEmbeddings, batch: PairBatch) -> tuple[Tensor, tuple[Tensor, Tensor, Any]]:
        """The loss, and the scores that it was made of."""
        blocks = score_blocks(x, self.blocks)
        scores = self.candidate_scores(x, self.vet(blocks, x, batch))
        loss = self.loss(*scores)
        if self.symmetric:
            loss = (loss + self.loss(scores[0], *self.backward_scores(x, blocks.get("qd")))) / 2
        return loss, scores

    def lean_loss(self, x: PairEmbeddings) -> Float[Tensor, ""]:
        """The loss of `training_step` from embeddings."""
        loss: Any = self.loss
        own = torch.arange(len(x.query), device=x.query.device) + x.first
        if all_distinct(x.queries_known, x.document_key):
            masks = None, None
        else:
            masks = KeyMask(x.known, x.document_key[:, None]), KeyMask(x.positive_key[:, None], x.queries_known)
        forward = loss.lean(x.query, x.documents, own, masks[0])
        if not self.symmetric:
            return forward
        return (forward + loss.lean(x.positive, x.queries, own, masks[1])) / 2

    @staticmethod
    @torch.no_grad()
    def sample_scores(x: PairEmbeddings, n: int = 256) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the first `n` queries, for callbacks."""
        x = x.replace(query=x.query[:n], positive=x.positive[:n], known=x.known[:n], query_key=x.query_key[:n])
        block = score_blocks(x)["qd"]
        return (x.query * x.positive).sum(1, keepdim=True), block.scores, block.weight  # type: ignore[return-value]

    def vet(self, blocks: dict[BlockName, Block], x: PairEmbeddings, batch: PairBatch) -> dict[BlockName, Block]:
        """Blocks after all filters; logs which part they removed and, where groups are known, how well."""
        if not self.vetting:
            return blocks
        guide = None
        if self.guide is not None:
            with torch.no_grad():
                guide = pair_embeddings(self.guide(batch), batch, grad=False)
        vetted = blocks
        for module in self.vetting:
            if self.current_epoch >= module.start_epoch:  # type: ignore[operator]
                vetted = module(vetted, x, guide)
        if self._logs_this_step:
            self.log_dict(_vetting_metrics(blocks, vetted, x), on_step=False, on_epoch=True, batch_size=len(batch))
        return vetted

    def candidate_scores(self, x: PairEmbeddings, blocks: dict[BlockName, Block]) -> tuple[Tensor, Tensor, Any]:
        """Positives `[B, 1]`, negatives `[B, N]` and their weights, after the negatives modules."""
        positives = (x.query * x.positive).sum(1, keepdim=True)
        if not self.negatives or "qd" not in blocks:
            return positives, *join(blocks)
        block = blocks["qd"]
        candidates = Candidates(x.query, x.positive, x.documents, block.weight)  # type: ignore[arg-type]
        candidates.shared_scores = block.scores
        positives, scores, mask = self.transform_candidates(candidates).scores()
        return positives, *join({**blocks, "qd": Block(scores, mask)})

    @staticmethod
    def backward_scores(
        x: PairEmbeddings, forward: Block | None = None
    ) -> tuple[Float[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
        """The other direction: document i against all queries, its own not among the negatives.

        Args:
            x: embeddings.
            forward: block `qd` of these embeddings, if it is there: on one rank it holds these scores as columns.
        """
        pairs = len(x.queries)
        if forward is not None and forward.weight is not None and len(x.query) == pairs:
            return forward.scores[:, :pairs].T, forward.weight[:, :pairs].T  # type: ignore[return-value]
        block = score_blocks(x, ("dq",))["dq"]
        own = torch.arange(len(x.query), device=x.query.device)
        mask = block.weight.clone()  # type: ignore[union-attr]
        mask[own, own + x.first] = False
        return block.scores, mask

    # Evaluation

    def validation_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        embeddings = self.embed_documents(batch.positive) if batch.anchor is None else self.embed_queries(batch.anchor)
        return {"features": embeddings.float()}

    def features(self, inputs: Any) -> Float[Tensor, "B D"]:
        return self.embed_queries(inputs)


@torch.no_grad()
def _vetting_metrics(
    before: dict[BlockName, Block], after: dict[BlockName, Block], x: PairEmbeddings
) -> dict[str, Tensor]:
    metrics = {}
    for name, block in before.items():
        was = torch.ones_like(block.scores, dtype=torch.bool) if block.weight is None else block.weight > 0
        removed = was & ~(after[name].weight > 0) if name in after else was  # type: ignore[operator]
        metrics[f"vetting/removed_{name}"] = removed.sum() / was.sum().clamp_min(1)
        if name == "qd" and x.group is not None and x.document_group is not None:
            false = was & (x.group[:, None] == x.document_group)
            hits = (removed & false).sum()
            metrics["vetting/false_negatives"] = false.sum() / was.sum().clamp_min(1)
            metrics["vetting/recall"] = hits / false.sum().clamp_min(1)
            metrics["vetting/precision"] = hits / removed.sum().clamp_min(1)
    return metrics

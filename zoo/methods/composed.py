"""SPN4CIR: composed retrieval whose second stage trains the text side against a static bank of all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.callbacks.encoding import encode
from zoo.data.collections import OneSide, Side
from zoo.data.composed import Composed, ComposedPairs, Selected
from zoo.data.pairs import PairBatch
from zoo.distributed import gather, gather_with_grad, rank
from zoo.errors import ZooError
from zoo.losses.scores import at_least_float32, normalize
from zoo.methods.base import ContrastiveMethod
from zoo.methods.towers import Tower, UnitNorm
from zoo.negatives.candidates import Candidates
from zoo.negatives.known import known_positives

NegativeType = Literal["target", "reference", "text", "query"]


class Parts(NamedTuple):
    """What triplets are made of: raw references and texts, unit-norm targets."""

    reference: Float[Tensor, "B D"]
    text: Float[Tensor, "B D"]
    target: Float[Tensor, "B D"]


class Keys(NamedTuple):
    """Identity of the same."""

    reference: Int[Tensor, " B"]
    text: Int[Tensor, " B"]
    target: Int[Tensor, " B"]
    known: Int[Tensor, "B P"]


def compose(reference: Float[Tensor, "*#B D"], text: Float[Tensor, "*#B D"]) -> Float[Tensor, "*B D"]:
    """Queries: raw features of the reference and of the text, summed, with unit norm."""
    return normalize(reference + text)


def composed_scores(own: Parts, everything: Parts, kind: NegativeType) -> Float[Tensor, "B N"]:
    r"""Scores of triplet i with a part of triplet j in the place of its own; where j is i, those of the positive.

    $$\langle q(r_i, t_i), v_j\rangle,\quad \langle q(r_j, t_i), v_i\rangle,\quad \langle q(r_i, t_j), v_i\rangle,\quad
    \langle q(r_j, t_j), v_i\rangle$$

    for kinds "target", "reference", "text" and "query", with $q(r, t) = (r + t) / \lVert r + t \rVert$.

    Source: Feng et al. 2024 (arXiv 2404.11317), the four in-batch negatives.

    Args:
        own: the B triplets.
        everything: those of all ranks, N.
        kind: what is exchanged.
    """
    if kind == "target":
        return compose(own.reference, own.text) @ everything.target.T
    if kind == "query":
        return own.target @ compose(everything.reference, everything.text).T
    if kind == "reference":
        queries = compose(everything.reference[None], own.text[:, None])
    else:
        queries = compose(own.reference[:, None], everything.text[None])
    return torch.einsum("bnd,bd->bn", queries, own.target)


def composed_mask(own: Keys, everything: Keys, kind: NegativeType, first: int = 0) -> Bool[Tensor, "B N"]:
    """Which of `composed_scores` are negatives: not the triplet itself, nor what is known to be as right.

    Args:
        own: the B triplets.
        everything: those of all ranks, N.
        kind: what is exchanged.
        first: number of the first of `own` among them.
    """
    if kind == "target":
        same = known_positives(own.known, everything.target)
    elif kind == "query":
        same = known_positives(everything.known, own.target).T
    else:
        same = getattr(own, kind)[:, None] == getattr(everything, kind)
    rows = torch.arange(len(same), device=same.device)
    mask = ~same
    mask[rows, rows + first] = False
    return mask


class Bank(NamedTuple):
    """Features of M images, for good.

    Attributes:
        keys: numbers of the images in their collection.
        target: with unit norm, as answers.
        reference: as they are, as references.
        row_of: row of each image of the collection, -1 for those that the bank does not hold.
    """

    keys: Int[Tensor, " M"]
    target: Float[Tensor, "M D"]
    reference: Float[Tensor, "M D"]
    row_of: Int[Tensor, " N"]


class ComposedRetrieval(ContrastiveMethod):
    r"""Queries $q = (r + t) / \lVert r + t \rVert$ of a reference image and a text, in two stages.

    At first negatives are those of the batch, of the kinds in `negative_types` (the loss is their mean). From
    `bank_epoch` on the image tower is frozen. The features of all training images are computed once, and the text tower
    alone learns, against all of them: $L_2 = \mathrm{CE}(q V^T / \tau)$. The reference itself is in the bank, its
    hardest negative. Batches then carry no images. Other answers that are known to be right are masked by key.

    Several devices take `--trainer.strategy ddp_find_unused_parameters_true`, as the image tower has no gradient in the
    second stage.

    Source: Feng et al. 2024 (arXiv 2404.11317), github BUAADreamer/SPN4CIR.

    Args:
        encoder: `tower("query")` maps images and `tower("document")` tokens to raw embeddings `[B, D]` (`zoo.methods.OpenClip`).
        loss: as in `ContrastiveMethod`, of both stages.
        negative_types: of the first stage: other triplets' targets, references, texts, or whole queries.
        bank_epoch: first epoch of the second stage; None has none.
        bank_negatives: draw so many of the bank for each query and step; None takes all.
        unlabelled: images in no triplet are in the bank too: None takes all there are.
        freeze: False goes on training the image tower in the second stage, whose bank then goes stale.
        **kwargs: negatives modules (on other targets, and on the bank), optimiser and schedule, as in `ContrastiveMethod`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        negative_types: Sequence[NegativeType] = ("target",),
        bank_epoch: int | None = None,
        bank_negatives: int | None = None,
        unlabelled: int | None = 0,
        freeze: bool = True,
        **kwargs: Any,
    ) -> None:
        if not hasattr(encoder, "tower"):
            raise ZooError(
                "ComposedRetrieval needs an image and a text tower: set --model.encoder zoo.methods.OpenClip"
            )
        if not negative_types:
            raise ZooError("negative_types is empty: name target, reference, text or query")
        super().__init__(encoder, loss, **kwargs)
        self.negative_types, self.bank_epoch, self.bank_negatives = tuple(negative_types), bank_epoch, bank_negatives
        self.unlabelled, self.freezes = unlabelled, freeze
        self.bank: Bank | None = None

    # Encoding

    def _tower(self, side: Side) -> nn.Module:
        return self.encoder.tower(side)  # type: ignore[operator]

    def embed_images(self, images: Tensor) -> Float[Tensor, "B D"]:
        """Raw features of images."""
        return at_least_float32(self._tower("query")(images))

    def embed_texts(self, tokens: Any) -> Float[Tensor, "B D"]:
        """Raw features of texts."""
        return at_least_float32(self._tower("document")(tokens))

    def embed_queries(self, inputs: Composed) -> Float[Tensor, "B D"]:
        reference, text = self.embed_images(inputs.image), self.embed_texts(inputs.text)
        with torch.autocast(reference.device.type, enabled=False):
            return compose(reference, text)

    def embed_documents(self, inputs: Tensor) -> Float[Tensor, "B D"]:
        raw = self.embed_images(inputs)
        with torch.autocast(raw.device.type, enabled=False):
            return normalize(raw)

    def towers(self) -> dict[str, Tower]:
        note = "raw: a query is reference + text, with unit norm"
        images, texts = self._tower("query"), self._tower("document")
        return {
            "document": Tower(images, UnitNorm(), side="document"),
            "reference": Tower(images, note=note),
            "text": Tower(texts, note=note),
        }

    def validation_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        embeddings = self.embed_documents(batch.positive) if batch.anchor is None else self.embed_queries(batch.anchor)
        return {"features": embeddings.float()}

    # Training

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        return self._batch_step(batch) if self.bank is None else self._bank_step(batch, self.bank)

    def _batch_step(self, batch: PairBatch) -> dict:
        inputs: Composed = batch.anchor
        reference, text = self.embed_images(inputs.image), self.embed_texts(inputs.text)
        known = batch.positive_key[:, None] if batch.known is None else batch.known
        keys = Keys(inputs.image_key, inputs.text_key, batch.positive_key, known)
        own = Parts(reference, text, self.embed_documents(batch.positive))
        with torch.autocast(text.device.type, enabled=False):
            everything = Parts(*(gather_with_grad(x) for x in own))
            every_key, first = Keys(*(gather(x) for x in keys)), rank() * len(text)
            query = compose(reference, text)
            terms = []
            for kind in self.negative_types:
                scores = composed_scores(own, everything, kind)
                mask = composed_mask(keys, every_key, kind, first)
                if kind == "target":
                    candidates = Candidates(query, own.target, everything.target, mask)
                    candidates.shared_scores = scores
                    terms.append(self.transform_candidates(candidates).scores())
                else:
                    terms.append((scores.diagonal(first)[:, None], scores, mask))
            loss = torch.stack([self.loss(*term) for term in terms]).mean()
            return self.report(loss, query, terms[0])

    def _bank_step(self, batch: PairBatch, bank: Bank) -> dict:
        inputs: Composed = batch.anchor
        text = self.embed_texts(inputs.text)
        frozen = bank.reference[bank.row_of[inputs.image_key]]
        reference = frozen if self.freezes else self.embed_images(inputs.image)
        with torch.autocast(text.device.type, enabled=False):
            query = compose(reference, text)
            known = batch.positive_key[:, None] if batch.known is None else batch.known
            mask = ~known_positives(known, bank.keys)
            if self.bank_negatives is not None:
                mask = draw(mask, self.bank_negatives)
            candidates = Candidates(query, bank.target[bank.row_of[batch.positive_key]], bank.target, mask)
            scores = self.transform_candidates(candidates).scores()
            return self.report(self.loss(*scores), query, scores)

    # The second stage

    def on_train_epoch_start(self) -> None:
        if self.bank_epoch is None or self.current_epoch < self.bank_epoch:
            return
        pairs = self.trainer.datamodule.train_pairs  # type: ignore[attr-defined]
        if self.bank is None:
            self.bank = self.make_bank(pairs)
        if self.freezes:
            pairs.load_images = False
            self._tower("query").requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> ComposedRetrieval:
        """As ever, except that a frozen image tower keeps its running statistics and drops nothing."""
        super().train(mode)
        if self.bank is not None and self.freezes:
            self._tower("query").eval()
        return self

    def make_bank(self, pairs: ComposedPairs) -> Bank:
        """Features of the training images by the encoder as it is.

        Images that no triplet touches stay out, but for as many unlabelled ones as were asked for.
        """
        unlabelled = np.setdiff1d(np.arange(pairs.n_documents), pairs.used)[: self.unlabelled]
        keys = np.concatenate([pairs.used, unlabelled])
        images = OneSide(Selected(pairs.documents, keys), "document")
        raw = encode(self.trainer, _RawImages(self), images)
        row_of = np.full(pairs.n_documents, -1)
        row_of[keys] = np.arange(len(keys))
        return Bank(torch.as_tensor(keys).to(raw.device), normalize(raw), raw, torch.as_tensor(row_of).to(raw.device))

    def on_train_end(self) -> None:
        if self.bank is not None:
            self.trainer.datamodule.train_pairs.load_images = True  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.bank is not None and not self.freezes:  # a frozen tower makes the same again
            checkpoint["bank"] = tuple(self.bank)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "bank" in checkpoint:
            self.bank = Bank(*(x.to(self.device) for x in checkpoint["bank"]))


class _RawImages(nn.Module):
    """What `encode` wants of a method, for raw features of images."""

    def __init__(self, method: ComposedRetrieval) -> None:
        super().__init__()
        self.method, self.device = method, method.device

    def validation_step(self, batch: PairBatch, batch_idx: int) -> dict[str, Tensor]:
        return {"features": self.method.embed_images(batch.positive)}


def draw(allowed: Bool[Tensor, "B M"], n: int) -> Bool[Tensor, "B M"]:
    """`n` of what is allowed in each row, uniformly without replacement; all where there are no more."""
    order = torch.rand(allowed.shape, device=allowed.device).masked_fill(~allowed, -1.0)
    chosen = order.topk(min(n, allowed.shape[1]), dim=1).indices
    return torch.zeros_like(allowed).scatter(1, chosen, True) & allowed

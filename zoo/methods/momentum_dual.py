"""CoCoSoDa: momentum contrast between two modalities, with queues of both and of their augmented views."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from zoo.data.collections import Side
from zoo.data.pairs import PairBatch
from zoo.data.soft_augment import SoftTokens, soft_augment
from zoo.data.text import Tokens
from zoo.data.tokenizers import CodeBPE
from zoo.distributed import gather
from zoo.errors import ZooError
from zoo.losses.scores import at_least_float32, normalize
from zoo.methods.dual import DualEncoder
from zoo.methods.momentum import ema_update
from zoo.negatives.known import known_positives
from zoo.negatives.queue import Queue


class Views(NamedTuple):
    """One kind of embeddings, `[B, D]` each: documents (code), queries, and the augmented views of both."""

    document: Tensor
    query: Tensor
    augmented_document: Tensor
    augmented_query: Tensor


def contrasts(intra: bool) -> list[tuple[str, str]]:
    """(anchor, key) views of the loss's terms in the official order; a key brings its own queue."""
    inter = [
        ("document", "query"),
        ("document", "augmented_query"),
        ("query", "document"),
        ("query", "augmented_document"),
    ]
    return inter + [("document", "augmented_document"), ("query", "augmented_query")] * intra


def momentum_scores(
    anchor: Float[Tensor, "B D"], key: Float[Tensor, "B D"], queue: Float[Tensor, "K D"]
) -> Float[Tensor, "B N"]:
    """Anchors against the batch's keys, then against the queue (N = B + K); row i's positive is column i."""
    return torch.cat([anchor @ key.T, anchor @ queue.T], 1)


def cross_entropy(
    scores: Float[Tensor, "B N"], temperature: float, mask: Bool[Tensor, "B N"] | None = None
) -> Float[Tensor, " B"]:
    """Per-row cross entropy of the diagonal.

    Args:
        scores: of `momentum_scores`.
        temperature: the effective one: the official code divides by 0.07 and multiplies by 20.
        mask: False drops a column; the diagonal has to stay.
    """
    logits = scores / temperature
    if mask is not None:
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


class SoftAugment(nn.Module):
    """CoCoSoDa's soft data augmentation of `CodeBPE` tokens: a variant per step, see `zoo.data.soft_augment`.

    Args:
        p: share of tokens that are chosen.
        prefix: places at the front that stay: the paper's encoder has three special tokens there, `CodeBPE` none.
    """

    def __init__(self, p: float = 0.1, prefix: int = 0) -> None:
        super().__init__()
        self.p, self.prefix = p, prefix
        self.register_buffer("types", torch.zeros(0, dtype=torch.long), persistent=False)

    def bind(self, tokenizer: Any) -> None:
        """Learn the kinds of a tokenizer's tokens.

        Raises:
            ZooError: the tokenizer knows none.
        """
        if not isinstance(tokenizer, CodeBPE):
            raise ZooError(
                "SoftAugment knows the token types of zoo.data.CodeBPE alone: set --data.tokenizer, or drop it"
            )
        self.types = tokenizer.types().to(self.types.device)
        kinds = torch.arange(CodeBPE.MASK + 1, CodeBPE.FIRST)
        self.tokens = SoftTokens(CodeBPE.MASK, kinds.to(self.types.device), (CodeBPE.FIRST, tokenizer.vocab_size))

    def forward(self, tokens: Tokens, step: int, side: Side) -> Tokens:
        types = self.types[tokens.ids]
        special = tokens.ids < CodeBPE.FIRST
        of_code = types if side == "document" else None
        return Tokens(
            soft_augment(tokens.ids, of_code, special, self.tokens, step, self.p, prefix=self.prefix),
            tokens.mask,
            tokens.pool,
        )


class MomentumDualEncoder(DualEncoder):
    r"""CoCoSoDa: both sides online, their augmented views under a momentum encoder, and a queue of each of the four.

    With online $c, t$ (code and query), momentum views $c', t'$ of augmented inputs, and queues $Q$ of past vectors, each
    term is a cross entropy of anchor $a$ against in-batch keys $b$ and queue $Q_b$:
    $(c; t), (c; t'), (t; c), (t; c')$ between modalities and, with `intra`, $(c; c'), (t; t')$ within. The loss is the
    mean over all rows. The momentum encoder moves before it encodes; queues of original views hold the online encoder's
    vectors; all four are filled after the loss. Known positives are masked by key, in the batch and in the queues.

    Source: Shi et al. 2023 (arXiv 2204.03293), github DeepSoftwareAnalytics/CoCoSoDa.

    Args:
        encoder: both towers; the momentum encoder starts as its copy.
        loss: its temperature is the effective one; 0.07 / 20 in the official training loop.
        augment: `forward(Tokens, step, side) -> Tokens`; None leaves views as they are.
        queue_size: K of each queue.
        momentum: m.
        intra: include the terms within a modality, as the paper has it (the released script leaves them out).
        **kwargs: as in `DualEncoder`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        augment: nn.Module | None = None,
        queue_size: int = 1024,
        momentum: float = 0.999,
        intra: bool = True,
        **kwargs: Any,
    ) -> None:
        key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        super().__init__(encoder, loss, **kwargs)
        self.key_encoder, self.augment, self.momentum, self.intra = key_encoder, augment, momentum, intra
        self.queues = nn.ModuleDict({name: Queue(queue_size, encoder.dim) for name in Views._fields})  # type: ignore[arg-type]
        self._pending: list[tuple[str, Tensor, Tensor]] = []

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if isinstance(self.augment, SoftAugment):
            self.augment.bind(self.trainer.datamodule.tokenizer)  # type: ignore[attr-defined]

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        encoded = self.encode(batch)
        views = self._views(batch, encoded.positive, encoded.query)
        known = batch.positive_key[:, None] if batch.known is None else batch.known
        terms, shown = [], None
        with torch.autocast(encoded.query.device.type, enabled=False):
            for anchor, key in contrasts(self.intra):
                queue: Any = self.queues[key]
                scores = momentum_scores(getattr(views, anchor), getattr(views, key), queue.rows)
                mask = self._mask(batch, known, queue.keys, anchor, key)
                terms.append(cross_entropy(scores, self.loss.temperature, mask))  # type: ignore[arg-type]
                if (anchor, key) == ("query", "document"):
                    shown = scores, mask
            self._pending = [
                (name, gather(view.detach()), gather(batch.positive_key if "document" in name else batch.anchor_key))
                for name, view in views._asdict().items()
            ]
            scores, mask = shown  # type: ignore[misc]
            own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
            positives = scores.diagonal()[:, None]
            return self.report(torch.cat(terms).mean(), encoded.query, (positives, scores, mask & ~own))

    @torch.no_grad()
    def _views(self, batch: PairBatch, document: Tensor, query: Tensor) -> Views:
        ema_update(self.key_encoder, self.encoder, self.momentum)
        step = self.trainer.global_step
        views = []
        for tokens, side in ((batch.positive, "document"), (batch.anchor, "query")):
            view: Tokens = tokens if self.augment is None else self.augment(tokens, step, side)
            raw = self.key_encoder(view)
            with torch.autocast(raw.device.type, enabled=False):
                views.append(normalize(raw) if self.normalize else at_least_float32(raw))
        return Views(document, query, *views)

    @staticmethod
    def _mask(
        batch: PairBatch, known: Int[Tensor, "B P"], queued: Int[Tensor, " K"], anchor: str, key: str
    ) -> Bool[Tensor, "B N"]:
        """Which columns count: the pair itself, and what is not known to belong to it; of queued queries only the key is."""
        related = known_positives(known, batch.positive_key)  # [i, j]: document j is relevant to query i
        if key.endswith("document"):
            same = torch.cat([related, known_positives(known, queued)], 1)
        else:
            same = batch.anchor_key[:, None] == torch.cat([batch.anchor_key, queued])
            same[:, : len(batch)] |= related.T if anchor == "document" else related
        return ~same | torch.eye(*same.shape, dtype=torch.bool, device=same.device)

    def on_after_backward(self) -> None:
        # Writing to a queue in the step itself would spoil the pending backward pass.
        for name, embeddings, keys in self._pending:
            self.queues[name].enqueue(embeddings, keys)  # type: ignore[operator]
        self._pending.clear()

"""Scores of a batch of (query, document) pairs, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.losses.scores import Weight
from zoo.negatives.known import known_positives

BlockName = Literal["qd", "qq", "dq", "dd", "pp"]


@dataclass
class PairEmbeddings:
    """Embeddings of B pairs of this rank, and of all candidates of all ranks.

    Attributes:
        query: `[B, D]`.
        positive: `[B, D]`, the document of each query.
        documents: all documents `[M, D]`: the positives of all ranks, then their explicit negatives, slot by slot.
        queries: all queries `[Q, D]`.
        known: keys of the documents known to be relevant to each of the B queries `[B, P]`, -1 padded.
        query_key: keys of the B queries.
        document_key: keys of the M documents, -1 for padding.
        queries_key: keys of the Q queries.
        queries_known: keys of the documents known to be relevant to each of the Q queries `[Q, P]`.
        positive_key: keys of the B positives.
        first: number of the first of the B pairs among the Q.
        group: group of each of the B pairs, where the data set has groups.
        document_group: groups of the M documents, -1 where unknown.
    """

    query: Float[Tensor, "B D"]
    positive: Float[Tensor, "B D"]
    documents: Float[Tensor, "M D"]
    queries: Float[Tensor, "Q D"]
    known: Int[Tensor, "B P"]
    query_key: Int[Tensor, " B"]
    positive_key: Int[Tensor, " B"]
    document_key: Int[Tensor, " M"]
    queries_key: Int[Tensor, " Q"]
    queries_known: Int[Tensor, "Q P"]
    first: int = 0
    group: Int[Tensor, " B"] | None = None
    document_group: Int[Tensor, " M"] | None = None

    def replace(self, **changes: Any) -> PairEmbeddings:
        return replace(self, **changes)

    def own_columns(self) -> Bool[Tensor, "B M"]:
        """Columns of each query's own documents: its positive and its explicit negatives."""
        pairs = len(self.queries)
        column = torch.arange(len(self.documents), device=self.query.device) % pairs
        return column == (torch.arange(len(self.query), device=self.query.device) + self.first)[:, None]

    def own_places(self) -> Int[Tensor, "B G"]:
        """Numbers of each query's own documents, the positive first."""
        pairs = len(self.queries)
        row = torch.arange(len(self.query), device=self.query.device)[:, None] + self.first
        return row + torch.arange(0, len(self.documents), pairs, device=row.device)


@dataclass
class Block:
    """Negatives of each row: their scores, and which of them count or by how much (None: all)."""

    scores: Float[Tensor, "B M"]
    weight: Weight = None


def score_blocks(x: PairEmbeddings, names: Sequence[BlockName] = ("qd",)) -> dict[BlockName, Block]:
    """Scores of the blocks that a batch of pairs offers.

    `qd` query i against all documents; `qq` query i against all queries; `dq` positive i against all queries; `dd`
    positive i against all documents, `pp` against all positives. Masked are: in `qd`, `dd` and `pp` whatever is known
    to be relevant to query i, in `qq` queries with its key or with such a positive, in `dd` also its own explicit
    negatives, and in `dq` queries to which positive i is known to be relevant. The pair itself stays in `dq`: in a
    joint softmax over all blocks it counts twice, as in GTE (Li et al. 2023, arXiv 2308.03281) and its implementations.
    """
    pairs = len(x.queries)
    known = known_positives(x.known, x.document_key) | (x.document_key < 0)
    blocks: dict[BlockName, Block] = {}
    for name in names:
        left, right = sides(x, name)
        if name == "qd":
            mask = ~known
        elif name == "dd":
            mask = ~(known | x.own_columns())
        elif name == "pp":
            mask = ~known[:, :pairs]
        elif name == "qq":
            mask = ~(known[:, :pairs] | (x.query_key[:, None] == x.queries_key))
        else:
            own = torch.arange(len(x.query), device=left.device) + x.first
            mask = ~known_positives(x.queries_known, x.positive_key).T
            mask[torch.arange(len(own), device=left.device), own] = True
        blocks[name] = Block(left @ right.T, mask)
    return blocks


def sides(x: PairEmbeddings, name: BlockName) -> tuple[Float[Tensor, "B D"], Float[Tensor, "M D"]]:
    """What a block's rows and columns are."""
    left = x.query if name[0] == "q" else x.positive
    return left, {"d": x.documents, "q": x.queries, "p": x.documents[: len(x.queries)]}[name[1]]


def join(blocks: dict[BlockName, Block]) -> tuple[Float[Tensor, "B N"], Weight]:
    """All blocks side by side: scores and weights of the negatives."""
    if len(blocks) == 1:
        (block,) = blocks.values()
        return block.scores, block.weight
    kinds = [b.weight if b.weight is not None else torch.ones_like(b.scores, dtype=torch.bool) for b in blocks.values()]
    if any(w.dtype != torch.bool for w in kinds):
        kinds = [w.to(next(iter(blocks.values())).scores.dtype) for w in kinds]
    return torch.cat([b.scores for b in blocks.values()], 1), torch.cat(kinds, 1)


class Vetting(nn.Module):
    """Decides which negatives count, or by how much: changes the weights of blocks, never their scores.

    Args:
        start_epoch: first epoch (from 0) in which the module acts.
    """

    def __init__(self, start_epoch: int = 0) -> None:
        super().__init__()
        self.start_epoch = start_epoch

    def forward(
        self, blocks: dict[BlockName, Block], embeddings: PairEmbeddings, guide: PairEmbeddings | None
    ) -> dict[BlockName, Block]:
        raise NotImplementedError


class HardnessWeight(Vetting):
    r"""Weights a negative by $e^{\alpha\, \mathrm{sg}(s_{ij})}$, s the raw similarity: hard ones count more.

    Sources: Lan et al. 2025 (arXiv 2503.04812; alpha = 9), EmbeddingGemma (alpha = 5). The weight has no gradient.

    Args:
        strength: alpha.
        on: "in_batch": documents of other queries; "hard": explicit negatives of the query's own; "all": both.
    """

    def __init__(
        self, strength: float = 9.0, on: Literal["in_batch", "hard", "all"] = "in_batch", start_epoch: int = 0
    ) -> None:
        super().__init__(start_epoch)
        self.strength, self.on = strength, on

    def forward(
        self, blocks: dict[BlockName, Block], embeddings: PairEmbeddings, guide: PairEmbeddings | None
    ) -> dict[BlockName, Block]:
        block = blocks["qd"]
        weight = (self.strength * block.scores.detach()).exp()
        if self.on != "all":
            own = embeddings.own_columns()
            weight = weight.where(own if self.on == "hard" else ~own, 1.0)
        if block.weight is not None:
            weight = weight * block.weight
        return {**blocks, "qd": Block(block.scores, weight)}


class OwnNegativesOnly(Vetting):
    """Drops everything but a query's own explicit negatives: for tasks where a batch is full of true positives.

    NV-Embed trains its second stage this way (Lee et al. 2025, arXiv 2405.17428); set `start_epoch` to where it starts.
    """

    def forward(
        self, blocks: dict[BlockName, Block], embeddings: PairEmbeddings, guide: PairEmbeddings | None
    ) -> dict[BlockName, Block]:
        block, own = blocks["qd"], embeddings.own_columns()
        return {"qd": Block(block.scores, own if block.weight is None else block.weight * own)}


class GuideFilter(Vetting):
    r"""GISTEmbed: drops candidates that a guide finds more similar than the labelled pair.

    With c the guide's cosine and $\theta_i = c(q_i, p_i)$, candidate j of row i of a block is removed if its similarity
    under the guide exceeds $\theta_i - m$ (absolute margin) or $\theta_i - m|\theta_i|$ (relative). The labelled
    positive and the diagonals of same-side blocks are never in question: they are masked by key beforehand.

    Source: Solatorio 2024 (arXiv 2402.16829); margins from sentence-transformers.

    Args:
        margin: m.
        relative: how the margin is read.
    """

    def __init__(self, margin: float = 0.0, relative: bool = False, start_epoch: int = 0) -> None:
        super().__init__(start_epoch)
        self.margin, self.relative = margin, relative

    def forward(
        self, blocks: dict[BlockName, Block], embeddings: PairEmbeddings, guide: PairEmbeddings | None
    ) -> dict[BlockName, Block]:
        if guide is None:
            raise ZooError("GuideFilter asks a guide, and the method has none: set --model.guide")
        removed = guide_removes(guide, list(blocks), self.margin, self.relative)
        kept = {}
        for name, block in blocks.items():
            keep = ~removed[name]
            kept[name] = Block(block.scores, keep if block.weight is None else block.weight * keep)
        return kept


@torch.no_grad()
def guide_removes(
    guide: PairEmbeddings, names: Sequence[BlockName], margin: float = 0.0, relative: bool = False
) -> dict[BlockName, Bool[Tensor, "B M"]]:
    """True where the guide presumes an unlabelled positive; see `GuideFilter`. Embeddings of the guide are unit-norm."""
    threshold = (guide.query * guide.positive).sum(1, keepdim=True)
    limit = threshold - margin * (threshold.abs() if relative else 1.0)
    removed: dict[BlockName, Tensor] = {}
    for name in names:
        left, right = sides(guide, name)
        removed[name] = left @ right.T > limit
        pairs = torch.arange(len(left), device=left.device)
        if name in ("qd", "dq"):
            removed[name][pairs, pairs + guide.first] = False
        else:
            removed[name][pairs, pairs + guide.first] = True
    return removed

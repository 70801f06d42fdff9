"""Miners: each looks for the documents that are hard to tell from a query's own, and returns a NegativeTable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.data.collections import CollectionPairs
from zoo.data.multi_task import TaskPairs
from zoo.data.pair_rows import TextTriplets
from zoo.data.pairs import PairDataset
from zoo.data.text import TextPairs
from zoo.distributed import shared_rows
from zoo.errors import ZooError
from zoo.losses.scores import at_least_float32
from zoo.negatives.table import NegativeTable
from zoo.search import Index, faiss_top_k, recall, top_k


@dataclass
class Rules:
    """What a mined candidate has to satisfy, applied in this order.

    The reference of the positive-aware rules is the lowest score among the query's known positives, s+.

    Args:
        absolute_margin: drop a candidate if score + margin > s+.
        relative_margin: drop a candidate if score > s+ - margin |s+| (0.05: keep what is below 95 % of the positive).
        max_score: drop a candidate above it.
        min_score: drop a candidate below it.
        within: look at so many of the hardest survivors only; None at all.
        skip_top: drop so many of the hardest survivors.
        keep: keep at most so many; None keeps all.
    """

    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    within: int | None = None
    skip_top: int = 0
    keep: int | None = None

    @property
    def need_positives(self) -> bool:
        return self.absolute_margin is not None or self.relative_margin is not None

    def apply(self, table: NegativeTable, positive_scores: Float[np.ndarray, " N"] | None) -> NegativeTable:
        """The table after the rules; each writes its toll into the provenance.

        Args:
            table: mined candidates, known positives already out.
            positive_scores: s+ of each row, under the same miner.
        """
        if self.need_positives and positive_scores is None:
            raise ZooError(
                "this miner does not score positives: drop absolute_margin and relative_margin from its rules"
            )
        if self.absolute_margin is not None:
            table = table.below_positive(positive_scores, absolute=self.absolute_margin)  # type: ignore[arg-type]
        if self.relative_margin is not None:
            table = table.below_positive(positive_scores, None, self.relative_margin)  # type: ignore[arg-type]
        if self.max_score is not None:
            table = table.keep(table.scores <= self.max_score, "max_score", score=self.max_score)
        if self.min_score is not None:
            table = table.keep(table.scores >= self.min_score, "min_score", score=self.min_score)
        for name, start, stop in (
            ("within", 0, self.within),
            ("skip_top", self.skip_top, None),
            ("keep", 0, self.keep),
        ):
            if start or stop is not None:
                place = np.arange(table.ids.shape[1])[None]
                kept = (place >= start) & (place < (table.ids.shape[1] if stop is None else stop))
                table = table.keep(np.broadcast_to(kept, table.ids.shape), name, n=start or stop)
        return table


Embed = Callable[[Literal["query", "document"]], Tensor]
Found = tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]


class Miner(ABC):
    """Finds candidate negatives of every training pair.

    Args:
        rules: which of them stay; None keeps all but known positives.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()

    @abstractmethod
    def mine(self, pairs: PairDataset, embed: Embed | None = None) -> NegativeTable:
        """Candidates without known positives, after the rules; one row per pair.

        Args:
            pairs: the training pairs.
            embed: embeddings `[Q, D]` of all queries or `[N, D]` of all documents, for miners that need them.

        Raises:
            ZooError: the miner cannot read such pairs, or needs embeddings and there are none.
        """


class SearchMiner(Miner):
    """A miner that searches the documents, of several tasks (`zoo.data.MultiTask`) those of a query's own.

    Args:
        depth: candidates looked at per query.
        rules: as in `Miner`.
    """

    reads: type[CollectionPairs] = CollectionPairs

    def __init__(self, depth: int = 50, rules: Rules | None = None) -> None:
        super().__init__(rules)
        self.depth = depth

    @abstractmethod
    def search(self, pairs: CollectionPairs, embed: Embed | None) -> Found:
        """Candidates of each *query*: document numbers and scores `[Q, K]`; s+ per query or None; provenance."""

    def mine(self, pairs: PairDataset, embed: Embed | None = None) -> NegativeTable:
        if isinstance(pairs, TaskPairs):
            return pairs.mine(self.mine, embed)
        if not isinstance(pairs, self.reads):
            kind = "text pairs" if self.reads is TextPairs else "pairs of two collections"
            raise ZooError(f"{type(self).__name__} mines {kind}, which this data set is not: remove --data.miner")
        pairs = pairs.mined
        ids, scores, positives, record = self.search(pairs, embed and _first(embed, pairs))
        row = pairs.query_of
        table = NegativeTable(ids[row], scores[row], [{"depth": self.depth, **record}])
        table = table.drop_positives(pairs.columns["known"], np.arange(pairs.n_documents))
        return self.rules.apply(table, None if positives is None else positives[row])


def _first(embed: Embed, pairs: CollectionPairs) -> Embed:
    """Without the embeddings of texts that are appended to those of `pairs`."""
    return lambda side: embed(side)[: len(pairs.queries if side == "query" else pairs.documents)]


class RandomMiner(SearchMiner):
    """Uniform draws from all documents, scores 0: the baseline of mining.

    Args:
        depth: draws per query.
        rules: as in `Miner`.
        seed: of the draws.
    """

    def __init__(self, depth: int = 50, rules: Rules | None = None, seed: int = 0) -> None:
        super().__init__(depth, rules)
        self.seed = seed

    def search(self, pairs, embed):
        ids = np.random.default_rng(self.seed).integers(0, pairs.n_documents, (len(pairs.queries), self.depth))
        return ids, np.zeros(ids.shape, np.float32), None, {"miner": "random", "seed": self.seed}


class NamedNegatives(Miner):
    """No search: the negatives that the data set's rows name (`zoo.data.PairFiles`, `HubDataset`).

    Where the rows have a teacher's scores, rules and distillation read those. Arguments as in `Miner`.
    """

    def mine(self, pairs: PairDataset, embed: Embed | None = None) -> NegativeTable:
        if isinstance(pairs, TaskPairs):
            return pairs.mine(self.mine, embed)
        if not isinstance(pairs, TextTriplets):
            raise ZooError("NamedNegatives needs a data set that names negatives: zoo.data.PairFiles or HubDataset")
        table = pairs.table()
        return self.rules.apply(table, table.positives)


class Bm25Miner(SearchMiner):
    """The best documents by BM25, those that share a word with the query. Arguments as in `SearchMiner`."""

    reads = TextPairs

    def search(self, pairs, embed):
        from zoo.retrieval import best_of, bm25_scores

        found = [
            (*best_of(scores, self.depth), scores[own[own >= 0]].min(initial=np.inf))
            for scores, own in zip(bm25_scores(pairs.queries, pairs.documents), _known(pairs), strict=True)
        ]
        ids, scores, positives = map(np.array, zip(*found, strict=True))
        return ids, scores, positives, {"miner": "bm25"}


class EmbeddingMiner(SearchMiner):
    """The nearest documents under a dense retriever: exact on the training device, or approximate through faiss.

    The provenance of an approximate table holds the `recall` of its search, over a sample of queries.

    Args:
        depth: as in `SearchMiner`.
        rules: as in `Miner`.
        index: "exact", or one of `zoo.search.faiss_top_k`'s.
    """

    def __init__(self, depth: int = 50, rules: Rules | None = None, index: Index = "exact") -> None:
        super().__init__(depth, rules)
        self.index: Index = index

    def search(self, pairs, embed):
        if embed is None:
            raise ZooError("EmbeddingMiner needs an encoder: put it into a RefreshNegatives callback")
        queries, documents = embed("query"), embed("document")
        scores, ids = _nearest(queries, documents, self.depth, self.index)
        record: dict[str, Any] = {"miner": "embedding", "index": self.index}
        if self.index != "exact":
            record["recall"] = recall(ids, queries, documents)
        return ids.cpu().numpy(), scores.cpu().numpy(), lowest_positive(queries, documents, pairs), record


def mine(
    queries: Float[Tensor, "Q D"],
    documents: Float[Tensor, "N D"],
    k: int,
    known: np.ndarray | Tensor | None = None,
    rules: Rules | None = None,
    index: Index = "exact",
) -> NegativeTable:
    """The `k` documents of greatest inner product with each query that are not known to be its positives.

    In a process group all ranks have to call it, each with all embeddings, and share the search.

    Args:
        queries: their embeddings.
        documents: on the same device.
        k: negatives per query, before the rules.
        known: numbers of each query's known positives, `[Q]`, or `[Q, P]` and -1 padded; None knows of none.
        rules: which of the negatives stay; None keeps all.
        index: as in `EmbeddingMiner`.

    Raises:
        ZooError: the rules compare with positives, and none are known; or as `zoo.search.top_k`.
    """
    positives = np.full((len(queries), 1), -1) if known is None else torch.as_tensor(known).cpu().numpy()
    positives = positives.reshape(len(queries), -1)
    scores, ids = _nearest(queries, documents, k + positives.shape[1], index)
    record = {"miner": "embedding", "index": index, "depth": k}
    table = unknown(NegativeTable(ids.cpu().numpy(), scores.cpu().numpy(), [record]), positives, len(documents), k)
    rules = rules or Rules()
    return rules.apply(table, None if known is None else lowest_known(queries, documents, positives))


def unknown(table: NegativeTable, known: Int[np.ndarray, "Q P"], n_documents: int, k: int) -> NegativeTable:
    """The first `k` candidates of each query that are not known to be its positives."""
    table = table.drop_positives(known, np.arange(n_documents))
    return NegativeTable(table.ids[:, :k], table.scores[:, :k], table.provenance)


def _nearest(queries: Tensor, documents: Tensor, depth: int, index: Index) -> tuple[Tensor, Tensor]:
    """Scores and numbers of the `depth` nearest documents, or of all there are; ranks share the queries."""
    depth = min(depth, len(documents))
    search: Any = top_k if index == "exact" else partial(faiss_top_k, index=index)
    return shared_rows(lambda rows: search(rows, documents, depth), queries)  # type: ignore[return-value]


def lowest_positive(
    queries: Float[Tensor, "Q D"], documents: Float[Tensor, "N D"], pairs: CollectionPairs
) -> Float[np.ndarray, " Q"]:
    """Each query's lowest score among its known positives."""
    return lowest_known(queries, documents, _known(pairs))


def _known(pairs: CollectionPairs) -> Int[np.ndarray, "Q P"]:
    """Numbers of each query's known positives, -1 padded."""
    known = np.full((len(pairs.queries), pairs.columns["known"].shape[1]), -1)
    known[pairs.query_of] = pairs.columns["known"]
    return known


@torch.no_grad()
def lowest_known(
    queries: Float[Tensor, "Q D"], documents: Float[Tensor, "N D"], known: Int[np.ndarray, "Q P"]
) -> Float[np.ndarray, " Q"]:
    """Each query's lowest score among documents by number, -1 padded; inf where it has none."""
    lowest = torch.full((len(queries),), torch.inf, device=queries.device, dtype=at_least_float32(queries).dtype)
    for column in torch.as_tensor(known, device=queries.device).unbind(1):
        score = (at_least_float32(queries) * at_least_float32(documents[column.clamp_min(0)])).sum(1)
        lowest = torch.minimum(lowest, score.masked_fill(column < 0, torch.inf))
    return lowest.cpu().numpy()


def jaccard(old: NegativeTable, new: NegativeTable) -> float:
    """Mean overlap of two tables' rows: shared candidates over candidates of either; 1 where neither has any."""
    sides = _distinct(old.ids), _distinct(new.ids)
    both = np.sort(np.concatenate(sides, 1), 1)
    shared = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(1)
    either = sum((ids >= 0).sum(1) for ids in sides) - shared
    return float(np.divide(shared, either, out=np.ones(len(new)), where=either > 0).mean())


def _distinct(ids: Int[np.ndarray, "Q K"]) -> Int[np.ndarray, "Q K"]:
    """Each row sorted, with -1 in place of what repeats (random draws may)."""
    ids = np.sort(ids, 1)
    again = ids[:, 1:] == ids[:, :-1]
    ids[:, 1:][again] = -1
    return ids

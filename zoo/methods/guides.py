"""Frozen models that judge a batch's candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.data.text import Tokens
from zoo.errors import ZooError
from zoo.losses.scores import normalize
from zoo.methods.dual import Encoded


def _encoded(embed: Callable[[Any], Tensor], batch: PairBatch) -> Encoded:
    query, positive = embed(batch.anchor), embed(batch.positive)
    negatives = None if batch.negatives is None else embed(batch.negatives).view(len(query), -1, query.shape[1])
    return Encoded(query, positive, negatives)


def load_encoder(encoder: nn.Module, checkpoint: Path) -> None:
    """Give an encoder the weights of the `encoder` of a run's checkpoint.

    Raises:
        ZooError: no such file, or weights of another encoder.
    """
    if not checkpoint.is_file():
        raise ZooError(f"no checkpoint {checkpoint}; fit one first, e.g. `python -m zoo fit infonce`")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    weights = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ZooError(f"{checkpoint} holds another encoder than this one: {reason}") from None


class LexicalGuide(nn.Module):
    """Bags of tokens, weighted by inverse document frequency: a guide that costs no training.

    The frequencies are counted in the training documents when training starts.

    Args:
        vocab_size: entries of the vocabulary, the tokenizer's.
    """

    idf: Tensor

    def __init__(self, vocab_size: int = 8192) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.register_buffer("idf", torch.ones(vocab_size))

    @torch.no_grad()
    def fit(self, batches: Any) -> None:
        """Count in which part of the documents each token occurs.

        Args:
            batches: PairBatches of which the positives are read.
        """
        seen, n = torch.zeros(self.vocab_size), 0
        for batch in batches:
            seen += (self._counts(batch.positive) > 0).sum(0)
            n += len(batch.positive)
        self.idf.copy_(((1 + n) / (1 + seen)).log())

    def forward(self, batch: PairBatch) -> Encoded:
        return _encoded(self.embed, batch)

    def embed(self, tokens: Tokens) -> Float[Tensor, "B V"]:
        """Unit-norm vectors over the vocabulary."""
        return normalize(self._counts(tokens).sqrt() * self.idf)

    def _counts(self, tokens: Tokens) -> Float[Tensor, "B V"]:
        counts = torch.zeros(len(tokens), self.vocab_size, device=tokens.ids.device)
        return counts.scatter_add_(1, tokens.ids, tokens.pool.float())


class Bm25Teacher(LexicalGuide):
    r"""BM25 over the tokenizer's tokens; the dot product of its embeddings is the score.

    $$s(q, d) = \sum_{t \in q} \mathrm{idf}(t)\, \frac{f(t, d)(k_1 + 1)}{f(t, d) + k_1 (1 - b + b\,|d|/\overline{|d|})}$$

    Args:
        vocab_size: entries of the vocabulary.
        k1: saturation of repeated terms.
        b: how much long documents are punished.
    """

    mean_length: Tensor

    def __init__(self, vocab_size: int = 8192, k1: float = 1.5, b: float = 0.75) -> None:
        super().__init__(vocab_size)
        self.k1, self.b = k1, b
        self.register_buffer("mean_length", torch.ones(()))

    @torch.no_grad()
    def fit(self, batches: Any) -> None:
        lengths: list[Tensor] = []

        def watched() -> Iterator[Any]:
            for batch in batches:
                lengths.append(batch.positive.pool.sum(1))
                yield batch

        super().fit(watched())
        self.mean_length.copy_(torch.cat(lengths).float().mean())

    def forward(self, batch: PairBatch) -> Encoded:
        query = self._counts(batch.anchor).clamp_max(1)
        sides = [None if t is None else self.weights(t) for t in (batch.positive, batch.negatives)]
        negatives = None if sides[1] is None else sides[1].view(len(query), -1, self.vocab_size)
        return Encoded(query, sides[0], negatives)  # type: ignore[arg-type]

    def weights(self, tokens: Tokens) -> Float[Tensor, "B V"]:
        """What each token of a document is worth to a query that has it."""
        counts = self._counts(tokens)
        length = counts.sum(1, keepdim=True) / self.mean_length
        saturated = counts * (self.k1 + 1) / (counts + self.k1 * (1 - self.b + self.b * length))
        return saturated * self.idf


class QueryLikelihood(LexicalGuide):
    r"""A unigram language model's reward: how likely is the query, given the document?

    $$r(q, d) = \frac{1}{|q|} \sum_{t \in q} \log \frac{f(t, d) + \mu\, p(t)}{|d| + \mu}$$

    with p the frequencies of all training documents (Dirichlet smoothing: Zhai and Lafferty 2004). It stands in for the
    large language model whose likelihood of the answer, given a candidate, is LLM-Embedder's reward.

    Args:
        vocab_size: entries of the vocabulary.
        mu: weight of the collection, in tokens.
    """

    background: Tensor

    def __init__(self, vocab_size: int = 8192, mu: float = 50.0) -> None:
        super().__init__(vocab_size)
        self.mu = mu
        self.register_buffer("background", torch.full((vocab_size,), 1 / vocab_size))

    @torch.no_grad()
    def fit(self, batches: Any) -> None:
        total = torch.ones(self.vocab_size)
        for batch in batches:
            total += self._counts(batch.positive).sum(0)
        self.background.copy_(total / total.sum())

    def forward(self, batch: PairBatch) -> Encoded:
        query = self._counts(batch.anchor)
        query = query / query.sum(1, keepdim=True).clamp_min(1)
        positive, negatives = (None if t is None else self.weights(t) for t in (batch.positive, batch.negatives))
        shape = (len(query), -1, self.vocab_size)
        return Encoded(query, positive, None if negatives is None else negatives.view(shape))  # type: ignore[arg-type]

    def weights(self, tokens: Tokens) -> Float[Tensor, "B V"]:
        """Log-probability of each token given the document."""
        counts = self._counts(tokens)
        return ((counts + self.mu * self.background) / (counts.sum(1, keepdim=True) + self.mu)).log()


class EncoderGuide(nn.Module):
    """A trained dual encoder as guide: one of the zoo, over the same tokens.

    Args:
        encoder: of the architecture that the checkpoint holds.
        checkpoint: a run's `last.ckpt`.

    Raises:
        ZooError: no such file, or weights of another encoder.
    """

    def __init__(self, encoder: nn.Module, checkpoint: Path) -> None:
        super().__init__()
        load_encoder(encoder, checkpoint)
        self.encoder = encoder

    def train(self, mode: bool = True) -> EncoderGuide:
        return super().train(False)

    def forward(self, batch: PairBatch) -> Encoded:
        return _encoded(lambda tokens: normalize(self.encoder(tokens)), batch)

"""LLM-Embedder's reward: how likely a language model finds the wanted text, given a candidate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.pair_rows import TextTriplets
from zoo.data.pairs import PairBatch, PairDataset
from zoo.data.text import Tokens
from zoo.data.tokenizers import padded
from zoo.errors import ZooError
from zoo.methods.rankers import lists
from zoo.methods.token_pairs import Part, TokenPairs, first, side_by_side
from zoo.pretrained import load_pretrained


class CausalReward(nn.Module):
    r"""A frozen causal language model as teacher of `Distillation`.

    $$r(q, d) = \frac{1}{|o|} \sum_i \log p(o_i \mid d, o_{<i})$$

    with the query itself for o, without its instruction, which is read but not scored; or with an answer to the query,
    which then follows document and query: $\log p(o_i \mid d, q, o_{<i})$. The data's tokenizer is the language model's
    (`zoo.data.HFTokenizer`). Rows that are too long lose the end of the document. The language model is no part of
    checkpoints.

    Source: Zhang et al. 2023 (arXiv 2310.07554), section 3.1.

    Args:
        name: folder or hub id of the model.
        answers: score the answers that the data set names (`answer` of `zoo.data.PairFiles` and `HubDataset`).
        between: text between the parts of a row.
        document_length: longest document in tokens.
        answer_length: longest answer in tokens.
        chunk: rows that the model reads at a time.

    Raises:
        ZooError: the model cannot be loaded or has no fast tokenizer; as training starts: the data set has no answers.
    """

    def __init__(
        self,
        name: str,
        answers: bool = False,
        between: str = "\n",
        document_length: int = 512,
        answer_length: int = 64,
        chunk: int = 16,
    ) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = load_pretrained(AutoModelForCausalLM.from_pretrained, name, dtype="auto")
        self._model = (model.eval().requires_grad_(False),)  # in a tuple it is no submodule, and in no checkpoint
        self.tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name)
        self.pairs = TokenPairs(self.tokenizer)
        self.between = self.tokenizer(between, add_special_tokens=False)["input_ids"]
        self.answers, self.document_length, self.answer_length = answers, document_length, answer_length
        self.chunk = chunk
        self.max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._texts: Sequence[str] = ()

    def fit_pairs(self, pairs: PairDataset) -> None:
        """Find the answers."""
        if not self.answers:
            return
        if not isinstance(pairs, TextTriplets) or pairs.answers is None:
            raise ZooError("the data set names no answers: pass --data.source.init_args.answer, or set answers false")
        self._texts = pairs.answers

    @torch.no_grad()
    def rewards(self, batch: PairBatch) -> Float[Tensor, "B G"]:
        """Rewards of each query's positive and explicit negatives."""
        query, documents = batch.anchor, lists(batch)[0]
        group = len(documents) // len(query)
        read = self.pairs.content(query)
        lead, text = (query.ids, read & ~query.pool), (query.ids, read & query.pool)
        parts: list[Part] = [self.between, lead, text]
        if self.answers:
            parts += [self.between, self._answers(batch)]
        each = torch.arange(len(query), device=query.ids.device).repeat_interleave(group)
        found = []
        for start in range(0, len(documents), self.chunk):
            rows = each[start : start + self.chunk]
            follow = [part if isinstance(part, list) else (part[0][rows], part[1][rows]) for part in parts]
            found.append(self._log_likelihood(documents[start : start + self.chunk], follow))
        return torch.cat(found).view(len(query), group)

    def _answers(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        texts = [self._texts[i] for i in batch.index.tolist()]
        rows = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=self.answer_length)
        tokens = padded(rows["input_ids"], 0).to(batch.index.device)
        return tokens.ids, tokens.mask

    def _log_likelihood(self, documents: Tokens, follow: list[Part]) -> Float[Tensor, " B"]:
        """Mean log-probability of the last of the parts that follow a document."""
        kept = first(self.pairs.content(documents), self.document_length)
        if self.max_length is not None:
            others = sum(len(part) if isinstance(part, list) else part[1].sum(1, keepdim=True) for part in follow)
            kept = first(kept, self.max_length - len(self.pairs.start) - others)
        parts: list[Part] = [self.pairs.start, (documents.ids, kept), *follow]
        ids, mask, part = side_by_side(parts, len(documents), 0)
        if self.max_length is not None and ids.shape[1] > self.max_length:
            raise ZooError(
                f"a text of {ids.shape[1]} tokens without a document, and the language model has {self.max_length} "
                "positions: lower query_length of --data.tokenizer"
            )
        (model,) = self._model
        logits = model.to(ids.device)(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        log_p = -nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
        wanted = mask[:, 1:] & (part[:, 1:] == len(parts) - 1)
        return log_p.where(wanted, 0.0).sum(1) / wanted.sum(1).clamp_min(1)

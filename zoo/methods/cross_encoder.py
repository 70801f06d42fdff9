"""Cross-encoders of `transformers`: models of a query and a document that read both at once."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.data.text import Tokens
from zoo.errors import ZooError
from zoo.losses.scores import at_least_float32
from zoo.methods.hf_encoder import with_lora
from zoo.methods.rankers import lists
from zoo.methods.token_pairs import TokenPairs, first, side_by_side
from zoo.pretrained import load_pretrained


class CrossEncoder(nn.Module):
    """A sequence classifier of `transformers` over query and document: the ranker of `RetrieverRanker`, or a teacher.

    Both are put together from token ids, special tokens and token types as the model's own tokenizer writes a pair; the
    data's tokenizer is the same model's (`zoo.data.HFTokenizer`). Pairs that are too long lose the end of the document,
    and of the query where that does not suffice. A model without a head, such as BERT's, gets one with random weights.

    Args:
        name: folder or hub id of the model.
        lora_rank: as in `HFEncoder`; the head is trained too.
        gradient_checkpointing: as in `HFEncoder`.

    Raises:
        ZooError: the model cannot be loaded, has a head with several scores or no fast tokenizer, or `peft` is missing.
    """

    def __init__(self, name: str, lora_rank: int | None = None, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        config = load_pretrained(AutoConfig.from_pretrained, name)
        headed = any("SequenceClassification" in kind for kind in config.architectures or [])
        if headed and config.num_labels != 1:
            raise ZooError(f"{name!r} gives a pair {config.num_labels} scores: name a model that gives one")
        dtype = torch.float32 if lora_rank is None else "auto"
        model = load_pretrained(AutoModelForSequenceClassification.from_pretrained, name, num_labels=1, dtype=dtype)
        self.pairs = TokenPairs(load_pretrained(AutoTokenizer.from_pretrained, name))
        text = model.config.get_text_config()
        if text.pad_token_id is None:  # decoders score the last token that is no padding
            model.config.pad_token_id = text.pad_token_id = text.eos_token_id or 0
        self.pad_id = text.pad_token_id
        limits = (self.pairs.max_length, getattr(text, "max_position_embeddings", None))
        self.max_length: int | None = min((n for n in limits if n is not None), default=None)
        self.has_types = getattr(text, "type_vocab_size", 0) > 1
        if gradient_checkpointing:
            model.activation_checkpointing_enable()
        if lora_rank is not None:
            model = with_lora(model, lora_rank, "SEQ_CLS")
        self.model = model.train()  # `from_pretrained` returns it without dropout

    def forward(self, query: Tokens, documents: Tokens) -> Float[Tensor, "B G"]:
        """Scores of each query's G documents; `documents` holds B * G of them, row i * G + j the j-th of query i."""
        rows = len(documents)
        of_query, of_document = self.pairs.content(query), self.pairs.content(documents)
        each = torch.arange(len(query), device=query.ids.device).repeat_interleave(rows // len(query))
        of_query = of_query[each]
        start, middle, end = self.pairs.start, self.pairs.middle, self.pairs.end
        if self.max_length is not None:
            room = self.max_length - len(start) - len(middle) - len(end)
            of_query = first(of_query, room)
            of_document = first(of_document, room - of_query.sum(1, keepdim=True))
        parts = [start, (query.ids[each], of_query), middle, (documents.ids, of_document), end]
        ids, mask, part = side_by_side(parts, rows, self.pad_id)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
        if self.has_types:
            inputs["token_type_ids"] = (part > 2).long() * mask
        scores = self.model(**inputs).logits
        return at_least_float32(scores).view(len(query), -1)

    def rewards(self, batch: PairBatch) -> Float[Tensor, "B G"]:
        """Scores of each query's positive and explicit negatives, for `Distillation`."""
        return self(batch.anchor, lists(batch)[0])

"""Encoders and decoders of `transformers`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.collections import Side
from zoo.data.hf_tokenizer import HFTokenizer
from zoo.data.text import Tokens
from zoo.data.tokenizers import Tokenizer
from zoo.errors import ZooError
from zoo.losses.scores import at_least_float32
from zoo.methods.pooling import first_token, last_token, masked_mean
from zoo.methods.text_encoders import POOLING
from zoo.pretrained import load_pretrained
from zoo.recipes import suggest

_POOLING: dict[Any, Any] = {
    masked_mean: "mean",
    first_token: "cls",
    last_token: "lasttoken",
}  # what sentence-transformers calls them


class HFEncoder(nn.Module):
    """A transformer of `transformers`: an encoder, the encoder half of an encoder-decoder, or a decoder.

    Args:
        name: folder or hub id of the model; with `from_scratch` also a model type ("bert", "llama").
        pooling: as in `TextTransformer`.
        bidirectional: a decoder's tokens see later ones too, in every layer; padding stays hidden.
        lora_rank: train low-rank adapters of all linear layers, with alpha = 2 rank and dropout 0.1 (NV-Embed's: Lee et
            al. 2025, arXiv 2405.17428), and freeze the rest, whose weights keep the precision they are stored in. None
            trains everything, in float32.
        gradient_checkpointing: keep only the layers' inputs, and compute the rest anew in the backward pass.
        from_scratch: random weights, and changes to the configuration. None loads the weights.

    Raises:
        ZooError: the model cannot be loaded, has no such setting, keeps its causal mask, or `peft` is missing.
    """

    reads = "texts"

    def __init__(
        self,
        name: str,
        pooling: Literal["mean", "first", "last"] | nn.Module = "mean",
        bidirectional: bool = False,
        lora_rank: int | None = None,
        gradient_checkpointing: bool = False,
        from_scratch: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        from transformers import AutoModel

        if from_scratch is None:
            # Half-precision weights lose the small steps of fine-tuning.
            dtype = torch.float32 if lora_rank is None else "auto"
            model = load_pretrained(AutoModel.from_pretrained, name, dtype=dtype)
        else:
            model = AutoModel.from_config(_config(name, from_scratch))
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        text = model.config.get_text_config()
        self.dim, self.max_length = text.hidden_size, getattr(text, "max_position_embeddings", None)
        if bidirectional:
            _drop_causal_mask(model, name)
        if gradient_checkpointing:
            model.activation_checkpointing_enable()
        if lora_rank is not None:
            model = with_lora(model, lora_rank)
        for part, module in model.named_modules():  # a head that pooling replaces: DDP wants no gradient to be missing
            if part.rpartition(".")[2] == "pooler":
                module.requires_grad_(False)
        self.model = model.train()  # `from_pretrained` returns it without dropout, and Lightning leaves that be
        self.pooling = POOLING[pooling] if isinstance(pooling, str) else pooling

    def hidden(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        """States of all tokens.

        Raises:
            ZooError: a text is longer than the model has positions.
        """
        length = tokens.ids.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ZooError(
                f"a text of {length} tokens, and the model has {self.max_length} positions: "
                "lower query_length and document_length of --data.tokenizer"
            )
        found = self.model(input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=False)
        return at_least_float32(found.last_hidden_state)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        return self.pooling(self.hidden(tokens), tokens.pool)

    def sentence_transformers(self, tokenizer: Tokenizer, sides: Sequence[Side]) -> list[Any]:
        """The same as modules of `sentence-transformers`, adapters merged; arguments as `TokenBag`'s.

        Raises:
            ZooError: pooling, tokenizer or half of an architecture that `sentence-transformers` does not have.
        """
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        if self.pooling not in _POOLING:
            raise ZooError(f"it has no {type(self.pooling).__name__}")
        if not isinstance(tokenizer, HFTokenizer) or tokenizer.system is not None:
            raise ZooError("it reads texts by a tokenizer of transformers, without a chat around each")
        if self.model.config.is_encoder_decoder:
            raise ZooError("it loads no encoder half of an encoder-decoder")
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        lengths = {f"{side}_length": tokenizer.lengths[side] for side in sides}
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.padded_right().save_pretrained(folder)
            # Half-precision weights would be widened or not by the library's own rule.
            options: Any = {"model_kwargs": {"dtype": model.dtype}, **lengths}
            transformer = Transformer(folder, max_seq_length=max(lengths.values()), **options)
        # The first token is the first of the prompt, where there is one.
        pools_all = self.pooling is first_token or not any(tokenizer.prefixes[side] for side in sides)
        return [transformer, Pooling(self.dim, _POOLING[self.pooling], include_prompt=pools_all)]


def _config(name: str, changes: dict[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def load(**kwargs: Any) -> Any:
        if name in CONFIG_MAPPING:
            return AutoConfig.for_model(name, **kwargs)
        return load_pretrained(AutoConfig.from_pretrained, name, **kwargs)

    plain = load()
    for key in changes:
        if not hasattr(plain, key):
            raise ZooError(f"{name!r} has no setting {key!r} for from_scratch{suggest(key, plain.to_dict())}")
    return load(**changes)


def _drop_causal_mask(model: Any, name: str) -> None:
    """Let tokens see later ones, and see whether they do.

    Raises:
        ZooError: the architecture does not heed the setting.
    """
    model.config.get_text_config().is_causal = False
    model.eval()
    ids = torch.tensor([[1, 2, 0], [1, 3, 0]], device=model.device)
    mask = torch.tensor([[1, 1, 0]] * 2, device=model.device)
    for length in (2, 3):  # without padding, and with
        with torch.no_grad():
            states = model(input_ids=ids[:, :length], attention_mask=mask[:, :length], use_cache=False)[0]
        if torch.allclose(*states[:, 0]):
            raise ZooError(
                f"{name!r} keeps its causal mask: set bidirectional false, update transformers or name another"
            )


def with_lora(model: Any, rank: int, task: str = "FEATURE_EXTRACTION") -> Any:
    """The model with adapters of all linear layers, and all else frozen, save a head that `task` trains.

    Raises:
        ZooError: `peft` is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ZooError("lora_rank needs peft: pip install negatives-zoo[lora]") from None
    config = LoraConfig(task_type=task, r=rank, lora_alpha=2 * rank, lora_dropout=0.1, target_modules="all-linear")
    with warnings.catch_warnings(action="ignore"):  # what peft and transformers have to tell each other
        return get_peft_model(model, config)

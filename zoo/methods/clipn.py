"""CLIPN: a second text encoder that says "no"."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.data.text import Tokens
from zoo.distributed import gather_with_grad
from zoo.errors import ZooError
from zoo.losses.opposite import OppositeLoss
from zoo.losses.scores import normalize
from zoo.methods.dual import Encoded, pair_embeddings
from zoo.methods.frozen_clip import FrozenClip
from zoo.negatives.blocks import score_blocks
from zoo.ood import agreeing_to_differ, competing_to_win, cosine_logits


class NoText(nn.Module):
    """A copy of a text tower that reads every text with a learned prompt added to its token embeddings.

    The prompts are zero at first and stand at every position, the padding included. In training each text draws one of
    the prompts or their mean, all equally likely; evaluation takes the mean.

    Args:
        tower: maps Tokens to raw embeddings; its first `nn.Embedding` is that of the tokens.
        context: tokens that it reads at most.
        prompts: number of prompts.

    Raises:
        ZooError: the tower has no `nn.Embedding`.
    """

    def __init__(self, tower: nn.Module, context: int, prompts: int = 16) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower).requires_grad_(True)
        width = self._embedding().embedding_dim
        self.prompt_no = nn.Parameter(torch.zeros(prompts, context, width))

    def _embedding(self) -> nn.Embedding:
        found = next((m for m in self.tower.modules() if isinstance(m, nn.Embedding)), None)
        if found is None:
            raise ZooError(
                "CLIPN adds prompts to token embeddings, and the text tower has none: use one with nn.Embedding"
            )
        return found

    def prompts(self, n: int) -> Float[Tensor, "B L W"]:
        """Prompts of n texts."""
        mean = self.prompt_no.mean(0, keepdim=True)
        if not self.training:
            return mean.expand(n, -1, -1)
        drawn = torch.randint(len(self.prompt_no) + 1, (n,), device=mean.device)
        return torch.cat([self.prompt_no, mean])[drawn]

    def forward(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        prompts, read = self.prompts(len(tokens)), []

        def add(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
            read.append(module)
            if embedded.shape[1] > prompts.shape[1]:
                raise ZooError(
                    f"a text of {embedded.shape[1]} tokens, and CLIPN has prompts for {prompts.shape[1]}: raise --model.context"
                )
            return embedded + prompts[:, : embedded.shape[1]].to(embedded.dtype)

        # Before positions are added, which comes to the same sum, and needs nothing else of the tower.
        handle = self._embedding().register_forward_hook(add)
        try:
            embeddings = self.tower(tokens)
        finally:
            handle.remove()
        if len(read) != 1:
            raise ZooError(
                "CLIPN adds prompts to token embeddings, and the text tower does not call its nn.Embedding once"
            )
        return embeddings


class CLIPN(FrozenClip):
    r"""Teaches a frozen CLIP to say no: h of a caption belongs near every image but its own.

    $$L = \tfrac12 (L_{\mathrm{ITBO}} + L_{\mathrm{TSO}})$$

    with the losses of `zoo.losses.OppositeLoss`, on the images and captions of all ranks; captions that are true of an
    image are not among its negatives. Only the copied text tower and its prompts are trained. A class then has a "yes"
    and a "no" probability, and the scores CTW and ATD say whether an image is of any class at all.

    Source: Wang et al. 2023 (arXiv 2308.12213).

    Args:
        encoder: the CLIP, with two towers.
        loss: the CLIP's own, whose temperature stays the scale.
        opposite: trains the "no" texts.
        prompts: number of prompts.
        context: tokens of the longest text; None takes the text tower's own `context`.
        no_optimizer: of the "no" texts; None takes the CLIP's.
        **kwargs: as in `FrozenClip`.

    Raises:
        ZooError: the text tower does not say what its context is.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        opposite: OppositeLoss,
        prompts: int = 16,
        context: int | None = None,
        no_optimizer: OptimizerCallable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, **kwargs)
        yes = self.tower("document")
        context = getattr(yes, "context", None) if context is None else context
        if context is None:
            raise ZooError(
                "CLIPN needs the length of texts: set --model.context to document_length of --data.tokenizer"
            )
        self.text_no = NoText(yes, context, prompts)
        self.opposite, self.no_optimizer = opposite, no_optimizer

    def trained(self, stage: int) -> Iterable[nn.Parameter]:
        return self.text_no.parameters()

    def stage_optimizer(self, stage: int) -> OptimizerCallable:
        return self.optimizer if stage == 0 or self.no_optimizer is None else self.no_optimizer

    def enter(self, stage: int) -> None:
        """The "no" texts start as the "yes" texts are."""
        self.text_no.tower.load_state_dict(self.tower("document").state_dict())

    def embed_no(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        """Unit-norm "no" embeddings of texts."""
        raw = self.text_no(tokens)
        with torch.autocast(raw.device.type, enabled=False):
            return normalize(raw)

    def stage_step(self, batch: PairBatch, stage: int) -> dict:
        with torch.no_grad():
            image, yes = self.embed_queries(batch.anchor), self.embed_documents(batch.positive)
        no = self.embed_no(batch.positive)
        with torch.autocast(image.device.type, enabled=False):
            x = pair_embeddings(Encoded(image, yes, None), batch.replace(negatives=None, negative_key=None), grad=False)
            block = score_blocks(x)["qd"]
            positives, negatives = (image * no).sum(1, keepdim=True), image @ gather_with_grad(no).T
            own = (positives - (image * yes).sum(1, keepdim=True)) / self.temperature
            other = (negatives - block.scores) / self.temperature
            loss = self.opposite(own, other, block.weight, (yes, no))
            return self.report(loss, image, (positives, negatives, block.weight))

    # Evaluation

    def ood_features(self, batch: PairBatch) -> dict[str, Tensor]:
        """Unit-norm embeddings of images (`features`), or of texts (also `no`)."""
        if batch.anchor is not None:
            return {"features": self.embed_queries(batch.anchor)}
        return {"features": self.embed_documents(batch.positive), "no": self.embed_no(batch.positive)}

    def ood_scores(self, images: dict[str, Tensor], classes: dict[str, Tensor]) -> dict[str, Float[Tensor, " N"]]:
        """CTW and ATD of images, given `ood_features` of both."""
        yes, no = (cosine_logits(images["features"], classes[key], self.scale) for key in ("features", "no"))
        return {"ctw": competing_to_win(yes, no), "atd": agreeing_to_differ(yes, no)}

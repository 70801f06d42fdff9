"""Batches that do not fit in memory: encoded in chunks, with the gradient of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.distributed import average_gradients, world_size
from zoo.errors import ZooError
from zoo.methods.base import ContrastiveMethod


class Chunk(NamedTuple):
    """Inputs that were encoded without gradient, and what it takes to encode them again."""

    encode: Callable[[Any], Tensor]
    inputs: Any
    state: Tensor
    leaf: Tensor
    rows: slice


class CachedMethod(ContrastiveMethod):
    """A method that can encode its batch in chunks (gradient cache: Gao et al. 2021, arXiv 2101.06983).

    The first pass encodes chunk by chunk and keeps no activations; the loss leaves its gradient at the embeddings; the
    second pass encodes each chunk again, with the random draws of the first, and takes that gradient on to the
    parameters. Value and gradient are those of the plain step; batch normalisation, which looks at other rows, sees a
    chunk at a time.

    Args:
        encoder: as in `ContrastiveMethod`.
        loss: as in `ContrastiveMethod`.
        cache_chunk: encode so many inputs at a time, so that the batch, and with it the number of negatives, is not
            limited by activations, at the cost of a second forward pass. None encodes at once.
        **kwargs: as in `ContrastiveMethod`.

    Raises:
        ZooError: the encoder lets the rows of a batch see each other.
    """

    def __init__(self, encoder: nn.Module, loss: nn.Module, *, cache_chunk: int | None = None, **kwargs: Any):
        super().__init__(encoder, loss, **kwargs)
        if cache_chunk is not None and hasattr(encoder, "encode_alike"):
            raise ZooError(f"{type(encoder).__name__} mixes the rows of a batch: remove --model.cache_chunk")
        self.cache_chunk = cache_chunk
        self._cached: list[Chunk] = []

    def encode_cached(self, encode: Callable[[Any], Float[Tensor, "N D"]], inputs: Any) -> Float[Tensor, "N D"]:
        """What `encode` makes of inputs; with a gradient cache they are leaves, and `backward` does the rest."""
        chunk = self.cache_chunk
        if chunk is None or not torch.is_grad_enabled():
            return encode(inputs)
        parts, states = [], []
        for start in range(0, len(inputs), chunk):
            states.append(_rng_state(inputs))
            with torch.no_grad():
                parts.append(encode(inputs[start : start + chunk]))
        leaf = torch.cat(parts).requires_grad_()
        for number, state in enumerate(states):
            rows = slice(number * chunk, (number + 1) * chunk)
            self._cached.append(Chunk(encode, inputs[rows], state, leaf, rows))
        return leaf

    def encode_alike(self, views: Sequence[Tensor]) -> Sequence[Float[Tensor, "N D"]]:
        if self.cache_chunk is None:
            return super().encode_alike(views)
        return self.encode_cached(self.encoder, torch.cat(list(views))).chunk(len(views))

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        wrapped: Any = self.trainer.strategy.model
        if self.cache_chunk is not None and hasattr(wrapped, "require_backward_grad_sync"):
            wrapped.require_backward_grad_sync = False  # DDP expects one backward pass a step; `backward` sums for it

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss, *args, **kwargs)
        cached, self._cached = self._cached, []
        if not cached:
            return
        for encode, inputs, state, leaf, rows in cached:
            if leaf.grad is None:
                continue
            precision: Any = self.trainer.precision_plugin
            with precision.forward_context(), _replayed(state, inputs), _same_statistics(self):
                embeddings = encode(inputs)
            torch.autograd.backward(embeddings, leaf.grad[rows])
        if world_size() > 1:
            average_gradients(self.parameters())


def _device(inputs: Any) -> torch.device:
    return inputs.device if isinstance(inputs, Tensor) else inputs.ids.device


def _rng_state(inputs: Any) -> Tensor:
    device = _device(inputs)
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _replayed(state: Tensor, inputs: Any) -> Iterator[None]:
    """The random draws that followed `state`; afterwards the generator stands where it stood."""
    device = _device(inputs)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
        yield


@contextmanager
def _same_statistics(module: nn.Module) -> Iterator[None]:
    """Running statistics count what they have seen once: a second pass leaves them alone."""
    norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    for m in norms:
        m.momentum, m.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for m, (momentum, seen) in zip(norms, before, strict=True):
            m.momentum, m.num_batches_tracked = momentum, seen

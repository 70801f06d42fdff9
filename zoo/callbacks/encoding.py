"""Embeddings of whole data sets in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.data.pairs import PairDataset
from zoo.distributed import gather, rank, world_size


@contextmanager
def undisturbed(module: Any) -> Iterator[None]:
    """Evaluation mode without gradient; mode and random generators are put back afterwards."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        yield
    for m in training:
        m.training = True


def encode(trainer: Any, module: Any, dataset: PairDataset) -> Float[Tensor, "N D"]:
    """Embeddings of a data set's items in its order, as evaluation has them, on the training device in float32.

    Every rank encodes its share of the batches; all ranks return everything.

    Args:
        trainer: supplies the datamodule and the precision.
        module: its `validation_step` encodes a batch.
        dataset: what is encoded; of its two sides the one that is not None.
    """
    loader, parts = trainer.datamodule.encode_loader(dataset), []
    ranks, mine = world_size(), rank()
    if len(loader) < ranks:  # not a batch for everyone: all encode all
        ranks, mine = 1, 0
    with undisturbed(module), trainer.precision_plugin.forward_context():
        for number, batch in enumerate(loader):
            if number % ranks == mine:
                inputs = trainer.datamodule.prepare_inputs(batch.to(module.device))
                parts.append(module.validation_step(inputs, number)["features"].float())
    if ranks == 1:
        return torch.cat(parts)
    # Batches have one size but for the last: whoever lacks a batch sends padding.
    sizes = [len(p) for p in parts]
    per_rank = -(-len(loader) // ranks)
    width, step = parts[0].shape[1], trainer.datamodule.eval_batch_size
    padded = torch.zeros(per_rank, step, width, device=module.device)
    for number, part in enumerate(parts):
        padded[number, : sizes[number]] = part
    everything = gather(padded).view(ranks, per_rank * step, width)
    ordered = everything.view(ranks, per_rank, step, width).transpose(0, 1).reshape(-1, width)
    return ordered[: len(dataset)]

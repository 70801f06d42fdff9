"""Negatives mined anew as the encoder learns."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch.distributed as dist
from torch import Tensor

from zoo.callbacks.encoding import encode
from zoo.data.collections import CollectionPairs, OneSide
from zoo.distributed import rank, world_size
from zoo.errors import ZooError
from zoo.negatives.miners import Miner, jaccard
from zoo.negatives.summary import summary
from zoo.negatives.table import NegativeTable


class RefreshNegatives(pl.Callback):
    """Re-encodes the training set, mines, and swaps the new table in: ANCE's refresh (arXiv 2007.00808).

    All ranks share the encoding and the search; rank 0 saves the table in the run's folder, from where all read it, and
    a `summary.txt` beside it. A resumed run finds it there. Logs what a refresh found: `refresh/seconds`,
    `refresh/jaccard` with the table before, `refresh/negative` and `refresh/positive` (mean scores), `refresh/rejected`
    (share that rules and known positives took).

    Args:
        miner: searches the new embeddings.
        start_epoch: first epoch with its negatives; the datamodule's own table serves until then.
        every_n_epochs: mine again so often; 0 mines once.
        every_n_steps: mine again after so many steps, within epochs too; the loader has to have no workers, which
            would hold the old table.
    """

    def __init__(
        self, miner: Miner, start_epoch: int = 0, every_n_epochs: int = 1, every_n_steps: int | None = None
    ) -> None:
        self.miner, self.start_epoch = miner, start_epoch
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.last_step: int | None = None
        # Epoch and step of a beginning epoch whose refresh is still to come. A checkpoint of an epoch's last step is
        # written before the epoch ends, and a run resumed from there never sees that end.
        self._pending: tuple[int, int] | None = (0, 0)
        self._metrics: dict[str, float] = {}

    def _folder(self, trainer: Any, step: int) -> Path:
        return Path(trainer.default_root_dir) / "negatives" / str(step)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        if not data.n_negatives and not data.sampler.reads_table:
            raise ZooError("RefreshNegatives has nobody to serve: set --data.n_negatives and --data.miner")
        if self.every_n_steps is not None and data.num_workers:
            raise ZooError("refreshing within an epoch takes --data.num_workers 0: workers hold the old table")
        if self.every_n_steps is not None and data.sampler.reads_table:
            raise ZooError("the sampler composes an epoch from one table: refresh it every_n_epochs, not every_n_steps")
        if self.last_step is not None:  # resumed
            data.set_table(NegativeTable.load(self._folder(trainer, self.last_step)))
        self._begin_epoch(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.is_last_batch:
            self._pending = (trainer.current_epoch + 1, trainer.global_step)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self._begin_epoch(trainer, pl_module)
        if self._metrics:
            pl_module.log_dict(self._metrics, rank_zero_only=True)

    def _begin_epoch(self, trainer: Any, pl_module: Any) -> None:
        if self._pending is None:
            return
        epoch, step = self._pending
        if epoch == trainer.max_epochs or step == trainer.max_steps:
            return  # nobody would see the table, unless the run is prolonged
        self._pending = None
        since, every = epoch - self.start_epoch, self.every_n_epochs if self.every_n_steps is None else 0
        if since == 0 or (since > 0 and every > 0 and since % every == 0):
            self._refresh(trainer, pl_module, step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        # Before a step, so that a checkpoint of the step before is followed by the same refresh again.
        step = trainer.global_step
        if self.every_n_steps is None or trainer.current_epoch < self.start_epoch or step == self.last_step:
            return
        if step and step % self.every_n_steps == 0:
            self._refresh(trainer, pl_module, step)

    def _refresh(self, trainer: Any, pl_module: Any, step: int) -> None:
        start = time.perf_counter()
        pairs: CollectionPairs = trainer.datamodule.train_pairs
        sides = {
            "query": encode(trainer, pl_module, OneSide(pairs.queries, "query")),
            "document": encode(trainer, pl_module, OneSide(pairs.documents, "document")),
        }

        def embed(side: Literal["query", "document"]) -> Tensor:
            return sides[side]

        before, self.last_step = trainer.datamodule.table, step
        folder = self._folder(trainer, step)
        positive = (sides["query"][pairs.query_of] * sides["document"][pairs.document_of]).sum(1)
        mined = self.miner.mine(pairs, embed)
        if rank() == 0:
            mined.provenance[0] |= {"encoder": type(pl_module).__name__, "step": step}
            mined.save(folder)
            (folder / "summary.txt").write_text(summary(mined, positive.cpu().numpy()) + "\n")
        if world_size() > 1:
            dist.barrier()
        table = NegativeTable.load(folder)
        trainer.datamodule.set_table(table)
        present = table.ids >= 0
        rejected = sum(int(record.get("rejected", 0)) for record in table.provenance)
        self._metrics = {
            "refresh/seconds": time.perf_counter() - start,
            "refresh/negative": float(np.asarray(table.scores)[present].mean()) if present.any() else 0.0,
            "refresh/positive": positive.mean().item(),
            "refresh/rejected": rejected / max(rejected + int(present.sum()), 1),
        }
        if isinstance(before, NegativeTable):
            self._metrics["refresh/jaccard"] = jaccard(before, table)

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step, "pending": self._pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_step, self._pending = state_dict["last_step"], state_dict["pending"]

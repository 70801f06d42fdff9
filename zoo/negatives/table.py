"""NegativeTable: the common currency of mining."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import ZooError
from zoo.negatives.balanced_margin import BalancedMarginPairs
from zoo.results import write_json

_IDS, _SCORES, _POSITIVES, _RECORD = "ids.npy", "scores.npy", "positives.npy", "table.json"


@dataclass
class NegativeTable:
    """Ranked candidate negatives of N anchors, with the record of how they came about.

    Attributes:
        ids: candidates `[N, K]` by dataset index, hardest first, -1 padded at the end.
        scores: their scores `[N, K]` under the miner (higher is harder); padding holds -inf.
        provenance: what produced the table: miner, encoder, depth, and per vetting rule how many candidates it rejected.
        positives: where the scores are those of a teacher: its score of each anchor's positive `[N]`. Batches then carry
            both, to be distilled. None where scores only rank.
    """

    ids: np.ndarray
    scores: np.ndarray
    provenance: list[dict[str, Any]] = field(default_factory=list)
    positives: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.scores.shape:
            raise ValueError(f"ids {self.ids.shape} and scores {self.scores.shape} must both be [N, K]")
        if self.positives is not None and self.positives.shape != self.ids.shape[:1]:
            raise ValueError(f"positives {self.positives.shape} must be [N], with {len(self.ids)} rows of ids")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> np.ndarray:
        """Candidates per anchor `[N]`."""
        return (self.ids >= 0).sum(1)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the table's content and provenance; taken once, as neither changes."""
        digest = hashlib.sha256(json.dumps(self.provenance, sort_keys=True).encode())
        digest.update(repr(self.ids.shape).encode())
        for array in (self.ids, self.scores) if self.positives is None else (self.ids, self.scores, self.positives):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def keep(self, kept: np.ndarray, rule: str, **details: Any) -> NegativeTable:
        """The table without the candidates where `kept` `[N, K]` is False; the rule and its toll enter the provenance."""
        kept = kept & (self.ids >= 0)
        order = np.argsort(~kept, axis=1, kind="stable")
        ids = np.where(kept, self.ids, -1)
        scores = np.where(kept, self.scores, -np.inf)
        record = {"rule": rule, **details, "rejected": int(self.counts.sum() - kept.sum())}
        ids, scores = (np.take_along_axis(x, order, 1) for x in (ids, scores))
        return NegativeTable(ids, scores, [*self.provenance, record], self.positives)

    def skip_top(self, n: int) -> NegativeTable:
        """Drop the `n` hardest candidates of each anchor, which are the likeliest false negatives."""
        return self.keep(np.arange(self.ids.shape[1])[None, :] >= n, "skip_top", n=n)

    def below_positive(
        self, positive_scores: np.ndarray, absolute: float | None = 0.0, relative: float | None = None
    ) -> NegativeTable:
        """Drop candidates that score too close to the anchor's positive (positive-aware mining).

        Args:
            positive_scores: score of each anchor's positive `[N]` under the same miner; inf for one without.
            absolute: a candidate stays if its score is at most `positive - absolute`; None does not ask.
            relative: and at most `positive - relative * |positive|`; None does not ask.
        """
        positive = positive_scores[:, None]
        kept = np.ones(self.ids.shape, bool)
        if absolute is not None:
            kept &= self.scores <= positive - absolute
        if relative is not None:
            kept &= self.scores <= positive - relative * np.where(np.isfinite(positive), np.abs(positive), 0)
        return self.keep(kept, "below_positive", absolute=absolute, relative=relative)

    def drop_positives(self, anchor_keys: np.ndarray, candidate_keys: np.ndarray) -> NegativeTable:
        """Drop candidates that are the anchor's positive by identity.

        Args:
            anchor_keys: for each anchor the identity keys of its known positives, `[N]` or `[N, P]` (-1 padded).
            candidate_keys: identity key of every dataset index, `[M]`.
        """
        known = anchor_keys.reshape(len(anchor_keys), -1)
        keys = candidate_keys[np.maximum(self.ids, 0)]
        return self.keep((keys[:, :, None] != known[:, None, :]).all(2), "drop_positives")

    def draw(self, anchors: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` distinct candidates for each of `anchors`, `[B, n]`, uniformly; -1 where an anchor has fewer."""
        return self.at(anchors, self.draw_places(anchors, n, rng))[0]

    def draw_places(self, anchors: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """The same draw as places in the rows, for `at`."""
        there = self.ids[anchors] >= 0
        order = np.argsort(np.where(there, rng.random(there.shape), np.inf), axis=1)[:, :n]
        places = np.where(np.take_along_axis(there, order, 1), order, -1)
        return np.pad(places, ((0, 0), (0, n - places.shape[1])), constant_values=-1)

    def draw_balanced(self, anchors: np.ndarray, n_bins: int, rng: np.random.Generator) -> np.ndarray:
        """One candidate for each of `anchors`, `[B, 1]`, uniformly over `n_bins` bins of its margin to the positive.

        A row's bins reach from its lowest to its highest score; as the positive is one, its own score moves none.
        Source: Hofstätter et al. 2021 (arXiv 2104.06967).
        """
        return self.at(anchors, self.draw_balanced_places(anchors, n_bins, rng))[0]

    def draw_balanced_places(self, anchors: np.ndarray, n_bins: int, rng: np.random.Generator) -> np.ndarray:
        """The same draw as places in the rows, for `at`."""
        margins = np.where(self.ids[anchors] >= 0, -self.scores[anchors], np.nan)
        return BalancedMarginPairs(margins, n_bins).draw(np.arange(len(anchors)), rng)[:, None]

    def at(self, anchors: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Candidates and their scores at places of the rows of `anchors`, both `[B, n]`; at place -1 are -1 and -inf."""
        there, places = places >= 0, np.maximum(places, 0)
        ids, scores = (np.take_along_axis(x[anchors], places, 1) for x in (self.ids, self.scores))
        return np.where(there, ids, -1), np.where(there, scores, -np.inf)

    def save(self, folder: Path) -> None:
        """Write the table to `folder`; `load` maps it into memory again."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {_IDS: self.ids, _SCORES: self.scores, _POSITIVES: self.positives}
        parts = {name: folder / f".{name}" for name, array in arrays.items() if array is not None}
        for name, part in parts.items():  # all before any: a full disk leaves the table that was there
            np.save(part, arrays[name])
        (folder / _POSITIVES).unlink(missing_ok=True)
        for name, part in parts.items():  # the table may be mapped from the very file that it replaces
            part.replace(folder / name)
        write_json(folder / _RECORD, {"fingerprint": self.fingerprint, "provenance": self.provenance})

    @classmethod
    def load(cls, folder: Path) -> NegativeTable:
        """Map a saved table into memory.

        Raises:
            ZooError: the folder or one of its files is missing, or their content is not what was saved.
        """
        for name in (_IDS, _SCORES, _RECORD):
            if not (folder / name).exists():
                raise ZooError(
                    f"no negative table at {folder}: {name} is missing; a table is saved by NegativeTable.save"
                )
        try:
            meta = json.loads((folder / _RECORD).read_text())
            ids, scores = (np.load(folder / name, mmap_mode="r") for name in (_IDS, _SCORES))
            positives = np.load(folder / _POSITIVES) if (folder / _POSITIVES).exists() else None
            table = cls(ids, scores, meta["provenance"], positives)
            if table.fingerprint == meta["fingerprint"]:
                return table
        except (OSError, ValueError, EOFError, TypeError, KeyError):
            pass  # as of another fingerprint
        raise ZooError(f"the negative table at {folder} is damaged: its content is not what was saved; mine it again")


def mine_random(n_anchors: int, n_candidates: int, k: int, seed: int = 0) -> NegativeTable:
    """`k` uniformly drawn candidates for each anchor (distinct up to rare repeats), scores 0: the baseline of mining."""
    ids = np.random.default_rng(seed).integers(0, n_candidates, (n_anchors, k))
    return NegativeTable(ids, np.zeros((n_anchors, k), np.float32), [{"miner": "random", "depth": k, "seed": seed}])

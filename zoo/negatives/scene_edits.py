"""False captions of scenes, exact by construction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.data.collections import CollectionPairs
from zoo.data.scene_edits import KINDS, canonical, caption, edit, meaning
from zoo.data.scenes import ScenePairs
from zoo.errors import ZooError
from zoo.negatives.generators import Generated, NegativeGenerator, content_keys


class SceneEdits(NegativeGenerator):
    """Captions of edited scenes, drawn afresh each time: the counterpart of NegCLIP's swapped captions.

    (Yuksekgonul et al. 2023, arXiv 2210.01936). Each negative of a pair is of another kind, and no two negatives of a
    pair describe the same picture (`swap_obj` and `replace_rel` do). A caption is known by its meaning: the key of a
    caption that is true of some image of the data is that of the image's own caption, so it is no negative of that image,
    in whatever words it comes.

    Args:
        kinds: kinds of edits (`zoo.data.scene_edits.KINDS`), drawn uniformly.
        n: negatives of each pair.
        start_epoch: first epoch (from 0) with negatives.
    """

    def __init__(
        self, kinds: Sequence[str] = ("swap_att", "swap_obj", "replace_rel"), n: int = 1, start_epoch: int = 0
    ) -> None:
        super().__init__(start_epoch)
        if unknown := set(kinds) - set(KINDS):
            raise ZooError(f"unknown edit {min(unknown)!r}: choose from {', '.join(KINDS)}")
        if not 1 <= n <= len(set(kinds)):
            raise ZooError(f"{n} negatives of different kinds from {len(set(kinds))} kinds: lower n or name more kinds")
        self.kinds, self.n = tuple(dict.fromkeys(kinds)), n

    def generate(self, pairs: CollectionPairs, indices: np.ndarray, rng: np.random.Generator) -> Generated:
        """Negative captions of the pairs `indices`; a mask of False where `n` kinds make fewer pictures.

        Raises:
            ZooError: the pairs are not made of scenes.
        """
        if not isinstance(pairs, ScenePairs):
            raise ZooError("SceneEdits edits scenes: use it with the source Scenes")
        scenes = pairs.scenes[np.asarray(indices)]
        order = rng.random((len(scenes), len(self.kinds))).argsort(1)
        edited = np.stack([edit(scenes, kind, rng) for kind in self.kinds], 1)
        edited = np.take_along_axis(edited, order[..., None], 1)  # [B, kinds, 10], in an order of each row's own
        meanings = meaning(edited.reshape(-1, edited.shape[2])).reshape(order.shape)
        false = meanings != meaning(scenes)[:, None]
        for k in range(1, len(self.kinds)):
            false[:, k] &= (meanings[:, :k] != meanings[:, k : k + 1]).all(1)
        first = (~false).argsort(1, kind="stable")[:, : self.n]
        made = np.take_along_axis(edited, first[..., None], 1).reshape(-1, edited.shape[2])
        mask = np.take_along_axis(false, first, 1)
        keys = content_keys(caption(canonical(made)))
        own = (pairs.document_of_meaning.get(number, -1) for number in meaning(made).tolist())
        documents = np.fromiter(own, np.int64, len(made))
        keys = np.where(documents >= 0, documents, keys).reshape(mask.shape)
        return Generated(caption(made), np.where(mask, keys, -1), mask)

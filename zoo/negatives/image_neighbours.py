"""Tables of neighbouring images, of which NegCLIP composes batches (`zoo.data.paired_batches.NeighbourPairs`)."""

from __future__ import annotations

import numpy as np
import torch

from zoo.data.collections import CollectionPairs
from zoo.data.pairs import PairDataset
from zoo.errors import ZooError
from zoo.negatives.miners import Embed, Found, Miner, Rules, SearchMiner
from zoo.negatives.table import NegativeTable


class ImageNeighbourMiner(SearchMiner):
    """The nearest other images of each pair's image (the queries), as documents of theirs.

    Of a neighbour with several captions the r-th caption of an image gets the r-th, counted round, so that all of them
    occur. In a RefreshNegatives callback with `every_n_epochs: 0` the images are compared once, by the encoder that
    training starts with.

    Source: NegCLIP, Yuksekgonul et al. 2023 (arXiv 2210.01936): K = 3.

    Args:
        depth: neighbours of each image.
        rules: which of them stay; there are no positive scores to compare with.
    """

    def __init__(self, depth: int = 3, rules: Rules | None = None) -> None:
        super().__init__(depth, rules)

    def mine(self, pairs: PairDataset, embed: Embed | None = None) -> NegativeTable:
        if not isinstance(pairs, CollectionPairs):
            raise ZooError("ImageNeighbourMiner needs pairs of images and captions: remove --data.miner")
        pairs = pairs.mined
        near, scores, _, record = self.search(pairs, embed)
        images, image = np.unique(pairs.query_of, return_inverse=True)
        near, scores = near[image], scores[image]
        order = np.lexsort((pairs.document_of, image))
        counts = np.bincount(image, minlength=len(images))
        first = np.cumsum(counts) - counts
        rank = np.empty(len(pairs), np.int64)
        rank[order] = np.arange(len(pairs)) - np.repeat(first, counts)
        ids = pairs.document_of[order][first[near] + rank[:, None] % counts[near]]
        table = NegativeTable(ids, scores, [{"depth": self.depth, **record}])
        table = table.keep(near != image[:, None], "other_images")
        table = table.drop_positives(pairs.columns["known"], np.arange(pairs.n_documents))
        table = self.rules.apply(table, None)
        # The search saw one more, as an image need not be its own nearest.
        return NegativeTable(table.ids[:, : self.depth], table.scores[:, : self.depth], table.provenance)

    def search(self, pairs: CollectionPairs, embed: Embed | None) -> Found:
        """Nearest images of each image that has a pair, both numbered in the order of their queries."""
        from zoo.search import top_k

        if embed is None:
            raise ZooError("ImageNeighbourMiner needs an encoder: put it into a RefreshNegatives callback")
        images = embed("query")
        images = images[torch.as_tensor(np.unique(pairs.query_of), device=images.device)]
        scores, ids = top_k(images, images, min(self.depth + 1, len(images)))
        return ids.cpu().numpy(), scores.cpu().numpy(), None, {"miner": "image neighbours"}


class NamedNeighbours(Miner):
    """No search: the image neighbours that the data set's rows name (`zoo.data.negclip_files.NegClipFile`)."""

    def mine(self, pairs: PairDataset, embed: Embed | None = None) -> NegativeTable:
        from zoo.data.negclip_files import NegClipPairs

        if not isinstance(pairs, NegClipPairs):
            raise ZooError("NamedNeighbours needs a data set that names them: zoo.data.negclip_files.NegClipFile")
        return self.rules.apply(pairs.table(), None)

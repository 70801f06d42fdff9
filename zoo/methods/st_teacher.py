"""Guides and teachers whose embeddings of the training texts are computed once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.data.pairs import PairBatch, PairDataset
from zoo.data.text import TextPairs
from zoo.data.text_store import cached, file_stamp
from zoo.errors import ZooError
from zoo.losses.scores import normalize
from zoo.methods.dual import Encoded
from zoo.pretrained import load_pretrained

_CHUNK = 16_384  # texts that are embedded at a time


class CachedGuide(nn.Module):
    """Embeddings of the training queries and documents, computed elsewhere, as guide or teacher.

    Files stay on disk; a batch reads its rows. Row i is query i of `TextPairs.queries`, document i of `.documents`.

    Args:
        queries: .npy file `[Q, D]`.
        documents: .npy file `[N, D]`.
        normalize: scores are cosines; False leaves dot products.

    Raises:
        ZooError: a file is missing, or is no matrix; as training starts: it has not as many rows as there are texts.
    """

    def __init__(self, queries: Path, documents: Path, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self._read(queries, documents)

    def fit_pairs(self, pairs: PairDataset) -> None:
        """Compare the files with the training texts."""
        texts = _texts(pairs)
        for kind, rows, known in (
            ("queries", self._queries, texts.queries),
            ("documents", self._documents, texts.documents),
        ):
            if len(rows) != len(known):
                raise ZooError(
                    f"the guide has embeddings of {len(rows)} {kind}, and training has {len(known)}: "
                    f"embed the {kind} of the training split, in its order"
                )

    def forward(self, batch: PairBatch) -> Encoded:
        query, positive = self._rows(self._queries, batch.anchor_key), self._rows(self._documents, batch.positive_key)
        if batch.negative_key is None:
            return Encoded(query, positive, None)
        negatives = self._rows(self._documents, batch.negative_key.flatten())
        return Encoded(query, positive, negatives.view(*batch.negative_key.shape, -1))

    def _read(self, queries: Path, documents: Path) -> None:
        self._queries, self._documents = _matrix(queries), _matrix(documents)
        if self._queries.shape[1] != self._documents.shape[1]:
            width = self._queries.shape[1], self._documents.shape[1]
            raise ZooError(f"{queries} and {documents} hold vectors of {width} dimensions: take both from one model")

    def _rows(self, matrix: np.ndarray, keys: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        numbers = keys.cpu().numpy()
        rows = np.where(numbers[:, None] >= 0, matrix[np.maximum(numbers, 0)], 0)  # key -1: there is no such negative
        found = torch.from_numpy(rows.astype(np.float32)).to(keys.device)
        return normalize(found) if self.normalize else found


class SentenceTransformersGuide(CachedGuide):
    """Any model of `sentence-transformers` as guide or teacher.

    As training starts it embeds all training texts, once: the embeddings are cached on disk (`$ZOO_CACHE`).

    Args:
        name: folder or hub id of the model.
        query_prompt: instruction before each query; None takes the model's own.
        document_prompt: the same for documents.
        normalize: scores are cosines; False leaves dot products.
        batch_size: texts that the model embeds at a time.

    Raises:
        ZooError: as training starts: `sentence-transformers` is missing, or the model cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        normalize: bool = True,
        batch_size: int = 64,
    ) -> None:
        nn.Module.__init__(self)
        self.name, self.query_prompt, self.document_prompt = name, query_prompt, document_prompt
        self.normalize, self.batch_size = normalize, batch_size

    def fit_pairs(self, pairs: PairDataset) -> None:
        """Embed the training texts, or find them embedded."""
        texts = _texts(pairs)
        files = [file_stamp(path) for path in sorted(Path(self.name).rglob("*")) if path.is_file()]
        stamp = (self.name, files, self.query_prompt, self.document_prompt, _digest(texts))
        folder, _ = cached("teacher", stamp, lambda to: self._write(texts, to))
        self._read(folder / "queries.npy", folder / "documents.npy")

    def _write(self, texts: TextPairs, folder: Path) -> Counter[str]:
        try:
            from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
        except ImportError:
            raise ZooError(
                "SentenceTransformersGuide needs sentence-transformers: pip install negatives-zoo[teachers]"
            ) from None
        model = load_pretrained(SentenceTransformer, self.name)
        for kind, side, encode, prompt in (
            ("queries", texts.queries, model.encode_query, self.query_prompt),
            ("documents", texts.documents, model.encode_document, self.document_prompt),
        ):
            self._embed(side, encode, prompt, folder / f"{kind}.npy")
        return Counter(queries=len(texts.queries), documents=len(texts.documents))

    def _embed(self, texts: Sequence[str], encode: Callable[..., Any], prompt: str | None, path: Path) -> None:
        options = {"batch_size": self.batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        if prompt is not None:
            options["prompt"] = prompt
        matrix = None
        for start in range(0, len(texts), _CHUNK):
            part = encode([texts[i] for i in range(start, min(start + _CHUNK, len(texts)))], **options)
            if matrix is None:
                shape = (len(texts), part.shape[1])
                matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            matrix[start : start + len(part)] = part


def _texts(pairs: PairDataset) -> TextPairs:
    if not isinstance(pairs, TextPairs):
        raise ZooError(
            f"guides with embeddings of texts need pairs of texts, not {type(pairs).__name__}: remove the guide"
        )
    return pairs


def _matrix(path: Path) -> np.ndarray:
    try:
        matrix = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ZooError(f"cannot read {path} ({error}): pass an .npy file of embeddings, one row per text") from None
    if matrix.ndim != 2:
        raise ZooError(f"{path} holds an array of shape {matrix.shape}: pass embeddings, one row per text")
    return matrix


def _digest(texts: TextPairs) -> str:
    digest = hashlib.sha256()
    for side in (texts.queries, texts.documents):
        digest.update(f"{len(side)}:".encode())
        for i in range(len(side)):
            encoded = side[i].encode("utf-8", "surrogatepass")
            digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.hexdigest()

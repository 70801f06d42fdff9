"""The rows about exact search."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.rows import Pair
from zoo.mining import read_embeddings, search_files
from zoo.search import top_k


@contextmanager
def over_faiss(queries: int, documents: int, dim: int, k: int) -> Iterator[Pair]:
    """Both exact, in float32 and on one core."""
    import faiss

    generator = torch.Generator().manual_seed(0)
    sought, corpus = (torch.randn(rows, dim, generator=generator) for rows in (queries, documents))
    index = faiss.IndexFlatIP(dim)
    index.add(corpus.numpy())  # type: ignore[call-arg]
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield Pair(lambda: top_k(sought, corpus, k), lambda: index.search(sought.numpy(), k), queries)  # type: ignore[call-arg]
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])


@contextmanager
def over_memory(queries: int, documents: int, dim: int, k: int) -> Iterator[Pair]:
    """A search over files, which writes what it finds as it goes, against the same search over tensors."""
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), itertools.count()
        rng = np.random.default_rng(0)
        for file, rows in (("q", queries), ("d", documents)):
            np.save(folder / f"{file}.npy", rng.standard_normal((rows, dim), dtype=np.float32))
        sought, corpus = (read_embeddings(folder / f"{file}.npy") for file in "qd")
        tensors = torch.from_numpy(np.array(sought)), torch.from_numpy(np.array(corpus))

        def ours() -> None:
            search_files(sought, corpus, k, folder / str(next(count)), block=queries // 2)

        yield Pair(ours, lambda: top_k(*tensors, k), queries)

"""The row about exact search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tests.benchmarks.rows import Pair
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

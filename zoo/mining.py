"""Mining over embeddings on disk: streamed, and resumable after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from zoo.errors import ZooError, first_line
from zoo.negatives.miners import Rules, lowest_known, unknown
from zoo.negatives.table import NegativeTable
from zoo.results import write_json
from zoo.search import FaissIndex, Index, recall, top_k

BLOCK = 16384  # queries between two writes
Progress = Callable[[int, int], None]  # queries searched, and of how many


def read_embeddings(path: Path) -> np.ndarray:
    """A .npy file of embeddings `[N, D]` in memory map.

    Raises:
        ZooError: no such file, or something else than a matrix of floating-point numbers.
    """
    array = _read_npy(path)
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32, np.float64) or 0 in array.shape:
        raise ZooError(f"{path} holds {array.dtype} {list(array.shape)}: embeddings are floating-point numbers [N, D]")
    return array


def read_positives(path: Path) -> Int[np.ndarray, "Q P"]:
    """A .npy file of each query's document numbers, `[Q]` or `[Q, P]` with -1 where there are fewer.

    Raises:
        ZooError: no such file, or something else than document numbers.
    """
    known = _read_npy(path)
    if not np.issubdtype(known.dtype, np.integer) or known.ndim not in (1, 2) or known.min(initial=-1) < -1:
        raise ZooError(f"{path} holds {known.dtype} {list(known.shape)}: positives are document numbers, [Q] or [Q, P]")
    return known.reshape(len(known), -1)


def _read_npy(path: Path) -> np.ndarray:
    if not path.exists():
        raise ZooError(f"no file {path}: numpy.save writes it, one row per query or document")
    try:
        return np.load(path, mmap_mode="c")  # a private copy, as torch asks for memory that it may write to
    except (ValueError, OSError, EOFError) as error:
        raise ZooError(f"{path} is no .npy file of numbers: {first_line(error)}") from None


def search_files(
    queries: np.ndarray,
    corpus: np.ndarray,
    k: int,
    folder: Path,
    index: Index = "exact",
    device: str | torch.device = "cpu",
    block: int = BLOCK,
    progress: Progress = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """`zoo.search.top_k` of arrays in memory map, block by block of queries, each written as soon as it is found.

    A search that was killed goes on with the first block that was not written; a finished one is read.

    Args:
        queries: embeddings `[Q, D]`, e.g. of `read_embeddings`.
        corpus: the documents `[N, D]`. An exact search moves them to the device chunk by chunk, once per few thousand
            queries; an approximate index holds all of them in memory.
        k: documents per query.
        folder: of what was found so far: `ids.npy` (int64), `scores.npy` (float32), both `[Q, k]`, and `search.json`.
        index: "exact", or as in `zoo.search.faiss_top_k`.
        device: where an exact search takes place.
        block: queries between two writes.
        progress: called after each block.

    Returns:
        Scores and document numbers, in memory map, and of an approximate index its measured `recall`.

    Raises:
        ZooError: the widths differ, `k` is not in 1 to N, or the folder holds a search of something else.
    """
    if queries.shape[1] != corpus.shape[1]:
        raise ZooError(f"queries are {queries.shape[1]} wide and documents {corpus.shape[1]}: embed both alike")
    record, identity = folder / "search.json", _identity(queries, corpus, k, index)
    names, types = (folder / "ids.npy", folder / "scores.npy"), (np.int64, np.float32)
    try:
        before = json.loads(record.read_text()) if record.exists() else None
    except ValueError:
        raise ZooError(f"{record} is damaged: remove {folder}, and search again") from None
    if before and before["identity"] != identity:
        raise ZooError(f"{folder} holds a search of other embeddings, depth or index: remove it, or name another --out")
    documents, large = torch.from_numpy(corpus), torch.device(device).type != "cpu"
    chunks = (8192, 65536) if large else (4096, 8192)
    if before is None:
        folder.mkdir(parents=True, exist_ok=True)
        before = {"identity": identity, "done": 0, "recall": {}}
    mode = "r+" if before["done"] else "w+"
    ids, scores = (
        np.lib.format.open_memmap(name, mode=mode, dtype=dtype, shape=(len(queries), k))
        for name, dtype in zip(names, types, strict=True)
    )
    built = None if index == "exact" or before["done"] == len(queries) else FaissIndex(documents, k, index)
    for start in range(before["done"], len(queries), block):
        rows = slice(start, start + block)
        sought = torch.from_numpy(queries[rows]).to(device)
        if built is None:
            found = top_k(sought, documents, k, *chunks)
        else:
            found = built.top_k(sought, k)
            if not before["recall"]:
                before["recall"] = {"recall": recall(found[1], sought, documents)}
        scores[rows], ids[rows] = (x.cpu().numpy() for x in found)
        scores.flush()
        ids.flush()
        before["done"] = min(start + block, len(queries))
        write_json(record, before)  # after the rows that it speaks of
        progress(before["done"], len(queries))
    return scores, ids, before["recall"]


def mine_files(
    queries: np.ndarray,
    corpus: np.ndarray,
    depth: int,
    folder: Path,
    known: Int[np.ndarray, "Q P"],
    rules: Rules,
    index: Index = "exact",
    device: str | torch.device = "cpu",
    progress: Progress = lambda done, total: None,
) -> tuple[NegativeTable, Float[np.ndarray, " Q"]]:
    """A table of negatives of embeddings on disk, in `folder`; what the search found stays in its folder `search`.

    Other rules over the same search take no second one.

    Args:
        queries: as in `search_files`.
        corpus: as in `search_files`.
        depth: negatives per query, before the rules.
        folder: where the table is saved.
        known: numbers of each query's known positives, -1 padded; all -1 where none is known.
        rules: which of the negatives stay.
        index: as in `search_files`.
        device: as in `search_files`.
        progress: as in `search_files`.

    Returns:
        The saved table, and each query's lowest score among its known positives (inf where none is known).

    Raises:
        ZooError: as `search_files`; or a rule compares with positives, and none are known.
    """
    if known.shape[0] != len(queries) or known.max(initial=-1) >= len(corpus):
        raise ZooError(
            f"positives {list(known.shape)} up to {known.max(initial=-1)} do not fit {len(queries)} queries and "
            f"{len(corpus)} documents: one row per query, of document numbers from 0"
        )
    width = min(depth + known.shape[1], len(corpus))
    scores, ids, found = search_files(queries, corpus, width, folder / "search", index, device, progress=progress)
    table = NegativeTable(ids, scores, [{"miner": "files", "index": index, "depth": depth, **found}])
    table = unknown(table, known, len(corpus), depth)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(queries), BLOCK)]
    documents = torch.from_numpy(corpus)
    positives = [lowest_known(torch.from_numpy(queries[rows]), documents, known[rows]) for rows in blocks]
    positives = np.concatenate(positives)
    table = rules.apply(table, positives if (known >= 0).any() else None)
    table.save(folder)
    return table, positives


def _identity(queries: np.ndarray, corpus: np.ndarray, k: int, index: Index) -> str:
    """Hash of what a search is about; of large arrays some thousand rows."""
    digest = hashlib.sha256(repr((k, index)).encode())
    for array in (queries, corpus):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array[:: max(1, len(array) // 4096)]).tobytes())
    return digest.hexdigest()[:16]

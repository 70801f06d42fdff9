"""Several collections of texts as one: tasks that an encoder learns together, each with instructions of its own."""

from __future__ import annotations

import copy
import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.collections import RetrievalSet, Side
from zoo.data.pairs import Split
from zoo.data.stdlib_code import StdlibCode
from zoo.data.text import TextPairs, TextSource
from zoo.errors import ZooError
from zoo.negatives.table import NegativeTable


@dataclass
class Task:
    """One task of a `MultiTask`.

    Args:
        name: suffix of its metrics, and its folder below the root.
        source: its collection.
        query_prefix: instruction before each of its queries, in training, mining and evaluation.
        document_prefix: the same for its documents.
    """

    name: str
    source: TextSource
    query_prefix: str = ""
    document_prefix: str = ""

    def texts(self, texts: Sequence[str], side: Side) -> JoinedTexts:
        """Texts of a side behind their instruction."""
        return JoinedTexts([texts], self.query_prefix if side == "query" else self.document_prefix)


class JoinedTexts(Sequence[str]):
    """Collections of texts one after the other, each text behind a prefix; none is copied.

    Args:
        parts: the collections.
        prefix: stands before each text.
    """

    def __init__(self, parts: Sequence[Sequence[str]], prefix: str = "") -> None:
        self.parts, self.prefix = parts, prefix
        self.starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self.starts, index) - 1
        place: int = index - self.starts[part]
        return self.prefix + self.parts[part][place]


class TaskPairs(TextPairs):
    """Pairs of several tasks; the column `task` says of which, and mining goes task by task.

    Args:
        parts: the pairs of each task, instructions included.
    """

    def __init__(self, parts: Sequence[TextPairs]) -> None:
        self.parts = parts
        queries, documents = JoinedTexts([p.queries for p in parts]), JoinedTexts([p.documents for p in parts])
        starts = list(zip(parts, queries.starts, documents.starts, strict=False))
        relevant = []
        for part, query, document in starts:
            row, column = np.nonzero(part.columns["known"] >= 0)
            relevant.append(
                np.stack([part.query_of[row] + query, part.columns["known"][row, column] + document], axis=1)
            )
        super().__init__(
            queries,
            documents,
            np.concatenate([part.query_of + query for part, query, _ in starts]),
            np.concatenate([part.document_of + document for part, _, document in starts]),
            np.concatenate(relevant),
            {"task": np.repeat(np.arange(len(parts)), [len(part) for part in parts])},
        )
        self._starts = {"query": queries.starts, "document": documents.starts}

    def mine(self, mine: Callable[..., NegativeTable], embed: Any) -> NegativeTable:
        """One table of the tables of all tasks, so that a query's negatives are documents of its own task.

        Args:
            mine: a miner's `mine(pairs, embed)`.
            embed: embeddings of all queries or all documents, by side; or None.
        """
        tables = []
        for number, part in enumerate(self.parts):

            def of_task(side: Side, number: int = number) -> Any:
                return embed(side)[self._starts[side][number] : self._starts[side][number + 1]]

            tables.append(mine(part, embed and of_task))
        width = max(table.ids.shape[1] for table in tables)
        ids, scores = [], []
        for table, start in zip(tables, self._starts["document"], strict=False):
            room = ((0, 0), (0, width - table.ids.shape[1]))
            ids.append(np.pad(np.where(table.ids >= 0, table.ids + start, -1), room, constant_values=-1))
            scores.append(np.pad(table.scores, room, constant_values=-np.inf))
        positives = [table.positives for table in tables if table.positives is not None]
        return NegativeTable(
            np.concatenate(ids),
            np.concatenate(scores),
            [_merged(records) for records in zip(*(table.provenance for table in tables), strict=True)],
            np.concatenate(positives) if len(positives) == len(tables) else None,
        )


def _merged(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one rule did to all tasks."""
    if "rejected" not in records[0]:
        return records[0]
    return {**records[0], "rejected": sum(record["rejected"] for record in records)}


class MultiTask(TextSource):
    """Collections that are learnt together, as in LLM-Embedder (Zhang et al. 2023, arXiv 2310.07554).

    The training split holds the pairs of all tasks; `zoo.data.OneTaskBatches` keeps them apart by the column `task`. A
    split is evaluated on all queries over all documents, as one index would serve them, and under each task's name on its
    own. Equal texts of two tasks are two texts. Tokenizers count instructions as part of a text, poolings read them.

    Args:
        tasks: the tasks; with a root, each reads the folder of its name below it.
        name: name under which results are recorded.

    Raises:
        ZooError: there are no tasks, or two have one name.
    """

    def __init__(self, tasks: list[Task], name: str = "tasks") -> None:
        names = [task.name for task in tasks]
        if not tasks or len(set(names)) < len(names) or "" in names:
            raise ZooError(
                f"each of --data.source.tasks needs a name of its own; they are {', '.join(names) or 'none'}"
            )
        self.tasks, self.name = tasks, name

    def folder(self, root: Path | None, task: Task) -> Path | None:
        """Root of a task."""
        return None if root is None else root / task.name

    def prepare(self, root: Path | None) -> None:
        for task in self.tasks:
            task.source.prepare(self.folder(root, task))

    @property
    def arena(self) -> str:
        arenas = json.dumps([(task.name, task.source.arena) for task in self.tasks])
        return f"{self.name}-{hashlib.sha256(arenas.encode()).hexdigest()[:6]}"

    @property
    def report(self) -> dict[str, int]:
        return {f"{task.name}_{key}": n for task in self.tasks for key, n in task.source.report.items()}

    def split(self, split: Split, root: Path | None) -> TaskPairs:
        parts = []
        for task in self.tasks:
            pairs = task.source.split(split, self.folder(root, task))
            part = copy.copy(pairs)
            part.queries, part.documents = task.texts(pairs.queries, "query"), task.texts(pairs.documents, "document")
            if pairs.mined is pairs:
                part.mined = part
            parts.append(part)
        return TaskPairs(parts)

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        return self.retrievals(split, root)[""]

    def retrievals(self, split: Split, root: Path | None) -> dict[str, RetrievalSet]:
        found = {}
        for task in self.tasks:
            data = task.source.retrieval(split, self.folder(root, task))
            queries, documents = task.texts(data.queries, "query"), task.texts(data.documents, "document")
            found[task.name] = RetrievalSet(queries, documents, data.relevance)
        sets = list(found.values())
        documents = JoinedTexts([data.documents for data in sets])
        relevance = [
            {document + start: grade for document, grade in row.items()}
            for data, start in zip(sets, documents.starts, strict=False)
            for row in data.relevance
        ]
        return {"": RetrievalSet(JoinedTexts([data.queries for data in sets]), documents, relevance), **found}


class StdlibTasks(MultiTask):
    """Two tasks on the running Python's standard library (`StdlibCode`): a docstring's first paragraph is a query for the
    function, `function`, or for what else the docstring says, `details`; only the instruction tells which.

    Args:
        instructions: stand before queries and documents; False leaves the texts as they are.
        limit: as in `StdlibCode`, of each task.
    """

    def __init__(self, instructions: bool = True, limit: int | None = None) -> None:
        tasks = [
            Task(
                "function",
                StdlibCode(limit=limit),
                "Find the code of the function that is described: ",
                "Code of a function: ",
            ),
            Task(
                "details",
                StdlibCode(limit=limit, documents="details"),
                "Find further documentation of what is described: ",
                "Further documentation: ",
            ),
        ]
        if not instructions:
            tasks = [Task(task.name, task.source) for task in tasks]
        super().__init__(tasks, "stdlib-tasks")

    def folder(self, root: Path | None, task: Task) -> Path | None:
        return root  # embedded: nothing lies there but the cache

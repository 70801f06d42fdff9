"""`zoo mine`: negatives from embeddings on disk, as a table that `--data.table` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.commands.options import Options, split_words
from zoo.errors import ZooError

USAGE = "zoo mine QUERIES.npy DOCUMENTS.npy --out DIR [--positives FILE.npy] [--depth K] [rules]"


def main(args: Sequence[str]) -> int:
    """Search, apply the rules, save the table and print its summary."""
    words, rest = split_words(args)
    parser = Options(USAGE, "Embeddings are .npy files [N, D]; the most similar have the largest inner product.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the table; a killed search goes on there")
    parser.add_argument(
        "--positives", type=Path, help=".npy of each query's document numbers, [Q] or [Q, P], -1 padded"
    )
    parser.add_argument("--depth", type=int, default=64, help="negatives per query, before the rules (64)")
    parser.add_argument("--index", choices=("exact", "hnsw", "ivf"), default="exact", help="faiss finds approximately")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of an exact search (cuda where there is one)")
    rules = {"absolute_margin": float, "relative_margin": float, "max_score": float, "min_score": float}
    rules |= {"within": int, "skip_top": int, "keep": int}
    for name, kind in rules.items():
        parser.add_argument(f"--{name}", type=kind, help="see zoo.negatives.Rules")
    options = parser.read(rest)
    if len(words) != 2:
        raise ZooError(f"mine reads two files, queries and documents; usage: {USAGE}")
    if options.depth < 1:
        raise ZooError("--depth must be at least 1")

    import numpy as np
    import torch

    from zoo.mining import mine_files, read_embeddings, read_positives
    from zoo.negatives.miners import Rules
    from zoo.negatives.summary import summary

    queries, corpus = (read_embeddings(Path(word)) for word in words)
    known = np.full((len(queries), 1), -1) if options.positives is None else read_positives(options.positives)
    chosen = Rules(**{name: value for name in rules if (value := getattr(options, name)) is not None})
    if chosen.need_positives and options.positives is None:
        raise ZooError("absolute_margin and relative_margin compare with positives: add --positives FILE.npy")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ZooError("there is no CUDA device here: remove --device cuda")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with _Bar() as bar:
        table, positives = mine_files(
            queries, corpus, options.depth, options.out, known, chosen, options.index, device, bar
        )
    print(summary(table, positives[np.isfinite(positives)]))
    print(f"wrote {options.out}: train with --data.table {options.out}")
    return 0


class _Bar:
    """Progress on the terminal, with the time that is left."""

    def __enter__(self):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("searching"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("queries"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns)
        self.task = self.bar.add_task("", total=None)
        self.bar.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_) -> None:
        self.bar.stop()

"""`zoo export RUN --to FORMAT`: a trained model as a folder that another library loads by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.commands.options import Options, split_words
from zoo.errors import ZooError
from zoo.runs import Run, find_run

USAGE = "zoo export RUN --to timm|sentence-transformers|open_clip|onnx|torch [--out DIR]"


def main(args: Sequence[str]) -> int:
    """Export one run and print the folder."""
    words, rest = split_words(args)
    parser = Options(USAGE, "RUN is a run's folder, or a recipe: then its newest run with a checkpoint.")
    parser.add_argument("--to", required=True, help="the format")
    parser.add_argument("--out", type=Path, help="folder to write (default: exports/FORMAT in the run's)")
    options = parser.read(rest)
    if len(words) != 1:
        raise ZooError(f"{'which run' if not words else 'one run at a time'}? usage: {USAGE}")
    run = Run(find_run(words[0]))
    from zoo.export import check, export

    check(options.to, options.out or run.path / "exports" / options.to)  # before the slow imports
    print(f"wrote {export(run, options.to, options.out)}")
    return 0

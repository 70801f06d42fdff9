"""`zoo docs DIR`: the documentation, from recipes, docstrings and committed results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.commands.options import Options
from zoo.errors import ZooError
from zoo.site import docs


def main(args: Sequence[str]) -> int:
    """Write the pages that have changed, and the README's table of results."""
    parser = Options("zoo docs DIR [--readme README.md]", "Pages of all methods, an index, the reference, a picture.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--readme", type=Path, help="put the short table of results between its marks")
    options = parser.read(args)
    if options.folder is None:
        raise ZooError(f"into which folder? usage: {parser.usage}")
    if options.readme:
        docs.write_readme(options.readme)
    print(f"{docs.write(options.folder)} pages of {options.folder} changed")
    return 0

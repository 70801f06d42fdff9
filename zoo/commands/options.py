"""Reading the options of the commands that import no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from zoo.errors import ZooError
from zoo.recipes import suggest

if TYPE_CHECKING:
    from rich.console import Console


class Options(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def __init__(self, usage: str, description: str) -> None:
        super().__init__(prog="zoo", usage=usage, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ZooError(f"{message}; usage: {self.usage}")

    def read(self, args: Sequence[str]) -> argparse.Namespace:
        """Parse all of `args`.

        Raises:
            ZooError: an unknown option or a bad value.
        """
        values, unknown = self.parse_known_args(args)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            raise ZooError(f"unknown argument {unknown[0]!r}{suggest(unknown[0], known)}; usage: {self.usage}")
        return values


def split_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Bare words at the beginning, and the options after them."""
    n = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
    return list(args[:n]), list(args[n:])


def console() -> Console:
    """The terminal; a file or pipe gets lines long enough for every table."""
    from rich.console import Console

    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=200)

"""Reading the options of the commands that import no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from zoo.errors import ZooError
from zoo.recipes import parse_overrides, suggest

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


class SweepOptions(Options):
    """Options of the commands that run recipes over seeds: `--seeds`, `--jobs`, and what every run gets.

    Args:
        usage, description: as in argparse.
        seeds: default number of seeds.
        chosen: options that the command sets itself, and why.
    """

    def __init__(self, usage: str, description: str, seeds: int, chosen: Mapping[str, str]) -> None:
        super().__init__(usage, description)
        self.chosen = chosen
        self.add_argument("--seeds", type=int, default=seeds, help=f"seeds 0 to N-1 (default {seeds})")
        self.add_argument("--jobs", type=int, default=1, help="runs at once; they share the cores")

    def read_sweep(self, command: str, args: Sequence[str]) -> tuple[list[str], argparse.Namespace, list[str]]:
        """Bare words, options, and the overrides that are not the command's own.

        Raises:
            ZooError: no recipe, a number below 1, or an override that the command chooses.
        """
        words, rest = split_words(args)
        options, overrides = self.parse_known_args(rest)
        if not words:
            raise ZooError(f"which recipe? usage: {self.usage}; see `python -m zoo list`")
        if options.seeds < 1 or options.jobs < 1:
            raise ZooError("--seeds and --jobs must be at least 1")
        for key, _ in parse_overrides(overrides):
            if key in self.chosen:
                raise ZooError(f"{command} chooses {key} itself; {self.chosen[key]}")
        return words, options, overrides


def split_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Bare words at the beginning, and the options after them."""
    n = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
    return list(args[:n]), list(args[n:])


def console() -> Console:
    """The terminal; a file or pipe gets lines long enough for every table."""
    from rich.console import Console

    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=200)

"""`python -m zoo`: picks the command. Imports no torch; `fit`, `validate`, `test` and `predict` do when they start."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

from zoo.errors import ZooError

STAGES = ("fit", "validate", "test", "predict")
COMMANDS = ("list", "show", "leaderboard", "verify", "attack", "export", "mine", "docs")
HELP = """\
usage: zoo COMMAND ...

  list                             all recipes
  show RECIPE [OVERLAY...]         card, difference from the baseline, resolved configuration, last results
  fit RECIPE [OVERLAY...] [...]    train and test; also validate, test, predict: Lightning's options, such as
                                   --trainer.max_epochs 3, --ckpt_path last, --print_config
  verify RECIPE [OVERLAY...]       method against its baseline over seeds: does the claim hold?
  attack RECIPE [RECIPE...]        recipes on poisoned training pairs: does a backdoor open?
  export RUN --to FORMAT           a trained model for timm, sentence-transformers, open_clip, onnx or torch
  mine QUERIES.npy DOCUMENTS.npy   hard negatives from embeddings on disk, as a table for --data.table
  leaderboard                      results of local runs, and the committed ones; --html DIR writes them as a web page
  docs DIR                         pages of all methods, from recipes, docstrings and committed results

--runs DIR, or $ZOO_RUNS: the folder of all runs (default: runs)
zoo COMMAND --help tells more; --version the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Returns:
        Exit status: 0, 2 for an error of the user (one line on stderr), 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    before = os.environ.get("ZOO_RUNS")
    try:
        return _dispatch(_take_runs(args))
    except BrokenPipeError:  # `zoo list | head`
        sys.stderr.close()
        return 0
    except (ZooError, OSError) as error:  # OSError: a disk that is full, a folder that may not be written
        print(f"zoo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nzoo: interrupted", file=sys.stderr)
        return 130
    except SystemExit as leaving:  # --help
        return int(leaving.code or 0)
    finally:
        if before is None:
            os.environ.pop("ZOO_RUNS", None)
        else:
            os.environ["ZOO_RUNS"] = before


def _take_runs(args: list[str]) -> list[str]:
    """Arguments without `--runs DIR`, which becomes `$ZOO_RUNS`: the runs that `verify` starts inherit it."""
    rest: list[str] = []
    words = iter(args)
    for word in words:
        flag, equals, folder = word.partition("=")
        if flag != "--runs":
            rest.append(word)
            continue
        folder = folder if equals else next(words, "")
        if not folder or folder.startswith("-"):
            raise ZooError("--runs needs the folder of the runs: --runs DIR")
        os.environ["ZOO_RUNS"] = folder
    return rest


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if args[0] == "--version":
        from zoo import __version__

        print(f"zoo {__version__}")
        return 0
    command, *rest = args
    if command in COMMANDS:
        return import_module(f"zoo.commands.{command}").main(rest)
    if command not in STAGES:
        near = get_close_matches(command, [*COMMANDS, *STAGES], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see `python -m zoo --help`"
        raise ZooError(f"no command {command!r}; {hint}")
    words = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    if not words:
        if "--help" in rest or "-h" in rest:
            print(
                f"usage: zoo {command} RECIPE [OVERLAY...] [OPTION...]\nzoo {command} RECIPE --help lists the options"
            )
            return 0
        raise ZooError(f"which recipe? usage: zoo {command} RECIPE [OVERLAY...] [OPTION...]; see `python -m zoo list`")
    from zoo import recipes

    recipe, *overlays = rest[:words]
    recipes.load_card(recipe, overlays)  # before the slow imports
    return _cli().main(command, recipe, overlays, rest[words:])


def _cli() -> ModuleType:
    """`zoo.cli`. Its first import keeps half a million objects out of garbage collection: each look takes half a second."""
    if "zoo.cli" in sys.modules or not gc.isenabled():
        return import_module("zoo.cli")
    gc.disable()
    try:
        return import_module("zoo.cli")
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # extensions report what is not freed at the end
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())

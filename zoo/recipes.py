"""Recipes: finding, layering and merging YAML files, and the card at their head. Imports no torch.

A recipe is `<root>/<family>/<name>.yaml`. Roots are searched in order: `$ZOO_RECIPES`, the checkout's `recipes/`, the
copy in the installed package; for every file the first root that has it wins. So a folder with one file of your own
borrows defaults, overlays and baselines from the zoo.

Layers, later ones on top: `_defaults.yaml` of the root and of each folder down to the recipe, the recipe, and for each
overlay X those that exist of `_with/X.yaml`, `<family>/_with/X.yaml`, `<family>/_with/X/<recipe>.yaml`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, reduce
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from zoo.errors import ZooError

Part = Literal["mechanism", "quality"]
Direction = Literal["higher", "lower"]


@dataclass
class Claim:
    """One measurable part of what a paper claims.

    Args:
        part: whether the statement is about the paper's mechanism or about the quality of the result.
        metric: name of the metric in result.json.
        direction: where the claim says it goes, against the baseline.
        against: compare with this metric of the same run, not with the baseline's run.
        margin: the difference, in `direction`, that has to be exceeded.
        statement: the claim in words.
    """

    part: Part
    metric: str
    direction: Direction = "higher"
    against: str | None = None
    margin: float = 0.0
    statement: str = ""


@dataclass
class RecipeCard:
    """Head of a recipe.

    Args:
        name: name on the command line; the file's.
        family: folder of the recipe.
        title: name of the method as its paper spells it.
        paper: arXiv id or DOI.
        year: of publication.
        link: where to read it.
        idea: the idea in one line.
        arena: data set and protocol on which results can be compared.
        primary: metric of the leaderboard.
        baseline: recipe that the paper compares with, None where the claims need none.
        claim: the parts of the claim.
    """

    name: str = ""
    family: str = ""
    title: str = ""
    paper: str = ""
    year: int = 0
    link: str = ""
    idea: str = ""
    arena: str = ""
    primary: str = ""
    baseline: str | None = None
    claim: list[Claim] = field(default_factory=list)


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    near = get_close_matches(word, list(known), n=2, cutoff=0.55)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def roots() -> list[Path]:
    """Folders with recipes, in the order in which they are searched."""
    package = Path(__file__).parent
    own = os.environ.get("ZOO_RECIPES")
    if own and not Path(own).is_dir():
        raise ZooError(f"ZOO_RECIPES names {own}, which is no folder")
    candidates = [Path(own)] if own else []
    candidates += [package.parent / "recipes", package / "_recipes"]
    return [folder for folder in candidates if folder.is_dir()]


def index() -> dict[str, Path]:
    """Recipe files by name.

    Raises:
        ZooError: two files of one root share a name.
    """
    return {name: Path(file) for name, file in _files().items()}


def _files() -> dict[str, str]:
    """`index` as strings: each command looks up many recipes, and a Path for every file takes longer than the folders."""
    found: dict[str, str] = {}
    for root in roots():
        here: dict[str, str] = {}
        for file in sorted(_recipe_files(str(root))):
            name = file.rpartition("/")[2].removesuffix(".yaml")
            if name in here:
                raise ZooError(f"two recipes are named {name!r}: {here[name]} and {file}; rename one")
            here[name] = file
        found = here | found
    return found


def _recipe_files(root: str) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith("_")]
        if folder != root:
            yield from (f"{folder}/{f}" for f in files if f.endswith(".yaml") and not f.startswith("_"))


def names() -> list[str]:
    """Names of all recipes, by family and name."""
    return [path.stem for path in sorted(index().values(), key=lambda p: (p.parent.name, p.stem))]


def overlay_names(name: str) -> list[str]:
    """Overlays that exist for a recipe."""
    family = _relative(_path(name)).parent
    found = set()
    for root in roots():
        found |= {p.stem for folder in (root, root / family) for p in (folder / "_with").glob("*.yaml")}
        found |= {p.parent.name for p in (root / family / "_with").glob(f"*/{name}.yaml")}
    return sorted(found)


def layers(name: str, overlays: Sequence[str] = ()) -> list[Path]:
    """The files a recipe with overlays is made of, lowest first.

    Raises:
        ZooError: no such recipe or overlay.
    """
    return _layers(_path(name), overlays)


def _layers(path: Path, overlays: Sequence[str]) -> list[Path]:
    name, family = path.stem, _relative(path).parent
    folders = [*reversed(family.parents), family]
    paths = [file for folder in folders if (file := _first(folder / "_defaults.yaml"))]
    paths.append(path)
    for overlay in overlays:
        places = (Path("_with") / overlay, family / "_with" / overlay, family / "_with" / overlay / name)
        found = [file for place in places if (file := _first(place.with_name(place.name + ".yaml")))]
        if not found:
            known = overlay_names(name)
            hint = suggest(overlay, known) or f"; there are: {', '.join(known) or 'none'}"
            raise ZooError(f"{name} has no overlay {overlay!r}{hint}")
        paths += found
    return paths


def merge(paths: Iterable[Path]) -> dict[str, Any]:
    """Merge YAML files, later ones on top.

    Mappings merge key by key; lists and scalars are replaced; `key+:` appends its list to the one below. Where a layer
    names another `class_path`, the class below goes with all its `init_args`: the new class starts from its own
    defaults. (A class named on the command line is Lightning's: it keeps the `init_args` that both classes know.)
    """
    return reduce(_merged, map(read_yaml, paths), {})


def load_card(name: str, overlays: Sequence[str] = ()) -> RecipeCard:
    """The validated card of a recipe.

    Raises:
        ZooError: unknown recipe, unknown or missing field, or a value that the field does not take.
    """
    paths = layers(name, overlays)
    return _card(name, paths, merge(paths))


def load_cards(wanted: Iterable[str]) -> list[RecipeCard]:
    """`load_card` of each, which exist: folders and the files that they share are read once."""
    read, known = cache(read_yaml), _files()
    found = [(name, _layers(Path(known[name]), ())) for name in wanted]
    return [_card(name, paths, reduce(_merged, map(read, paths), {})) for name, paths in found]


def _card(name: str, paths: Sequence[Path], config: dict[str, Any]) -> RecipeCard:
    card = config.get("recipe") or {}
    where = next(path for path in paths if path.stem == name)  # above defaults, below overlays
    if not isinstance(card, dict):
        raise ZooError(f"{where}: recipe must be a mapping, not {card!r}")
    card = {"name": name, "family": _relative(where).parts[0], **card}
    if card["name"] != name:
        raise ZooError(f"{where}: recipe.name is {card['name']!r}, but the file is called {name}.yaml; they must agree")
    card["claim"] = [
        _checked(Claim, claim, where, f"recipe.claim[{i}].") for i, claim in enumerate(card.get("claim") or [])
    ]
    checked = _checked(RecipeCard, card, where, "recipe.")
    if checked.baseline is None and any(claim.against is None for claim in checked.claim):
        raise ZooError(f"{where}: a claim without recipe.baseline must say `against` which metric it is compared")
    return checked


def fingerprint(name: str, overlays: Sequence[str] = (), overrides: Sequence[str] = ()) -> str:
    """Identity of what is trained: SHA-256 over merged layers and command-line overrides.

    Left out is what does not change a result: the card's text, seed, checkpoint to resume from, paths, loggers, and
    displays.
    """
    config = merge(layers(name, overlays))
    config["recipe"] = {"arena": (config.get("recipe") or {}).get("arena", "")}
    flat = {k: v for k, v in flatten(config).items() if not _immaterial(k)}
    extra = []
    for item in material(overrides):
        key, _, value = item.partition("=")
        extra.append([key, read_yaml(Path(value)) if key in ("--config", "-c") else value])
    text = json.dumps([flat, extra], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def material(overrides: Sequence[str]) -> list[str]:
    """Command-line overrides that can change a result, as sorted `--key=value`."""
    return sorted(
        (f"{key}={value}" for key, value in parse_overrides(overrides) if not _immaterial(key.lstrip("-"))),
        key=lambda item: item.partition("=")[0],  # stable: repeated keys keep their order
    )


def parse_overrides(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of flag and value from `--key value`, `--key=value` and `--key`."""
    pairs: list[tuple[str, str]] = []
    for token in overrides:
        if token.startswith("-") and not re.match(r"-\.?\d", token):
            key, _, value = token.partition("=")
            pairs.append((key, value))
        elif pairs:
            key, value = pairs[-1]
            pairs[-1] = (key, f"{value} {token}" if value else token)
        else:
            raise ZooError(f"{token!r} belongs to no option; write `--key value`")
    return pairs


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted key; lists are leaves."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        k: v
        for key, value in config.items()
        for k, v in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ZooError: missing, not YAML, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(), Loader=_loader())
    except OSError as error:
        raise ZooError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ZooError(f"{path}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    if content is not None and not isinstance(content, dict):
        raise ZooError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    return content or {}


def origin(key: str, paths: Sequence[Path]) -> Path | None:
    """The topmost layer that mentions the dotted key, or the nearest key above it."""
    while key:
        for path in reversed(paths):
            node: Any = read_yaml(path)
            for part in key.split("."):
                node = node.get(part, node.get(part + "+")) if isinstance(node, dict) else None
            if node is not None:
                return path
        key = key.rpartition(".")[0]
    return None


# What a result does not depend on. A key also covers what lies beneath it.
_IMMATERIAL = re.compile(
    r"(seed_everything|ckpt_path|weights_only|print_config|verbose|return_predictions|data\.root|data\.num_workers"
    r"|trainer\.(default_root_dir|logger|log_every_n_steps|num_sanity_val_steps|enable_\w+))\+?(\..*)?$"
)


def _immaterial(key: str) -> bool:
    return bool(_IMMATERIAL.match(key))


def _path(name: str) -> Path:
    known = _files()
    if name not in known:
        raise ZooError(f"no recipe {name!r}{suggest(name, known) or '; see `python -m zoo list`'}")
    return Path(known[name])


def _relative(path: Path) -> Path:
    return next(path.relative_to(root) for root in roots() if path.is_relative_to(root))


def _first(relative: Path) -> Path | None:
    return next((root / relative for root in roots() if (root / relative).is_file()), None)


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    if "class_path" in base and top.get("class_path", base["class_path"]) != base["class_path"]:
        base = {}
    out = dict(base)
    for key, value in top.items():
        if isinstance(key, str) and key.endswith("+"):
            below = out.get(key[:-1]) or []
            if not isinstance(below, list) or not isinstance(value, list):
                raise ZooError(f"{key} appends a list to a list, but got {value!r} on top of {below!r}")
            out[key[:-1]] = [*below, *value]
        elif isinstance(value, dict):
            below = out.get(key)
            out[key] = _merged(below if isinstance(below, dict) else {}, value)
        else:
            out[key] = value
    return out


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "str | None": (str, type(None)), "list[Claim]": (list,),
}  # fmt: skip


def _checked(kind: type, values: Any, where: Path, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ZooError(f"{where}: {prefix.rstrip('.')} must be a mapping, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in fields:
            raise ZooError(f"{where}: unknown field {prefix}{key}{suggest(str(key), fields)}")
        annotation = str(fields[key].type)
        choices = {"Part": get_args(Part), "Direction": get_args(Direction)}.get(annotation)
        if choices and value not in choices:
            raise ZooError(f"{where}: {prefix}{key} is {value!r}, but must be {' or '.join(choices)}")
        if not choices and (not isinstance(value, _TYPES[annotation]) or isinstance(value, bool)):
            quote = "; put it in quotes" if annotation.startswith("str") else ""
            raise ZooError(f"{where}: {prefix}{key} is {value!r}, but must be {annotation}{quote}")
    for key in (f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING):
        if key not in values:
            raise ZooError(f"{where}: {prefix}{key} is missing")
    numbers = {key: float(value) for key, value in values.items() if fields[key].type == "float"}
    return kind(**values | numbers)


@cache
def _loader() -> type:
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    # YAML 1.1 reads 1e-3 as text; everybody else as a number.
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
    return Loader

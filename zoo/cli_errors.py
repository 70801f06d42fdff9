"""One line for what jsonargparse says in forty: which key, in which file, and what was probably meant."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from zoo.recipes import flatten, origin, parse_overrides, suggest


def explain(
    message: str,
    config: dict[str, Any],
    paths: Sequence[Path],
    overrides: Sequence[str],
    known: Mapping[str, Callable[..., Any]],
) -> str:
    """Turn a parser's error into one line.

    Args:
        message: jsonargparse's.
        config: the merged recipe.
        paths: its layers.
        overrides: the command-line options.
        known: classes that stand at the top: `{"trainer": Trainer, "data": NegativesDataModule}`.
    """
    flags = set(_flags(config, known)) | {"config", "ckpt_path", "weights_only", "seed_everything", "print_config"}
    for key, reason in _problems(config, known):
        file = origin(re.sub(r"\[\d+\].*", "", key), paths)
        return f"{file}: {key}: {reason}" if file else f"{key}: {reason}"
    for flag in _unknown(message, overrides, flags):
        near = get_close_matches(flag, sorted(flags), n=2, cutoff=0.7)
        return f"no option --{flag}" + (f"; did you mean {' or '.join('--' + n for n in near)}?" if near else "")
    return _condensed(message, config, paths, {key.lstrip("-").rstrip("+") for key, _ in parse_overrides(overrides)})


def _problems(config: dict[str, Any], known: Mapping[str, Callable[..., Any]]) -> Iterator[tuple[str, str]]:
    """Keys and class paths of a recipe that do not exist."""
    top = {*known, "model", "recipe", "seed_everything", "ckpt_path"}
    for key, node in config.items():
        if key not in top:
            yield key, f"no such key{suggest(key, top)}"
        elif key in known:
            yield from _arguments(node, known[key], key)
        elif key == "model":
            yield from _nodes(node, key)


def _nodes(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from _nodes(item, f"{key}[{i}]")
    if not isinstance(node, dict) or not isinstance(node.get("class_path"), str):
        return
    try:
        target = _load(node["class_path"])
    except (ImportError, AttributeError, ValueError) as error:
        yield f"{key}.class_path", f"no class {node['class_path']!r}{_near_class(node['class_path']) or f' ({error})'}"
        return
    yield from _arguments(node.get("init_args"), target, f"{key}.init_args")


def _arguments(node: Any, target: Callable[..., Any], key: str) -> Iterator[tuple[str, str]]:
    names, anything = _parameters(target)
    for name, value in node.items() if isinstance(node, dict) else ():
        if name not in names and not anything:
            yield f"{key}.{name}", f"{target.__name__} has no such option{suggest(str(name), names)}"
        yield from _nodes(value, f"{key}.{name}")


def _flags(config: dict[str, Any], known: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    """Options that exist for a recipe, in the short form without `init_args`."""
    yield from (key for key in flatten(config) if key.startswith("recipe."))
    for key, target in known.items():
        yield from _flags_below(config.get(key), target, key)
    if isinstance(config.get("model"), dict):
        yield from _flags_of_node(config["model"], "model")


def _flags_below(node: Any, target: Callable[..., Any], key: str) -> Iterator[str]:
    for name in _parameters(target)[0]:
        yield f"{key}.{name}"
        child = node.get(name) if isinstance(node, dict) else None
        if isinstance(child, dict):
            yield from _flags_of_node(child, f"{key}.{name}")


def _flags_of_node(node: dict[str, Any], key: str) -> Iterator[str]:
    yield key
    try:
        yield from _flags_below(node.get("init_args"), _load(node["class_path"]), key)
    except (ImportError, AttributeError, ValueError, KeyError):
        return


def _unknown(message: str, overrides: Sequence[str], flags: set[str]) -> Iterator[str]:
    """Options on the command line that the message is about and that do not exist."""
    for key, _ in parse_overrides(overrides):
        flag = re.sub(r"\.(init_args|class_path|dict_kwargs)\b", "", key.lstrip("-").rstrip("+"))
        about = key in message or repr(key.rpartition(".")[2]) in message
        if about and flag not in flags and not key.endswith(".help"):
            yield flag


def _condensed(message: str, config: dict[str, Any], paths: Sequence[Path], flags: set[str]) -> str:
    key = match.group(1) if (match := re.search(r'(?:Parser key|Key) "([\w.]+)"', message)) else ""
    if nested := re.search(r"NestedArg\(key='([\w.]+)', val=(.*)\)", message):
        key, value = f"{key}.{nested.group(1)}", nested.group(2)
    else:
        value = match.group(1) if (match := re.search(r"(?:Got|Given) value: ([^\n]*)", message)) else ""
    expected = re.findall(r"Expected a (?:<class '(?:\w+\.)*(\w+)'>|([\w, ]+))", message)
    if classes := re.findall(r"Problem with given class_path '([^']+)':\s*([^\n]*(?:\n\s{4,}(?!-)[^\n]*)*)", message):
        target, reason = classes[-1]
        what = f"{target}: {reason}{_near_class(target)}"
    elif expected:
        names = dict.fromkeys((a or b).strip().replace("NoneType", "null") for a, b in expected)
        what = f"expected {' or '.join(names)}, got {value}"
    else:
        what = re.sub(r"\s*(Given value type|Subtypes|tip):[^\n]*", "", message)
        what = re.sub(r'(Parser key|Key) "[\w.]+":\s*', "", what)
    what = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(what.split()))
    what = what if len(what) < 300 else what[:297] + "..."
    holders = [k for k, v in _leaves(config) if str(v) == value and k.startswith(key)]
    key = holders[0] if len(holders) == 1 else key
    short = key.replace(".init_args", "")
    if not key or key in flags or short in flags:
        return f"--{short}: {what}" if key else what
    file = origin(re.sub(r"\[\d+\].*", "", key), paths)
    return f"{file}: {key}: {what}" if file else f"{key}: {what}"


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{key}[{i}]")
    else:
        yield key, node


def _load(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _near_class(path: str) -> str:
    module, _, name = path.rpartition(".")
    try:
        near = get_close_matches(name, dir(importlib.import_module(module)) + _public(module), n=1)
    except (ImportError, ValueError):
        return ""
    return f"; did you mean {module}.{near[0]}?" if near and near[0] != name else ""


def _public(module: str) -> list[str]:
    return list(getattr(importlib.import_module(module), "__all__", []))


def _parameters(target: Callable[..., Any]) -> tuple[set[str], bool]:
    """Names of a class's options, and whether it takes any other name too."""
    names: set[str] = set()
    for owner in inspect.getmro(target) if isinstance(target, type) else (target,):
        function = owner.__dict__.get("__init__") if isinstance(owner, type) else owner
        if function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names, False
    return names, True

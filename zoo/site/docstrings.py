"""Public names and docstrings of the package, read from its source: nothing of it is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("zoo.losses", "zoo.negatives", "zoo.data", "zoo.callbacks", "zoo.methods")
Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Part:
    """A public class or function.

    Args:
        path: as recipes name it, `zoo.losses.DCL`.
        source: its file, from the folder that holds the package.
        node: its definition.
    """

    path: str
    source: Path
    node: Definition

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def module_doc(self) -> str:
        return ast.get_docstring(_tree(self.source)) or ""

    @property
    def signature(self) -> str:
        """Name and arguments, one line."""
        if isinstance(self.node, ast.FunctionDef):
            returns = f" -> {ast.unparse(self.node.returns)}" if self.node.returns else ""
            return f"{self.name}({_arguments(self.node)}){returns}"
        init = next((f for f in _functions(self.node) if f.name == "__init__"), None)
        if init is not None:
            return f"{self.name}({_arguments(init)})"
        fields = [ast.unparse(item) for item in self.node.body if isinstance(item, ast.AnnAssign)]
        return f"{self.name}({', '.join(fields)})"

    def methods(self) -> Iterator[tuple[str, str]]:
        """Public methods that have a docstring: signature and first paragraph."""
        for function in _functions(self.node) if isinstance(self.node, ast.ClassDef) else ():
            doc = ast.get_docstring(function)
            if doc and not function.name.startswith("_"):
                yield f"{function.name}({_arguments(function)})", doc.split("\n\n")[0]

    def sources(self) -> list[Definition]:
        """The definition and what it uses of its own file, directly or not."""
        known = _definitions(self.source)
        found, waiting = {}, [self.name]
        while waiting:
            name = waiting.pop(0)
            if name in known and name not in found:
                found[name], uses = known[name]
                waiting += uses
        return list(found.values())

    def equations(self) -> list[tuple[str, str]]:
        """LaTeX equations of the docstrings of `sources`, each with the name that it stands at."""
        docs = [(node.name, ast.get_docstring(node) or "") for node in self.sources()]
        return [(name, " ".join(tex.split())) for name, doc in docs for tex in equations(doc)]


def equations(doc: str) -> list[str]:
    """Displayed equations of a docstring, and the inline ones that say what something is."""
    found = re.findall(r"\$\$(.+?)\$\$|\$([^$]+?=[^$]+?)\$", doc, re.DOTALL)
    return [display or inline for display, inline in found]


def public(package: str) -> dict[str, Part]:
    """The public classes and functions of a package."""
    found = {name: _part(f"{package}.{name}", module, name) for name, module in sorted(_public(package).items())}
    return {name: part for name, part in found.items() if part}


def find(class_path: str) -> Part | None:
    """The part that a recipe names, None if it is not one of the zoo's."""
    package, _, name = class_path.rpartition(".")
    module = _public(package).get(name) if package in ("zoo", *PACKAGES) else None
    return _part(class_path, module, name) if module else None


@cache
def _public(package: str) -> dict[str, str]:
    tree = _tree(Path(*package.split("."), "__init__.py"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy":
            return {name: f"{package}.{module}" for name, module in ast.literal_eval(node.args[1]).items()}
    raise LookupError(f"{package} has no table of lazy names")


@cache
def _part(path: str, module: str, name: str) -> Part | None:
    source = Path(*module.split(".")).with_suffix(".py")
    known = _definitions(source)
    return Part(path, source, known[name][0]) if name in known else None


@cache
def _definitions(source: Path) -> dict[str, tuple[Definition, list[str]]]:
    """Classes and functions of a file, each with the names that it uses."""
    nodes = [node for node in _tree(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {node.name: (node, [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]) for node in nodes}


@cache
def _tree(source: Path) -> ast.Module:
    return ast.parse((ROOT / source).read_text())


def _functions(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (item for item in node.body if isinstance(item, ast.FunctionDef))


def _arguments(function: ast.FunctionDef) -> str:
    arguments = ast.unparse(function.args)
    return re.sub(r"^(self|cls)(, |$)", "", arguments)


SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Example|Examples):$")


def markdown(doc: str) -> str:
    """A Google-style docstring as Markdown: its sections as lists."""
    parts = []
    for title, body in _sections(doc):
        if not title:
            parts.append("\n".join(body).strip())
        elif title in ("Args", "Attributes", "Raises"):
            parts.append(f"{title}:\n\n" + "\n".join(f"- `{name}`: {text}" for name, text in _entries(body)))
        else:
            parts.append(f"{title}:\n\n" + "\n".join(line[4:] for line in body).strip())
    return "\n\n".join(part for part in parts if part)


def _sections(doc: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in doc.splitlines():
        if heading := SECTION.match(line):
            found.append((heading[1], []))
        elif line and not line.startswith(" ") and found[-1][0]:
            found.append(("", [line]))
        else:
            found[-1][1].append(line)
    return found


def _entries(body: list[str]) -> list[tuple[str, str]]:
    entries: list[tuple[str, str]] = []
    for line in body:
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            entries.append((name, text))
        elif line.strip() and entries:
            name, text = entries[-1]
            entries[-1] = (name, f"{text} {line.strip()}".strip())
    return entries

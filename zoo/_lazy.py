"""Names that are imported when first used."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """A module's `__getattr__` and `__all__`.

    Args:
        package: the module's own name.
        where: for each public name the submodule that defines it.
    """

    def getattribute(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{where[name]}"), name)

    return getattribute, sorted(where)

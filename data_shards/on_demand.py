"""A package whose names are loaded as they are first used (PEP 562): to import it alone costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def on_demand(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, for the names in its `__all__`.

    Which module a name stands in is said once, to type checkers and to this: by the imports under `if TYPE_CHECKING` in its __init__.py.
    """
    module = sys.modules[package]

    @cache
    def home_of() -> dict[str, str]:
        import ast  # here: most who import the package want a module of it, and none of these names

        imports = (node for node in ast.walk(ast.parse(Path(module.__file__).read_text())) if isinstance(node, ast.ImportFrom))
        return {alias.name: node.module for node in imports for alias in node.names}

    def __getattr__(name: str) -> Any:
        if name not in module.__all__:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        return getattr(import_module(home_of()[name]), name)

    def __dir__() -> list[str]:
        return sorted({*vars(module), *module.__all__})

    return __getattr__, __dir__

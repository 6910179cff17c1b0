"""Functions and rows of tables that are imported when they are needed: names cost nothing, what they stand for does.

To read a config, its names are compared with those of the tables, and nothing that they stand for is used. PyTorch,
of which most of that is made, takes seconds and two hundred megabytes; a mistake in a setting should not.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

Row = TypeVar("Row")
_named: set[str] = set()


class LateModule:
    """Module whose functions and classes can be named before it is imported.

    Type checkers are shown the module itself, so that a name that it has not is an error, as is one of another type:

        if TYPE_CHECKING:
            from spatl.tasks import sums
        else:
            sums = LateModule("spatl.tasks.sums")

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        _named.add(name)

    def __getattr__(self, attribute: str) -> "Late":
        """Return a function or class of the module, which is imported when that is called."""
        if attribute.startswith("__"):  # what Python looks for in any object
            raise AttributeError(attribute)
        return Late(self._name, attribute)


class Late:
    """Function or class of a module that is imported when it is called, or its signature looked at.

    Args:
        module: The module's name.
        name: The function's.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name
        self._found: Callable[..., Any] | None = None

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function itself; `inspect.signature` takes it for this one."""
        if self._found is None:
            found: Callable[..., Any] = getattr(importlib.import_module(self._module), self._name)
            self._found = found
        return self._found

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function."""
        return self.__wrapped__(*arguments, **keywords)

    def __repr__(self) -> str:
        return f"Late({self._module!r}, {self._name!r})"


class LateTable(Mapping[str, Row]):
    """Table whose rows are made when they are asked for, each once; its names are known before.

    Args:
        makers: By name, what makes the row without arguments: a class of a `LateModule`.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Row]]) -> None:
        self._makers = dict(makers)
        self._rows: dict[str, Row] = {}

    def __getitem__(self, name: str) -> Row:
        """Return the row of a name.

        Raises:
            KeyError: There is none.
        """
        if name not in self._rows:
            self._rows.setdefault(name, self._makers[name]())  # of two threads the first one's is everybody's
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is a row of a name; it is not made for that."""
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def late_names(module: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package, of which some names are imported when they are first asked for (PEP 562).

    Args:
        module: The package's name.
        modules: By name, the module that has it.
    """

    def imported(name: str) -> Any:
        """Import a name of the package, as it is first asked for."""
        if name in modules:
            return getattr(importlib.import_module(modules[name]), name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return imported


def import_late_modules() -> None:
    """Import all modules that are named so far: of a process whose forks would import them one by one, each anew."""
    for name in sorted(_named):
        importlib.import_module(name)

"""References `package.module:name` of a config, resolved to what they name in one place, with one set of errors.

A reference is imported where the object is needed, and nowhere before: to read a config imports its method alone, whose
facts decide which other settings there are. The import happens outside of any seeded block, so that a module that draws
numbers when it is imported shifts nothing.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from spatl.errors import NotAllowed, SpatlError, did_you_mean, told
from spatl.extensions.listed import check_found, check_reference

Row = TypeVar("Row")


@dataclass(frozen=True)
class Door:
    """One kind of thing that a config may name by reference.

    Attributes:
        noun: What it is called in messages: `"model"`.
        setting: The setting that names it: `"model.name"`.
        form: How a reference to one is written: `"package.module:factory"`.
        expected: What the reference must lead to, for messages: `"a class or function that builds the network"`.
        error: What is raised where it does not.
    """

    noun: str
    setting: str
    form: str
    expected: str
    error: type[SpatlError]

    @property
    def more(self) -> str:
        """The end of a list of known names: what else a name may be, and where it stands."""
        return f'or "{self.form}" for your own (configs: {self.setting})'


def is_reference(name: str) -> bool:
    """Return whether a name is meant as `package.module:name`, and not as a key of a table."""
    return ":" in name


def resolve(reference: str, door: Door, *, accepts: Callable[[Any], bool]) -> Any:
    """Import what a reference names.

    Args:
        reference: `"package.module:name"`.
        door: What it should be.
        accepts: Whether an object is one.

    Returns:
        The object itself, neither called nor copied.

    Raises:
        SpatlError: As `door.error`, in one line: the reference is half of one, the module is not there or fails, it has
            no such attribute, or the object is of another kind. What the module raised stays attached as the cause.
        NotAllowed: On a device, the module is none of its owner's, or has the object from one that is not.
    """
    check_reference(reference, door.setting)
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise door.error(f'a {door.noun} of your own is written "{door.form}", got {reference!r}')
    try:
        module = importlib.import_module(module_name)
    except NotAllowed:
        raise
    except (Exception, SystemExit) as error:
        raise door.error(f"{door.noun} {reference!r}: {_import_failure(module_name, error)}") from error
    found = getattr(module, attribute, None)
    if found is None:
        hint = did_you_mean(attribute, vars(module))
        raise door.error(f"{door.noun} {reference!r}: module {module_name!r} has no {attribute!r}{hint}")
    if not accepts(found):
        raise door.error(
            f"{door.noun} {reference!r}: {attribute!r} must be {door.expected}, {_what_came(found)} "
            f"(configs: {door.setting})"
        )
    check_found(reference, found, door.setting)
    return found


def row_of(name: str, table: Mapping[str, Row], door: Door) -> Row:
    """Return the row of a table that a name leads to.

    Args:
        name: What was given.
        table: The rows by name.
        door: What else it could be.

    Raises:
        SpatlError: As `door.error`, there is none: the closest name, the known ones, and the form of a reference.
    """
    if name not in table:
        close = did_you_mean(name, list(table))
        raise door.error(f"unknown {door.noun} {name!r}{close}; known: {', '.join(table)}, {door.more}")
    return table[name]


def arguments_for(
    function: Callable[..., Any],
    *,
    what: str,
    offered: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    given_by: str = "run",
    section: str = "",
    unknown: Mapping[str, str] | None = None,
    error: type[SpatlError],
) -> dict[str, Any]:
    """Return the keyword arguments for a function of the user's: of what is offered as far as its signature names it.

    Args:
        function: What will be called.
        what: What it is called in messages: `"model 'my_net:make'"`.
        offered: What the caller can give.
        options: What the config gives; all of it goes in, or is an error.
        given_by: Where that comes from, for messages.
        section: The setting that holds the options: `"model.options"`.
        unknown: Why something that functions ask for is not offered now, by its name.
        error: What is raised.

    Raises:
        SpatlError: As `error`: an option is offered anyway or not taken, or the function needs what nobody gives.
    """
    given = dict(options or {})
    if clash := [option for option in given if option in offered]:
        raise error(f"{clash[0]!r} is given by the {given_by} and cannot be an option (configs: {section})")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a callable written in C may have no signature: let it judge for itself
        return {**offered, **given}
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {parameter.name: parameter for parameter in parameters if parameter.kind in by_keyword}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    own = [name for name in named if name not in offered]
    for option in given:
        if option not in own and not takes_any:
            raise error(
                f"{what} has no option {option!r}{did_you_mean(option, own)}; "
                f"it takes {', '.join(own) or 'none'} (configs: {section})"
            )
    missing = [name for name in own if named[name].default is inspect.Parameter.empty and name not in given]
    if missing:
        where = f", or by {section}" if section else ""
        why = (unknown or {}).get(missing[0], "which nobody gives")
        raise error(f"{what} needs {missing[0]!r}, {why}: it is called with {_listed(offered)}{where}")
    return {name: value for name, value in offered.items() if takes_any or name in named} | given


def _import_failure(module_name: str, error: BaseException) -> str:
    """Tell a module that is not there from a module that is there but misses another one, or fails by itself."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return f"module {module_name!r} cannot be imported: {told(error)}"
    if f"{module_name}.".startswith(f"{error.name}."):
        return f"no module named {error.name!r}: is it installed, or its folder on PYTHONPATH?"
    return f"module {module_name!r} cannot be imported: it needs the module {error.name!r}, which is not installed"


def _what_came(found: object) -> str:
    if isinstance(found, type):
        return f"got the class {found.__name__}"
    if inspect.isroutine(found):
        return f"got the function {found.__name__}"
    return f"got an object of type {type(found).__name__}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)

"""Files that a device's owner has listed: the only code of others that is imported while a message is worked on.

A reference `package.module:name` of a run's config is text of the server's. On a device it leads to a file of the
owner's directory that stands in a list with its SHA-256, or to nothing: no module that is installed, loaded already, or
lies on Python's path will do. The bytes that are executed are those that were digested, not those of a second read.
"""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

from spatl.errors import NotAllowed

_SETTING = "files"


class ListedFiles(MetaPathFinder, InspectLoader):
    """Finder and loader of the modules in listed files.

    Args:
        directory: The device's own.
        digests: SHA-256 (hexadecimal) of each listed file, by its path from there on.
    """

    def __init__(self, directory: Path, digests: Mapping[str, str]) -> None:
        self._directory = directory
        self._digests = digests

    def read(self, name: str, setting: str) -> bytes:
        """Return the content of a listed file.

        Raises:
            NotAllowed: It is not listed, not there, lies elsewhere, or holds something else than was listed.
        """
        where = f"{_SETTING} ({setting})"
        if name not in self._digests:
            raise NotAllowed.of(where, name, self._told())
        path = self._directory / name
        try:
            if not path.resolve().is_relative_to(self._directory.resolve()):
                raise NotAllowed.of(where, f"{name}, which lies elsewhere", "files of its own directory")
            content = path.read_bytes()
        except OSError as error:
            raise NotAllowed(f"{where}: {name} is listed, but cannot be read: {error.strerror}") from None
        digest = hashlib.sha256(content).hexdigest()
        if digest != self._digests[name]:
            listed = f"the one with {self._digests[name][:16]}..."
            raise NotAllowed.of(where, f"{name}, whose SHA-256 is {digest[:16]}...", listed)
        return content

    def check_module(self, module: str, setting: str) -> None:
        """Raise unless a module's file is listed, there, and as it was listed.

        Raises:
            NotAllowed: It is not.
        """
        name = self._file_of(module)
        if name is None:
            raise NotAllowed.of(f"{_SETTING} ({setting})", module, self._told())
        self.read(name, setting)
        loaded = sys.modules.get(module)
        if loaded is not None and not isinstance(getattr(loaded.__spec__, "loader", None), ListedFiles):
            raise NotAllowed.of(f"{_SETTING} ({setting})", f"{module}, which is loaded from elsewhere", self._told())

    def check_found(self, module: str, attribute: str, found: object, setting: str) -> None:
        """Raise unless what a reference leads to is defined in a listed file, or is meant to be had from this one.

        A module has the names of all that it imports, and each could be called with options of the server's.

        Raises:
            NotAllowed: It is a class or function of another module, and the module's `__all__` does not name it.
        """
        if isinstance(found, type) or inspect.isroutine(found):
            home = getattr(found, "__module__", None)
        else:
            home = getattr(found, "__dict__", {}).get("__module__", module)  # of a function that was wrapped
        if isinstance(home, str) and self._file_of(home) is not None:
            return
        if attribute not in getattr(sys.modules[module], "__all__", ()):
            told = f"{module}:{attribute}, which {self._file_of(module)} has from {home or 'elsewhere'}"
            raise NotAllowed.of(f"{_SETTING} ({setting})", told, "what a listed file defines, or names in its __all__")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a listed module comes from; None for all others, which Python finds itself."""
        name = self._file_of(fullname)
        if name is not None:
            return ModuleSpec(fullname, self, origin=str(self._directory / name), is_package=_is_package(name))
        folder = fullname.replace(".", "/") + "/"
        if any(each.startswith(folder) for each in self._digests):  # a package without a file of its own
            return ModuleSpec(fullname, None, is_package=True)
        return None

    def get_source(self, fullname: str) -> str:
        """Return the text of a module."""
        return self._content(fullname).decode()

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled module."""
        return compile(self._content(fullname), str(self._directory / str(self._file_of(fullname))), "exec",
                       dont_inherit=True)  # fmt: skip

    def is_package(self, fullname: str) -> bool:
        """Return whether a module is a package."""
        return _is_package(str(self._file_of(fullname)))

    def _content(self, module: str) -> bytes:
        name = self._file_of(module)
        assert name is not None
        return self.read(name, module)

    def _file_of(self, module: str) -> str | None:
        base = module.replace(".", "/")
        return next((name for name in (f"{base}.py", f"{base}/__init__.py") if name in self._digests), None)

    def _told(self) -> str:
        return f"{', '.join(self._digests)} alone" if self._digests else "none"


_PERMITTED: ContextVar[ListedFiles | None] = ContextVar("listed", default=None)


@contextmanager
def only_listed(listed: ListedFiles) -> Iterator[None]:
    """Let references lead to listed files only, in this block."""
    token = _PERMITTED.set(listed)
    sys.meta_path.insert(0, listed)
    try:
        yield
    finally:
        sys.meta_path.remove(listed)
        _PERMITTED.reset(token)


def check_reference(reference: str, setting: str) -> None:
    """Raise where this is a device whose owner has not listed what a reference leads to.

    Args:
        reference: `"package.module:name"`.
        setting: The setting that names it.

    Raises:
        NotAllowed: That is so; nothing was imported.
    """
    listed = _PERMITTED.get()
    if listed is not None:
        listed.check_module(reference.partition(":")[0], setting)


def check_found(reference: str, found: object, setting: str) -> None:
    """Raise where this is a device, and a listed file only passes on what a reference leads to.

    Args:
        reference: `"package.module:name"`.
        found: What it leads to.
        setting: The setting that names it.

    Raises:
        NotAllowed: That is so; it was not called.
    """
    listed = _PERMITTED.get()
    if listed is not None:
        module, _, attribute = reference.partition(":")
        listed.check_found(module, attribute, found, setting)


def _is_package(name: str) -> bool:
    return name.endswith("/__init__.py")

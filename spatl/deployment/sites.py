"""Sites: the directories of a deployment, one for each machine, with all it needs and nothing of another's.

    DIR/ca/         ca.pem, ca.key       signs certificates; no machine needs its key
    DIR/server/     server.json, config.yaml, ca.pem, server.pem, server.key, clients/client-ID.pub
    DIR/client-ID/  client.json, ca.pem, client.key; state/, what the device keeps to itself

The run of a server lies in DIR/server/run, or elsewhere; its file `deployment.json` says that it is a deployment's, and
which server's, so that nobody takes it for a simulation.

Directories are their owner's alone (0700), and so is every file (0600).
"""

import ipaddress
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from spatl.disk.writing import replace_file, sync_names
from spatl.errors import ConfigError, SpatlError
from spatl.json_files import to_json

CA_CERTIFICATE = "ca.pem"
CA_KEY = "ca.key"
SERVER_CERTIFICATE = "server.pem"
SERVER_KEY = "server.key"
CLIENT_KEY = "client.key"
CONFIG = "config.yaml"
RUN = "deployment.json"
PUBLIC_KEYS = "clients"
STATE = "state"
DEFAULT_RUN = "run"
NO_FINDINGS = "none"
"""Value of `findings` in the config of a node that tells none."""

_PRIVATE_FILE = 0o600
_PRIVATE_DIRECTORY = 0o700
_LARGEST_PORT = 65535
_LONGEST_HOST = 253
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def check_host(host: str) -> None:
    """Raise unless a text is an IP address, or a host's name that a certificate can be good for.

    Raises:
        ConfigError: It is neither.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
    else:
        return
    if len(host) <= _LONGEST_HOST and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit():
        return
    ascii_form = ""
    with suppress(UnicodeError):
        ascii_form = host.encode("idna").decode() if not host.isascii() else ""
    raise ConfigError(
        "expected an IP address, or a host's name of letters, digits, hyphens and dots, got "
        f"{host!r:.80}" + (f"; in these letters it is {ascii_form}" if ascii_form else "")
    )


@dataclass(frozen=True)
class Address:
    """Address at which clients find the server: a host's name or IP address, and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port`, `1.2.3.4:port` or `[::1]:port`.

        Raises:
            ConfigError: It is none.
        """
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        bracketed = host != bare
        try:
            valid = (
                bool(colon and bare)
                and port.isascii()
                and 0 < int(port) <= _LARGEST_PORT
                and bracketed == (":" in bare)
            )
            if bracketed:
                ipaddress.IPv6Address(bare)
        except ValueError:
            valid = False
        if not valid or any(character.isspace() or character in "/@" for character in bare):
            raise ConfigError(f"expected an address as host:port or [IPv6]:port, got {text!r}")
        if not bracketed:
            check_host(bare)
        return cls(bare, int(port))

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True)
class ServerSite:
    """Content of `server.json`.

    Attributes:
        address: Where the clients call.
        num_clients: How many there are, those that were retired as well, whose numbers nobody else gets.
        retired: Those that were taken out; absent in the file where there are none.
    """

    address: str
    num_clients: int
    retired: tuple[int, ...] = ()

    FILE = "server.json"

    @property
    def clients(self) -> tuple[int, ...]:
        """Clients that take part."""
        return tuple(client for client in range(self.num_clients) if client not in self.retired)


@dataclass(frozen=True)
class ClientSite:
    """Content of `client.json`.

    Attributes:
        address: Where the server is.
        client: The client's partition id.
        num_clients: How many clients the federation had when the client was made.
        added: Whether it came to a federation that there was already, whose server may not know it before its next
            start; absent in the file for the others.
    """

    address: str
    client: int
    num_clients: int
    added: bool = False

    FILE = "client.json"


def write_site(directory: Path, site: ServerSite | ClientSite) -> None:
    """Write the file that tells a machine what it is; there must be none."""
    write_private(directory / site.FILE, _content(site))


def replace_site(directory: Path, site: ServerSite | ClientSite) -> None:
    """Put such a file in the place of the one that is there."""
    replace_private(directory / site.FILE, _content(site))


def _content(site: ServerSite | ClientSite) -> bytes:
    values = {name: value for name, value in asdict(site).items() if value is not False and value != ()}
    return (to_json(values, indent=2) + "\n").encode()


def read_server_site(directory: Path) -> ServerSite:
    """Read the site that `spatl deploy init` wrote for the server.

    Raises:
        ConfigError: The directory is none of a server.
    """
    kinds = {"address": str, "num_clients": int}
    values = _read(directory, ServerSite.FILE, kinds, role="server", optional={"retired": list})
    retired = tuple(values.get("retired", ()))
    if not all(type(client) is int and 0 <= client < values["num_clients"] for client in retired):
        raise ConfigError(f"{directory / ServerSite.FILE}: expected numbers of clients as retired, got {list(retired)}")
    return ServerSite(values["address"], values["num_clients"], retired)


def read_client_site(directory: Path) -> ClientSite:
    """Read the site that `spatl deploy init` wrote for a client.

    Raises:
        ConfigError: The directory is none of a client.
    """
    kinds = {"address": str, "client": int, "num_clients": int}
    return ClientSite(**_read(directory, ClientSite.FILE, kinds, role="client", optional={"added": bool}))


def write_run(run: Path, name: str, server: Path) -> None:
    """Write into a run's directory the name that its devices know it by, and the directory of its server."""
    replace_file(run / RUN, (to_json({"run": name, "server": str(server)}, indent=2) + "\n").encode())


def run_name(run: Path) -> str | None:
    """Return the name that the devices know a run by; None where it has none yet.

    Raises:
        SpatlError: Its file is damaged.
    """
    if not (run / RUN).exists():
        return None
    return str(_run(run)["run"])


def is_deployment(directory: Path) -> bool:
    """Return whether a directory is a deployed server's, or the one of its run: nothing to simulate."""
    try:
        return (directory / RUN).exists() or (directory / ServerSite.FILE).exists()
    except OSError:  # a name that the file system refuses
        return False


def resume_command(directory: Path) -> str:
    """Return the command that goes on with the deployment of a directory that is a server's, or the one of its run."""
    server = _servers_directory(directory)
    elsewhere = directory != server and directory.absolute() != server / DEFAULT_RUN
    return shlex.join(
        ["spatl", "deploy", "server", str(server), "--resume", *(["--out", str(directory)] if elsewhere else [])]
    )


def add_client_command(directory: Path) -> str:
    """Return the command that adds a client to the deployment of such a directory."""
    return shlex.join(["spatl", "deploy", "add-client", str(_servers_directory(directory))])


def _servers_directory(directory: Path) -> Path:
    """Return the server's directory, given that one or the one of its run."""
    if (directory / ServerSite.FILE).exists():
        return directory
    # It may have been moved or copied since, with the server's directory around it.
    beside = directory.absolute().parent
    return beside if (beside / ServerSite.FILE).exists() else Path(_run(directory).get("server", "DIR/server"))


def _run(directory: Path) -> dict[str, Any]:
    try:
        values = json.loads((directory / RUN).read_text(encoding="utf-8"))
        if isinstance(values, dict) and isinstance(values.get("run"), str):
            return values
    except (OSError, ValueError):
        pass
    raise SpatlError(f"{directory / RUN} is damaged; delete it, and the devices begin anew")


@contextmanager
def private_files() -> Iterator[None]:
    """Have whatever is written in this block, and by processes that are started in it, be its owner's alone."""
    before = os.umask(0o777 & ~_PRIVATE_DIRECTORY)
    try:
        yield
    finally:
        os.umask(before)


def make_private(directory: Path) -> Path:
    """Make a directory that only its owner may look into, and return it."""
    directory.mkdir(mode=_PRIVATE_DIRECTORY)
    directory.chmod(_PRIVATE_DIRECTORY)  # whatever the umask
    return directory


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read; never over one that is there."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), _PRIVATE_FILE)
        file.flush()
        os.fsync(file.fileno())


def replace_private(path: Path, data: bytes) -> None:
    """Put a file that only its owner may read in the place of another one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    write_private(temporary, data)
    os.replace(temporary, path)
    sync_names(path.parent)


def check_private(path: Path) -> None:
    """Raise a `SpatlError` unless a file is there that others can neither read nor write.

    Raises:
        SpatlError: It is missing, or open to others.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SpatlError(f"cannot use {path}: {error.strerror}") from None
    if os.name == "posix" and mode & 0o077:
        raise SpatlError(f"{path} is open to other users of this machine (mode {mode & 0o777:o}): chmod 600 {path}")


def _read(
    directory: Path, name: str, kinds: Mapping[str, type], *, role: str, optional: Mapping[str, type] = {}
) -> dict[str, Any]:
    path = directory / name
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ConfigError(f"{directory} is not the directory of a {role} (spatl deploy init): {name}: {why}") from None
    values: dict[str, Any] = read if isinstance(read, dict) else {}
    found = {key: type(value) for key, value in values.items()}
    if dict(kinds) != {key: kind for key, kind in found.items() if optional.get(key) is not kind}:
        raise ConfigError(f"{path}: expected {', '.join(kinds)}, got {read!r}")
    return values

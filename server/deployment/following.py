"""Following of `server.json` while a run goes on: keys of clients that were added are let in, those of retired not.

The commands that change a deployment write files of the server's directory and talk to no process. Whoever started the
SuperLink looks at them now and then, changes who is let in, and writes down who that is for the ServerApp, which takes
it up before its next round.
"""

from collections.abc import Callable
from pathlib import Path

from server.deployment.control import StartedSuperLink
from server.deployment.keys import read_public_keys
from spatl.deployment.sites import ServerSite, read_server_site
from spatl.errors import SpatlError
from spatl.runs.members import Members, write_members


class Following:
    """Follows the deployment of a server's directory.

    Args:
        server: The server's directory.
        run: The run's.
        link: What lets keys in.
        site: The deployment as it is now.
        keys: The keys that are let in (PEM), by client; None where there are none, and nothing is followed.
        nodes: The node id of each.
        say: Shows a line.
    """

    def __init__(
        self, server: Path, run: Path, link: StartedSuperLink, site: ServerSite, *,
        keys: dict[int, bytes] | None, nodes: dict[int, int], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._server, self._run, self._link, self._site, self._say = server, run, link, site, say
        self._keys, self._nodes = keys, nodes
        self._seen = self._stamp() if read_server_site(server) == site else (0, 0)
        write_members(run, Members(nodes, site.retired))

    def look(self) -> None:
        """Let in who was added since, and out who was retired; what cannot be read is said, and looked at again."""
        if self._keys is None or (seen := self._stamp()) == self._seen:
            return
        self._seen = seen
        try:
            site = read_server_site(self._server)
            keys = read_public_keys(self._server, site.clients)
        except SpatlError as error:
            self._say(f"clients that were added or retired are not followed: {error}")
            return
        new = {client: key for client, key in keys.items() if client not in self._keys}
        gone = {client: node for client, node in self._nodes.items() if client in site.retired}
        self._nodes = {client: node for client, node in self._nodes.items() if client not in gone}
        self._nodes |= self._link.register(new)
        self._keys = {client: key for client, key in {**self._keys, **new}.items() if client in self._nodes}
        write_members(self._run, Members(self._nodes, site.retired))  # before they go, and are missed
        self._link.unregister(gone.values())
        self._link.open(self._keys.values())
        for clients, how in ((sorted(new), "were added; they take part from the next round after they are there"),
                             (sorted(gone), "were retired; their keys are refused")):  # fmt: skip
            if clients:
                self._say(f"clients {', '.join(map(str, clients))} {how}")

    def _stamp(self) -> tuple[int, int]:
        try:
            found = (self._server / ServerSite.FILE).stat()
        except OSError:  # it is being replaced, or is away for a while
            return 0, 0
        return found.st_mtime_ns, found.st_ino

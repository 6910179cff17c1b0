"""Table of engines: what runs a simulated federation, by the name in a config; and the apps that they all run."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class EngineRow:
    """One row of `ENGINES`.

    Attributes:
        reference: The function that runs it, as `package.module:name`: this package stays free of Flower.
        in_process: Whether the clients are run by the process that runs the server.
        shares_resources: Whether the section `resources` says what a client may use of the machine.
        description: One line for the command line.
    """

    reference: str
    in_process: bool
    shares_resources: bool
    description: str


ENGINES: Final[dict[str, EngineRow]] = {
    "inline": EngineRow("server.engines:run_inline", True, False, "in this process"),
    "ray": EngineRow("server.engines:run_ray", False, True, "Flower's simulation runtime"),
}
"""What `engine` can name."""

SERVER_APP: Final = "server.app:app"
"""Flower's ServerApp of every run."""
CLIENT_APP: Final = "clients.app:app"
"""Flower's ClientApp of every run: what a device runs, whatever a bundle holds."""

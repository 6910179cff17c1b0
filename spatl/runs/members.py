"""Members of a deployment that runs: whose keys are let in by now, told by its SuperLink's parent to its ServerApp."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spatl.errors import DamagedState
from spatl.json_files import read_object, write_json
from spatl.runs.files import MEMBERS


@dataclass(frozen=True)
class Members:
    """Members of a deployment.

    Attributes:
        nodes: Flower's node id of each client whose key is let in, by client; none where there are no keys.
        retired: Clients that were taken out.
    """

    nodes: Mapping[int, int] = field(default_factory=dict)
    retired: tuple[int, ...] = ()


def write_members(run: Path, members: Members) -> None:
    """Write into a run's directory who is let in."""
    nodes = {str(client): node for client, node in sorted(members.nodes.items())}
    write_json(run / MEMBERS, {"nodes": nodes, "retired": list(members.retired)})


def read_members(run: Path) -> Members:
    """Return who is let in to a run; nobody is known where nothing is written.

    Raises:
        DamagedState: What is written there is damaged.
    """
    try:
        values = read_object(run / MEMBERS)
    except FileNotFoundError:
        return Members()
    try:
        nodes = {int(client): int(node) for client, node in values["nodes"].items()}
        return Members(nodes, tuple(int(client) for client in values["retired"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedState(f"{run / MEMBERS} is damaged: {error!r}") from error

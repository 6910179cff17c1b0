"""Membership of a deployment while it runs: clients that register in the middle of it, that come, and that are retired.

Between two rounds the ServerApp looks at who is let in by now (`spatl.runs.members`). One that is new, or was not there
when the others registered, is asked to register as they were, with what they have agreed on; from the round that is
next on it is a client like any other. One that was retired has no part in anything that is decided from then on.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from server.grids import FederationGrid
from server.inquiry import Inquiry
from server.limits import most_bytes
from server.recorder import Recorder
from server.registration import RETIRED, Registered, Registrar, Registration
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import with_clients
from spatl.errors import SpatlError
from spatl.json_files import write_json
from spatl.rounds.blueprint import Blueprint, servers_blueprint
from spatl.rounds.federation import Federation
from spatl.rounds.members import rejoined, retired, without_answer
from spatl.rounds.offsets import check_of
from spatl.rounds.server_state import ServerState
from spatl.runs.directory import write_config
from spatl.runs.files import MOST_BYTES, REGISTRATION
from spatl.runs.members import Members, read_members

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 60.0  # for a registration in the middle of a run: the others are waiting for their round


class Membership:
    """Clients of a run, and how they change in a deployment while it runs.

    Args:
        registered: Who takes part at first.
        recorder: Of the run.
        grid: Where the nodes are.

    Attributes:
        nodes: The node id of each client that takes part.
        absent: Reasons by client that does not.
    """

    def __init__(self, registered: Registered, recorder: Recorder, grid: FederationGrid) -> None:
        self.nodes = {client: each.node_id for client, each in registered.clients.items()}
        self.absent = dict(registered.absent)
        self._recorder, self._grid, self._tried = recorder, grid, set[int]()
        # Who was there and could not take part is asked anew by the next start only.
        self._tried |= self.connected(self._let_in(read_members(recorder.directory))).keys() & self.absent.keys()

    def before_round(
        self, federation: Federation, state: ServerState, server_round: int
    ) -> tuple[Federation, ServerState]:
        """Return the federation and the server's state with those who came, and without those who were retired.

        Raises:
            SpatlError: All were retired, or the file that says who is let in is damaged.
        """
        members = read_members(self._recorder.directory)
        gone = sorted(self.nodes.keys() & set(members.retired))
        if gone:
            federation, state = self._without(gone, federation, state, server_round)
        new = {} if federation.blueprint.config.row.static_mask else self.connected(self._let_in(members))
        if new:
            federation, state = self._with(new, federation, state, server_round)
        if gone or new:
            self.write(federation.blueprint)
        return federation, state

    def write(self, blueprint: Blueprint) -> None:
        """Leave who takes part, and how much the gate is to let through; before any client is asked for an update."""
        facts = {
            "num_examples": dict(sorted(self._recorder.num_examples.items())),
            "absent": {str(client): reason for client, reason in sorted(self.absent.items())},
            MOST_BYTES: most_bytes(blueprint),
        }
        write_json(self._recorder.directory / REGISTRATION, facts)

    def register_again(
        self, federation: Federation, state: ServerState, clients: frozenset[int], server_round: int
    ) -> tuple[ServerState, set[int]]:
        """Ask devices that keep nothing of their registration for it once more, in the middle of a run.

        One that does not fit the run any more is named, and refused again when it is asked to train.

        Returns:
            The state, and those that are connected and did not answer: they are not asked to train, and it counts as a
            failure.
        """
        nodes = {client: self.nodes[client] for client in sorted(clients & self.nodes.keys())}
        if not nodes:
            return state, set()
        registered, registrar = self._ask(federation.blueprint, nodes, state.num_examples)
        for client in registered:
            logger.warning(
                "client %d has registered again: it kept nothing of what it was", client, extra={"client": client}
            )
        silent = self.connected({client: nodes[client] for client in registrar.unanswered}).keys()
        return without_answer(federation, state, server_round, silent), set(silent)

    def _without(
        self, gone: list[int], federation: Federation, state: ServerState, server_round: int
    ) -> tuple[Federation, ServerState]:
        """Take clients out."""
        federation = replace(federation, clients=federation.clients - set(gone))
        if not federation.clients:
            raise SpatlError("all clients were retired; add some (spatl deploy add-client), and go on with --resume")
        for client in gone:
            del self.nodes[client]
            self.absent[client] = RETIRED
            self._recorder.num_examples.pop(client, None)
            logger.warning("round %d: client %d was retired: it has no part in what follows", server_round, client,
                           extra={"round": server_round, "client": client})  # fmt: skip
        self._recorder.round.retired = tuple(gone)
        return federation, retired(state, gone, server_round)

    def _with(
        self, new: Mapping[int, int], federation: Federation, state: ServerState, server_round: int
    ) -> tuple[Federation, ServerState]:
        """Have clients register that have come, and take in those that can take part."""
        config = _with_room(federation.blueprint.config, new)
        blueprint = servers_blueprint(config.to_json())
        clients, registrar = self._ask(blueprint, new, state.num_examples)
        for client in sorted(clients):
            try:
                blueprint.check_training({client: clients[client].num_examples})
            except SpatlError as error:
                registrar.refuse(new[client], error, client)
                del clients[client]
        self.absent |= {client: registrar.absent[client] for client in new if client in registrar.absent}
        self._tried |= self.connected({client: node for client, node in new.items() if client not in clients}).keys()
        write_config(self._recorder.directory, config)
        if not clients:
            return replace(federation, blueprint=blueprint), state
        numbers = {client: each.num_examples for client, each in clients.items()}
        initial = check_of(blueprint.initial_encoder())
        others = [client for client, each in clients.items() if each.initial != initial]
        self.nodes |= {client: each.node_id for client, each in clients.items()}
        self.absent = {client: reason for client, reason in self.absent.items() if client not in clients}
        self._recorder.num_examples.update(numbers)
        self._recorder.round.joined = tuple(sorted(clients))
        for client in sorted(clients):
            logger.warning("round %d: client %d has come, with %d training examples", server_round, client,
                           numbers[client], extra={"round": server_round, "client": client})  # fmt: skip
        state = rejoined(state, numbers, cannot_build=others, max_weight=federation.max_weight)
        return replace(federation, blueprint=blueprint, clients=federation.clients | clients.keys()), state

    def _ask(
        self, blueprint: Blueprint, nodes: Mapping[int, int], known: Mapping[int, int]
    ) -> tuple[dict[int, Registration], Registrar]:
        """Ask clients for their registration, with what all have agreed on; return it by client, and who judged."""
        config = blueprint.config
        keys = {node: client for client, node in nodes.items()}
        seconds = min(_AGAIN_SECONDS, config.server.round_timeout_seconds)
        inquiry = Inquiry(self._grid, keys, connect_seconds=0.0, reply_seconds=seconds)
        sent = config.model_copy(update={"data": config.data.model_copy(update={"agreed": None})})
        others = dict.fromkeys(set(range(config.partition.num_clients)) - nodes.keys(), "")
        registrar = Registrar(inquiry, sent, keys, devices=True, absent=others)
        registered = registrar.register(keys, blueprint, known)
        server_round = self._recorder.round.server_round
        self._recorder.round.entries.extend(inquiry.entries(keys, server_round=server_round))
        return registered, registrar

    def _let_in(self, members: Members) -> dict[int, int]:
        """Return the nodes of those who are let in, take no part, and may be asked whether they can."""
        asked = self.nodes.keys() | self._tried
        return {client: node for client, node in members.nodes.items() if client not in asked}

    def connected(self, nodes: Mapping[int, int]) -> dict[int, int]:
        """Return those of some nodes, by client, that are connected."""
        connected = set(self._grid.get_node_ids()) if nodes else set()
        return {client: node for client, node in nodes.items() if node in connected}


def _with_room(config: ExperimentConfig, clients: Mapping[int, int]) -> ExperimentConfig:
    """Return a config that has the numbers of some clients, too."""
    number = max(config.partition.num_clients, *(client + 1 for client in clients))
    return config if number == config.partition.num_clients else with_clients(config, number)

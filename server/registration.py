"""Registration: the clients that take part in a run, their numbers of examples, and what they agree on.

Every node is asked which partition it holds, how much it trains on, and what model it builds. Devices with data of
their own are asked twice: what their data are like, and then, with what follows from that for all, for the rest. In a
simulation all nodes are this machine's, and one that cannot take part ends the run. A device that cannot costs that
device only: it is named with the reason and left out, as long as enough are there.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from server.claims import check_digest, check_rest, check_share, present
from server.grids import FederationGrid
from server.inquiry import Inquiry
from server.recorder import Recorder
from server.replies import error_line, error_traceback, own_record
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import with_agreement
from spatl.data.own import Description, agree
from spatl.errors import ConfigError, DataError, SpatlError, UpdateRejected
from spatl.json_files import to_json
from spatl.rounds.blueprint import Blueprint, servers_blueprint
from spatl.rounds.client_data import data_digest
from spatl.rounds.offsets import check_of
from spatl.rounds.weights import bounded_weights, largest_share
from spatl.wire.blob import BLOB, RECORD
from spatl.wire.registration import RegistrationAnswer, RegistrationQuestion, unpack_saliency

logger = logging.getLogger(__name__)

RETIRED = "it was retired (spatl deploy retire)"
"""Reason why a client that was taken out of a run takes no part."""
_LONGEST_REASON = 500


@dataclass(frozen=True, eq=False)
class Registration:
    """Registration of one client, as the server keeps it.

    Attributes:
        node_id: Flower's id of its node.
        num_examples: Its training examples.
        initial: Digest of the initial encoder that it builds.
        saliency: Worth of each channel `[C]` on its data, for methods with one mask for all; else empty.
    """

    node_id: int
    num_examples: int
    initial: bytes
    saliency: Tensor


@dataclass(frozen=True, eq=False)
class Registered:
    """Outcome of the registration: the clients that take part, and the config that they have agreed on.

    Attributes:
        config: The run's, with the agreement of devices with data of their own.
        blueprint: The model, the layout and the costs that it describes.
        clients: Registrations of the clients that take part.
        absent: Reasons by client that does not.
        num_examples: Training examples by client that takes part.
    """

    config: ExperimentConfig
    blueprint: Blueprint
    clients: Mapping[int, Registration]
    absent: Mapping[int, str]
    num_examples: Mapping[int, int]


def register(
    grid: FederationGrid,
    config: ExperimentConfig,
    recorder: Recorder,
    *,
    keys: Mapping[int, int],
    known: Mapping[int, int],
    devices: bool,
    retired: Collection[int] = (),
) -> Registered:
    """Ask every node what it is, and record the bytes that takes.

    Args:
        grid: Where the nodes are.
        config: The run.
        recorder: Where bytes are written; of a run that goes on those of new clients, for it has the others' already.
        keys: The client whose key each node holds, by node id, where nodes are authenticated.
        known: The training examples of each client that a run that goes on has.
        devices: Whether clients are machines of their own, which may be missing.
        retired: Clients that were taken out of the run.

    Raises:
        SpatlError: A client cannot take part, or of devices too few can.
    """
    inquiry = Inquiry(
        grid, keys, connect_seconds=config.server.connect_timeout_seconds,
        reply_seconds=config.server.round_timeout_seconds,
    )  # fmt: skip
    registrar = Registrar(inquiry, config, keys, devices=devices, absent=dict.fromkeys(sorted(retired), RETIRED))
    stays = known if devices and not config.row.static_mask else {}
    nodes = registrar.connected(enough_at_once=bool(stays))
    if config.has_own_data and config.data.agreed is None:
        config, nodes = _agreed(registrar, nodes)
    registrar.check_enough(len(nodes))
    blueprint = servers_blueprint(config.to_json())
    clients = dict(sorted(registrar.register(nodes, blueprint, known).items()))
    if devices and known and config.row.static_mask:
        for client in sorted(clients.keys() - known.keys()):
            registrar.come_too_late(client)
            del clients[client]
    registrar.check_enough(len(clients))
    clients = dict(sorted({**clients, **registrar.away(stays, blueprint)}.items()))
    owners = {each.node_id: client for client, each in clients.items()}
    for entry in inquiry.entries(owners, server_round=recorder.round.server_round):
        if not known or entry.client in clients.keys() - known.keys():
            recorder.round.entries.append(entry)
    return Registered(
        config, blueprint, clients,
        absent=dict(sorted(registrar.absent.items())),
        num_examples={client: registration.num_examples for client, registration in clients.items()},
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Registrar:
    """Judge of the answers: keeps the clients that can take part and the reasons of those that cannot."""

    inquiry: Inquiry
    config: ExperimentConfig
    keys: Mapping[int, int]
    devices: bool
    absent: dict[int, str] = field(default_factory=dict)
    unanswered: set[int] = field(default_factory=set)

    @property
    def _enough(self) -> int:
        """Number of clients that a run needs."""
        return max(1, self.config.server.min_replies) if self.devices else self.config.partition.num_clients

    def connected(self, *, enough_at_once: bool) -> list[int]:
        """Wait for as many connected nodes as there are clients; return those that are connected.

        Args:
            enough_at_once: Whether to wait for as many as a run needs only.

        Raises:
            ConfigError: There are too many or too few.
        """
        wanted = self.config.partition.num_clients - len(self.absent)
        least = self._enough if enough_at_once else wanted
        nodes = sorted(self.inquiry.await_nodes(lambda connected: len(connected) >= least))
        if len(nodes) != wanted and not self.devices:
            raise ConfigError(
                f"partition.num_clients is {wanted}, but {len(nodes)} nodes are connected; for a simulation add "
                f'--federation-config "num-supernodes={wanted}"'
            )
        for node, client in self.keys.items():
            if node not in nodes and client not in self.absent:
                self.unanswered.add(client)
                self._leave_out(client, f"it did not connect in {self.config.server.connect_timeout_seconds:g} s")
        return nodes

    def describe(self, nodes: Iterable[int]) -> dict[int, tuple[int, Description]]:
        """Ask devices for descriptions of their data; return the node of each client, and its description."""
        described: dict[int, tuple[int, Description]] = {}
        for node, reply in self._answers(RegistrationQuestion(), nodes):
            client = None
            try:
                client, answer = self._opened(node, reply, described)
                description = Description.from_bytes(present(client, answer.description, "description"))
                if description.num_examples != answer.num_examples:
                    raise DataError("it says two numbers of training examples")
                described[client] = node, description
            except SpatlError as error:
                self.refuse(node, error, client)
        return described

    def register(self, nodes: Iterable[int], blueprint: Blueprint, known: Mapping[int, int]) -> dict[int, Registration]:
        """Ask nodes for their registrations; return them by client."""
        question = RegistrationQuestion(blueprint.layout.fingerprint)
        if blueprint.config.data.agreed is not None and self.config.data.agreed is None:  # new to the devices
            agreed = to_json(blueprint.config.data.agreed.agreement().told(), ensure_ascii=False)
            question = replace(question, agreed=agreed)
        shared = data_digest(blueprint.config) if self.devices and blueprint.config.shares_data_on_disk else None
        clients: dict[int, Registration] = {}
        holders: dict[bytes, list[int]] = {}
        for node, reply in self._answers(question, nodes):
            client = None
            try:
                client, answer = self._opened(node, reply, clients)
                registration = _registration(node, answer, blueprint)
                if shared is not None:
                    digest = present(client, answer.digest, "data")
                    holders.setdefault(digest, []).append(client)
                    check_digest(client, digest, shared, blueprint.config)
                check_share(client, registration.num_examples, blueprint)
                if registration.num_examples != known.get(client, registration.num_examples):
                    raise SpatlError(
                        f"client {client} has {registration.num_examples} training examples, in the rounds before it "
                        f"had {known[client]}: a run goes on with the data it began with"
                    )
                clients[client] = registration
            except SpatlError as error:
                self.refuse(node, error, client)
        if len(holders) > 1:
            told = "; ".join(f"{digest.hex()[:16]} at {_named(found)}" for digest, found in sorted(holders.items()))
            logger.warning("the clients' data sets differ, by digest: %s", told)
        missing = sorted(set(range(self.config.partition.num_clients)) - set(clients) - set(self.absent))
        if missing and not self.devices:
            raise SpatlError(f"clients {missing} did not register; the run needs all {len(missing) + len(clients)}")
        for client in missing:
            self._leave_out(client, "it did not register")
        return clients

    def away(self, known: Mapping[int, int], blueprint: Blueprint) -> dict[int, Registration]:
        """Return the registrations of clients that were not there to register, of those that a run that goes on has.

        They are asked as soon as they are back, with what is known of them.
        """
        initial, found = check_of(blueprint.initial_encoder()), {}
        for node, client in self.keys.items():
            if client in self.unanswered & known.keys():
                found[client] = Registration(node, known[client], initial, torch.zeros(0))
                del self.absent[client]
                logger.warning("client %d is away; it takes part again when it is back", client,
                               extra={"client": client})  # fmt: skip
        return found

    def refuse(self, node: int, error: SpatlError, client: int | None = None) -> None:
        """Leave a client out; without devices, end the run."""
        if not self.devices:
            raise error
        client = self.keys.get(node, client)
        if client is None:
            logger.warning("%s takes no part: %s", self.inquiry.name_of(node), error)
        else:
            self._leave_out(client, str(error), "".join(getattr(error, "__notes__", [])))

    def come_too_late(self, client: int) -> None:
        """Leave out a client that was not there when the others agreed on one set of channels."""
        title = self.config.row.title
        self._leave_out(client, f"it was not there when the clients of {title} agreed on their channels")

    def check_enough(self, number: int) -> None:
        """Raise unless so many clients are enough for a run.

        Raises:
            SpatlError: They are too few; the message names the others.
        """
        if number < self._enough:
            told = "".join(f"; client {client}: {reason}" for client, reason in sorted(self.absent.items()))
            raise SpatlError(
                f"{number} of {self.config.partition.num_clients} clients could register, the run needs "
                f"{self._enough} (server.min_replies){told}"
            )

    def _answers(self, question: RegistrationQuestion, nodes: Iterable[int]) -> Iterator[tuple[int, Message]]:
        """Yield the reply of each node; a node that cannot be asked is refused."""
        for node, reply in self.inquiry.ask(RecordDict({RECORD: ConfigRecord(dict(question.fields()))}), nodes):
            if isinstance(reply, Message):
                yield node, reply
            else:
                self.unanswered.update([self.keys[node]] if node in self.keys else [])
                self.refuse(node, SpatlError(f"{self.inquiry.name_of(node)} could not register: {reply}"))

    def _leave_out(self, client: int, reason: str, found: str = "") -> None:
        """Leave a client out for a reason; `found` is the traceback of what it reported."""
        self.absent[client] = reason
        logger.warning("client %d takes no part: %s", client, reason,
                       extra={"client": client, **({"traceback": found} if found else {})})  # fmt: skip

    def _opened(self, node: int, reply: Message, others: Mapping[int, object]) -> tuple[int, RegistrationAnswer]:
        """Return the client that an answer is of, and the answer.

        Raises:
            SpatlError: It is an error, says why the client cannot take part, or that it is another client.
        """
        if reply.has_error():
            refused = SpatlError(f"{self.inquiry.name_of(node)} could not register: {error_line(reply.error)}")
            if found := error_traceback(reply.error):
                refused.add_note(found)
            raise refused
        try:
            if (fields := own_record(reply.content)) is None:
                raise KeyError(RECORD)
            client = RegistrationAnswer.client_of(fields)
        except KeyError as error:
            raise SpatlError(f"a client's registration lacks {error}") from error
        except UpdateRejected as error:
            raise SpatlError(f"{self.inquiry.name_of(node)} could not register: {error}") from error
        num_clients = self.config.partition.num_clients
        if type(client) is not int or not 0 <= client < num_clients:
            raise ConfigError(
                f"a node says it holds partition {client!r:.20}; the config has {num_clients}, counted from 0"
            )
        owner = self.keys.get(node, client)
        if owner != client:
            raise ConfigError(f"the node with the key of client {owner} says that it holds partition {client}")
        if client in others:
            raise ConfigError(f"two nodes say that they hold partition {client}; give each its own partition-id")
        try:
            answer = RegistrationAnswer.of_fields(client, fields)
        except UpdateRejected as error:
            raise SpatlError(f"client {client} {error}") from error
        if answer.refused is not None:
            reason = " ".join(answer.refused.split())[:_LONGEST_REASON]
            raise SpatlError(reason if self.devices else f"client {client} could not register: {reason}")
        return client, answer


def _agreed(registrar: Registrar, nodes: Iterable[int]) -> tuple[ExperimentConfig, list[int]]:
    """Ask devices for descriptions of their data; return the config with what they agree on, and who fits in.

    Raises:
        DataError: Nothing follows from the descriptions that all could agree on.
    """
    described = registrar.describe(nodes)
    if not described:
        return registrar.config, []
    told = {client: each for client, (_, each) in described.items()}
    numbers = {client: each.num_examples for client, each in told.items()}
    shares = bounded_weights(numbers, largest_share(registrar.config))
    agreement, misfits = agree(told, counts=shares, num_tokens=registrar.config.data.num_tokens)
    for client, reason in misfits.items():
        registrar.refuse(described[client][0], DataError(reason), client)
    fitting = [node for client, (node, _) in described.items() if client not in misfits]
    return with_agreement(registrar.config, agreement), fitting


def _registration(node: int, answer: RegistrationAnswer, blueprint: Blueprint) -> Registration:
    """Return the registration of a client whose answer holds what the server builds too."""
    client = answer.client
    if answer.fingerprint != blueprint.layout.fingerprint:
        raise SpatlError(f"client {client} built another model from this config; do its versions differ?")
    check_rest(client, answer.rest or b"", blueprint)
    saliency = torch.zeros(0)
    if blueprint.config.row.static_mask:
        try:
            saliency = unpack_saliency(present(client, answer.saliency, BLOB), blueprint.layout)
        except UpdateRejected as error:
            raise SpatlError(f"client {client} could not register: {error}") from error
    assert answer.num_examples is not None  # of an answer that was not refused
    return Registration(node, answer.num_examples, present(client, answer.initial, "initial"), saliency)


def _named(clients: Iterable[int]) -> str:
    return ", ".join(f"client {client}" for client in sorted(clients))

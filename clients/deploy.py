"""Command `spatl deploy client`: this machine's SuperNode, after a check of whether the server will let it in.

`clients.device.supervisor` takes the place of this process, which has PyTorch loaded, and keeps the SuperNode running;
beside it, unless `--cold`, runs `clients.device.preloaded`.
"""

import json
import logging
import os
import shlex
import socket
import ssl
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from rich.console import Console

from clients.device import handover, supervisor
from spatl.config.device import DEVICE_FILE, DeviceConfig, read_device
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import on_device, parse_budget
from spatl.deployment.processes import environment, free_port, script
from spatl.deployment.sites import (
    CA_CERTIFICATE,
    CLIENT_KEY,
    NO_FINDINGS,
    STATE,
    Address,
    ClientSite,
    check_private,
    make_private,
    read_client_site,
    replace_private,
)
from spatl.errors import ConfigError, NotAllowed, SpatlError
from spatl.extensions.listed import ListedFiles
from spatl.json_files import to_json

logger = logging.getLogger(__name__)

_CALL_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 5.0
_NODE_FILE = "node.toml"
_TRUSTED_FILE = "trusted.yaml"
_MARKS = "running"
_APPS = ("flwr-clientapp", "flwr-agentapp")
_OF_NO_DEVICE = ("flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")


def start(options: Namespace, console: Console) -> None:
    """Become the supervisor of the SuperNode of a client's directory.

    Raises:
        SpatlError: The directory is none of a client, an option is wrong, or the server is not the one of its CA,
            speaks no TLS, or does not know its key. A server that is not there yet is waited for, and so is, by a
            client that was added to a federation, one that does not know its key yet.
    """
    directory = Path(options.directory).absolute()
    site = read_client_site(directory)
    address = Address.parse(site.address)
    rules = owners_rules(directory)
    node = node_config(
        site, directory, data=options.data_dir, budget=options.budget, device=options.device,
        tells_findings=not options.no_findings,
    )  # fmt: skip
    command = [
        script("flower-supernode"), "--superlink", site.address, "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(free_port()),
    ]  # fmt: skip
    if options.insecure:
        logger.warning("--insecure: no TLS, no key; whoever is between here and %s can read and change all", address)
        command.append("--insecure")
    else:
        ca, key = directory / CA_CERTIFICATE, directory / CLIENT_KEY
        await_server(address, ca, read_private_key(key), added=site.added)
        command += ["--root-certificates", str(ca), "--auth-supernode-private-key", str(key)]
    home = directory / "flower"
    if not home.exists():
        make_private(home)
    # A JSON value is a TOML value once its characters are written out.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in node.items()]
    (home / _NODE_FILE).write_text("".join(lines), encoding="utf-8")
    console.print(f"client {site.client} of {site.num_clients}, server {address}, state in {node['state-dir']}",
                  markup=False, highlight=False, soft_wrap=True)  # fmt: skip
    command += _trusted(home, rules)
    settings = environment(home, here=False)
    preloaded = None if options.cold else home / "preloaded.sock"
    marks = home / _MARKS
    marks.mkdir(exist_ok=True)
    settings["PATH"] = os.pathsep.join(
        [str(_programs(home, marks, preloaded, signed=bool(rules.code.trusted))), settings["PATH"]]
    )
    os.chdir(home)
    command += ["--node-config", str(home / _NODE_FILE)]
    if preloaded is not None:  # the process that this one becomes is its parent
        command += ["--", sys.executable, "-m", "clients.device.preloaded", str(preloaded), str(os.getpid())]
    os.execve(sys.executable, [sys.executable, "-S", "-E", supervisor.__file__, str(marks), *command], settings)


def owners_rules(directory: Path) -> DeviceConfig:
    """Return what the owner of a client's device lets a run do.

    Raises:
        ConfigError: The file says something that cannot be, or lists a file that is not there or is another one.
    """
    path = directory / DEVICE_FILE
    rules = read_device(path)
    if rules is None:
        logger.warning("%s is not there: its safe values hold, as `spatl deploy init` writes them", path)
        return DeviceConfig()
    listed = ListedFiles(directory, rules.files)
    for name in rules.files:
        try:
            listed.read(name, name)
        except NotAllowed as error:
            raise ConfigError(f"{path}: {error}") from None
    if rules.data.dir is not None:
        place = directory / os.path.expanduser(rules.data.dir)
        if not place.exists():
            raise ConfigError(f"{path}: data.dir: {place} is not there")
    return rules


def _trusted(home: Path, rules: DeviceConfig) -> list[str]:
    """Return the option by which a SuperNode knows whose signatures its owner believes."""
    if not rules.code.trusted:
        return []
    replace_private(home / _TRUSTED_FILE, to_json(rules.code.trusted, indent=2).encode())  # JSON is YAML
    return ["--trusted-entities", str(home / _TRUSTED_FILE)]


def node_config(
    site: ClientSite, directory: Path, *, data: str | None, budget: str | None, device: str | None,
    tells_findings: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Return the node config, by which a SuperNode tells the ClientApp of its machine.

    Raises:
        SpatlError: The budget or the device is none, or the data are not there.
    """
    node: dict[str, Any] = {
        "partition-id": site.client,
        "num-partitions": site.num_clients,
        "state-dir": str(directory / STATE),
    }
    if data is not None:
        path = Path(os.path.expanduser(data)).absolute()
        if not path.exists():
            raise ConfigError(f"--data-dir: {path} is not there")
        node["data-dir"] = str(path)
    if budget is not None:
        kind, equals, limit = budget.partition("=")
        try:
            parsed = parse_budget({kind.strip(): float(limit)} if equals else {})
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"--budget {budget}: {error}") from None
        if parsed is None:
            raise ConfigError(f"--budget expects KIND=LIMIT, e.g. keep_ratio=0.3, got {budget!r}")
        whole = parsed.kind == "uplink_bytes"
        node[parsed.kind.replace("_", "-")] = int(parsed.limit) if whole else parsed.limit
    if device is not None:
        on_device(ExperimentConfig(), device=device)
        node["device"] = device
    if not tells_findings:
        node["findings"] = NO_FINDINGS
    return node


def _programs(home: Path, marks: Path, preloaded: Path | None, *, signed: bool) -> Path:
    """Make a directory of programs that go before Flower's, each of which leaves its process id in a mark.

    `flwr-clientapp` is `clients.device.handover`, or `clients.device.message_process`; its mark goes when the SuperNode
    has the reply. It is also what runs where a server asks for an app of another kind, and refuses that. The programs
    of the kinds that no device runs end at once. `flower-superexec`, which starts them, is Flower's own.
    """
    directory = home / "bin"
    directory.mkdir(exist_ok=True)
    cold = [sys.executable, "-P", "-m", "clients.device.message_process"]
    message = [
        *(cold if preloaded is None else handover.command(preloaded)),
        *([handover.SIGNED_BUNDLES] if signed else []),
    ]
    programs = dict.fromkeys(_APPS, message) | {name: ["false"] for name in _OF_NO_DEVICE}
    for name, command in (programs | {"flower-superexec": [script("flower-superexec")]}).items():
        program, mark = directory / name, shlex.quote(str(marks / name))
        lines = [
            "#!/bin/sh",
            f"echo $$ > {mark}",
            f"export {supervisor.MARK_VARIABLE}={mark}",
            f'exec {shlex.join(command)} "$@"',
        ]
        program.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        program.chmod(0o700)
    return directory


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return this client's key.

    Raises:
        SpatlError: It is missing, open to others, or no key that Flower takes.
    """
    check_private(path)
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SpatlError(f"{path} holds no private key of OpenSSH's on an elliptic curve, without a password")
    return key


class NotLetIn(SpatlError):
    """Refusal of a key by a server that is the right one."""


def await_server(address: Address, ca: Path, key: ec.EllipticCurvePrivateKey, *, added: bool) -> None:
    """Return once nothing is known that would keep this client out; one that was added waits until its key is known.

    Raises:
        SpatlError: As of `check_server`; of a client that was added, its key being unknown is no reason.
    """
    said = False
    while True:
        try:
            check_server(address, ca, key)
        except NotLetIn as error:
            if not added:
                raise
            if not said:
                logger.warning(
                    "waiting: %s; this client was added (spatl deploy add-client), and a server knows such a one from "
                    "its next start on (spatl deploy server DIR --resume)", error,
                )  # fmt: skip
                said = True
            time.sleep(_ASK_AGAIN_SECONDS)
        else:
            return


def check_server(address: Address, ca: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Raise where the server would never let this client in; a server that is away is waited for.

    Raises:
        SpatlError: The server's certificate is of another CA or host, or it speaks no TLS.
        NotLetIn: It does not know the key.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except OSError as error:
        raise SpatlError(f"cannot use {ca}: {error.strerror or 'it holds no certificate'}") from error
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=_CALL_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host),
        ):
            pass
    except ssl.SSLCertVerificationError as error:
        raise SpatlError(f"{address} is not the server that {ca} vouches for: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise SpatlError(f"{address} speaks no TLS ({error.reason}); is it a SuperLink, started without --insecure?"
                         ) from error  # fmt: skip
    except OSError as error:
        logger.warning("the server is not there yet (%s): %s; waiting for it", address, error.strerror or error)
        return
    public = key.public_key()
    own: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, public),
    ]
    request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    try:
        with FleetHttpClient(f"https://{address}", interceptors=own, verify=context, timeout=_CALL_SECONDS) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=client.ActivateNode(request).node_id))
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            raise NotLetIn(
                f"{address} does not let this client in (HTTP {error.response.status_code}): it does not know its key, "
                "or the clocks of the two machines differ, or a SuperNode with this key runs or was killed within the "
                "last minute"
            ) from error
    except httpx.HTTPError as error:
        logger.warning("the server is not ready yet (%s): %s; waiting for it", address, error)

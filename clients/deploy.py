"""Command `spatl deploy client`: this machine's SuperNode, after a check of whether the server will let it in.

`clients.device.supervisor` takes the place of this process and keeps the SuperNode running; beside it, unless `--cold`,
runs `clients.device.preloaded`. PyTorch is loaded there alone.
"""

import json
import logging
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from clients.admission import await_server, read_private_key
from clients.device import handover, supervisor
from spatl.config.device import DEVICE_FILE, DeviceConfig, read_device
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import on_device, parse_budget
from spatl.deployment import superexec
from spatl.deployment.processes import environment
from spatl.deployment.sites import (
    CA_CERTIFICATE,
    CLIENT_KEY,
    NO_FINDINGS,
    STATE,
    Address,
    ClientSite,
    make_private,
    private_files,
    read_client_site,
    replace_private,
)
from spatl.disk.locks import stay_alone_in
from spatl.errors import ConfigError, NotAllowed, SpatlError
from spatl.extensions.listed import ListedFiles
from spatl.json_files import to_json

logger = logging.getLogger(__name__)

_NODE_FILE = "node.toml"
_TRUSTED_FILE = "trusted.yaml"
_MARKS = "running"
_APPS = ("flwr-clientapp", "flwr-agentapp")
_OF_NO_DEVICE = ("flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
_PULSE = "pulse"
_SESSION = "session"
_LOCK = "lock"


@private_files()
def start(options: Namespace, console: Console) -> None:
    """Become the supervisor of the SuperNode of a client's directory.

    Raises:
        SpatlError: The directory is none of a client, or another process runs it; an option is wrong; the server is not
            the one of its CA, or does not know its key. Whatever else is in the way is waited for, and so is, by a
            client that was added to a federation, a server that does not know its key yet.
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
        sys.executable, "-P", "-m", "clients.device.supernode", "--superlink", site.address,
        "--isolation", "subprocess", "--host", "127.0.0.1",
    ]  # fmt: skip
    home = directory / "flower"
    if not home.exists():
        make_private(home)
    stay_alone_in(home / _LOCK, otherwise=SpatlError(f"another process runs the client of {directory}"))
    if options.insecure:
        logger.warning("--insecure: no TLS, no key; whoever is between here and %s can read and change all", address)
        command.append("--insecure")
    else:
        ca, key = directory / CA_CERTIFICATE, directory / CLIENT_KEY
        await_server(address, ca, read_private_key(key), added=site.added, session=home / _SESSION)
        command += ["--root-certificates", str(ca), "--auth-supernode-private-key", str(key)]
    # A JSON value is a TOML value once its characters are written out.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in node.items()]
    (home / _NODE_FILE).write_text("".join(lines), encoding="utf-8")
    console.print(f"client {site.client} of {site.num_clients}, server {address}, state in {node['state-dir']}",
                  markup=False, highlight=False, soft_wrap=True)  # fmt: skip
    command += _trusted(home, rules)
    settings = environment(home, here=False)
    preloaded = None if options.cold else home / "preloaded.sock"
    marks, pulse = home / _MARKS, home / _PULSE
    for own in (marks, pulse):
        own.mkdir(exist_ok=True)
    settings |= superexec.make_secret(home)
    settings |= {supervisor.PULSE_VARIABLE: str(pulse), supervisor.SESSION_VARIABLE: str(home / _SESSION)}
    settings["PATH"] = os.pathsep.join(
        [str(make_programs(home, marks, preloaded, signed=bool(rules.code.trusted))), settings["PATH"]]
    )
    os.chdir(home)
    command += ["--node-config", str(home / _NODE_FILE)]
    if preloaded is not None:  # the process that this one becomes is its parent
        command += ["--", sys.executable, "-P", "-m", "clients.device.preloaded", str(preloaded), str(os.getpid())]
    own_arguments = [supervisor.__file__, str(marks), str(pulse), str(site.client)]
    os.execve(sys.executable, [sys.executable, "-S", "-E", *own_arguments, *command], settings)


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


def make_programs(home: Path, marks: Path, preloaded: Path | None, *, signed: bool) -> Path:
    """Make a directory of programs that go before Flower's, each of which leaves its process id in a mark.

    `flwr-clientapp` is `clients.device.handover`, or `clients.device.message_process`; its mark goes when the SuperNode
    has the reply. It is also what runs where a server asks for an app of another kind, and refuses that. The programs
    of the kinds that no device runs end at once. What starts them is `spatl.deployment.superexec`.
    """
    directory = home / "bin"
    directory.mkdir(exist_ok=True)
    cold = [sys.executable, "-P", "-m", "clients.device.message_process"]
    message = [
        *(cold if preloaded is None else handover.command(preloaded)),
        *([handover.SIGNED_BUNDLES] if signed else []),
    ]
    programs = dict.fromkeys(_APPS, message) | {name: ["false"] for name in _OF_NO_DEVICE}
    for name, command in (programs | {superexec.PROGRAM: list(superexec.COMMAND)}).items():
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

"""Parsers of `spatl deploy`: one command for each machine, and those that change who takes part."""

from typing import Any

from spatl.channels.budgets import BUDGET_KINDS
from spatl.console.arguments import Parser, add_overrides, by_reference


def add_deploy_commands(roles: Any) -> None:
    """Add the commands to a group of argparse's (`add_subparsers`)."""
    _add_init(roles.add_parser("init", help="make the keys, and a directory for each machine"))
    _add_server(roles.add_parser("server", help="run the federation, on the server's machine"))
    _add_add_client(roles.add_parser("add-client", help="make keys and directories for further clients"))
    _add_retire(roles.add_parser("retire", help="take a client out for good"))
    _add_client(roles.add_parser("client", help="take part in it, on a client's machine"))


def _add_init(parser: Parser) -> None:
    parser.description = (
        "Make a certificate authority, the server's certificate and a key for each client, and lay them out in one "
        "directory for each machine."
    )
    parser.add_argument("directory", metavar="DIR", help="a new directory")
    parser.add_argument("config", metavar="CONFIG", help="a YAML file: the run; partition.num_clients clients")
    parser.add_argument(
        "--address", metavar="HOST:PORT", default="127.0.0.1:9092",
        help="where the clients find the server (%(default)s); its certificate is good for that host",
    )  # fmt: skip
    parser.add_argument(
        "--name", metavar="HOST", action="append", default=[], dest="names",
        help="a further name or IP address of the server, for its certificate",
    )  # fmt: skip
    add_overrides(parser)
    parser.set_defaults(command=by_reference("server.deployment.init:init"))


def _add_server(parser: Parser) -> None:
    parser.description = "Start a SuperLink, wait for all clients, run the federation, and stop it all."
    parser.add_argument("directory", metavar="DIR/server", help="what `spatl deploy init` made for the server")
    parser.add_argument(
        "--bind", metavar="HOST", default="127.0.0.1",
        help="the address of this machine to listen on (%(default)s); 0.0.0.0 for all",
    )  # fmt: skip
    parser.add_argument("--out", metavar="RUN", help="a new directory for the run's files (DIR/server/run)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run if it was stopped; start it if it never was"
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        help="how long to wait for all clients, where enough are there (600, with --resume 30)",
    )
    parser.add_argument(
        "--restarts",
        metavar="N",
        type=int,
        default=6,
        help="how often an hour a SuperLink or ServerApp that was killed or hangs is started again (%(default)d)",
    )
    parser.add_argument(
        "--longest-step",
        metavar="SECONDS",
        type=float,
        default=3600.0,
        help="a ServerApp that computes for so long without asking for replies hangs (%(default)g); 0 for never",
    )
    parser.add_argument("--insecure", action="store_true", help="no TLS, and any client may take part")
    add_overrides(parser, "with --resume, rounds=N: more rounds for a run that is finished, or was stopped")
    parser.set_defaults(command=by_reference("server.deployment.command:serve"))


def _add_add_client(parser: Parser) -> None:
    parser.description = (
        "Make a key and a directory for each new client of a deployment whose devices have data of their own, and have "
        "the server know them: one that runs takes them in between two rounds."
    )
    parser.add_argument("directory", metavar="DIR", help="what `spatl deploy init` made, or DIR/server of it alone")
    parser.add_argument("--count", metavar="N", type=int, default=1, help="how many clients (%(default)s)")
    parser.set_defaults(command=by_reference("server.deployment.adding:add_clients"))


def _add_retire(parser: Parser) -> None:
    parser.description = (
        "Take a client out of a deployment for good: its key is refused, and it has no part in what follows; a server "
        "that runs lets it go between two rounds."
    )
    parser.add_argument("directory", metavar="DIR", help="what `spatl deploy init` made, or DIR/server of it alone")
    parser.add_argument("client", metavar="ID", type=int, help="the client's number")
    parser.set_defaults(command=by_reference("server.deployment.retiring:retire"))


def _add_client(parser: Parser) -> None:
    parser.description = (
        "Start a SuperNode; it takes part in what the server runs until it is stopped. What a run may ask of this "
        "device its owner says in DIR/client-ID/device.yaml."
    )
    parser.add_argument("directory", metavar="DIR/client-ID", help="what `spatl deploy init` made for this client")
    parser.add_argument("--data-dir", metavar="PATH", help="this device's copy of the data, for data.options.path")
    parser.add_argument(
        "--budget", metavar="KIND=LIMIT", help=f"what it may spend: {', '.join(BUDGET_KINDS)}, e.g. keep_ratio=0.3"
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps, for training.device")
    parser.add_argument(
        "--no-findings", action="store_true", help="tell nothing of these data where the config says report.findings"
    )
    parser.add_argument(
        "--cold", action="store_true", help="load PyTorch anew for each message, and hold no memory for it in between"
    )
    parser.add_argument("--insecure", action="store_true", help="no TLS and no key, for a server that has none")
    parser.set_defaults(command=by_reference("clients.deploy:start"))

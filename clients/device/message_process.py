"""Program that handles one message: Flower's `flwr-clientapp` without what it never uses.

The package of Flower's own program imports the SuperNode, and with it a web server and a database: more than PyTorch.
"""

import argparse
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.common.args import add_args_flwr_app_common, try_obtain_flwr_app_token
from flwr.supercore.tls import validate_and_resolve_root_certificates

from clients.device.bundle import App, app_for
from clients.device.handover import SIGNED_BUNDLES
from clients.device.supervisor import MARK_VARIABLE
from spatl.deployment.processes import end_with_parent
from spatl.runs.log import make_logs_printable

_runtime: Any = import_module("flwr.supernode.runtime.run_clientapp")


def main() -> None:
    """Handle one message, by the arguments of Flower's program; end with the process that started this one."""
    _handle(is_fork=False)


def main_of_fork() -> None:
    """Do the same in a fork, which ends with the program that asked for it."""
    _handle(is_fork=True)


def _handle(*, is_fork: bool) -> None:
    make_logs_printable()
    parser = argparse.ArgumentParser(prog="flwr-clientapp")
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument(SIGNED_BUNDLES, action="store_true")
    add_args_flwr_app_common(parser=parser)
    options = parser.parse_args()
    signed = getattr(options, SIGNED_BUNDLES.strip("-").replace("-", "_"))
    if not signed:
        _keep_out_bundles()
    if not is_fork:
        end_with_parent(options.parent_pid)
    if mark := os.environ.get(MARK_VARIABLE):
        _unmark_when_answered(Path(mark))
    _runtime.run_clientapp(
        runtime_api_address=options.runtime_api_address,
        token=_token(options),
        insecure=options.insecure,
        certificates=validate_and_resolve_root_certificates(options.root_certificates, options.insecure),
        parent_pid=options.parent_pid,
        runtime_dependency_install=signed and options.runtime_dependency_install,
    )


def _token(options: argparse.Namespace) -> str:
    """Return the token that Flower's options give; the file of one goes, for nobody reads it again."""
    token = try_obtain_flwr_app_token(options)
    if options.token_file is not None:
        Path(options.token_file).unlink(missing_ok=True)
    return token


def _keep_out_bundles() -> None:
    """Have the installed ClientApp handle the message, and nothing of a bundle be written, imported or installed."""
    found: list[App] = []

    def look_at(content: bytes, **named: Any) -> None:
        found.append(app_for(content))

    def installed_only(**named: Any) -> Callable[..., App]:
        return lambda *bundle: found[-1]

    _runtime.install_from_fab, _runtime.get_load_client_app_fn = look_at, installed_only


def _unmark_when_answered(mark: Path) -> None:
    """Delete a mark once the SuperNode has the whole reply: until then it waits, and for ever if none comes."""
    push = _runtime.push_message

    def push_and_unmark(*arguments: Any, **named: Any) -> None:
        push(*arguments, **named)
        mark.unlink(missing_ok=True)

    _runtime.push_message = push_and_unmark


if __name__ == "__main__":
    main()

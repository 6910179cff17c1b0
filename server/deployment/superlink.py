"""SuperLink that shows the network its Fleet API alone: `python -m server.deployment.superlink`, with Flower's options.

Flower 1.41 serves three APIs on one port and authenticates only the SuperNodes of one, the Fleet API: whoever reached
the port could register a key of its own or start a run, which is code on every machine (Control). So this one listens
twice. The public socket answers SuperNodes, once it has been opened; the private one, on loopback, answers whoever
knows the token of this process, and Flower's own task processes (Runtime), which have tokens of Flower's. Who gets
through, with how much, is `server.deployment.gate`'s; how long connections last `server.deployment.connections`'.
"""

import argparse
import os
import sys
from logging import INFO
from pathlib import Path

import uvicorn
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.error import FlowerError
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.main import create_app
from flwr.superlink.servicer.fleet import fleet_handlers

from server.deployment.connections import Doorkeeper, hurried_protocol
from server.deployment.gate import Gate
from server.deployment.sockets import TOKEN_VARIABLE, listening
from spatl.deployment.keys import KEY_IN_USE, UNKNOWN_KEY
from spatl.deployment.processes import end_with_parent
from spatl.deployment.superexec import read_secret

_flowers_activate_node = fleet_handlers.activate_node


def activate_node(request: ActivateNodeRequest, state: LinkState) -> ActivateNodeResponse:
    """Activate a node as Flower does.

    Raises:
        FlowerError: As of Flower's; its public details say whether the key is the reason.
    """
    try:
        return _flowers_activate_node(request=request, state=state)
    except FlowerError as error:
        known = state.get_node_id_by_public_key(request.public_key) is not None
        error.public_details = KEY_IN_USE if known else UNKNOWN_KEY
        raise


def main() -> None:
    """Run the SuperLink until a signal stops it."""
    parser = argparse.ArgumentParser(prog="python -m server.deployment.superlink", add_help=False)
    parser.add_argument("--fleet-host", required=True)
    parser.add_argument("--fleet-port", type=int, required=True)
    parser.add_argument("--most-connections", type=int, required=True)
    parser.add_argument("--registration", type=Path, required=True)
    options, flowers = parser.parse_known_args()
    token = os.environ.pop(TOKEN_VARIABLE)
    end_with_parent()
    fleet_handlers.activate_node = activate_node
    sys.argv = ["flower-superlink", *flowers]  # Flower's parser takes no other
    config = _parse_superlink_lifespan_config()
    config.superexec_auth_secret = read_secret()  # which Flower leaves out where it starts the SuperExec itself
    app = create_app(config, SuperLinkLifespan)
    app.add_middleware(Gate, private_port=config.port, token=token, registration=options.registration)
    settings = uvicorn.Config(
        app,
        log_config=get_uvicorn_log_config(INFO),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        proxy_headers=False,
        http=hurried_protocol(Doorkeeper(options.fleet_port, options.most_connections)),
        ws="none",
    )
    uvicorn.Server(settings).run(
        sockets=[listening(config.host, config.port), listening(options.fleet_host, options.fleet_port)]
    )


if __name__ == "__main__":
    main()

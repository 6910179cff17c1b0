"""Flower's `flwr-clientapp`, which handles one message, without what it never uses.

The package of Flower's own program imports the SuperNode, and with it a web server and a database: more than PyTorch.
"""

import argparse

from flwr.common.args import add_args_flwr_app_common, try_obtain_flwr_app_token
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import run_clientapp


def main() -> None:
    """Take the arguments of Flower's program and do as it does."""
    parser = argparse.ArgumentParser(prog="flwr-clientapp")
    parser.add_argument("--runtime-api-address", required=True)
    add_args_flwr_app_common(parser=parser)
    options = parser.parse_args()
    run_clientapp(
        runtime_api_address=options.runtime_api_address,
        token=try_obtain_flwr_app_token(options),
        insecure=options.insecure,
        certificates=validate_and_resolve_root_certificates(options.root_certificates, options.insecure),
        parent_pid=options.parent_pid,
        runtime_dependency_install=options.runtime_dependency_install,
    )


if __name__ == "__main__":
    main()

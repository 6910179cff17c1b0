"""Process that has PyTorch and the ClientApp loaded for messages to come.

It is started as `python -m clients.device.preloaded SOCKET PARENT`. Flower starts a process for every message, which
would import PyTorch anew each time. Where `clients.device.handover` is what it starts instead, the message is handled
in a fork of this process, in hardly more memory than a process of its own takes.
"""

import sys
from pathlib import Path

import clients.app  # noqa: F401  (for the forks)
from clients.device import message_process
from clients.device.forking import serve
from spatl.extensions.late import import_late_modules

import_late_modules()  # for the forks, too


def main() -> None:
    """Serve Flower's messages."""
    serve(Path(sys.argv[1]), message_process.main_of_fork, parent=int(sys.argv[2]))


if __name__ == "__main__":
    main()

"""App bundle of a run, on a device whose owner trusts nobody's code: looked at, and never unpacked or imported.

Flower unpacks a bundle, puts its directory on Python's path, and imports the component that it names. Here the
installed ClientApp handles every message instead, and a bundle that names another one gets a refusal.
"""

import io
import logging
import tomllib
import zipfile
from collections.abc import Callable
from typing import Any, Final

from flwr.app import Context, Error, Message

from clients.app import app
from spatl.config.engines import CLIENT_APP
from spatl.errors import NotAllowed
from spatl.wire.blob import CLIENT_REFUSED

logger = logging.getLogger(__name__)

App = Callable[[Message, Context], Message]
_LARGEST: Final = 16_000_000  # a run's config, written out, is the most of it


def app_for(content: bytes) -> App:
    """Return what handles the messages of a run: the installed ClientApp, or a refusal of every message.

    Args:
        content: The bundle, which Flower calls a FAB.
    """
    try:
        named = _component(content)
    except Exception as error:  # of anybody's bytes
        return _refusing(NotAllowed(f"code.trusted: the run's app bundle cannot be read: {type(error).__name__}"))
    if named != CLIENT_APP:
        return _refusing(NotAllowed.of("code.trusted (the app bundle's clientapp)", named, f"{CLIENT_APP} alone"))
    return lambda message, context: app(message, context)


def _component(content: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        info = bundle.getinfo("pyproject.toml")
        if info.file_size > _LARGEST:
            raise ValueError("too large")
        project: dict[str, Any] = tomllib.loads(bundle.read(info).decode("utf-8"))
    return str(project["tool"]["flwr"]["app"]["components"].get("clientapp", "none"))


def _refusing(error: NotAllowed) -> App:
    def refuse(message: Message, context: Context) -> Message:
        logger.error("this device could not do what it was asked for (%s): %s", message.metadata.message_type, error)
        return Message(Error(code=CLIENT_REFUSED, reason=str(error)), reply_to=message)

    return refuse

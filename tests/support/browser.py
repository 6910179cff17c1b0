"""A headless Chromium for tests: opens a file and tells what happened, over its debugging pipe, without a driver."""

import base64
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe")  # fmt: skip
_TIMEOUT_SECONDS = 60.0


def chromium() -> str:
    """The browser's program; without one the test is skipped, except in CI, which installs it."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no Chromium; .ci/run installs it")
    pytest.skip("no Chromium on this machine")


@dataclass
class Visit:
    """What a page did while it was open.

    Attributes:
        requests: The URLs that were asked for.
        complaints: Errors and warnings of the console, and exceptions.
    """

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class Browser:
    """One page in a browser of its own; a context manager."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._next = 0
        self._buffer = b""
        self.visit = Visit()

    def __enter__(self) -> "Browser":
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads commands from its descriptor 3 and writes answers to its descriptor 4.
        command = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", command, str(to_browser), str(from_browser), chromium(), *_FLAGS,
             f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self._read, False)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def open(self, path: Path, *, width: int = 1300, height: int = 1000) -> None:
        """Load a file and wait until it is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while self.value("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command about the page and return its result."""
        return self._call(method, session=self._session, **parameters)

    def _call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        message = {"id": self._next, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            answer = self._receive()
            if answer is None:
                time.sleep(0.01)
            elif answer.get("id") == self._next:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            else:
                self._note(answer)
        raise TimeoutError(method)

    def _receive(self) -> dict[str, Any] | None:
        while b"\0" not in self._buffer:
            try:
                data = os.read(self._read, 1 << 20)
            except BlockingIOError:
                return None
            assert data, "the browser is gone"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.visit.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.visit.complaints.append(json.dumps(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("warning", "error"):
                self.visit.complaints.append(parameters["entry"]["text"])
            case "Runtime.consoleAPICalled" if parameters["type"] in ("warning", "error", "assert"):
                self.visit.complaints.append(json.dumps(parameters["args"]))


# Text and tables beyond the right edge, apart from what scrolls by itself.
_CUT = """
[...document.querySelectorAll('h1, h2, p, figcaption, pre, table, summary, .wide')]
  .filter(e => !e.parentElement.closest('.wide'))
  .filter(e => e.getBoundingClientRect().right > document.scrollingElement.clientWidth + 1
               || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX == 'visible')
  .map(e => e.outerHTML.slice(0, 80))
"""


def assert_fits(browser: Browser, path: Path, width: int) -> None:
    """Check that a page does not scroll sideways at a width, and that nothing on it is cut."""
    browser.open(path, width=width)
    assert browser.value("document.scrollingElement.scrollWidth <= document.scrollingElement.clientWidth")
    assert browser.value(_CUT) == []
    assert browser.value("[...document.querySelectorAll('.wide')].every(e => getComputedStyle(e).overflowX == 'auto')")

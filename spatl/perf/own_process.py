"""Measurement in a process of its own, whose peak memory is that of what it measures."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from spatl.errors import SpatlError


def found_by(module: str, *arguments: str, told: str) -> dict[str, Any]:
    """Run a module, and return the JSON object of the last line that it prints.

    Args:
        module: The module.
        arguments: Its arguments.
        told: What a failure calls it.

    Raises:
        SpatlError: The process failed.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = "".join(done.stderr.strip().splitlines()[-1:]) or f"it ended with status {done.returncode}"
        raise SpatlError(f"{told} failed: {re.sub(r'^spatl[.]errors[.][A-Za-z]+: ', '', last)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number from `least` to `most` for argparse, and says so of all else."""

    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")

    return read

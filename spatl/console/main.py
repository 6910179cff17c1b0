"""Command line: options are parsed, the command is called, and what ends it is told in one line."""

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from spatl.console.arguments import Parser
from spatl.errors import SpatlError, from_outside, system_fault, told
from spatl.runs.log import TextFormatter, make_logs_printable
from spatl.terminal.screen import Screen

USER_MISTAKE = 2


def main(arguments: Sequence[str] | None = None, *, begin: Callable[[], None] = lambda: None) -> int:
    """Run the command line and return its exit status: 0 on success, 2 on a mistake of the user's.

    Args:
        arguments: What was typed after `spatl`; the process's own if not given.
        begin: Called right before the command, which a `KeyboardInterrupt` stops from then on.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser_for(words).parse_args(words)
    make_logs_printable()
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter(tracebacks=options.debug))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # A model given as "package.module:factory" may lie beside the config, where the user is.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        begin()
        command(options)
    except SpatlError as error:
        if options.debug:
            traceback.print_exception(error)
        hint = " (--debug prints the traceback)" if from_outside(error) and not options.debug else ""
        Screen(stderr=True, highlight=False, soft_wrap=True).print(f"spatl: {error}{hint}", markup=False)
        return USER_MISTAKE
    except OSError as error:
        fault = system_fault(error)
        if fault is None or options.debug:
            raise
        Screen(stderr=True, highlight=False, soft_wrap=True).print(f"spatl: {fault}", markup=False)
        return USER_MISTAKE
    except SystemExit as error:  # of code of the user's, or of a library: no command ends by one
        if options.debug:
            raise
        line = f"spatl: code that was called ended the program: {told(error)}; let it raise an exception instead"
        Screen(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)
        return USER_MISTAKE
    except KeyboardInterrupt:
        Screen(stderr=True).print("spatl: interrupted; what was written until then stands in the output directory")
        return 130
    return 0


def _parser_for(words: Sequence[str]) -> Parser:
    """Return the parser of the command line; that of `spatl predict` alone where it is what was asked for.

    All others come with what reads configs, which a device that predicts need not have, nor wait for.
    """
    if words[:1] == ["predict"]:
        from spatl.console.predict import make_predict_parser

        return make_predict_parser()
    from spatl.console.parser import make_parser

    return make_parser()

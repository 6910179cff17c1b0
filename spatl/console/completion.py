"""Command `spatl completion SHELL`: a script that completes the command line, made from its parser.

The script is static: nothing of Python is started at a key press, which would take half a second each time. It knows
the commands, their options, the values that are a choice, the settings after `--set`, and the configs that ship.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from spatl.config.settings import section_meanings, setting_keys
from spatl.config.shipped import shipped_configs
from spatl.console.arguments import Parser

_FILES: Final = "<files>"
"""In a list of values: names of files as well."""


@dataclass(frozen=True)
class _Command:
    """Command with its words and options, as a shell needs it.

    Attributes:
        words: Its words, without the program's.
        flags: Its options, with their meaning.
        values: What follows an option that takes a value.
        arguments: What stands by itself: commands below it, choices, files.
    """

    words: tuple[str, ...]
    flags: dict[str, str]
    values: dict[str, tuple[str, ...]]
    arguments: tuple[str, ...]


def print_completion(options: argparse.Namespace, console: Console) -> None:
    """Print the script for a shell, for the program whose parser the options carry."""
    make = {"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell]
    print(make(list(_commands(options.root))), end="")


def _commands(parser: Parser, words: tuple[str, ...] = ()) -> Iterator[_Command]:
    flags: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    arguments: tuple[str, ...] = ()
    below: dict[str, Parser] = {}
    for action in parser._actions:  # argparse has no other way to look at a parser
        for flag in action.option_strings:
            flags[flag] = " ".join((action.help or "").replace("%(default)s", str(action.default)).split())
            if action.nargs != 0:
                values[flag] = _values(action)
        if isinstance(action, argparse._SubParsersAction):
            below = dict(action.choices)
            arguments += tuple(below)
        elif not action.option_strings:
            arguments += _values(action)
    yield _Command(words, flags, values, arguments)
    for name, child in below.items():
        yield from _commands(child, (*words, name))


def _values(action: argparse.Action) -> tuple[str, ...]:
    if action.choices is not None:
        return tuple(map(str, action.choices))
    if action.dest == "overrides":
        return tuple(f"{key}=" for key in setting_keys())
    if action.dest in ("config", "configs"):
        return (*shipped_configs(), _FILES)
    if action.dest == "names":
        return tuple(filter(None, section_meanings()))
    is_path = str(action.metavar or "").startswith(("DIR", "FILE", "PATH", "RUN"))
    return (_FILES,) if is_path else ()


_CORE = """\
# Candidates for the word after the given ones, one a line; "{files}" stands for names of files.
_spatl_candidates() {{
  local command="" previous="" word
  for word in "$@"; do
    case "$command:$word" in
{steps}
    esac
    previous="$word"
  done
  case "$command:$previous" in
{values}
  esac
  case "$command" in
{arguments}
  esac
}}
"""


def _core(commands: list[_Command]) -> str:
    """Return the function that bash and zsh share: `case` and `printf` mean the same in both."""
    steps, values, arguments = [], [], []
    for command in commands:
        path = " ".join(command.words)
        if command.words:
            above = " ".join(command.words[:-1])
            steps.append(f'      "{above}:{command.words[-1]}") command="{path}" ;;')
        for flag, found in command.values.items():
            values.append(f'    "{path}:{flag}") {_printed(found)}; return ;;')
        arguments.append(f'    "{path}") {_printed((*command.arguments, *command.flags))} ;;')
    return _CORE.format(files=_FILES, steps="\n".join(steps), values="\n".join(values), arguments="\n".join(arguments))


def _printed(words: tuple[str, ...]) -> str:
    return "printf '%s\\n' " + " ".join(f"'{word}'" for word in words) if words else ":"


def _bash(commands: list[_Command]) -> str:
    return f"""\
# Completion of spatl for bash; for example: source <(spatl completion bash)
{_core(commands)}
_spatl() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" word
  COMPREPLY=()
  while IFS= read -r word; do
    if [[ "$word" == "{_FILES}" ]]; then
      compopt -o filenames 2>/dev/null
      while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
    elif [[ "$word" == "$current"* ]]; then
      COMPREPLY+=("$word")
    fi
  done < <(_spatl_candidates "${{COMP_WORDS[@]:1:COMP_CWORD-1}}")
  if [[ ${{#COMPREPLY[@]}} -eq 1 && "${{COMPREPLY[0]}}" == *= ]]; then compopt -o nospace 2>/dev/null; fi
}}
complete -F _spatl spatl
"""


def _zsh(commands: list[_Command]) -> str:
    return f"""\
#compdef spatl
# Completion of spatl for zsh; for example: source <(spatl completion zsh), after compinit
{_core(commands)}
_spatl() {{
  local word
  local -a plain unfinished
  for word in "${{(@f)$(_spatl_candidates "${{(@)words[2,CURRENT-1]}}")}}"; do
    case "$word" in
      "") ;;
      "{_FILES}") _files ;;
      *=) unfinished+=("$word") ;;
      *) plain+=("$word") ;;
    esac
  done
  (( $#plain )) && compadd -- "${{plain[@]}}"
  (( $#unfinished )) && compadd -S '' -- "${{unfinished[@]}}"
}}
if [[ "${{funcstack[1]}}" == _spatl ]]; then _spatl "$@"; else compdef _spatl spatl; fi
"""


def _fish(commands: list[_Command]) -> str:
    lines = ["# Completion of spatl for fish; for example: spatl completion fish | source", "complete -c spatl -f"]
    for command in commands:
        seen = [f"__fish_seen_subcommand_from {word}" for word in command.words]
        below = [other.words[-1] for other in commands if other.words[:-1] == command.words and other.words]
        if below:
            seen.append(f"not __fish_seen_subcommand_from {' '.join(below)}")
        condition = f' -n "{"; and ".join(seen)}"' if seen else ""
        words = [word for word in command.arguments if word != _FILES]
        if words:
            lines.append(f"complete -c spatl{condition} -a {_quoted(' '.join(words))}")
        if _FILES in command.arguments:
            lines.append(f"complete -c spatl{condition} -F")
        for flag, meaning in command.flags.items():
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            if flag in command.values:
                choices = [word for word in command.values[flag] if word != _FILES]
                option += f" -x -a {_quoted(' '.join(choices))}" if choices else " -r"
                option += " -F" if _FILES in command.values[flag] else ""
            lines.append(f"complete -c spatl{condition} {option} -d {_quoted(meaning)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a string in fish's single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

"""Completion scripts, tried in the shells they are for."""

import shutil
import subprocess

import pytest

from spatl.console.main import main

# What is typed, the last word being completed, and some of what must be offered.
TYPED = [
    ([""], {"run", "status", "bench", "show", "agent", "deploy"}),
    (["ru"], {"run"}),
    (["run", "quickst"], {"quickstart"}),
    (["run", "--engine", ""], {"inline", "ray"}),
    (["run", "quickstart", "--set", "training.lea"], {"training.learning_rate="}),
    (["agent", ""], {"pretrain", "evaluate"}),
    (["agent", "evaluate", "--kind", ""], {"keep_ratio", "flops_ratio", "uplink_bytes"}),
    (["show", "sett"], {"settings"}),
    (["show", "settings", "privac"], {"privacy"}),
    (["run", "quickstart", "--res"], {"--resume"}),
    (["completion", ""], {"bash", "zsh", "fish"}),
]
_BASH = """
source "$1"; shift
COMP_WORDS=(spatl "$@"); COMP_CWORD=$#
_spatl
printf '%s\\n' "${COMPREPLY[@]}"
"""
_ZSH = """
compdef() { : }
compadd() { while [[ "$1" != "--" ]]; do shift; done; shift; print -rl -- ${(M)@:#${words[CURRENT]}*} }
_files() { : }
source "$1"; shift
words=(spatl "$@"); CURRENT=$#words
_spatl
"""
_FISH = """
source $argv[1]
complete -C (string join ' ' -- spatl $argv[2..])
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return tmp_path_factory.mktemp("completion")


@pytest.mark.parametrize(("shell", "program"), [("bash", _BASH), ("zsh", _ZSH), ("fish", _FISH)])
@pytest.mark.parametrize(("typed", "offered"), TYPED)
def test_a_shell_offers_what_may_come_next(shell, program, typed, offered, scripts, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    script = scripts / f"spatl.{shell}"
    if not script.exists():
        assert main(["completion", shell]) == 0
        script.write_text(capsys.readouterr().out)
    plain = {"bash": ["--norc", "-c", program, "bash"], "zsh": ["-f", "-c", program, "zsh"],
             "fish": ["--no-config", "-c", program, "--"]}[shell]  # fmt: skip
    done = subprocess.run([shell, *plain, str(script), *typed], capture_output=True, text=True, cwd=scripts)
    assert done.stderr == ""
    found = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert offered <= found
    assert all(each.startswith(typed[-1]) for each in found if each)


def test_a_file_is_offered_where_one_is_wanted(scripts, capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "spatl.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()
    done = subprocess.run(["bash", "--norc", "-c", _BASH, "bash", str(script), "run", "mi"], capture_output=True,
                          text=True, cwd=tmp_path)  # fmt: skip
    assert done.stdout.split() == ["mine.yaml"]

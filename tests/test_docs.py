"""What the documentation says can be typed can be typed."""

import configparser
import importlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import spatl
from clients.deploy import read_private_key
from server.deployment.keys import read_public_keys
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.config.settings import all_settings
from spatl.console.main import main
from spatl.console.parser import make_parser
from spatl.wire.blob import VERSION
from tests.support.federations import tiny_config

ROOT = Path(__file__).parents[1]
PATHS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PATHS}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
CHECKED = ("algorithm.md", "architecture.md", "glossary.md", "index.md", "CONTRIBUTING.md")
ROOMS = [each.name for each in pkgutil.iter_modules(spatl.__path__)]
SECTIONS = {setting.key.partition(".")[0] for setting in all_settings() if "." in setting.key}
WORD = re.compile(r"\b[A-Z]{2,}\b|\.\.\.|\|")  # as in `spatl status RUN`, `spatl deploy init|server|client`


def fences(page: str, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(PAGES[page]) if language in languages]


def commands() -> list[tuple[str, str]]:
    """The commands of `spatl` on all pages: lines of blocks, services' and containers', and those within a sentence."""
    found = []
    for page, text in PAGES.items():
        outside = FENCE.sub("", text)
        inline = [each for each in re.findall(r"`(spatl [^`]*)`", outside) if "/" in each or "--" in each]
        blocks = "\n".join(each for _, each in FENCE.findall(text)).replace("\\\n", " ")
        lines = re.findall(r"^(?: *command: |ExecStart=| *\$ |)((?:[\w./]*/)?spatl [a-z].*)$", blocks, re.M)
        found += [(page, re.sub(r"\s+#.*", "", " ".join(line.split()))) for line in (*inline, *lines)]
    return sorted({each for each in found if not WORD.search(each[1])})


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_on_a_page_is_one(page, command):
    _, *arguments = shlex.split(command)
    assert callable(make_parser().parse_args(arguments).command)


def test_the_commands_of_a_deployment_are_among_those():
    of_deployment = [command for page, command in commands() if page == "docs/deploy.md"]
    roles = {command.split()[2] for command in of_deployment if "deploy" in command}
    assert roles == {"init", "server", "client", "add-client", "retire"}
    assert len(of_deployment) >= 8


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_a_page_names_is_there(page):
    names = re.findall(
        r"(?<![\w/.-])((?:configs|docs|tests|spatl|clients|server|agents)/[\w/.-]+\.(?:yaml|md|py|json))", PAGES[page]
    )
    assert [name for name in names if not WORD.search(name) and not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", PAGES[page])
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def anchors(path: Path) -> set[str]:
    """What links may name of a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_a_heading_that_a_link_names_is_there(page):
    links = re.findall(r"\]\(([^)#:]*)#([\w-]+)\)", PAGES[page].replace("\n", " "))
    paths = [((ROOT / page).parent / name if name else ROOT / page, anchor) for name, anchor in links]
    assert [(path, anchor) for path, anchor in paths if anchor not in anchors(path)] == []


def named_in_code(name: str) -> bool:
    """Whether a dotted name is one of the code, below `spatl` or from a package on."""
    for start in (f"spatl.{name}", name):
        parts = start.split(".")
        for length in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            for part in parts[length:]:
                found = getattr(found, part, None)
            if found is not None:
                return True
            break
    return False


@pytest.mark.parametrize("page", [name for name in PAGES if name.split("/")[-1] in CHECKED])
def test_a_dotted_name_on_a_page_about_the_code_is_a_setting_or_a_name_of_the_code(page):
    first = "|".join([*ROOMS, "spatl", "clients", "server", "agents", *SECTIONS])
    found = set(re.findall(rf"(?<![\w/.-])(?:{first})(?:\.\w+)+(?!\w*[/(])", PAGES[page]))
    names = {name for name in found if name.rpartition(".")[2] not in ("md", "py", "json", "yaml")}
    settings = {setting.key for setting in all_settings()}
    assert sorted(name for name in names if name not in settings and not named_in_code(name)) == []


def test_the_rooms_on_the_page_are_those_that_the_contract_has_in_this_order():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("exhaustive")]
    page = PAGES["docs/architecture.md"].partition("## The rooms of `spatl`")[2].partition("\n## ")[0]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in page.splitlines() if row.startswith("| `")]
    assert rows == [layer.split(" | ") for layer in layers]


def test_an_update_enters_no_room_twice_on_its_way():
    way = PAGES["docs/architecture.md"].partition("## One update's way")[2].partition("\n## ")[0]
    client, server = (re.findall(r"^\d\. `(\w+)`:", side, re.M) for side in way.split("\nOn the server,"))
    for rooms in (client, server):
        assert len(set(rooms)) == len(rooms) > 1
        assert set(rooms) <= set(ROOMS)


def test_every_page_is_in_the_index():
    links = set(re.findall(r"\]\(([\w-]+\.md)\)", PAGES["docs/index.md"]))
    assert links == {path.name for path in ROOT.glob("docs/*.md")} - {"index.md"}


@pytest.mark.parametrize(("page", "text"), [(page, text) for page in PAGES for text in fences(page, "yaml")])
def test_yaml_on_a_page_is_a_config_or_a_compose_file(page, text, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")  # where the modules lie that docs/extending.md names
    content = yaml.safe_load(text)
    if "services" in content:
        assert {"image", "command", "volumes", "restart"} <= set.intersection(*map(set, content["services"].values()))
    else:
        assert isinstance(parse_config(content), ExperimentConfig)


def test_versions_on_the_pages_are_those_of_the_code():
    """The format of the wire wherever its page names it, the oldest Python, and Flower's release."""
    page = PAGES["docs/wire-format.md"]
    statements = (r"^Version (\d+)\.", r"version of the format, (\d+)", r"fifth byte and is (\d+)",
                  r"^ 4 +0(\d) +version of the format")  # fmt: skip
    found = [number for text in statements for number in re.findall(text, page, re.M)]
    assert found == [str(VERSION)] * len(statements)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = project["requires-python"].removeprefix(">=")
    assert {number for text in PAGES.values() for number in re.findall(r"Python (\d\.\d+)", text)} == {python}
    (flower,) = [text for text in project["dependencies"] if text.startswith("flwr")]
    named = {number for text in PAGES.values() for number in re.findall(r"(?:Flower|flwr) (\d+\.\d+)", text)}
    assert {f"flwr>={number}" in flower for number in named} == {True}


def test_a_systemd_unit_restarts_what_it_starts():
    for text in fences("docs/deploy.md", "ini"):
        unit = configparser.ConfigParser()
        unit.optionxform = str
        unit.read_string(text)
        assert unit["Service"]["ExecStart"].startswith("/")
        assert unit["Service"]["Restart"] in ("always", "on-failure")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_a_device_may_make_its_own_key_as_the_guide_says(tmp_path):
    (line,) = re.findall(r"`(ssh-keygen [^`]*)`", PAGES["docs/deploy.md"])
    (tmp_path / "config.yaml").write_text(tiny_config().to_yaml())
    assert main(["deploy", "init", str(tmp_path / "made"), str(tmp_path / "config.yaml")]) == 0
    client = tmp_path / "made" / "client-0"
    (client / "client.key").unlink()
    subprocess.run(shlex.split(line), cwd=client, check=True, stdout=subprocess.DEVNULL)
    server = tmp_path / "made" / "server"
    before = read_public_keys(server, range(tiny_config().partition.num_clients))
    (client / "client.key.pub").replace(server / "clients" / "client-0.pub")
    (server / "clients" / "client-0.pub").chmod(0o600)
    after = read_public_keys(server, range(tiny_config().partition.num_clients))
    assert [name for name in before if before[name] != after[name]] == [0]
    assert read_private_key(client / "client.key").curve.key_size == 384


def test_the_glossary_has_each_term_once_in_order_with_the_module_that_defines_it():
    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- \*\*(.+?)\*\*(.*?)(?=^- \*\*|\Z)", page, re.M | re.S)
    terms = [term for term, _ in entries]
    assert terms == sorted(set(terms), key=str.lower)
    for term, text in entries:
        assert re.search(r"\((`\w+(/\w+)+\.py`(, )?)+\)\.\s*$", text), term  # that it is there another test holds
    assert {
        "accumulated step weight", "agent", "blueprint", "budget", "calibrated predictor", "channel", "channel group",
        "client", "codec", "control variate", "cut", "download", "downlink", "encoder", "entry", "federation",
        "fingerprint", "keep ratio", "layout", "ledger", "method", "node", "owner", "partition", "predictor", "reading",
        "registration", "round", "row", "salient", "selection", "selector", "server state", "snapshot", "step",
        "update", "uplink", "version",
    } <= set(terms)  # fmt: skip

"""A cluster of Ray's: two nodes on this machine, on both of which clients train, as inline to the bit."""

import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from spatl.deployment.processes import environment, free_port, stop
from spatl.errors import SpatlError
from spatl.runner import resume, run
from spatl.runs.records import read_lines
from tests.support.federations import history_without_seconds, tiny_config

pytestmark = pytest.mark.slow

CONFIG = {"partition": {"num_clients": 4}}
_SECONDS = 120.0


@contextlib.contextmanager
def node(place: Path, *arguments: str, before: tuple[str, ...] = ()):
    """A node of a cluster, stopped with all it has started; `before` is a command that starts another."""
    ray = Path(sys.executable).with_name("ray")
    command = [*before, str(ray), "start", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", *arguments]
    settings = {**environment(place), "RAY_TMPDIR": str(place)}
    with (
        (place / "node.log").open("ab") as log,
        subprocess.Popen(
            command,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            stop(process)


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes, the process of the second, and a directory that it does not see."""
    with contextlib.ExitStack() as stack:
        # Ray's sockets want short names.
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)))
        address = f"127.0.0.1:{free_port()}"
        head = stack.enter_context(
            node(place, "--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false")
        )
        await_text(place, "Ray runtime started", 1, head)
        hidden = place / "hidden"
        hidden.mkdir()
        # What the second node does not see.
        hiding = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden))
        before = hiding if _run([*hiding, "true"]) else ()
        second = stack.enter_context(node(place, f"--address={address}", before=before))
        await_text(place, "Ray runtime started", 2, second)
        yield address, second, hidden if before else None


def _run(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def await_text(place: Path, text: str, number: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _SECONDS
    while (told := (place / "node.log").read_text()).count(text) < number:
        assert process.poll() is None, told
        assert time.monotonic() < deadline, told
        time.sleep(0.2)


def test_what_is_no_cluster_is_one_line(tmp_path):
    nowhere = f"127.0.0.1:{free_port()}"
    config = tiny_config(**CONFIG, engine="ray", resources={"ray_address": nowhere})
    with pytest.raises(SpatlError, match=rf"no Ray cluster answers at {re.escape(nowhere)} .*ray start --head"):
        run(config, tmp_path / "run", pictures=False)


def test_a_node_that_does_not_see_the_runs_directory_is_named_before_the_run(cluster):
    address, _, hidden = cluster
    if hidden is None:
        pytest.skip("nothing can be mounted here")
    config = tiny_config(**CONFIG, engine="ray", resources={"ray_address": address})
    with pytest.raises(SpatlError, match=r"node .* of the Ray cluster does not see .*/run: .* storage that all nodes"):
        run(config, hidden / "run", pictures=False)
    assert not (hidden / "run" / "history.jsonl").exists()


def test_clients_train_on_all_nodes_until_one_goes_and_then_on_those_left_as_they_do_in_one_process(cluster, tmp_path):
    """Each client's state is there for whichever node trains it next; the end of a node is one line."""
    address, second, _ = cluster
    places = tmp_path / "places"
    model = {"name": "tests.support.users_nets:Placed", "options": {"places": str(places)}, "cut": ["head"]}
    sections = {**CONFIG, "model": model, "rounds": 40}
    history = tmp_path / "ray" / "history.jsonl"

    def on_both() -> bool:
        """Whether two rounds are over, and both nodes have trained."""
        return history.exists() and len(read_lines(history)) >= 2 and len(set(places.read_text().split())) == 2

    def go() -> None:
        deadline = time.monotonic() + _SECONDS
        while not on_both() and time.monotonic() < deadline:
            time.sleep(0.1)
        stop(second)

    goes = threading.Thread(target=go)
    goes.start()
    on_ray = tiny_config(**sections, engine="ray", resources={"ray_address": address})
    with pytest.raises(SpatlError, match=r"node .* of the Ray cluster is gone; go on with the run in "):
        run(on_ray, tmp_path / "ray", pictures=False)
    goes.join()
    assert len(set(places.read_text().split())) == 2
    assert 2 <= len(read_lines(history)) < 40
    resume(tmp_path / "ray", pictures=False)
    run(tiny_config(**sections), tmp_path / "inline", pictures=False)
    assert history_without_seconds(tmp_path / "inline") == history_without_seconds(tmp_path / "ray")

"""Names of the runs that a server's directory has begun, so that one whose folder is gone is not quietly begun anew."""

from pathlib import Path

from spatl.deployment.sites import run_name
from spatl.errors import DamagedState
from spatl.json_files import read_object, write_json
from spatl.runs.files import HISTORY

BEGUN = "begun.json"
"""File of a server's directory: by the folder of each run, the name that its devices know it by."""


def note_begun(server: Path, run: Path, name: str) -> None:
    """Note that a run has begun in a folder, in place of the one before."""
    begun = _read(server)
    if begun.get(_key(server, run)) != name:
        write_json(server / BEGUN, begun | {_key(server, run): name})


def check_begun(server: Path, run: Path) -> None:
    """Raise where a folder without rounds is to be gone on with, and is not that of the run that was begun there.

    Args:
        server: The server's directory.
        run: The run's folder, of which no round is over.

    Raises:
        DamagedState: A run was begun there, and it is another one's folder by now, or is gone.
    """
    name = _read(server).get(_key(server, run))
    if name is None or run_name(run) == name:
        return
    moved = [path.parent for path in sorted(run.parent.glob(f"*/{HISTORY}")) if run_name(path.parent) == name]
    there = f"it is {moved[0]} by now; move it back" if moved else "put it back"
    raise DamagedState(
        f"the run {name} was begun in {run}, which does not hold it any more: {there}, or start a new run without "
        "--resume"
    )


def _key(server: Path, run: Path) -> str:
    """Return a run's folder as the file names it: within the server's directory where it is below it."""
    return str(run.relative_to(server) if run.is_relative_to(server) else run)


def _read(server: Path) -> dict[str, str]:
    path = server / BEGUN
    return {str(run): str(name) for run, name in read_object(path).items()} if path.exists() else {}

"""Pictures of a finished run: its curves and its report."""

from spatl.config.experiment import ExperimentConfig
from spatl.report.figures import draw_curves
from spatl.report.result import RunResult
from spatl.report.run_report import write_report
from spatl.runs.files import CURVES, REPORT


def draw(result: RunResult, config: ExperimentConfig, *, command: str) -> None:
    """Write the curves and the report of a finished run into its directory, each whole.

    Args:
        result: The run.
        config: Its config.
        command: What the report says made it.

    Raises:
        SpatlError: matplotlib is not installed.
    """
    draw_curves(result, result.directory / CURVES)
    write_report(result, result.directory / REPORT, config_yaml=config.to_yaml(), command=command)

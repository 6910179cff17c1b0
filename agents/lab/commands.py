"""Commands `spatl agent pretrain` and `spatl agent evaluate`, which the command line calls by reference."""

import argparse
import os
import shlex

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agents.lab import evaluate as evaluation
from agents.lab.figures import draw_rewards
from spatl.config.loading import load_config
from spatl.errors import ConfigError, SpatlError
from spatl.report.figures import new_figure
from spatl.runs.directory import fresh_directory
from spatl.terminal.progress import live_progress
from spatl.terminal.tables import print_table


def pretrain(options: argparse.Namespace, console: Console) -> None:
    """Train a policy from scratch.

    Raises:
        SpatlError: The extra `agent` is not installed, or the directory holds something.
    """
    try:
        from agents.lab.pretrain import pretrain as train  # needs gymnasium and stable-baselines3
    except ImportError as error:
        raise SpatlError(f"pre-training needs the extra 'agent' ({error}): pip install 'spatl[agent]'") from error
    with new_figure(1, 1):  # without matplotlib it must end here, not after the training
        pass
    directory = fresh_directory(options.out, name="agent-pretrain")
    with _progress(console) as progress:
        networks = progress.add_task("networks", total=None)
        policy = progress.add_task("policy", total=options.steps)

        def on_network(done: int, total: int) -> None:
            progress.update(networks, completed=done, total=total)
            if not console.is_terminal:
                console.print(f"networks: {done}/{total}", highlight=False)

        def on_update(steps: int, reward: float) -> None:
            progress.update(policy, completed=min(steps, options.steps), notes=(f"reward {reward:+.3f}",))
            if not console.is_terminal:
                console.print(f"policy: {steps}/{options.steps}  reward {reward:+.3f}", highlight=False)

        history = train(directory, seed=options.seed, steps=options.steps, on_network=on_network, on_update=on_update)
    draw_rewards(history, directory / "reward.png")
    tenth = max(1, len(history) // 10)
    last = sum(row["reward"] for row in history[-tenth:]) / tenth
    console.print(
        f"reward over the last tenth of {history[-1]['steps']:.0f} selections: {last:+.3f} (0 is the prior)",
        highlight=False,
    )
    for name in ("policy.safetensors", "reward.png", "pretrain.json"):
        console.print(str(directory / name), highlight=False, soft_wrap=True)


def evaluate(options: argparse.Namespace, console: Console) -> None:
    """Print the table of the agent beside every yardstick.

    Raises:
        SpatlError: A config, a budget or the policy does not work out.
    """
    configs = [load_config(path, options.overrides) for path in options.configs]
    own = [config.partition.num_clients for config in configs]
    plan = evaluation.Plan(
        kind=options.kind,
        budgets=tuple(options.budgets),
        samples=options.samples,
        epochs=options.epochs,
        num_clients=min(3, *own) if options.clients is None else options.clients,
        policy=options.policy,
    )
    if options.workers < 0:
        raise ConfigError(f"--workers must be at least 0, got {options.workers}")
    directory = fresh_directory(options.out, name="agent-evaluate")
    with new_figure(1, 1):  # without matplotlib it must end here, not after the work
        pass
    num_tasks = len(configs) * len(options.seeds)
    workers = min(options.workers or os.cpu_count() or 1, num_tasks)
    with _progress(console) as progress:
        task = progress.add_task("networks", total=num_tasks)

        def on_network(done: int, total: int) -> None:
            progress.update(task, completed=done)
            if not console.is_terminal:
                console.print(f"networks: {done}/{total}", highlight=False)

        records = evaluation.run_plan(
            configs, options.seeds, plan, directory, workers=workers, on_network=on_network, command=_command(options)
        )
    networks: list[str | None] = [*evaluation.networks_of(records)]
    for network in [*networks, *([None] if len(networks) > 1 else [])]:
        table = Table(title=f"{network or 'all networks'}: accuracy of the pruned network, {len(options.seeds)} seeds")
        for position, column in enumerate(evaluation.table_header(records)):
            table.add_column(column, justify="left" if position == 0 else "right", no_wrap=position == 0)
        for row in evaluation.table_rows(records, network=network):
            table.add_row(*row)
        print_table(console, table)
    console.print("differences are paired, ± standard errors over networks and seeds", highlight=False)
    for name in ("evaluate.md", "evaluate.png", "evaluate.json"):
        console.print(str(directory / name), highlight=False, soft_wrap=True)


def _command(options: argparse.Namespace) -> str:
    given = ["spatl", "agent", "evaluate", *options.configs, "--seeds", ",".join(map(str, options.seeds))]
    given += ["--budgets", ",".join(f"{limit:.15g}" for limit in options.budgets), "--kind", options.kind]
    given += ["--samples", str(options.samples), "--epochs", str(options.epochs)]
    if options.clients is not None:
        given += ["--clients", str(options.clients)]
    if options.policy is not None:
        given += ["--policy", options.policy]
    for text in options.overrides:
        given += ["--set", text]
    return shlex.join(given)


def _progress(console: Console) -> Progress:
    return live_progress(console, disable=not console.is_terminal)

"""Evaluation of the agent beside every yardstick, on networks, clients and budgets of the user's choice.

For each config and seed a network is trained on all clients' training splits, then by each client alone for one round;
every yardstick selects channels for it under every budget, looking at the validation split only; the pruned network's
BatchNorm statistics are re-estimated on the training split, and its accuracy is measured on the client's test split.
Differences are paired: between two rows for the same network, averaged over its clients.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from agents.lab.figures import draw_yardsticks
from agents.lab.networks import candidate, local_training, pooled_training, recalibrated_copy, worth_and_trial
from agents.lab.pool import process_pool
from agents.lab.yardsticks import YARDSTICKS, Setting, num_evaluations, residual_streams
from agents.policy import load_policy
from agents.selection_problem import Problem
from spatl.channels.costs import Budget, BudgetKind, check_budget
from spatl.channels.masking import masked_weights
from spatl.channels.selection import select_all
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_json
from spatl.config.sections import PredictorConfig
from spatl.errors import ConfigError
from spatl.json_files import write_json
from spatl.rounds.blueprint import make_blueprint
from spatl.runs.records import mean
from spatl.seeding import generator
from spatl.selection.energy import magnitude_scores
from spatl.training.device import reproducible
from spatl.training.evaluate import evaluate

REFERENCE: Final = "global L2"
PRIOR: Final = "signal (the prior)"
UNPRUNED: Final = "whole encoder"
# The encoder without the classifier, whose channels nothing reads.
_AS_SPATL: Final = {"method": "spatl-paper", "predictor": PredictorConfig(mode="local")}

OnNetwork = Callable[[int, int], None]


@dataclass(frozen=True)
class Record:
    """Record of one selection; accuracies are shares in [0, 1].

    Attributes:
        network: Which config, by its position, and title.
        seed: The seed of network, data and partition.
        client: The client's partition id.
        budget: The limit.
        yardstick: A key of `YARDSTICKS`, or `UNPRUNED`.
        evaluations: How many evaluations on the validation split it used.
        cost: What the selection costs, in the unit of the budget.
        accuracy: On the test split.
        validation_accuracy: On the validation split, under the batch's own statistics.
    """

    network: str
    seed: int
    client: int
    budget: float
    yardstick: str
    evaluations: int
    cost: float
    accuracy: float
    validation_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a comparison.

    Attributes:
        kind: The unit of the budgets.
        budgets: Their limits.
        samples: Evaluations of fine-tuning and of every search.
        epochs: Of the pooled training.
        num_clients: How many of the clients select.
        policy: A policy file, or None for the shipped one.
    """

    kind: BudgetKind = "flops_ratio"
    budgets: tuple[float, ...]
    samples: int
    epochs: int
    num_clients: int
    policy: str | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "epochs", "num_clients"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('num_', '')} must be at least 1, got {getattr(self, name)}")
        for limit in self.budgets:
            most, bound = (math.inf, "above 0") if self.kind == "uplink_bytes" else (1, "in (0, 1]")
            if not 0 < limit <= most:
                raise ConfigError(f"--budgets: {self.kind} must be {bound}, got {limit:g}")


def title_of(config: ExperimentConfig) -> str:
    """Return the title of a config's networks in the table."""
    spread = f"alpha {config.partition.alpha:g}" if config.partition.name == "dirichlet" else config.partition.name
    return f"{config.model.name}, {config.data.name}, {spread}"


def run_plan(
    configs: Sequence[ExperimentConfig],
    seeds: Sequence[int],
    plan: Plan,
    directory: Path,
    *,
    workers: int,
    command: str,
    on_network: OnNetwork = lambda done, total: None,
) -> list[Record]:
    """Compare on every config and seed, and write `evaluate.json`, `evaluate.md` and `evaluate.png`.

    Args:
        configs: Models, data and partitions; their methods and selectors are not used.
        seeds: One network each.
        plan: What is compared.
        directory: Where the files go.
        workers: Processes.
        command: What the files say made them.
        on_network: Called with how many networks are done, and how many there are.

    Returns:
        All selections; the table and the JSON are also written after every network.

    Raises:
        SpatlError: A config does not work out, or no selection meets a budget.
    """
    tasks = _checked_tasks(configs, seeds, plan)
    directory.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "plan": asdict(plan), "seeds": list(seeds), "torch": torch.__version__}
    results: dict[int, list[Record]] = {}
    on_network(0, len(tasks))
    with _pool(workers) as pool:
        futures = {pool.submit(_compare, *task): position for position, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                records = [record for position in sorted(results) for record in results[position]]
                # After every network, so that a run that is stopped leaves what it has.
                rows = [asdict(record) for record in records]
                write_json(
                    directory / "evaluate.json", {**content, "complete": len(results) == len(tasks), "records": rows}
                )
                (directory / "evaluate.md").write_text(f"`{command}`\n\n{_markdown(records)}", encoding="utf-8")
                on_network(len(results), len(tasks))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun does not begin any more
            raise
    pictures = {network: curves(records, network) for network in networks_of(records)}
    draw_yardsticks(pictures, plan.kind, directory / "evaluate.png")
    return records


def _checked_tasks(
    configs: Sequence[ExperimentConfig], seeds: Sequence[int], plan: Plan
) -> list[tuple[str, str, Plan]]:
    """Arguments of `_compare` for each config and seed, after a look at all that could fail in hours.

    Raises:
        SpatlError: The policy cannot be read, a config does not work out, or no selection meets a budget.
    """
    load_policy(Path(plan.policy) if plan.policy else None)
    tasks = []
    for position, config in enumerate(configs):
        own = config.partition.num_clients
        if plan.num_clients > own:
            raise ConfigError(f"--clients is {plan.num_clients}, but {title_of(config)} has {own}")
        prefix = f"{position + 1}. " if len({title_of(each) for each in configs}) < len(configs) else ""
        blueprint = make_blueprint(config.model_copy(update=_AS_SPATL))
        for limit in plan.budgets:
            check_budget(Budget(plan.kind, limit), blueprint.costs, source="--budgets")
        tasks += [
            (prefix + title_of(config), config.model_copy(update={"seed": seed, **_AS_SPATL}).to_json(), plan)
            for seed in seeds
        ]
    return tasks


def _pool(workers: int) -> Executor:
    """Make a pool of one process per worker; a single worker is a thread of this one."""
    if workers == 1:
        return ThreadPoolExecutor(1)
    return process_pool(workers)


def networks_of(records: Sequence[Record]) -> list[str]:
    """Return the titles of the networks, in order."""
    return list(dict.fromkeys(record.network for record in records))


def budgets_of(records: Sequence[Record]) -> list[float]:
    """Return the budgets, in order."""
    return list(dict.fromkeys(record.budget for record in records))


def per_network(
    records: Sequence[Record], yardstick: str, budget: float, *, network: str | None = None
) -> dict[tuple[str, int], float]:
    """Return the mean accuracy over clients by (network, seed); of one config's networks, or of all."""
    found: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if record.yardstick == yardstick and record.budget == budget and network in (None, record.network):
            found.setdefault((record.network, record.seed), []).append(record.accuracy)
    return {key: statistics.fmean(values) for key, values in found.items()}


def difference(
    records: Sequence[Record], yardstick: str, reference: str, budget: float, *, network: str | None = None
) -> tuple[float, float | None]:
    """Return the mean paired difference between two rows, and its standard error over networks and seeds."""
    own = per_network(records, yardstick, budget, network=network)
    other = per_network(records, reference, budget, network=network)
    pairs = [own[key] - other[key] for key in own]
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return statistics.fmean(pairs), error


def curves(records: Sequence[Record], network: str) -> dict[str, list[tuple[float, float]]]:
    """Return (budget, mean accuracy) of each row, for one config's networks."""
    return {
        yardstick: [
            (budget, statistics.fmean(per_network(records, yardstick, budget, network=network).values()))
            for budget in sorted(budgets_of(records))
        ]
        for yardstick in (*YARDSTICKS, UNPRUNED)
    }


def table_rows(records: Sequence[Record], *, network: str | None) -> list[list[str]]:
    """Return the table's cells: name, evaluations; per budget cost, accuracy, differences to L2 and to the prior."""
    rows = []
    for yardstick in (*YARDSTICKS, UNPRUNED):
        evaluations = [r.evaluations for r in records if r.yardstick == yardstick and network in (None, r.network)]
        low, high = min(evaluations), max(evaluations)
        row = [yardstick, f"{low}" if low == high else f"{low}-{high}"]
        for budget in budgets_of(records):
            own = [r for r in records if r.yardstick == yardstick and network in (None, r.network)]
            spent = [r.cost for r in own if r.budget == budget]
            row.append(f"{statistics.fmean(spent):.4g}")
            accuracy = mean(per_network(records, yardstick, budget, network=network).values())
            row.append(f"{accuracy:.3f}")
            for reference in (REFERENCE, PRIOR):
                if yardstick in (reference, UNPRUNED):
                    row.append("")
                    continue
                value, error = difference(records, yardstick, reference, budget, network=network)
                row.append(f"{value:+.3f}" + (f" ±{error:.3f}" if error is not None else ""))
        rows.append(row)
    return rows


def table_header(records: Sequence[Record]) -> list[str]:
    """Return the names of the columns of `table_rows`."""
    columns = ["row", "evaluations"]
    for budget in budgets_of(records):
        columns += ["spent", f"at {budget:.15g}", f"- {REFERENCE}", "- prior"]
    return columns


def _markdown(records: Sequence[Record]) -> str:
    header = table_header(records)
    networks = networks_of(records)
    parts: list[tuple[str, str | None]] = [(network, network) for network in networks]
    if len(networks) > 1:
        parts.append(("all networks", None))
    lines = []
    for title, network in parts:
        count = len(per_network(records, REFERENCE, budgets_of(records)[0], network=network))
        lines += [f"## {title} ({count} networks)", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        lines += [f"| {' | '.join(row)} |" for row in table_rows(records, network=network)]
        lines.append("")
    return "\n".join(lines)


def _compare(network: str, config_json: str, plan: Plan) -> list[Record]:
    """Make and measure all selections for one network."""
    config = config_from_json(config_json)
    blueprint = make_blueprint(config)
    policy = load_policy(Path(plan.policy) if plan.policy else None)
    (start,) = pooled_training(blueprint, stages=[plan.epochs])
    records = []
    for trained in local_training(blueprint, start, range(plan.num_clients)):
        with reproducible(config.training.threads):
            made = candidate(blueprint, trained)
            worth, trial = worth_and_trial(blueprint, made, made.data.validation, "pruned")
            magnitude = magnitude_scores(made.weights, blueprint.layout)
            streams = residual_streams(made.model, blueprint.layout)
            for limit in plan.budgets:
                problem = Problem(blueprint.costs, Budget(plan.kind, limit), worth, "pruned")
                common: Mapping[str, Any] = {
                    "network": network,
                    "seed": config.seed,
                    "client": trained.client,
                    "budget": limit,
                }
                selections = {}
                for name, choose in YARDSTICKS.items():
                    draws = generator(config.seed, f"agent-evaluate-{limit}", client=trained.client)
                    setting = Setting(problem, magnitude, trial, policy, plan.samples, streams, draws)
                    selections[name] = choose(setting)
                selections[UNPRUNED] = select_all(blueprint.layout)
                for name, selection in selections.items():
                    masked = masked_weights(made.model, blueprint.costs.trace.readers, selection)
                    pruned = recalibrated_copy(blueprint, made, masked)
                    used = num_evaluations(name, samples=plan.samples, num_groups=len(blueprint.layout.groups))
                    records.append(
                        Record(
                            **common,
                            yardstick=name,
                            evaluations=used,
                            cost=blueprint.costs.of(selection.counts(blueprint.layout), plan.kind),
                            accuracy=evaluate(pruned, made.data.test).accuracy,
                            validation_accuracy=trial(selection).accuracy,
                        )
                    )
    return records

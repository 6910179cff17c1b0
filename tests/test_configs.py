"""The configs that ship: each is read, and the paper's run on small files in the true formats, smaller only."""

from pathlib import Path

import pytest
import yaml

from spatl.bench.plan import make_plan
from spatl.bench.run import bench
from spatl.config.loading import load_config
from tests.support.formats import leaf_user, write_cifar10, write_leaf

ROOT = Path(__file__).parents[1] / "configs"
PAPER = sorted(path.name for path in (ROOT / "paper").glob("*.yaml"))
SMALL = (
    "rounds=1", "partition.num_clients=4", "partition.min_examples=10", "partition.name=iid", "server.fraction_train=1",
    "training.local_epochs=1", "training.batch_size=8", "training.device=cpu", "bench.targets=[0.01]",
    "selection.flops_ratio=0.9",
)  # fmt: skip


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_is_allowed_and_says_only_what_differs(path):
    load_config(path)
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*.yaml")), ids=lambda path: path.name)
def test_benchmarks_hold_a_row_that_trains_alone_and_a_compressed_baseline(path):
    from spatl.bench.baselines import compressed

    plan = make_plan([path])
    methods = {row.config(1).method for row in plan.rows}
    assert {"local", "fedavg", "spatl"} <= methods
    assert any(compressed(row.config(1)) for row in plan.rows)


def test_ablations_are_on_the_terms_of_the_synthetic_benchmark():
    """Rows of both are the same runs, so that the tables can be read side by side."""
    paths = {name: ROOT / "bench" / f"{name}.yaml" for name in ("ablations", "synthetic")}
    runs = {name: {row.label: row.config(1) for row in make_plan([path]).rows} for name, path in paths.items()}
    ablations = load_config(paths["ablations"]).bench.ablations
    assert {ablations.full, *ablations.without} <= runs["ablations"].keys()
    for label in runs["ablations"].keys() & runs["synthetic"].keys():
        assert runs["ablations"][label] == runs["synthetic"][label]


def test_the_papers_tables_are_there():
    assert {f"table1-{model}.yaml" for model in ("resnet20", "resnet32", "vgg11")} <= set(PAPER)
    sizes = {load_config(ROOT / "paper" / f"clients-{n}.yaml").partition.num_clients for n in (10, 30, 50, 100)}
    assert sizes == {10, 30, 50, 100}
    assert {"femnist.yaml", "ablations.yaml"} <= set(PAPER)
    for name in PAPER:
        assert "Source:" in (ROOT / "paper" / name).read_text()
        assert "local" in yaml.safe_load((ROOT / "paper" / name).read_text())["bench"]["methods"]


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """CIFAR-10's six binary files of 14 images each, and six of LEAF's writers."""
    directory = tmp_path_factory.mktemp("data")
    write_cifar10(directory / "cifar10", per_file=14)
    write_leaf(directory / "femnist" / "all.json", {f"f{n:04d}": leaf_user(15, seed=n) for n in range(6)})
    return directory


@pytest.fixture(scope="module")
def benched(tmp_path_factory):
    """Runs a plan in a directory of its own, but for one whose rows have run: made small, many tables are the same."""
    ran = {}

    def run(plan):
        rows = tuple((row.label, row.config(1).to_json()) for row in plan.rows)
        if rows not in ran:
            out = tmp_path_factory.mktemp("table") / "out"
            ran[rows] = bench(plan, out, workers=1), out
        return ran[rows]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tables_run_on_small_files_in_the_true_formats(name, small_files, benched, request):
    """Every row of every table for one round: SPATL's with the agent, the baselines as they are; one is drawn."""
    if name != "ablations.yaml":
        request.getfixturevalue("undrawn")
    data = "femnist" if "femnist" in name else "cifar10"
    small = [*SMALL, f"data.options.path={small_files / data}"]
    if data == "femnist":
        small.remove("partition.name=iid")
        small.append("model.options={hidden: 64}")
    else:
        small.append("model.options={width: 0.25}")
    plan = make_plan([ROOT / "paper" / name], overrides=small, seeds=[1])
    records, out = benched(plan)
    assert [record["method"] for record in records] == [row.label for row in plan.rows]
    assert all(record["final_accuracy"] is not None and record["stopped"] is None for record in records)
    assert all(record["rejected"] == 0 for record in records)
    assert (out / "report.html").stat().st_size > 0

"""What is compared with what, and what is refused."""

import pytest

from spatl.bench.plan import make_plan, unequal_optimizers
from spatl.errors import ConfigError
from spatl.methods import METHODS


@pytest.fixture
def config_of(tmp_path):
    def write(name="bench.yaml", text="rounds: 3\ntraining: {learning_rate: 0.2}\n"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_without_rows_every_method_is_one(config_of):
    plan = make_plan([config_of()])
    assert [row.label for row in plan.rows] == list(METHODS)
    assert all(row.config(5).method == row.label for row in plan.rows)
    assert {row.config(5).seed for row in plan.rows} == {5}
    assert {row.config(1).training.learning_rate for row in plan.rows} == {0.2}


def test_rows_differ_by_what_they_say(config_of):
    text = """
rounds: 3
bench:
  seeds: [4, 5]
  methods:
    fedavg: {training: {learning_rate: 0.3}}
    small: {method: fedavg, wire: {uplink: float16}}
    scaffold: {}
"""
    plan = make_plan([config_of(text=text)])
    fedavg, small, scaffold = (row.config(4) for row in plan.rows)
    assert [row.label for row in plan.rows] == ["fedavg", "small", "scaffold"]
    assert (fedavg.method, small.method, scaffold.method) == ("fedavg", "fedavg", "scaffold")
    assert (fedavg.training.learning_rate, small.training.learning_rate) == (0.3, 0.1)
    assert (small.wire.uplink, small.wire.downlink) == ("float16", "float32")
    assert (scaffold.control.damping, scaffold.training.learning_rate) == (1.0, 0.05)
    assert plan.bench.seeds == (4, 5)


def test_the_command_line_picks_rows_seeds_and_targets(config_of):
    text = "bench: {methods: {mine: {method: spatl, selection: {keep_ratio: 0.1}}, fedavg: {}}}\n"
    plan = make_plan(
        [config_of(text=text)], methods=["fedprox", "mine", "fedavg+float16"], seeds=[9], targets=[0.5, 0.25]
    )
    assert [row.label for row in plan.rows] == ["fedprox", "mine", "fedavg+float16"]
    assert plan.rows[1].config(9).selection.keep_ratio == 0.1
    wire = plan.rows[2].config(9).wire
    assert (plan.rows[2].config(9).method, wire.uplink, wire.downlink) == ("fedavg", "float16", "float16")
    assert (plan.bench.seeds, plan.bench.targets) == ((9,), (0.5, 0.25))


def test_a_row_with_a_codec_is_the_configs_own_row_otherwise(config_of):
    text = "bench: {methods: {fedavg: {training: {learning_rate: 0.3}}, spatl: {}}}\n"
    plan = make_plan([config_of(text=text)], methods=["fedavg", "fedavg+float16"])
    plain, small = (row.config(1).model_dump() for row in plan.rows)
    assert small["training"]["learning_rate"] == 0.3
    assert {**small, "wire": plain["wire"]} == plain


def test_several_configs_are_rows_called_by_method_or_file(config_of):
    paths = [
        config_of("one.yaml", "method: fedavg\n"),
        config_of("two.yaml", "method: spatl\n"),
        config_of("half.yaml", "method: spatl\nselection: {keep_ratio: 0.5}\n"),
    ]
    assert [row.label for row in make_plan(paths).rows] == ["fedavg", "two", "half"]


@pytest.mark.parametrize(
    ("second", "line"),
    [
        (
            "method: spatl\npartition: {alpha: 0.1}\n",
            r"spatl differs from fedavg in partition\.alpha \(0\.1 against 0\.5\)",
        ),
        ("method: spatl\nrounds: 7\n", r"differs from fedavg in rounds \(7 against 20\)"),
        ("method: spatl\ntraining: {local_epochs: 9}\n", r"in training\.local_epochs \(9 against 2\)"),
        ("method: spatl\ndata: {name: synthetic}\n", r"in data\.name \(synthetic against digits\)"),
        ("method: spatl\nmodel: {options: {hidden: 9}}\n", r"in model\.options"),
    ],
)
def test_configs_that_differ_in_more_than_the_method_are_one_clear_line(config_of, second, line):
    paths = [config_of("one.yaml", "method: fedavg\n"), config_of("two.yaml", second)]
    with pytest.raises(ConfigError, match=line):
        make_plan(paths)


def test_rows_may_differ_in_what_of_the_predictor_is_private(config_of):
    text = "bench: {methods: {spatl: {}, head: {method: spatl, predictor: {mode: local}}, spatl-paper: {}, fedavg: {}}}"
    modes = {row.label: row.config(1).predictor_mode for row in make_plan([config_of(text=text)]).rows}
    assert modes == {"spatl": "calibrated", "head": "local", "spatl-paper": "local", "fedavg": "shared"}


def test_rows_of_one_config_are_held_to_the_same(config_of):
    text = "bench: {methods: {fedavg: {}, spatl: {data: {test_fraction: 0.1}}}}\n"
    with pytest.raises(ConfigError, match=r"spatl differs from fedavg in data\.test_fraction"):
        make_plan([config_of(text=text)])


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        ("", {"methods": ["fedavgg"]}, r"unknown method 'fedavgg' \(did you mean 'fedavg'\?\); known: spatl, "),
        ("", {"methods": ["fedavg+int3"]}, r"unknown codec 'int3' in 'fedavg\+int3'.*known: float32"),
        ("", {"methods": []}, "there is no method to compare"),
        ("", {"methods": ["fedavg", "fedavg"]}, "'fedavg' is named 2 times"),
        ("", {"seeds": []}, r"bench\.seeds: is empty"),
        ("", {"targets": []}, r"bench\.targets: is empty"),
        ("", {"targets": [1.5]}, r"bench\.targets: accuracy lies in \(0, 1\], got 1\.5"),
        ("bench: {learning_rates: []}", {}, r"bench\.learning_rates: is empty"),
        ("bench: {learning_rates: [0.1, 0.1]}", {}, r"bench\.learning_rates: holds a value twice"),
        ("bench: {momenta: []}", {}, r"bench\.momenta: is empty"),
        ("bench: {momenta: [0.9, 0.9]}", {}, r"bench\.momenta: holds a value twice"),
        ("bench: {momenta: [0.0, 1.0]}", {}, r"bench\.momenta\.1: input should be less than 1, got 1\.0"),
        ("bench: {momenta: [-0.1]}", {}, r"bench\.momenta\.0: input should be greater than or equal to 0, got -0\.1"),
        ("bench: {methods: {../x: {method: fedavg}}}", {}, r"label is made of letters.*got '\.\./x'"),
        ("bench: {methods: {'': {method: fedavg}}}", {}, r"label is made of letters.*got ''"),
        ("bench: {methods: {'[/b]': {method: fedavg}}}", {}, r"label is made of letters"),
        ("bench: {methods: {FedAvg: {method: fedavg}, fedavg: {}}}", {}, r"'FedAvg' and 'fedavg' differ in case only"),
        ("bench: {methods: {mine: {}}}", {}, r"unknown method 'mine'; known: "),
        ("bench: {methods: {spatl: {selection: {kep_ratio: 1}}}}", {}, r"selection\.kep_ratio: unknown key"),
        (
            "bench: {ablations: {without: {spatl-no-selektion: x}}}",
            {"methods": ["spatl"]},
            r"ablations\.without: there is no row 'spatl-no-selektion' \(did you mean 'spatl-no-selection'\?\); rows",
        ),
        (
            "bench: {methods: {fedavg: {}, spatl: {}}, ablations: {full: mine, without: {spatl: x}}}",
            {},
            r"bench\.ablations\.full: there is no row 'mine'; rows: fedavg, spatl$",
        ),
        ("bench: {ablations: {without: {spatl: x}}}", {}, r"bench\.ablations: spatl is the full row"),
        ("bench: {ablations: {without: {fedavg: ' '}}}", {}, r"bench\.ablations\.without: says nothing of fedavg"),
        ("bench: {ablations: {witout: {}}}", {}, r"witout: unknown key.*bench\.ablations takes full, without"),
        (
            "bench: {methods: {spatl: {}, same: {method: spatl}}, ablations: {without: {same: x}}}",
            {},
            r"bench\.ablations\.without: same is the same as spatl in every setting",
        ),
        ("bench: {rows: 3}", {}, r"bench\.rows: unknown key; bench takes methods"),
    ],
)
def test_mistakes_are_one_clear_line(config_of, text, options, line):
    with pytest.raises(ConfigError, match=line) as caught:
        make_plan([config_of(text=text)], **options)
    assert "\n" not in str(caught.value)


def test_a_single_run_ignores_the_bench_of_its_config(config_of):
    plan = make_plan([config_of(text="bench: {seeds: [7]}\n")], methods=["fedavg"])
    assert "bench" not in plan.first.to_yaml()
    assert "bench" not in plan.first.to_json()


def test_rows_of_ablations_may_be_left_out_of_a_start(config_of):
    text = "bench: {ablations: {without: {spatl-no-selection: selection, spatl-no-control: control}}}\n"
    plan = make_plan([config_of(text=text)], methods=["fedavg", "spatl-no-control"])
    assert [row.label for row in plan.rows] == ["fedavg", "spatl-no-control"]
    assert list(plan.bench.ablations.without) == ["spatl-no-selection", "spatl-no-control"]


def test_rows_whose_optimizers_differ_by_default_are_said_to(config_of):
    """SPATL's row brings momentum 0.9 and 0.02, FedAvg has the config's defaults."""
    note = unequal_optimizers(make_plan([config_of(text="rounds: 3\n")], methods=["spatl", "fedavg", "fedrep"]))
    assert "(learning_rate 0.02, momentum 0.9: spatl; learning_rate 0.1, momentum 0: fedavg, fedrep)" in note
    assert "--tune" in note


@pytest.mark.parametrize(
    "text",
    [
        "training: {learning_rate: 0.1, momentum: 0.5}\n",  # all alike
        """
training: {momentum: 0.9}
bench:
  methods: {spatl: {training: {learning_rate: 0.1}}, fedavg: {training: {learning_rate: 0.2}}}
""",  # chosen for each
        "bench: {methods: {fedavg: {}, fedrep: {}}}\n",  # the same defaults
    ],
)
def test_optimizers_that_are_alike_or_were_chosen_need_no_word(config_of, text):
    methods = None if "bench" in text else ["spatl", "fedavg"]
    assert unequal_optimizers(make_plan([config_of(text=text)], methods=methods)) is None


def test_one_rate_for_all_does_not_make_momenta_alike(config_of):
    plan = make_plan([config_of()], methods=["spatl", "fedavg"])  # training.learning_rate: 0.2 for all
    assert "(momentum 0.9: spatl; momentum 0: fedavg)" in unequal_optimizers(plan)

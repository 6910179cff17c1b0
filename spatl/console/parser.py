"""Parser of the command line: every command with its options, and the function that does it, by reference."""

import argparse
import platform
from importlib.metadata import version

from spatl import __version__
from spatl.channels.budgets import BUDGET_KINDS
from spatl.config.engines import ENGINES
from spatl.console.arguments import Parser, add_overrides, by_reference
from spatl.console.choices import SHELLS, SHOWN
from spatl.console.deploying import add_deploy_commands
from spatl.console.predict import add_predict_arguments


def make_parser() -> Parser:
    """Return the parser of `spatl`; what it parses names the `command` to call, with the options and a console."""
    parser = Parser(prog="spatl", description="Federated learning with salient parameters (SPATL).")
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a federation", description="Run the federation a config describes."))
    _add_check(commands.add_parser("check", help="say what a config would run, and whether it can, without running it"))
    _add_status(commands.add_parser("status", help="how a run is doing, and each of its clients"))
    _add_explain(commands.add_parser("explain", help="write a page on what a model gets wrong, and by which filters"))
    _add_report(commands.add_parser("report", help="draw the pictures of a finished run again"))
    _add_diagnose(commands.add_parser("diagnose", help="say which client's data are faulty, and how"))
    _add_export(commands.add_parser("export", help="write what a run has trained as files for other programs"))
    add_predict_arguments(commands.add_parser("predict", help="name the classes of images with an exported model"))
    _add_bench(commands.add_parser("bench", help="compare methods: bytes, rounds and seconds until an accuracy"))
    _add_onboard(commands.add_parser("onboard", help="start a client that was not in a run with the run's model"))
    _add_perf(commands.add_parser("perf", help="measure what simulations take on this machine"))
    _add_partition(commands.add_parser("partition", help="show how the examples are spread over the clients"))

    agent = commands.add_parser("agent", help="train the selection policy, or compare it with other ways to select")
    agent_commands = agent.add_subparsers(required=True, metavar="COMMAND")
    _add_pretrain(agent_commands.add_parser("pretrain", help="train a policy from scratch, in two processes"))
    _add_evaluate(agent_commands.add_parser("evaluate", help="compare the policy with every yardstick"))

    saliency = commands.add_parser("saliency", help="claims about which filters are to blame, beside their controls")
    _add_experiment(saliency.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "experiment", help="train networks and measure the claims on their errors"))  # fmt: skip

    deploying = commands.add_parser("deploy", help="run a federation on machines of their own")
    add_deploy_commands(deploying.add_subparsers(required=True, metavar="COMMAND"))
    _add_show(commands.add_parser("show", help="list what configs can name, every setting, and what codecs cost"))
    _add_completion(commands.add_parser("completion", help="print a script that completes this command line"), parser)
    parser.set_defaults(debug=False)
    _add_debug(parser)
    return parser


def _add_run(parser: Parser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help="a YAML file, or a config that ships (spatl show configs)"
    )
    parser.add_argument(
        "--engine", choices=tuple(ENGINES), help=", or ".join(each.description for each in ENGINES.values())
    )
    parser.add_argument("--out", metavar="DIR", help="a new directory for what the run leaves behind")
    add_overrides(parser, "override a setting, e.g. --set seed=7 --set training.learning_rate=0.1")
    parser.add_argument(
        "--seeds", metavar="A,B,...", type=_seeds,
        help="run once per seed, each in a directory of its own below --out, and print means with their spread",
    )  # fmt: skip
    parser.add_argument(
        "--resume", metavar="DIR",
        help="go on with a run that was killed, in its directory and with its config, instead of starting one; with "
        "--set rounds=N also one that is finished, to more rounds",
    )  # fmt: skip
    parser.set_defaults(command=by_reference("spatl.console.run:run"))


def _add_check(parser: Parser) -> None:
    parser.description = (
        "Read and share out the data, build and trace the model, compare the budgets with it, and print what would run."
        " Nothing is trained or written."
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a config that ships (spatl show configs)")
    add_overrides(parser)
    parser.set_defaults(command=by_reference("spatl.console.check:check"))


def _add_status(parser: Parser) -> None:
    parser.description = "Say how far a run has come, and how each client is; of one that is running, too."
    parser.add_argument("run", metavar="RUN", help="the run's directory")
    parser.add_argument("--findings", action="store_true", help="also the rounds that have findings, and whose")
    parser.add_argument("--json", action="store_true", help="one JSON object instead")
    parser.set_defaults(command=by_reference("spatl.console.status:show_status"))


def _add_explain(parser: Parser) -> None:
    parser.description = (
        "Write a page on what a model gets wrong: errors by class with their pictures, the filters that are blamed, "
        "and what switching them off or repairing them does, beside controls."
    )
    parser.add_argument("run", metavar="RUN", help="the run's directory, or that in which a device keeps its state")
    parser.add_argument("--client", metavar="ID", type=int, help="one client's model and data; else the federation's")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="validation", help="whose errors to show (%(default)s)"
    )
    parser.add_argument("--examples", metavar="N", type=int, default=4, help="errors of a group to show, at most (4)")
    parser.add_argument("--groups", metavar="N", type=int, default=6, help="groups of errors to show, at most (6)")
    parser.add_argument("--top-k", metavar="K", type=int, default=10, help="filters to blame (%(default)s)")
    parser.add_argument(
        "--data", metavar="DATA",
        help="on a device: a folder of class folders, an .npz file, a data set's name or package.module:load",
    )  # fmt: skip
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps, for training.device")
    parser.add_argument("--out", metavar="DIR", help="where to write (RUN/explanation, RUN/explanation-client-ID)")
    parser.set_defaults(command=by_reference("spatl.console.explain:explain"))


def _add_report(parser: Parser) -> None:
    parser.description = "Draw curves.png and report.html of a finished run again, from its record."
    parser.add_argument("run", metavar="RUN", help="the run's directory")
    parser.set_defaults(command=by_reference("spatl.console.report:report"))


def _add_diagnose(parser: Parser) -> None:
    parser.description = (
        "Compare what a run's model does on each client's validation split with what it does on the others', and say "
        "whose data are faulty, and how. Where the run has recorded no findings, they are computed: of a simulation."
    )
    parser.add_argument("run", metavar="RUN", help="the run's directory")
    parser.add_argument("--round", metavar="N", type=int, help="findings recorded after this round (default: the last)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead")
    parser.set_defaults(command=by_reference("spatl.console.diagnose:diagnose"))


def _add_onboard(parser: Parser) -> None:
    parser.description = (
        "Give a newcomer the model of a run, which need not be over: by default nothing is trained, and nothing is "
        "ever sent. Of the newcomer's own are its class frequencies, and from 100 examples on fine-tuned weights where "
        "they win on its validation split."
    )
    parser.add_argument("run", metavar="RUN", help="the run's directory, or its model/ alone")
    parser.add_argument(
        "--data", metavar="DATA", required=True,
        help="the newcomer's: a folder of class folders, an .npz file, a data set's name or package.module:load",
    )  # fmt: skip
    parser.add_argument(
        "--data-option", metavar="KEY=VALUE", action="append", default=[], dest="data_options",
        help="an option of the data set, as in data.options: --data-option image_size=32",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="a new directory for the model (default: one below runs/)")
    parser.add_argument("--compare", action="store_true", help="train other ways too, as yardsticks")
    parser.add_argument("--no-finetune", action="store_true", help="train nothing, however many examples there are")
    parser.add_argument("--seed", type=int, help="draws the newcomer's splits and its batches (default: the run's)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps, for training.device")
    parser.set_defaults(command=by_reference("spatl.console.onboard:onboard"))


def _add_export(parser: Parser) -> None:
    parser.description = (
        "Write the model of a finished run as named weights, a torch.export program and an ONNX file, with a loader "
        "that needs ONNX Runtime and NumPy alone, and a card of what it costs. With a limit, the network is cut first."
    )
    parser.add_argument("run", metavar="RUN", help="the run's directory")
    parser.add_argument("--client", metavar="ID", type=int, help="the model of one client; else the federation's")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--flops", metavar="R", type=float, help="cut to this share of the multiply-accumulates")
    limits.add_argument("--parameters", metavar="R", type=float, help="cut to this share of the parameters")
    limits.add_argument(
        "--latency-ms", metavar="T", type=float, help="cut until ONNX Runtime takes T ms an image, here on one thread"
    )
    parser.add_argument("--exact", action="store_true", help="cut to any number of channels, not to multiples of 8")
    parser.add_argument("--selector", metavar="NAME", default="signal", help="what chooses the channels (%(default)s)")
    parser.add_argument("--finetune", metavar="N", type=int, default=0, help="epochs of training after the cut (0)")
    parser.add_argument("--int8", action="store_true", help="write an 8-bit ONNX file, too")
    parser.add_argument("--out", metavar="DIR", help="a new directory (default: RUN/export, RUN/export-client-ID)")
    parser.set_defaults(command=by_reference("spatl.console.export:export"))


def _add_debug(parser: argparse.ArgumentParser) -> None:
    """Give a parser and all below it the option `--debug`."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for command in action.choices.values():
            _add_debug(command)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS,
        help="print the traceback of every error, a model's own too",
    )  # fmt: skip


def _add_bench(parser: Parser) -> None:
    parser.description = (
        "Run methods x seeds on identical partitions and initial weights, and report what each costs until an accuracy."
        " Started again with the same --out, it runs only what is missing."
    )
    parser.add_argument(
        "configs", metavar="CONFIG", nargs="+",
        help="a YAML file whose bench.methods are the rows, or several that differ in their method only",
    )  # fmt: skip
    parser.add_argument(
        "--methods", metavar="A,B,...", type=_names,
        help="rows to run: labels of the config, names of methods, or method+codec (fedavg+float16)",
    )  # fmt: skip
    parser.add_argument("--seeds", metavar="A,B,...", type=_seeds, help="instead of bench.seeds")
    parser.add_argument("--target", metavar="A,B,...", type=_numbers, help="accuracies, instead of bench.targets")
    parser.add_argument("--out", metavar="DIR", help="a new directory, or one of a benchmark to go on with")
    parser.add_argument("--workers", type=int, default=0, help="runs side by side (default: as the cores allow)")
    parser.add_argument(
        "--tune", action="store_true",
        help="first choose every row's learning rate and momentum from the grid, on validation splits",
    )  # fmt: skip
    parser.add_argument(
        "--report", action="store_true", help="write the reports of the runs in --out that have ended, and run nothing"
    )
    add_overrides(parser, "override a setting in every config")
    parser.set_defaults(command=by_reference("spatl.console.bench:run_bench"))


def _add_perf(parser: Parser) -> None:
    parser.description = (
        "Measure what an update of a client takes beside a bare PyTorch loop over the same examples, by its parts, and "
        "what a federation takes by its number of clients. It takes a minute or two; with --full, more than an hour."
    )
    parser.add_argument("--models", metavar="A,B,...", type=_names, help="networks on the digits: cnn, resnet8, ...")
    parser.add_argument("--methods", metavar="A,B,...", type=_names, help="fedavg, spatl-update, spatl")
    parser.add_argument("--clients", metavar="A,B,...", type=_seeds, help="numbers of clients; 0 for none")
    parser.add_argument(
        "--sizes", metavar="A,B,...", type=_seeds,
        help="also an update of networks of so many million parameters, 1 to 86; 10 minutes and 6 GB for 86",
    )  # fmt: skip
    parser.add_argument(
        "--workers", metavar="A,B,...", type=_seeds,
        help="also rounds with so many processes, by the clock (resources.workers); needs idle cores",
    )  # fmt: skip
    parser.add_argument(
        "--beside", metavar="A,B", type=_names,
        help="also engines of several processes: ray, and flower, which is plain Flower's FedAvg; minutes each",
    )  # fmt: skip
    parser.add_argument("--turns", metavar="N", type=int, default=2, help="how often each case is measured (2)")
    parser.add_argument("--rounds", metavar="N", type=int, default=2, help="rounds that are measured each time (2)")
    parser.add_argument("--memory-format", choices=("contiguous", "channels-last"), default="contiguous",
                        help="of the engine's training (contiguous); the loop's is contiguous in any case")  # fmt: skip
    parser.add_argument("--group-size", metavar="N", type=int, default=1,
                        help="clients that the engine trains as one program (1)")  # fmt: skip
    parser.add_argument(
        "--full", action="store_true", help="all networks, all methods, up to 10,000 clients and 86 million parameters"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="a new directory for perf.json and perf.png (default: below runs/)"
    )
    parser.set_defaults(command=by_reference("spatl.console.perf:perf"))


def _add_partition(parser: Parser) -> None:
    parser.description = "Print how many examples of each class each client has, and draw it."
    parser.add_argument("config", metavar="CONFIG", help="a YAML file: its data, partition and seed are read")
    add_overrides(parser, "override a setting, e.g. --set partition.alpha=0.1")
    parser.add_argument("--out", metavar="FILE", help="the picture, a .png file (default: one below runs/)")
    parser.set_defaults(command=by_reference("spatl.console.partition:partition"))


def _add_pretrain(parser: Parser) -> None:
    parser.description = "Train a selection policy; with the defaults, the one that ships with the package."
    parser.add_argument("--seed", type=int, default=1, help="everything random follows from it (default: 1)")
    parser.add_argument("--steps", type=int, default=32_768, help="selections that PPO measures (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", help="a new directory for the weights and the reward curve")
    parser.set_defaults(command=by_reference("agents.lab.commands:pretrain"))


def _add_evaluate(parser: Parser) -> None:
    parser.description = (
        "Train networks as the configs describe, prune them to each budget in every way there is, and print the "
        "accuracy on the clients' test splits. Nothing but the validation splits is looked at before."
    )
    parser.add_argument("configs", metavar="CONFIG", nargs="+", help="YAML files: model, data, partition, training")
    add_overrides(parser, "override a setting in every config")
    parser.add_argument("--seeds", metavar="A,B,...", type=_seeds, default=[1, 2, 3], help="one network each (1,2,3)")
    parser.add_argument(
        "--budgets", metavar="A,B,...", type=_numbers, default=[0.3, 0.5, 0.7], help="limits (0.3,0.5,0.7)"
    )
    parser.add_argument("--kind", choices=BUDGET_KINDS, default="flops_ratio", help="their unit (flops_ratio)")
    parser.add_argument("--samples", type=int, default=16, help="evaluations of fine-tuning and searches (16)")
    parser.add_argument("--epochs", type=int, default=12, help="of training before the clients' own round (12)")
    parser.add_argument("--clients", type=int, help="how many clients of each network select (3, or all if fewer)")
    parser.add_argument("--policy", metavar="FILE", help="a policy of `pretrain`; the shipped one if not given")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    parser.add_argument("--out", metavar="DIR", help="a new directory for the table and the picture")
    parser.set_defaults(command=by_reference("agents.lab.commands:evaluate"))


def _add_experiment(parser: Parser) -> None:
    parser.description = (
        "Train networks as a config says, and measure on the test examples that they get wrong what parameter-space "
        "saliency is claimed to do, each claim beside its controls."
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a config that ships: saliency/resnet20")
    parser.add_argument("--claims", metavar="A,B,...", type=_names, help="instead of saliency.claims")
    parser.add_argument("--seeds", metavar="A,B,...", type=_seeds, help="one network each, instead of saliency.seeds")
    add_overrides(parser)
    parser.add_argument("--out", metavar="DIR", help="a new directory for numbers and picture (default: below runs/)")
    parser.set_defaults(command=by_reference("spatl.console.saliency:experiment"))


def _add_show(parser: Parser) -> None:
    parser.description = "Print one list, or the lines of it that are named; settings by section or by key."
    parser.add_argument("what", choices=SHOWN)
    parser.add_argument("names", metavar="NAME", nargs="*", help="lines of the list, or sections: settings training")
    parser.set_defaults(command=by_reference("spatl.console.show:show"))


def _add_completion(parser: Parser, root: Parser) -> None:
    parser.description = "Print a script for a shell to source, e.g. source <(spatl completion bash)."
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(command=by_reference("spatl.console.completion:print_completion"), root=root)


def _versions() -> str:
    """Return the versions that a report of a fault should name, in one line."""
    others = ", ".join(f"{name} {version(name)}" for name in ("flwr", "torch"))
    return f"spatl {__version__} ({others}, Python {platform.python_version()})"


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from None


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}") from None
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"a seed stands twice in {text!r}")
    return seeds

"""What a part of the network costs to train: CPU seconds on one thread over the whole's, in interleaved pairs.

`python -m tests.studies.small_devices [MODEL ...]`; figures in docs/small-devices.md.
"""

import sys
import time

import torch

from spatl.channels.costs import Budget
from spatl.config.loading import parse_config
from spatl.models.copies import duplicate
from spatl.rounds.blueprint import make_blueprint
from spatl.rounds.client_state import ClientState
from spatl.rounds.parts import chosen_part, cut_part
from spatl.rounds.workplace import Workplace, trainable
from spatl.training.local import train_
from spatl.wire.download import Model

PAIRS = 3
"""As many are measured, after one that warms up."""


def measured(model: str, selector: str, share: float) -> str:
    """A line: what a part within a share of the multiply-accumulates has, and costs to choose, to cut and to train."""
    config = parse_config({
        "method": "spatl-small", "model": {"name": model}, "partition": {"name": "iid", "num_clients": 4},
        "data": {"name": "synthetic", "options": {"num_examples": 800, "image_size": 28}},
        "training": {"local_steps": 16, "batch_size": 32, "device": "cpu", "threads": 1},
        "selection": {"selector": selector, "flops_ratio": share},
    })  # fmt: skip
    blueprint = make_blueprint(config)
    workplace, layout = Workplace(blueprint), blueprint.layout
    received = Model(1, 0, blueprint.initial_encoder(), None)
    seconds, told = {"choice": 0.0, "cut": 0.0, "part": 0.0, "whole": 0.0}, ""
    for pair in range(PAIRS + 1):
        with workplace.prepared(
            0, received, ClientState.initial(layout), own_budget=Budget("flops_ratio", share)
        ) as own:
            marks = [time.process_time()]
            part = chosen_part(own)
            marks.append(time.process_time())
            small = cut_part(own, part)
            assert part is not None
            assert small is not None
            marks.append(time.process_time())
            whole = duplicate(own.model)
            for network in (small.network, whole):
                order = torch.Generator().manual_seed(pair)
                started = time.process_time()
                train_(network, trainable(network), own.data.train, own.training, generator=order)
                marks.append(time.process_time() - started)
            if pair:
                for name, spent in zip(seconds, (marks[1] - marks[0], marks[2] - marks[1], *marks[3:]), strict=True):
                    seconds[name] += spent
            entries, flops = (
                part.selection.keep_ratio(layout),
                blueprint.costs.flops.ratio(part.selection.counts(layout)),
            )
            told = f"{model}, {selector}: {flops:.3f} of the multiply-accumulates, {entries:.3f} of the entries"
    ratios = ", ".join(f"{name} {spent / seconds['whole']:.3f}" for name, spent in seconds.items() if name != "whole")
    return f"{told}; of the seconds of training the whole: {ratios}"


def main() -> None:
    """Print a line for each network and selector."""
    for model in sys.argv[1:] or ("resnet8", "resnet20", "vgg11"):
        for selector in ("signal", "ordered"):
            print(measured(model, selector, 0.5), flush=True)


if __name__ == "__main__":
    main()

"""Latency of exported networks on one thread: cut to half the multiply-accumulates, and in 8 bits.

`python -m tests.studies.latency [NETWORK ...]` cuts each network to 50 % of its multiply-accumulates, in multiples of
eight channels, and prints what ONNX Runtime takes for the dense and the cut one at batch 1 and 16, VGG-11 also after
training, cut by the signal and by the agent; then the dense one in 8 bits against eager PyTorch; then what 8 bits cost
ResNet-20 in accuracy, on the digits; then the memory and the first answer of the loader, in processes of its own.
Networks are measured in turns: a ratio is that of medians in one block of turns, and what is printed is its median over
the blocks, with the lowest and the highest. Floors are the least that the cut or the 8 bits should give.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spatl.artifacts import loader
from spatl.artifacts.cutting import cut_network
from spatl.artifacts.graphs import exported_program, onnx_of, onnx_session, quantised, run_session
from spatl.artifacts.latency import medians_in_turns
from spatl.artifacts.widths import CutBudget
from spatl.config.training import TrainingConfig
from spatl.data import Examples, load_dataset
from spatl.json_files import write_json
from spatl.models import build_model
from spatl.seeding import generator
from spatl.training.local import train_

SHAPE = (3, 32, 32)
FLOORS = {("vgg11", 1): 1.7, ("vgg11", 16): 1.6, ("resnet56", 16): 1.3, ("resnet20", 16): 1.25}
INT8_FLOOR = 8.0
"""How many times as fast as eager PyTorch a dense ResNet-20 in 8 bits is at least, at batch 1."""
MOST_MEMORY = 80.0
"""Megabytes that the loader may hold after its first answer."""
MOST_SECONDS = 0.5
"""Seconds from the loader's import to its first answer, at most."""
TRAINED = ("vgg11",)
"""Networks whose floors are those of a trained one, cut by the agent: random weights leave wide layers as they are."""
TRAINED_EPOCHS = 8
BLOCKS = 7
EPOCHS = 6
_SECONDS = 1.0  # of each block

_FIRST_ANSWER = """
import time
began = time.perf_counter()
import sys
sys.path.insert(0, sys.argv[1])
from predict import Classifier
import numpy
Classifier(sys.argv[1]).probabilities(numpy.zeros((1, 3, 32, 32), dtype=numpy.uint8))
seconds = time.perf_counter() - began
memory = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(memory) / 1024)
"""


def network_of(name: str) -> nn.Module:
    """A network in eval mode with random weights, which cost as much as any others."""
    network, _ = build_model(name, num_classes=10, in_channels=3, image_size=32, seed=1)
    return network.eval()


def noise(number: int, *, seed: int = 0) -> Tensor:
    """float32 [N, 3, 32, 32]."""
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed))


def halved(network: nn.Module) -> tuple[nn.Module, str]:
    """A network cut to half its multiply-accumulates, and what is left, in words."""
    examples = [Examples(noise(64, seed=seed), torch.arange(64) % 10) for seed in (1, 2)]
    cut = cut_network(
        network,
        noise(1),
        budget=CutBudget("flops", 0.5),
        train=examples[0],
        validation=examples[1],
        selector="signal",
    )
    return cut.network, f"{cut.flops_ratio:.0%} of MACs, {cut.parameters_ratio:.0%} of weights"


def trained_rows(name: str) -> bool:
    """Print how fast a network is that was trained and then cut by the signal and by the agent, and its accuracy."""
    dataset = load_dataset("synthetic", seed=1, options={"num_examples": 1500, "image_size": 32, "difficulty": 0.1})
    order = torch.randperm(len(dataset), generator=generator(1, "study"))
    train, validation, test = (
        Examples(dataset.inputs[part], dataset.targets[part]) for part in order.split([1000, 250, 250])
    )
    network, _ = build_model(name, num_classes=dataset.num_classes, in_channels=3, image_size=32, seed=1)
    settings = TrainingConfig(learning_rate=0.02, momentum=0.9, batch_size=32, weight_decay=5e-4)
    parameters = dict(network.named_parameters())
    train_(network, parameters, train, settings, generator=generator(1, "batches"), epochs=TRAINED_EPOCHS)
    network.eval()
    dense, holds = runner(onnx_of(exported_program(network, SHAPE), network, SHAPE)), []
    for selector in ("signal", "agent"):
        cut = cut_network(
            network, noise(1), budget=CutBudget("flops", 0.5), train=train, validation=validation, test=test,
            selector=selector, training=settings, finetune_epochs=1,
        )  # fmt: skip
        assert cut.dense_test is not None
        assert cut.test is not None
        small = runner(onnx_of(exported_program(cut.network, SHAPE), cut.network, SHAPE))
        print(
            f"{name}, trained, by {selector}: test accuracy {100 * cut.dense_test.accuracy:.1f} % dense, "
            f"{100 * cut.test.accuracy:.1f} % cut and trained for an epoch",
            flush=True,
        )
        for batch in (1, 16):
            about = f"{name}, trained, {selector}, {cut.parameters_ratio:.0%} of weights, batch {batch}"
            floor = FLOORS.get((name, batch)) if selector == "agent" else None
            holds.append(told(about, ratios(dense, small, batch), floor))
    return all(holds)


def runner(model: bytes) -> Callable[[Tensor], object]:
    """ONNX Runtime on one thread."""
    session = onnx_session(model)
    return lambda images: run_session(session, images.numpy())


def ratios(slow: Callable[[Tensor], object], fast: Callable[[Tensor], object], batch: int) -> list[tuple[float, float]]:
    """Milliseconds of both, by block of turns."""
    images = noise(batch)
    blocks = []
    for _ in range(BLOCKS):
        found = medians_in_turns({"slow": partial(slow, images), "fast": partial(fast, images)}, seconds=_SECONDS)
        blocks.append((1e3 * found["slow"], 1e3 * found["fast"]))
    return blocks


def told(name: str, blocks: Sequence[tuple[float, float]], floor: float | None) -> bool:
    """Print a line on two latencies; return whether their ratio is at least the floor."""
    slow, fast = (median(each) for each in zip(*blocks, strict=True))
    each = sorted(a / b for a, b in blocks)
    holds = floor is None or median(each) >= floor
    wanted = "" if floor is None else f"  (at least {floor:g}: {'yes' if holds else 'NO'})"
    print(
        f"{name:<54} {slow:8.3f} ms {fast:8.3f} ms  {median(each):5.2f} x  {each[0]:.2f} to {each[-1]:.2f}{wanted}",
        flush=True,
    )
    return holds


def of_network(name: str) -> bool:
    """Print how fast a network is, dense and cut; return whether all floors hold."""
    network = network_of(name)
    small, left = halved(network)
    dense, cut = (onnx_of(exported_program(each, SHAPE), each, SHAPE) for each in (network, small))
    holds = [
        told(
            f"{name}, {left}, batch {batch}",
            ratios(runner(dense), runner(cut), batch),
            None if name in TRAINED else FLOORS.get((name, batch)),
        )
        for batch in (1, 16)
    ]
    if name in TRAINED:
        holds.append(trained_rows(name))
    int8 = runner(quantised(dense, noise(128).numpy()))
    for batch in (1, 16):
        floor = INT8_FLOOR if (name, batch) == ("resnet20", 1) else None
        holds.append(told(f"{name}, int8 against eager, batch {batch}", ratios(network, int8, batch), floor))
    return all(holds)


def of_accuracy(name: str = "resnet20", seeds: Sequence[int] = (1, 2, 3)) -> bool:
    """Print the accuracy of a network on the digits in float32 and in 8 bits; return whether it stays."""
    differences = []
    for seed in seeds:
        data = load_dataset("digits", seed=seed)
        order = torch.randperm(len(data), generator=generator(seed, "study"))
        train, test = (Examples(data.inputs[part], data.targets[part]) for part in (order[:1200], order[1200:]))
        network, _ = build_model(name, num_classes=10, in_channels=1, image_size=8, seed=seed)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        for _ in range(EPOCHS):
            for some in torch.randperm(len(train), generator=generator(seed, "study")).split(60):
                optimizer.zero_grad()
                cross_entropy(network(train.inputs[some]), train.targets[some]).backward()
                optimizer.step()
        shape = (1, 8, 8)
        model = onnx_of(exported_program(network.eval(), shape), network, shape)
        accuracies = []
        for each in (model, quantised(model, train.inputs[:256].numpy())):
            logits = torch.from_numpy(run_session(onnx_session(each), test.inputs.numpy()))
            accuracies.append(100 * float((logits.argmax(1) == test.targets).float().mean()))
        differences.append(accuracies[1] - accuracies[0])
        print(f"{name} on the digits, seed {seed}: {accuracies[0]:.2f} % in float32, {accuracies[1]:.2f} % in int8")
    holds = min(differences) >= -1.0
    print(f"int8 changes it by {mean(differences):+.2f} points in the mean (at least -1: {'yes' if holds else 'NO'})")
    return holds


def of_loader() -> bool:
    """Print what the loader takes until its first answer, as medians over processes; return whether it suffices."""
    network = network_of("resnet20")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        shutil.copy(loader.__file__, place / "predict.py")
        (place / loader.MODEL).write_bytes(onnx_of(exported_program(network, SHAPE), network, SHAPE))
        scale = {"means": [120.0] * 3, "deviations": [60.0] * 3}
        write_json(
            place / loader.DESCRIPTION,
            {"input_shape": SHAPE, "class_names": [str(each) for each in range(10)], "normalisation": scale},
        )
        found = []
        for _ in range(BLOCKS):
            done = subprocess.run(
                [sys.executable, "-c", _FIRST_ANSWER, name], cwd=name, capture_output=True, text=True, check=True
            )
            found.append([float(each) for each in done.stdout.split()])
    seconds, memory = np.median(np.array(found), axis=0)
    holds = bool(seconds <= MOST_SECONDS and memory <= MOST_MEMORY)
    print(
        f"loader, ResNet-20: first answer after {seconds:.2f} s (at most {MOST_SECONDS}), peak memory {memory:.0f} MB "
        f"(at most {MOST_MEMORY:.0f}): {'yes' if holds else 'NO'}"
    )
    return holds


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all, and return 1 where something is less than its floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", metavar="NETWORK", nargs="*", default=["vgg11", "resnet56", "resnet20"])
    options = parser.parse_args(arguments)
    print(f"{'':<54} {'before':>11} {'after':>11}  ratio, and over {BLOCKS} blocks")
    holds = [of_network(name) for name in options.networks]
    holds += [of_accuracy(), of_loader()]
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())

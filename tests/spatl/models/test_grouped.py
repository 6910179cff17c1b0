"""Networks side by side: what each does alone, in float64, and one line for those that cannot stand there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spatl.errors import ModelError
from spatl.models.grouped import GroupedNetwork, check_grouped
from spatl.models.table import MODELS

IMAGES = torch.zeros(2, 1, 8, 8)


def net(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *middle, nn.Flatten(), nn.Linear(4 * 64, 3))


class Mixing(nn.Module):
    """Attention over channels, which no layer of its own shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(F.softmax(self.body(images), dim=1).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = self.first

    def forward(self, images):
        return self.again(self.first(images.flatten(1)))


class Dropping(nn.Module):
    """Dropout without a layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(F.dropout(images.flatten(1), training=self.training))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(images.flatten(1) * self.scale)


def frozen() -> nn.Module:
    network = net()
    network[0].requires_grad_(False)
    return network


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"mlp"}))
def test_networks_of_the_table_can_stand_side_by_side(name):
    options = {} if name == "cnn" else {"width": 0.125}
    check_grouped(MODELS[name].factory(num_classes=3, in_channels=1, image_size=8, **options), IMAGES)


def test_one_of_tables_can_too():
    check_grouped(MODELS["mlp"].factory(num_classes=3, num_features=5), torch.zeros(1, 5))


@pytest.mark.parametrize(
    "middle",
    [
        (nn.GroupNorm(2, 4), nn.ReLU()),
        (nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.GELU()),
        (nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False), nn.Tanh()),
        (nn.BatchNorm2d(4, track_running_stats=False), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1)),
    ],
    ids=["GroupNorm", "groups of its own", "no affine, dilation", "no statistics, pooling"],
)
def test_layers_that_can(middle):
    check_grouped(net(*middle), IMAGES)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (net(nn.Dropout(0.5)), r"its layer '1' \(Dropout\) draws random numbers; set it to 1"),
        (frozen(), r"its layer '0' \(Conv2d\) is frozen"),
        (net(nn.LayerNorm(8)), r"its layer '1' \(LayerNorm\) has parameters or buffers and is none of BatchNorm1d"),
        (net(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), "has padding_mode 'circular'"),
        (net(nn.BatchNorm2d(4, momentum=None)), "averages all batches"),
        (nn.Linear(1 << 12, (1 << 12) + 1, device="meta"), "up to 16,777,216 parameters as one program, this one has"),
        (Tied(), "its layer 'again' .Linear. is another layer too"),
        (Scaled(), r"its layer '' \(Scaled\) has parameters"),
        (Mixing(), "mixes the channels of all of them: side by side outputs or gradients are others; set it to 1"),
        (Dropping(), "side by side outputs or gradients are others"),
        (nn.Sequential(nn.Linear(8, 3), nn.Flatten()), "mixes the channels of all of them: RuntimeError"),
    ],
)
def test_what_cannot_is_said_in_one_line(network, message):
    with pytest.raises(ModelError, match=message) as caught:
        check_grouped(network, IMAGES)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("training.group_size: ")


def test_some_members_work_while_others_stand_still():
    torch.manual_seed(0)
    alone = [net(nn.BatchNorm2d(4)).double() for _ in range(4)]
    grouped = GroupedNetwork(alone[0], 4, [name for name, _ in alone[0].named_parameters()])
    for member, network in enumerate(alone):
        grouped.load(member, network)
    images = list(torch.randn(2, 5, 1, 8, 8, dtype=torch.float64))
    outputs = grouped.outputs(1, images)
    for place, member in enumerate((1, 2)):
        torch.testing.assert_close(outputs[:, place], alone[member](images[place]))
    for member, network in enumerate(alone):
        again = net(nn.BatchNorm2d(4)).double()
        grouped.put_back_(member, again, num_steps=int(member in (1, 2)))
        torch.testing.assert_close(again.state_dict(), network.state_dict())


def test_members_lie_in_memory_as_the_network_they_are_like():
    like = net().double()
    like[0].weight.data = like[0].weight.data.contiguous(memory_format=torch.channels_last)
    grouped = GroupedNetwork(net(), 3, ["0.weight"], like=like)
    for member in range(3):
        grouped.load(member, like)
        weight = grouped.members[member]["0.weight"]
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(weight, like[0].weight)

from collections.abc import Callable

import pytest
import torch
from torch import nn

from spatl.models.resnet import ResNet, resnet8, resnet20, resnet32, resnet56


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet20_has_the_known_number_of_parameters() -> None:
    """Worked out for 3x32x32 and 10 classes; a BatchNorm has 2 parameters per channel.

    stem     3*16*9 + 32                                             =     464
    stage 1  6 convs of 16*16*9 = 2304, 6 norms of 32                =  14,016
    stage 2  16*32*9 = 4608, 5 convs of 32*32*9 = 9216, 6 norms of 64  =  51,072
    stage 3  32*64*9 = 18432, 5 convs of 64*64*9 = 36864, 6 norms of 128 = 203,520
    shortcuts  16*32 + 64 = 576, 32*64 + 128 = 2176                  =   2,752
    fc       64*10 + 10                                              =     650

    In all 272,474: the 269,722 of the parameter-free shortcut, plus 2,752.
    """
    assert num_parameters(resnet20(num_classes=10, in_channels=3, image_size=32)) == 269_722 + 2_752


@pytest.mark.parametrize(("factory", "depth"), [(resnet8, 8), (resnet20, 20), (resnet32, 32), (resnet56, 56)])
def test_the_depth_counts_the_layers_off_the_shortcut(factory: Callable[..., ResNet], depth: int) -> None:
    model = factory(num_classes=10, in_channels=3, image_size=32)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == depth


def test_only_the_first_block_of_a_wider_stage_projects() -> None:
    model = resnet20(num_classes=10, in_channels=3, image_size=32)
    projections = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and "short" in name]
    assert projections == ["stage2.0.shortcut.0", "stage3.0.shortcut.0"]


def test_the_second_and_third_stage_halve_the_image() -> None:
    model = resnet8(num_classes=10, in_channels=1, image_size=8)
    features = model.stage1(torch.ones(2, 16, 8, 8))
    assert [features.shape, (features := model.stage2(features)).shape, model.stage3(features).shape] == [
        (2, 16, 8, 8),
        (2, 32, 4, 4),
        (2, 64, 2, 2),
    ]


def test_the_width_scales_every_stage() -> None:
    model = resnet8(num_classes=10, in_channels=1, image_size=8, width=0.5)
    assert [model.conv.out_channels, model.fc.in_features] == [8, 32]

import pytest
from torch import nn

from spatl.models.mobilenet import mobilenet


def test_mobilenet_has_the_number_of_parameters_of_its_blocks() -> None:
    """Worked out for 3 channels and 10 classes; a BatchNorm has 2 parameters per channel.

    stem  9 * 3*32 + 2*32 = 928
    blocks from a to b channels  9*a + 2*a + a*b + 2*b:
      32->64 2,528   64->128 9,152   128->128 18,048   128->256 34,688   256->256 68,864   256->512 134,912
    classifier  512*10 + 10 = 5,130
    """
    model = mobilenet(num_classes=10, in_channels=3, image_size=32)
    blocks = 2_528 + 9_152 + 18_048 + 34_688 + 68_864 + 134_912
    assert sum(parameter.numel() for parameter in model.parameters()) == 928 + blocks + 5_130


@pytest.mark.parametrize(("image_size", "num_strides"), [(8, 2), (16, 3), (32, 3)])
def test_images_are_halved_while_their_size_allows(image_size: int, num_strides: int) -> None:
    model = mobilenet(num_classes=10, in_channels=1, image_size=image_size, width=0.1)
    strides = [module.stride for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert strides.count((2, 2)) == num_strides


def test_every_block_filters_each_channel_by_itself() -> None:
    model = mobilenet(num_classes=10, in_channels=1, image_size=8, width=0.5)
    depthwise = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert [module.groups for module in depthwise] == [16, 32, 64, 64, 128, 128]

import pytest
from torch import nn

from spatl.models.vgg import vgg11


def test_vgg11_has_the_known_number_of_parameters() -> None:
    """Worked out for 3 channels and 10 classes; a BatchNorm has 2 parameters per channel.

    convs  9 * (3*64 + 64*128 + 128*256 + 256*256 + 256*512 + 3 * 512*512)
           = 9 * (192 + 8192 + 32768 + 65536 + 131072 + 786432) = 9 * 1,024,192 = 9,217,728
    norms  2 * (64 + 128 + 2*256 + 4*512) = 2 * 2752 = 5,504
    classifier  512*10 + 10 = 5,130
    """
    model = vgg11(num_classes=10, in_channels=3, image_size=32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 9_217_728 + 5_504 + 5_130


@pytest.mark.parametrize(("image_size", "num_pools"), [(8, 3), (15, 3), (16, 4), (28, 4), (32, 5), (64, 5)])
def test_images_are_pooled_while_their_size_allows(image_size: int, num_pools: int) -> None:
    """Convolutions see at least 2x2; only the pool after the last one may reach 1x1.

    Three pools for 8 (4, 2, and the last 1), four for 28 (14, 7, 3, and the last 1), all five from 32 (16, 8, 4, 2, 1).
    """
    model = vgg11(num_classes=10, in_channels=1, image_size=image_size, width=0.1)
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == num_pools


def test_the_width_scales_every_layer() -> None:
    model = vgg11(num_classes=10, in_channels=1, image_size=8, width=0.25)
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [16, 32, 64, 64, 128, 128, 128, 128]

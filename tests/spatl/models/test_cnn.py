from spatl.models.cnn import cnn


def test_the_default_is_the_network_of_the_federated_averaging_paper() -> None:
    """On 1x28x28 images of 10 classes McMahan et al. count 1,663,370 parameters.

    conv1  25*32 + 32 = 832; conv2  32*25*64 + 64 = 51,264; hidden  64*7*7*512 + 512 = 1,606,144;
    classifier  512*10 + 10 = 5,130.
    """
    model = cnn(num_classes=10, in_channels=1, image_size=28)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_663_370

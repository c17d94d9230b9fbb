"""Widths and sizes of codes that no net can have, of every method, on images and tables."""

import pytest

from alocc import ALOCC
from autoencoder import Autoencoder
from common.errors import InputError
from ocgan import OCGAN
from ocnn import OCCNN

SHAPES = [(1, 8, 8), (6,)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("method", "arguments", "names"),
    [
        (Autoencoder, {"latent": 0}, "latent"),
        (Autoencoder, {"latent": -3, "network": "bounded"}, "latent"),
        (Autoencoder, {"widths": [4, 0]}, "widths"),
        (ALOCC, {"latent": 0}, "latent"),
        (ALOCC, {"encoder_widths": [4, 0], "decoder_widths": [4]}, "encoder_widths"),
        (ALOCC, {"encoder_widths": [4, 4], "decoder_widths": [0]}, "decoder_widths"),
        (ALOCC, {"discriminator_widths": [0]}, "discriminator_widths"),
        (OCGAN, {"latent": 0}, "latent"),
        (OCGAN, {"width": 0}, "width"),
        (OCGAN, {"visual_width": 0}, "visual_width and classifier_width"),
        (OCGAN, {"classifier_width": -1}, "visual_width and classifier_width"),
        (OCCNN, {"backbone": "none", "classifier_widths": [8, 0]}, "classifier_widths"),
    ],
)
def test_sizes_below_1_are_refused(method, arguments, names, shape):
    with pytest.raises(InputError, match=f"^{names} must be at least 1, not "):
        method(shape=shape, **arguments)


def test_the_released_nets_of_ocgan_refuse_them_too():
    for arguments in ({"latent": 0}, {"width": 0}, {"visual_width": 0}):
        with pytest.raises(InputError, match="must be at least 1, not 0"):
            OCGAN(shape=(1, 61, 61), network="released", **arguments)


def test_images_need_a_convolution_and_rows_need_no_hidden_layer():
    for method, arguments in ((Autoencoder, {"widths": []}), (ALOCC, {"discriminator_widths": []})):
        with pytest.raises(InputError, match="widths must have an entry: images need at least one convolution"):
            method(shape=(1, 8, 8), **arguments)
        method(shape=(6,), **arguments)


def test_lenet_needs_two_convolutions():
    """Its decoder has one more transposed convolution than widths, and upsamples before all but the first."""
    with pytest.raises(InputError, match="widths must have two entries or more: the decoder of lenet upsamples three times"):
        Autoencoder(shape=(1, 8, 8), network="lenet", widths=[8])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_alocc_needs_no_bottleneck(shape):
    assert ALOCC(shape=shape, latent=None).hparams["latent"] is None

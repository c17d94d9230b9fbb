"""Reads one image file into pixels: colour, bit depth, orientation and size."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from common.errors import InputError, UnreadableError

Fit = Literal["crop", "squeeze", "pad"]
Depth = Literal["uint8", "integer", "float"]

DEPTHS: dict[Depth, str] = {"uint8": "8 bits", "integer": "16 bits or more", "float": "floats"}
LEAST_OF_16_BITS = 4096
"""Beside images of 8 bits, 16 bits count from 0 to 65535: a file that stays below this is one of a 12-bit camera."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

UNPRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, surrogates and ends of lines."""


class Header(NamedTuple):
    """Colour and bit depth of an image file, known before it is decoded."""

    coloured: bool
    depth: Depth


def read_header(path: Path) -> Header:
    """Reads the header of an image file; raises UnreadableError if it is no image."""
    with named(path), Image.open(path) as image:
        return _header(image)


def open_image(path: Path) -> tuple[Image.Image, Depth]:
    """Decodes the first image of a file, turns it upright by its EXIF orientation, and tells its bit depth.

    Raises UnreadableError if the file cannot be read, or holds NaN or infinity.
    """
    with named(path), Image.open(path) as image:
        depth = _header(image).depth
        image.load()
        if depth == "float" and not np.isfinite(np.asarray(image)).all():
            raise ValueError("it holds NaN or infinity")
        # not ImageOps.exif_transpose: it writes the whole EXIF block again, which many cameras' blocks do not survive
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if turn is not None:
            return image.transpose(turn), depth
        return image, depth


def converted(path: Path, channels: int, depth: Depth) -> list[Image.Image]:
    """Decodes a file to the channels, 1 (grey) or 3 (RGB), and bit depth of its data set.

    ``uint8`` takes the high byte of 16 bits and gives one image of mode L or RGB. ``integer`` and ``float`` keep the values,
    in one image of mode F per channel: Pillow reads only 8 bits of 16-bit colour. Raises UnreadableError if the file cannot
    be read, or its bit depth does not match the data set.
    """
    image, own = open_image(path)
    if own != depth and (own, depth) != ("integer", "uint8"):
        raise UnreadableError(f"{shown(path)} has {DEPTHS[own]}, but the training images have {DEPTHS[depth]}: convert it")
    with named(path):
        is_deep_grey = image.mode == "F" or image.mode.startswith("I")
        if is_deep_grey and depth != "uint8":
            return [Image.fromarray(np.asarray(image, np.float32))] * channels
        if is_deep_grey:
            # Pillow's own conversion would clip everything above 255
            image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
        image = image.convert("L" if channels == 1 else "RGB")
        if depth != "uint8":
            return [Image.fromarray(np.asarray(band, np.float32) * 257) for band in image.split()]
        if own == "integer" and np.asarray(image).max() < LEAST_OF_16_BITS // 256:
            reason = f"has 16 bits and stays below {LEAST_OF_16_BITS}, beside images of 8 bits: convert it to 8 bits"
            raise UnreadableError(f"{shown(path)} {reason}")
        return [image]


def fitted(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Brings an image to ``(height, width)``: ``crop`` keeps its centre, ``squeeze`` distorts it, ``pad`` adds black bars.

    Example:
        >>> fitted(Image.new("L", (40, 10), 255), (10, 10), "pad").getpixel((0, 0))
        0
    """
    width_and_height = size[::-1]
    if image.size == width_and_height:
        return image
    if fit == "squeeze":
        return image.resize(width_and_height, Image.Resampling.BILINEAR)
    if fit == "pad":
        return _padded(image, *width_and_height)
    return ImageOps.fit(image, width_and_height, Image.Resampling.BILINEAR)


def shown(path: Path | str) -> str:
    r"""A path or a message as one line that can be written anywhere: bytes that are not UTF-8 become ``\udcXX``.

    Example:
        >>> shown(Path("caf\udce9\n1.png"))
        'caf\\udce9\\n1.png'
    """
    text = str(path)
    for character in set(text):
        if unicodedata.category(character) in UNPRINTED:
            text = text.replace(character, character.encode("unicode_escape").decode())
    return text


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Adds the name of the file to any error while reading it, because Pillow raises many types on damaged files."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"cannot read the image {shown(path)}: {reason}") from error


def _padded(image: Image.Image, width: int, height: int) -> Image.Image:
    """Brings an image to a size with its aspect ratio, between black bars.

    The pixels are those of Pillow's ImageOps.pad, but a thin image keeps at least one row or column, where Pillow's is black.
    """
    inner_width, inner_height = width, height
    if image.width / image.height > width / height:
        inner_height = max(1, round(image.height / image.width * width))
    else:
        inner_width = max(1, round(image.width / image.height * height))
    resized = image.resize((inner_width, inner_height), Image.Resampling.BILINEAR)
    # a zero far below all other values would use up the range of the training images
    bars: Any = image.getextrema()[0] if image.mode == "F" else 0
    padded = Image.new(image.mode, (width, height), bars)
    padded.paste(resized, (round((width - inner_width) / 2), round((height - inner_height) / 2)))
    return padded


def _header(image: ImageFile.ImageFile) -> Header:
    """Must be called before decoding, after which Pillow no longer knows how the file stores its bands."""
    if image.mode == "F":
        return Header(False, "float")
    if image.mode.startswith("I"):
        return Header(False, "integer")
    coloured = image.mode not in {"1", "L"}
    if any(re.search(";16[BLN]", str(arguments)) for *_, arguments in image.tile):
        return Header(coloured, "integer")
    return Header(coloured, "uint8")

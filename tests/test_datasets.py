"""Data sets read from files in their published layout, and one line for everything that can be wrong with them."""

import gzip
import re
import struct

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from common.data import DATASETS, content_digest, datasets, load
from common.data.images import ImageFiles
from common.errors import InputError

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    datasets._load.cache_clear()


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def everything(data):
    return data.images[torch.arange(data.images.shape[0])]


def as_tensor(array):
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1)


def idx(array):
    """The file format of MNIST: two zeros, the type (8 = unsigned byte), the dimensions, then the values."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(raw, n_train=20, n_test=10):
    """Random images whose class is their number modulo 10."""
    raw.mkdir(parents=True)
    images = {"train": pixels(n_train, 28, 28), "t10k": pixels(n_test, 28, 28)}
    for part, array in images.items():
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(array))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(len(array)) % 10))
    return np.concatenate(list(images.values()))


def says(*parts):
    """A pattern of parts that are matched literally, in order."""
    return ".*".join(re.escape(str(part)) for part in parts)


def test_digits(tmp_path):
    data = load("digits", tmp_path / "not needed")
    images, targets = load_digits(return_X_y=True)
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == torch.uint8
    np.testing.assert_allclose(everything(data).reshape(-1, 64) / 255, images / 16, atol=0.5 / 255)
    np.testing.assert_array_equal(data.targets, targets)
    np.testing.assert_array_equal(np.flatnonzero(data.official_test), np.arange(1257, 1797))
    assert data.classes == tuple("0123456789")


MNISTS = [("mnist", "MNIST", "0 - zero"), ("fashion_mnist", "FashionMNIST", "T-shirt/top")]


@pytest.mark.parametrize(("name", "folder", "first_class"), MNISTS)
def test_mnist_and_fashion_mnist(tmp_path, name, folder, first_class):
    expected = write_mnist(tmp_path / folder / "raw")
    data = load(name, tmp_path)
    assert tuple(data.images.shape) == (30, 1, 28, 28)
    np.testing.assert_array_equal(everything(data)[:, 0], expected)
    np.testing.assert_array_equal(data.targets, np.arange(30) % 10)
    np.testing.assert_array_equal(data.official_test, np.arange(30) >= 20)
    assert data.targets.dtype == np.int64
    assert (len(data.classes), data.classes[0]) == (10, first_class)


DAMAGED = {
    "empty": b"",
    "cut in the header": idx(np.zeros((20, 28, 28)))[:9],
    "cut in the images": idx(np.zeros((20, 28, 28)))[:-1],
    "still compressed": gzip.compress(idx(np.zeros((20, 28, 28)))),
    "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "floats": struct.pack(">BBBB3I", 0, 0, 13, 3, 1, 1, 1) + bytes(4),
    "no such type": struct.pack(">BBBB3I", 0, 0, 10, 3, 1, 1, 1) + bytes(4),
    "labels": idx(np.zeros(20)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_mnist(tmp_path, content):
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=says("mnist is not in", tmp_path, "or damaged there")) as error:
        load("mnist", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "folder", "first_class"), MNISTS)
def test_absent_and_not_to_be_downloaded(tmp_path, monkeypatch, name, folder, first_class):
    mirror = (tmp_path / "no mirror").as_uri() + "/"
    monkeypatch.setattr(getattr(torchvision.datasets, folder), "mirrors", [mirror])
    with pytest.raises(InputError, match=says(name, "is not in", tmp_path, "cannot be downloaded: Error downloading")):
        load(name, tmp_path)


def test_absent_cifar10(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", (tmp_path / "no mirror.tar.gz").as_uri())
    with pytest.raises(InputError, match=says("cifar10 is not in", tmp_path, "cannot be downloaded")):
        load("cifar10", tmp_path)


def test_cifar10_from_a_folder(tmp_path):
    names = ["airplane", "automobile", "bird"]
    expected = {"train": [], "test": []}
    for part, n in (("train", 3), ("test", 2)):
        for name in names:
            for i in range(n):
                expected[part].append(pixels(32, 32, 3))
                save(tmp_path / "cifar10" / part / name / f"{i:04}.png", expected[part][-1])
    data = load("cifar10", tmp_path)
    assert data.images.shape == (15, 3, 32, 32)
    assert torch.equal(everything(data), torch.stack([as_tensor(a) for part in expected.values() for a in part]))
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 1, 1, 2, 2]
    assert data.official_test.tolist() == [False] * 9 + [True] * 6
    assert data.classes == tuple(names)


def test_a_folder_with_an_official_split(tmp_path):
    for part, name, n in [("train", "b", 2), ("train", "a", 1), ("test", "a", 2), ("test", "b", 1)]:
        for i in range(n):
            save(tmp_path / part / name / f"{i}.png", pixels(5, 4))
    data = load("folder", tmp_path)
    assert data.classes == ("a", "b")
    assert data.targets.tolist() == [0, 1, 1, 0, 0, 1]
    assert data.official_test.tolist() == [False, False, False, True, True, True]
    assert data.targets.dtype == np.int64


def test_a_flat_folder_and_what_is_ignored_in_it(tmp_path):
    images = {name: pixels(5, 4) for name in ["b/2.PNG", "b/1.png", "a/x.bmp"]}
    for name, array in images.items():
        save(tmp_path / name, array)
    save(tmp_path / "b" / "deeper" / "3.png", pixels(9, 9))
    save(tmp_path / "beside the classes.png", pixels(9, 9))
    for name in ["README.md", "a/labels.csv", "b/.DS_Store"]:
        (tmp_path / name).write_text("no image")
    data = load("folder", tmp_path)
    assert data.classes == ("a", "b")
    assert data.targets.tolist() == [0, 1, 1]
    assert not data.official_test.any()
    expected = [as_tensor(images[name]) for name in ["a/x.bmp", "b/1.png", "b/2.PNG"]]
    assert torch.equal(everything(data), torch.stack(expected))


def test_images_come_in_any_order_and_number(tmp_path):
    files = ImageFiles([save(tmp_path / f"{i}.png", np.full((3, 2), i, np.uint8)) for i in range(20)], None, None)
    for order in ([], [7], [19, 0, 0, 5]):
        out = files[torch.tensor(order, dtype=torch.long)]
        assert out.shape == (len(order), 1, 3, 2)
        assert out.dtype == torch.uint8
        assert out[:, 0, 0, 0].tolist() == order


def only(path, size=None, channels=None):
    return ImageFiles([path], size, channels)[torch.tensor([0])][0]


def test_grey(tmp_path):
    array = pixels(7, 5)
    path = save(tmp_path / "grey.png", array)
    assert torch.equal(only(path), as_tensor(array))
    assert torch.equal(only(path, channels=3), as_tensor(array).expand(3, 7, 5))


def test_black_and_white(tmp_path):
    array = pixels(7, 5) > 127
    assert torch.equal(only(save(tmp_path / "bilevel.png", array)), as_tensor(array.astype(np.uint8) * 255))


def test_rgb(tmp_path):
    array = pixels(7, 5, 3)
    path = save(tmp_path / "rgb.png", array)
    assert torch.equal(only(path), as_tensor(array))
    luma = as_tensor(array @ np.array([0.299, 0.587, 0.114]))
    assert (only(path, channels=1) - luma).abs().max() <= 1


def test_rgba_loses_its_alpha(tmp_path):
    array = pixels(7, 5, 4)
    assert torch.equal(only(save(tmp_path / "rgba.png", array)), as_tensor(array[..., :3]))


def test_a_palette_is_looked_up(tmp_path):
    numbers, colours = pixels(7, 5) % 4, pixels(4, 3)
    image = Image.fromarray(numbers)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    assert torch.equal(only(tmp_path / "palette.png"), as_tensor(colours[numbers]))


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_their_values(tmp_path, suffix):
    array = np.linspace(0, 65535, 35).astype(np.uint16).reshape(7, 5)
    path = save(tmp_path / f"deep.{suffix}", array)
    assert torch.equal(only(path), as_tensor(array.astype(np.float32)))
    as_bytes = ImageFiles([path], None, None, depth="uint8")[torch.tensor([0])][0]
    assert torch.equal(as_bytes, as_tensor((array // 256).astype(np.uint8)))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_an_image_is_turned_as_its_exif_says(tmp_path, orientation, turns):
    array = pixels(7, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = only(save(tmp_path / "turned.png", array, exif=exif))
    assert torch.equal(out, as_tensor(np.rot90(array, turns)))


@pytest.mark.parametrize("size", [(10, 10), (5, 5), (33, 33), (10, 7), (21, 10)])
@pytest.mark.parametrize("tall", [False, True])
def test_the_centre_is_cropped_and_scaled(tmp_path, size, tall):
    array = np.zeros((10, 40), np.uint8)
    array[:, 12:28] = 200
    path = save(tmp_path / "three parts.png", array.T.copy() if tall else array)
    size = size[::-1] if tall else size
    out = only(path, size)
    assert out.shape == (1, *size)
    assert (out == 200).all()


def test_a_crop_keeps_proportions(tmp_path):
    disc = (np.hypot(*(np.indices((60, 60)) - 29.5)) < 20).astype(np.uint8) * 255
    path = save(tmp_path / "disc.png", np.pad(disc, ((0, 0), (30, 30))))
    out = only(path, (30, 30))[0] > 127
    assert out.any(0).sum() == out.any(1).sum() == 20


def test_images_of_several_sizes(tmp_path):
    paths = [save(tmp_path / f"{i}.png", pixels(*size)) for i, size in enumerate([(33, 47), (8, 8), (1, 90)])]
    assert ImageFiles(paths, (45, 28), None)[torch.arange(3)].shape == (3, 1, 45, 28)
    with pytest.raises(InputError, match=says(paths[1], "is 8x8, but the first image is 33x47: give image_size")):
        ImageFiles(paths, None, None)[torch.arange(3)]


def test_one_image_in_colour_decides_on_channels(tmp_path):
    paths = [save(tmp_path / "0.png", pixels(4, 4)), save(tmp_path / "1.png", pixels(4, 4, 3))]
    assert ImageFiles(paths[:1], None, None)[torch.arange(1)].shape == (1, 1, 4, 4)
    assert ImageFiles(paths, None, None)[torch.arange(2)].shape == (2, 3, 4, 4)
    assert ImageFiles(paths[::-1], None, None)[torch.arange(2)].shape == (2, 3, 4, 4)


def test_a_data_set_is_read_once(tmp_path):
    save(tmp_path / "a" / "0.png", pixels(4, 4))
    first = load("folder", tmp_path)
    assert load("folder", tmp_path) is first
    assert load("folder", tmp_path, (8, 8)).images.shape == (1, 1, 8, 8)


def test_unknown_name(tmp_path):
    with pytest.raises(InputError, match=says("unknown data set 'imagenet': choose from", *DATASETS)):
        load("imagenet", tmp_path)


@pytest.mark.parametrize("name", sorted(DATASETS.keys() - {"digits"}))
def test_missing_root(tmp_path, name):
    with pytest.raises(InputError, match=says("no folder", tmp_path / "absent")):
        load(name, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_file_for_a_root(tmp_path):
    with pytest.raises(InputError, match=says("no folder", tmp_path / "file")):
        load("folder", save(tmp_path / "file", pixels(4, 4), format="png"))


@pytest.mark.parametrize("parts", [[], ["train", "test"]])
def test_no_class_folders(tmp_path, parts):
    for part in ["", *parts]:
        save(tmp_path / part / "0.png", pixels(4, 4))
    with pytest.raises(InputError, match=says(tmp_path, "has no class folders")):
        load("folder", tmp_path)


@pytest.mark.parametrize("content", [None, "notes.txt"])
def test_a_class_folder_without_images(tmp_path, content):
    save(tmp_path / "a" / "0.png", pixels(4, 4))
    (tmp_path / "b").mkdir()
    if content:
        (tmp_path / "b" / content).write_text("no image")
    with pytest.raises(InputError, match=says("no images in the class folder", tmp_path / "b")):
        load("folder", tmp_path)


def test_a_class_that_is_only_trained_on(tmp_path):
    for name in ["train/a/0.png", "train/b/0.png", "test/a/0.png"]:
        save(tmp_path / name, pixels(4, 4))
    with pytest.raises(InputError, match=says("no images in the class folder", tmp_path / "test" / "b")):
        load("folder", tmp_path)


@pytest.mark.parametrize("broken", ["a/0", "b/0"])
@pytest.mark.parametrize("damage", ["truncated.jpg", "text.png", "empty.png"])
def test_an_image_that_cannot_be_read(tmp_path, broken, damage):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", pixels(32, 32, 3))
    path = tmp_path / f"{broken}-{damage}"
    if damage == "truncated.jpg":
        save(path, pixels(32, 32, 3))
        path.write_bytes(path.read_bytes()[:-200])
    else:
        path.write_text("no image" if damage == "text.png" else "")
    with pytest.raises(InputError, match=says("cannot read the image", path)) as error:
        everything(load("folder", tmp_path))
    assert "\n" not in str(error.value)


def tree(root):
    for part, name, i in [("train", "a", 0), ("train", "a", 1), ("train", "b", 2), ("test", "a", 3), ("test", "b", 4)]:
        save(root / part / name / f"{i}.png", np.full((4, 4), i, np.uint8))
    return root


def identity(root, **options):
    """As a new process computes it."""
    datasets._load.cache_clear()
    return content_digest(load("folder", root, **options))


def test_a_folder_is_what_is_in_it_wherever_it_lies(tmp_path):
    here = identity(tree(tmp_path / "one"))
    assert re.fullmatch("[0-9a-f]{16}", here)
    assert identity(tree(tmp_path / "two")) == identity(tmp_path / "one", size=(8, 8)) == here
    (tmp_path / "two" / "train" / "a" / "1.png").rename(tmp_path / "two" / "train" / "a" / "7.png")
    assert identity(tmp_path / "two") == here


CHANGES = {
    "another pixel": lambda root: save(root / "train" / "a" / "0.png", np.eye(4, dtype=np.uint8)),
    "one more": lambda root: save(root / "train" / "a" / "9.png", np.zeros((4, 4), np.uint8)),
    "one less": lambda root: (root / "train" / "a" / "1.png").unlink(),
    "another order": lambda root: (root / "train" / "a" / "0.png").rename(root / "train" / "a" / "8.png"),
    "another class": lambda root: (root / "train" / "a" / "1.png").rename(root / "train" / "b" / "1.png"),
    "another part": lambda root: (root / "train" / "a" / "1.png").rename(root / "test" / "a" / "1.png"),
    "another class name": lambda root: [(root / part / "b").rename(root / part / "c") for part in ("train", "test")],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_matters_changes_a_folders_identity(tmp_path, change):
    before = identity(tree(tmp_path))
    change(tmp_path)
    assert identity(tmp_path) != before


@pytest.mark.parametrize(
    "stray",
    [".DS_Store", "train/.DS_Store", "train/a/Thumbs.db", "train/a/.hidden.png", "train/notes.txt", "train/beside.png",
     ".ipynb_checkpoints/0.png", "train/.ipynb_checkpoints/0.png", "train/a/.ipynb_checkpoints/0-checkpoint.png"],
)  # fmt: skip
def test_what_an_editor_leaves_beside_the_images_changes_nothing(tmp_path, stray):
    before = identity(tree(tmp_path))
    (tmp_path / stray).parent.mkdir(exist_ok=True)
    save(tmp_path / stray, pixels(4, 4), format="png")
    assert identity(tmp_path) == before
    assert load("folder", tmp_path).classes == ("a", "b")


def test_a_changed_folder_is_read_again_in_the_same_process(tmp_path):
    before = content_digest(load("folder", tree(tmp_path)))
    save(tmp_path / "train" / "a" / "9.png", pixels(4, 4))
    assert len(load("folder", tmp_path).targets) == 6
    assert content_digest(load("folder", tmp_path)) != before


def test_a_file_that_vanishes_is_named(tmp_path):
    data = load("folder", tree(tmp_path))
    (tmp_path / "train" / "a" / "1.png").unlink()
    with pytest.raises(InputError, match=says("cannot read the image", tmp_path / "train" / "a" / "1.png")):
        content_digest(data)


def test_the_identity_is_computed_once(tmp_path, monkeypatch):
    data = load("folder", tree(tmp_path))
    before = content_digest(data)
    monkeypatch.setattr("common.data.images._parts", lambda images: pytest.fail("read again"))
    assert content_digest(data) == before
    assert content_digest(data._replace(targets=data.targets[::-1].copy())) != before

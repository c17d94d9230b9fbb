"""What becomes of image files as they come from cameras and telephones: depth, colour, orientation, shape, damage."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from common.cli import main
from common.data import OneClassDataModule, Preprocessing, image_data
from common.data.decoding import fitted
from common.data.images import ImageFiles
from common.deploy.export import metadata
from common.deploy.load import load_detector
from common.errors import InputError, UnreadableError
from common.evaluation import conformal_p_value
from common.experiment.run import run_command

RANDOM = np.random.default_rng(0)
ROOT = Path(__file__).parents[1]
SMOKE = str(ROOT / "autoencoder" / "configs" / "smoke.yaml")
X, Y = load_digits(return_X_y=True)
ONES, ZEROS = X[Y == 1][:60].reshape(-1, 8, 8) / 16, X[Y == 0][:20].reshape(-1, 8, 8) / 16


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def png_of_16_bit_colour(path, array, claimed_height=None):
    """Pillow reads such files and writes none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIBBBBB", array.shape[1], claimed_height or array.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path


def in_colour(path, grey):
    return png_of_16_bit_colour(path, np.stack([grey] * 3, -1))


def pgm(path, grey, largest):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"P5 8 8 {largest}\n".encode() + grey.astype(">u2").tobytes())
    return path


CAMERAS = {
    "8 bits in 16": (255, lambda path, grey: save(path.with_suffix(".png"), grey.astype(np.uint16))),
    "10 bits in 16": (1023, lambda path, grey: save(path.with_suffix(".tiff"), grey.astype(np.uint16))),
    "12 bits in 16": (4095, lambda path, grey: save(path.with_suffix(".png"), grey.astype(np.uint16))),
    "12 bits, as the file says": (4095, lambda path, grey: pgm(path.with_suffix(".pgm"), grey, 4095)),
    "16 bits": (65535, lambda path, grey: save(path.with_suffix(".tif"), grey.astype(np.uint16), compression="tiff_lzw")),
    "32 bits": (70000, lambda path, grey: save(path.with_suffix(".tif"), grey.astype(np.int32))),
    "12 bits in colours of 16": (4095, lambda path, grey: in_colour(path.with_suffix(".png"), grey)),
    "floats in [0, 1]": (1, lambda path, grey: save(path.with_suffix(".tif"), grey.astype(np.float32))),
    "floats": (1e-3, lambda path, grey: save(path.with_suffix(".tif"), grey.astype(np.float32) - 40)),
}


def camera(root, largest, write):
    """Ones as the normal class and zeros: what a camera with values from 0 to ``largest`` makes of them."""
    for name, images in {"one": ONES, "zero": ZEROS}.items():
        for i, image in enumerate(images * largest):
            write(root / name / f"{i:02}", image if largest < 255 else np.rint(image))
    return root


def folder(root, protocol="no_split", **options):
    data = OneClassDataModule("folder", "one", str(root), protocol, **options)
    data.setup()
    return data


@pytest.mark.parametrize(("largest", "write"), CAMERAS.values(), ids=CAMERAS)
def test_every_depth_is_seen_as_arrays_are(tmp_path, largest, write):
    data = folder(camera(tmp_path, largest, write), "balanced")
    arrays = OneClassDataModule.of(
        image_data(np.concatenate([ONES, ZEROS]), ["one"] * 60 + ["zero"] * 20), normal="one", protocol="balanced"
    )
    arrays.setup()
    train, test = data.images(data.splits.train), data.images(data.splits.test)
    assert (train.min().item(), train.max().item()) == (0, 1)
    # Pillow keeps the 8 high bits of 16-bit colours, 4 of a 12-bit camera
    tolerance = 0.08 if data.shape[0] == 3 else 0.005
    expected = arrays.images(arrays.splits.test).expand_as(test)
    torch.testing.assert_close(test, expected, atol=tolerance, rtol=0)
    distances = (test - train.mean(0)).square().sum((1, 2, 3))
    assert roc_auc_score(data.data.targets[data.splits.test], distances) == 1


def test_arrays_of_16_bits_keep_their_values():
    for largest in (255, 1023, 4095, 65535):
        data = image_data(np.rint(ONES * largest).astype(np.uint16), ["one"] * 60)
        seen = Preprocessing().fit(data.images)(data.images)
        torch.testing.assert_close(seen[:, 0], torch.from_numpy(ONES).float(), atol=0.002, rtol=0)


@pytest.mark.parametrize("fit", ["crop", "squeeze", "pad"])
@pytest.mark.parametrize("mode", ["L", "RGB", "F"])
@pytest.mark.parametrize("shape", [(1, 4096), (4096, 20), (3, 90), (1, 1)], ids=str)
def test_a_thin_image_stays_to_be_seen(shape, mode, fit):
    image = Image.new(mode, shape[::-1], 200 if mode != "RGB" else (200, 200, 200))
    if mode == "F":
        image.putpixel((0, 0), 100)
    for size in ((32, 32), (16, 24), (1, 50), (50, 1)):
        pixels = np.asarray(fitted(image, size, fit))
        assert pixels.shape[:2] == size
        assert pixels.max() > 0


@pytest.mark.parametrize("mode", ["L", "RGB", "F"])
def test_padding_is_that_of_pillow(mode):
    for height, width, *size in RANDOM.integers(8, 60, (50, 4)).tolist():
        pixels = RANDOM.integers(1, 255, (height, width, 3)[: 3 if mode == "RGB" else 2])
        image = Image.fromarray(pixels.astype(np.float32 if mode == "F" else np.uint8))
        bars = image.getextrema()[0] if mode == "F" else 0
        expected = ImageOps.pad(image, size[::-1], Image.Resampling.BILINEAR, color=bars)
        np.testing.assert_array_equal(fitted(image, tuple(size), "pad"), expected)


def test_16_bits_beside_8_are_scaled_to_8(tmp_path):
    grey = np.rint(ONES[0] * 65535).astype(np.uint16)
    paths = [save(tmp_path / "16.png", grey), save(tmp_path / "8.png", (grey // 256).astype(np.uint8))]
    for order in (paths, paths[::-1]):
        files = ImageFiles(order, None, None)
        assert files.dtype == torch.uint8
        assert torch.equal(*files[torch.arange(2)])
    dark = save(tmp_path / "12.png", grey // 16)
    with pytest.raises(InputError, match=r"12\.png has 16 bits and stays below 4096, beside images of 8 bits: convert it"):
        ImageFiles([*paths, dark], None, None)[torch.arange(3)]


def test_floats_beside_whole_numbers_are_refused(tmp_path):
    paths = [save(tmp_path / "a.png", np.zeros((8, 8), np.uint8)), save(tmp_path / "b.tif", np.zeros((8, 8), np.float32))]
    with pytest.raises(InputError, match=r"kinds of values \(.*a\.png has 8 bits, .*b\.tif has floats\): convert them"):
        _ = ImageFiles(paths, None, None).dtype


@pytest.mark.parametrize("write", [
    lambda path: save(path, np.full((8, 8), 255, np.uint8)),
    lambda path: save(path, np.eye(8, dtype=np.uint8)),  # masks of 0 and 1
    lambda path: save(path, np.full((8, 8), 700, np.uint16)),
    lambda path: png_of_16_bit_colour(path, RANDOM.integers(0, 256, (8, 8, 3))),  # 8 bits in 16
], ids=["white", "masks", "16 bits", "16-bit colours"])  # fmt: skip
def test_a_set_without_contrast_is_refused(tmp_path, write):
    (tmp_path / "one").mkdir()
    for i in range(40):
        write(tmp_path / "one" / f"{i}.png")
    with pytest.raises(InputError, match=r"of the 36 training images lie between .*: scale the files"):
        folder(tmp_path)


def test_contrast_between_images_is_enough(tmp_path):
    for i in range(40):
        save(tmp_path / "one" / f"{i:02}.png", np.full((8, 8), 255 * (i == 20), np.uint8))
    assert folder(tmp_path).images([20]).min() == 1


def test_one_grey_file_does_not_make_photographs_grey(tmp_path):
    """The colours have the same luminance."""
    save(tmp_path / "one" / "000.png", np.full((8, 8), 100, np.uint8))
    for i in range(1, 40):
        save(tmp_path / "one" / f"{i:03}.png", np.full((8, 8, 3), (200, 69 + i % 3, 0), np.uint8))
        save(tmp_path / "zero" / f"{i:03}.png", np.full((8, 8, 3), (0, 171 + i % 3, 0), np.uint8))
    data = folder(tmp_path, "balanced")
    assert data.shape == (3, 8, 8)
    assert data.images([0]).unique().tolist() == pytest.approx([100 / 255])
    train, test = data.images(data.splits.train), data.images(data.splits.test)
    distances = (test - train.mean(0)).square().sum((1, 2, 3))
    assert roc_auc_score(data.data.targets[data.splits.test], distances) == 1
    assert ImageFiles(data.data.images.paths, None, 1).shape == (79, 1, 8, 8)


def test_colour_is_looked_for_in_headers_alone(tmp_path, monkeypatch):
    paths = [save(tmp_path / f"{i}.png", np.zeros((8, 8), np.uint8)) for i in range(3)]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert ImageFiles(paths, (8, 8), None).shape == (3, 1, 8, 8)


UPRIGHT = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)
STORED = {2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1], 5: UPRIGHT.transpose(1, 0, 2),
          6: np.rot90(UPRIGHT), 7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(UPRIGHT, -1)}  # fmt: skip


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("suffix", "depth"), [("png", np.uint8), ("jpg", np.uint8), ("tif", np.uint8), ("png", np.uint16)])
def test_every_orientation_is_turned_upright(tmp_path, orientation, suffix, depth):
    stored, upright = STORED[orientation].astype(depth), UPRIGHT.astype(depth)
    if depth == np.uint16:
        stored, upright = stored[..., 0], upright[..., :1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"turned.{suffix}", np.ascontiguousarray(stored), exif=exif, quality=100, subsampling=0)
    out = ImageFiles([path], None, None).decode(0)
    np.testing.assert_allclose(out, upright, atol=3 if suffix == "jpg" else 0)


def exif_that_cannot_be_written_again():
    """Orientation 3, and a width that is text."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 3) + struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


def test_an_exif_block_that_cannot_be_written_again_is_read(tmp_path):
    path = save(tmp_path / "camera.png", UPRIGHT, exif=exif_that_cannot_be_written_again())
    np.testing.assert_array_equal(ImageFiles([path], None, None).decode(0), UPRIGHT[::-1, ::-1])


def truncated(path):
    save(path, RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-200])


DAMAGE = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("no image"),
    "cut.jpg": truncated,
    "cut.avif": truncated,  # Pillow raises a RuntimeError
    "lab.tif": lambda path: Image.new("LAB", (8, 8)).save(path),  # and here a ValueError, when it converts to grey
    "nan.tif": lambda path: save(path, np.full((8, 8), np.nan, np.float32)),
    "huge.png": lambda path: png_of_16_bit_colour(path, UPRIGHT, 2**30),
    os.fsdecode(b"caf\xe9.png"): lambda path: path.write_bytes(b""),
}
PRINTED = [name.encode(errors="backslashreplace").decode() for name in DAMAGE]


@pytest.mark.parametrize("name", DAMAGE)
def test_a_bad_file_is_named_whatever_is_wrong_with_it(tmp_path, name):
    DAMAGE[name](tmp_path / name)
    with pytest.raises(UnreadableError) as error:
        ImageFiles([tmp_path / name], (8, 8), 1, depth="float" if name == "nan.tif" else "uint8").decode(0)
    assert f"cannot read the image {tmp_path}" in str(error.value)
    assert name.encode(errors="backslashreplace").decode() in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [None, (8, 8)])
def test_all_bad_files_are_named_though_the_first_is_one(tmp_path, size):
    paths = [tmp_path / name for name in DAMAGE if name != "nan.tif"]
    for path in paths:
        DAMAGE[path.name](path)
    paths.append(save(tmp_path / "good.png", UPRIGHT))
    with pytest.raises(UnreadableError, match=f"cannot read {7 if size else 6} images: ") as error:
        ImageFiles(paths, size, 1, depth="uint8")[torch.arange(len(paths))]
    for name in PRINTED:
        assert (name in str(error.value)) == (name != "nan.tif" and (size is not None or name != "lab.tif"))
    with pytest.raises(UnreadableError, match="cannot read 6 images: "):
        _ = ImageFiles(paths, size, None).channels
    str(error.value).encode()


# How an image of another shape is brought to the size

STRIPES = np.repeat(np.array([[10, 20, 30]], np.uint8), 8, 0).repeat(8, 1)  # 8 x 24: three squares


@pytest.mark.parametrize(("fit", "row"), [
    ("crop", [20] * 8),
    ("squeeze", [10, 10, None, 20, 20, None, 30, 30]),
    ("pad", None),
])  # fmt: skip
def test_ways_to_get_a_size(tmp_path, fit, row):
    out = ImageFiles([save(tmp_path / "wide.png", STRIPES)], (8, 8), 1, fit=fit).decode(0)[..., 0]
    if fit == "pad":
        assert not out[:2].any()
        assert not out[-2:].any()
        assert (out[3, 0], out[3, -1]) == (10, 30)
    else:
        assert all(value in (None, int(found)) for found, value in zip(out[4], row, strict=True))


def test_bars_beside_floats_are_no_darker_than_the_image(tmp_path):
    out = ImageFiles([save(tmp_path / "warm.tif", STRIPES.astype(np.float32) + 280)], (8, 8), None, fit="pad").decode(0)
    assert (out.min(), out.max()) == (290, 310)


def test_what_is_outside_of_the_centre_counts_where_it_is_not_cropped(tmp_path):
    dark = RANDOM.integers(0, 256, (8, 24), dtype=np.uint8)
    for i in range(40):
        save(tmp_path / "one" / f"{i}.png", dark)
    white = np.full((8, 24), 255, np.uint8)
    white[:, 8:16] = dark[:, 8:16]
    save(tmp_path / "white.png", white)
    for fit, seen in {"crop": False, "squeeze": True, "pad": True}.items():
        data = folder(tmp_path, image_size=8, fit=fit)
        usual = ImageFiles([tmp_path / "one" / "0.png", tmp_path / "white.png"], (8, 8), 1, **data.data.images.decoding)
        brightness = usual[torch.arange(2)].float().mean((1, 2, 3))
        assert (brightness[1] > brightness[0] + 20) == seen, fit


def test_an_unknown_fit():
    with pytest.raises(InputError, match="unknown fit 'stretch': choose from crop, squeeze, pad"):
        OneClassDataModule(fit="stretch")


# From training to prediction


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A detector of 10-bit photographs, three times as wide as high and squeezed, with the folder of its run."""
    root, run = tmp_path_factory.mktemp("deep"), tmp_path_factory.mktemp("run")
    camera(root, 1023, lambda path, grey: save(path.with_suffix(".png"), grey.repeat(3, 1).astype(np.uint16)))
    run_command([
        "--config", SMOKE, "--data.dataset=folder", f"--data.root={root}", "--data.normal=one", "--data.protocol=balanced",
        "--data.image_size=8", "--data.fit=squeeze", "--trainer.max_epochs=2", f"--directory={run}", "--threads=1",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ])  # fmt: skip
    return root, run


def test_scores_name_their_files_and_a_folder_gets_the_same(deep, tmp_path, monkeypatch):
    root, run = deep
    monkeypatch.chdir(tmp_path)
    scores = pd.read_csv(run / "scores.csv")
    assert [Path(path).parent.name for path in scores.path] == np.where(scores.label, "zero", "one").tolist()
    main(["predict-folder", str(run / "checkpoints" / "last.ckpt"), str(root), "--device", "cpu"])
    table = pd.read_csv("predictions.csv").set_index("path")
    np.testing.assert_allclose(table.score[scores.path], scores.reconstruction, rtol=1e-4)


def test_predictions_name_their_files(deep, tmp_path):
    _, run = deep
    main(["predict", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt"),
          "--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path)])  # fmt: skip
    predictions = pd.read_csv(next(tmp_path.rglob("predictions.csv")))
    scores = pd.read_csv(run / "scores.csv")
    assert predictions.path.tolist() == scores.path.tolist()
    np.testing.assert_allclose(predictions.reconstruction, scores.reconstruction, rtol=1e-4)


def test_an_export_says_how_files_are_decoded(deep):
    detector = load_detector(deep[1] / "checkpoints" / "last.ckpt")
    assert metadata(detector)["decoding"] == {"fit": "squeeze", "depth": "integer"}
    assert metadata(detector)["preprocessing"]["minimum"] == 0
    assert metadata(detector)["preprocessing"]["span"] == pytest.approx(1023)
    json.dumps(metadata(detector))


def test_a_checkpoint_without_these_entries_is_one_of_8_bits_cropped(deep, tmp_path):
    contents = torch.load(deep[1] / "checkpoints" / "last.ckpt", weights_only=True)
    del contents["OneClassDataModule"]["decoding"]
    torch.save(contents, tmp_path / "old.ckpt")
    files = ImageFiles([], (8, 8), 1, **load_detector(tmp_path / "old.ckpt").decoding)
    assert files.decoding == {"fit": "crop", "depth": "uint8"}


def test_one_bad_file_does_not_cost_the_others(deep, tmp_path, monkeypatch, capsys):
    root, run = deep
    monkeypatch.chdir(tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    for name, damage in DAMAGE.items():
        damage(new / name)
    odd = new / os.fsdecode(b"gr\xfc\xdf.png")
    odd.write_bytes((root / "one" / "00.png").read_bytes())
    save(new / "8 bits.png", np.eye(8, dtype=np.uint8) * 255)
    main(["predict-folder", str(run / "checkpoints" / "last.ckpt"), "new", "--device", "cpu", "--figures", "look"])
    output = capsys.readouterr().out
    assert output.count("left out: ") == len(DAMAGE) + 1
    assert all(name in output for name in PRINTED)
    assert "8 bits.png has 8 bits, but the training images have 16 bits or more: convert it" in output
    table = pd.read_csv("predictions.csv")
    assert table.path.tolist() == [r"new/gr\udcfc\udcdf.png"]
    calibration = load_detector(run / "checkpoints" / "last.ckpt").module.calibration.numpy()
    assert table.p_value.tolist() == pytest.approx(conformal_p_value(table.score.to_numpy(), calibration))
    assert Path("look", "contact_sheet.png").is_file()

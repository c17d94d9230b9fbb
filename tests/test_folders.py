"""Folders as people have them: the field's layouts, links, subfolders, and what lies beside the images."""

import json
import logging
import os
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import OneClassDataModule, Preprocessing, content_digest, datasets, folders, load
from common.data.decoding import converted
from common.data.features import features
from common.data.folders import EXTENSIONS, listed
from common.errors import InputError
from common.experiment import Cell, Experiment, Grid, run_experiment
from common.experiment.cell import Settings
from common.experiment.run import finished, run

EXPERIMENT = Experiment("autoencoder", "A trial", Grid(("smoke", "classical-lof"), ("digits",)), seeds=(0,))
MVTEC = {"train/good": 24, "test/good": 6, "test/crack": 5, "test/hole": 3}
FEW = {"good": 30, "bad": 4}


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    datasets._load.cache_clear()
    folders._warn_once.cache_clear()


def write(root, counts, endings=("png",)):
    """Images of noise, good ones dark and all others bright."""
    random = np.random.default_rng(0)
    for name, n in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = random.integers(0, 60, (8, 8), dtype=np.uint8) + np.uint8(0 if name.endswith("good") else 150)
            Image.fromarray(pixels).save(root / name / f"{i:02}.{endings[i % len(endings)]}")
    return root


def experiment(root, runs, *flags):
    fixed = ["--datasets", "folder", "--root", str(root), "--runs", str(runs), "--jobs", "1", "--device", "cpu"]
    run_experiment(EXPERIMENT, [*fixed, "--max-epochs", "1", *flags])
    return {path.parts[-6]: json.loads(path.read_text()) for path in runs.rglob("metrics.json")}


# Layouts


def test_the_layout_of_mvtec_by_deep_and_classical_methods(tmp_path):
    write(tmp_path / "bottle", {**MVTEC, "ground_truth/crack": 5})
    records = experiment(tmp_path / "bottle", tmp_path / "runs")
    assert set(records) == {"autoencoder-smoke", "classical-lof"}
    for record in records.values():
        assert record["classes"] == ["good"], "defects, which are not trained on, are not normal in turn"
        values = record["metrics"][record["score"]]
        assert (values["n_normal"], values["n_anomalous"]) == (6, 8)
    assert records["classical-lof"]["metrics"]["lof"]["auroc"] == 1.0


def test_few_anomalies_by_the_protocol_that_the_refusal_names(tmp_path, capsys):
    write(tmp_path / "photos", FEW)
    for refused in ("standard", "balanced", "proportion"):
        with pytest.raises(SystemExit):
            experiment(tmp_path / "photos", tmp_path / "runs", "--normal", "good", "--protocols", refused)
        assert "use the protocol 'hold_out'" in capsys.readouterr().err
    records = experiment(tmp_path / "photos", tmp_path / "runs", "--normal", "good", "--protocols", "hold_out")
    for record in records.values():
        values = record["metrics"][record["score"]]
        assert (values["n_normal"], values["n_anomalous"]) == (6, 4)
    assert records["classical-lof"]["metrics"]["lof"]["auroc"] == 1.0


def test_a_class_that_train_lacks_is_not_to_be_trained_on(tmp_path):
    data = OneClassDataModule("folder", root=str(write(tmp_path, MVTEC)), normal="crack")
    with pytest.raises(InputError, match=r"nothing is left to train on: 0 normal samples .* the protocol 'hold_out'"):
        data.setup()


def test_an_archive_may_not_lack_classes(tmp_path):
    write(tmp_path / "cats_dogs", {"train/cat": 2, "test/cat": 2, "test/dog": 2})
    with pytest.raises(InputError, match=r"no images in the class folder .*train.dog"):
        load("cats_dogs", tmp_path)


# What is read, and what is left out


def test_links_are_followed_and_each_folder_is_read_once(tmp_path):
    write(tmp_path / "elsewhere", {"monday": 2, "tuesday": 3})
    write(tmp_path, {"new": 1})
    (tmp_path / "new" / "monday").symlink_to(tmp_path / "elsewhere" / "monday")
    (tmp_path / "new" / "again").symlink_to(tmp_path / "new" / "monday")
    (tmp_path / "new" / "cycle").symlink_to(tmp_path / "new")
    (tmp_path / "new" / "loop").symlink_to(tmp_path / "new" / "loop")
    (tmp_path / "elsewhere" / "monday" / "up").symlink_to(tmp_path / "elsewhere")
    found = listed(tmp_path / "new")
    assert len(found.images) == 6
    assert len({path.resolve() for path in found.images}) == 6
    assert found.left_out == Counter({"without an ending": 1})
    assert found.images == sorted(found.images)


def test_a_folder_is_named_by_its_own_place_where_it_is_also_linked(tmp_path):
    write(tmp_path, {"2024/05": 2})
    (tmp_path / "2024" / "05" / "notes.txt").write_text("")
    (tmp_path / "1 latest").symlink_to(tmp_path / "2024" / "05")
    images, left_out = listed(tmp_path)
    assert images == [tmp_path / "2024" / "05" / name for name in ("00.png", "01.png")]
    assert left_out == {".txt": 1}


STRAYS = {
    "good/a.heic": ".heic (1)",
    "good/b.CR2": ".cr2 (1)",
    "bad/manual.pdf": ".pdf (1)",
    "good/day 1/c.png": "images in folders below good (1)",
    "beside.png": "images beside class folders (1)",
}


def test_training_says_in_one_line_what_is_left_out(tmp_path, caplog):
    write(tmp_path, FEW)
    before = content_digest(load("folder", tmp_path))
    for name in STRAYS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name, format="png")
    assert not caplog.records
    for size in (None, (4, 4), None):
        data = load("folder", tmp_path, size)
        assert data.targets.tolist() == [0] * 4 + [1] * 30
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"left out of {tmp_path}: {', '.join(sorted(STRAYS.values()))}"
    assert content_digest(data) == before


def test_what_lies_beside_train_and_test_is_named(tmp_path, caplog):
    write(tmp_path, {**MVTEC, "val/good": 3, "ground_truth/crack": 5})
    load("folder", tmp_path)
    assert caplog.messages == [f"left out of {tmp_path}: images in ground_truth (5), images in val (3)"]


def test_an_empty_class_folder_says_what_is_in_it(tmp_path):
    write(tmp_path, {"good": 2, "bad/day 1": 3})
    (tmp_path / "bad" / "x.heic").write_text("")
    with pytest.raises(
        InputError, match=r"no images in the class folder .*bad; .*\.heic \(1\), images in folders below bad \(3\)"
    ):
        load("folder", tmp_path)


FORMATS = "avif bmp gif ico j2k jp2 jpeg jpg mpo pbm pcx pgm png ppm psd qoi tga tif tiff webp"


def test_every_format_that_pillow_decodes_by_itself_is_read(tmp_path):
    assert {f".{ending}" for ending in FORMATS.split()} <= EXTENSIONS
    modes = {"BLP": "P", "MSP": "1", "XBM": "1"}
    written = {ending: name for ending, name in Image.registered_extensions().items() if name in Image.SAVE}
    for ending in EXTENSIONS & written.keys():
        path = tmp_path / f"a{ending}"
        Image.new(modes.get(written[ending], "RGB"), (16, 16)).save(path, written[ending])
        converted(path, 3, "uint8")


OTHERS = ["h5", "hdf", "mpg", "mpeg", "eps", "ps", "wmf", "emf", "grib", "bufr", "pdf", "palm"]


def test_files_that_pillow_identifies_but_cannot_decode_are_left_out(tmp_path):
    write(tmp_path, FEW)
    for ending in OTHERS:
        (tmp_path / "good" / f"a.{ending}").write_text("")
    assert len(listed(tmp_path / "good").images) == 30
    assert listed(tmp_path / "good").left_out == Counter(f".{ending}" for ending in OTHERS)
    assert load("folder", tmp_path).images.shape[0] == 34


def test_a_folder_is_no_image_whatever_its_name(tmp_path, caplog):
    write(tmp_path, {**FEW, "good/old.png": 2, "runs/a.png": 2})
    data = load("folder", tmp_path)
    assert data.classes == ("bad", "good")
    assert data.images[torch.arange(34)].shape == (34, 1, 8, 8)
    assert caplog.messages == [f"left out of {tmp_path}: images in folders below good (2)"]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"train/good": 2}, "has the folder train, but no test: add test, or give --data.root {root}/train"),
        ({"test/good": 2, "zoo": 2}, "has the folder test, but no train: add train, or give --data.root {root}/test"),
        ({"Train/good": 2, "Test/good": 2}, "{root}/Test is not called test, in lower case: rename it"),
        ({"TRAIN/good": 2, "test/good": 2}, "{root}/TRAIN is not called train, in lower case: rename it"),
    ],
)
def test_parts_that_are_not_found_are_not_taken_for_classes(tmp_path, counts, says):
    with pytest.raises(InputError, match=re.escape(says.format(root=tmp_path))):
        load("folder", write(tmp_path, counts))


def test_a_class_may_be_called_as_a_part_is(tmp_path):
    assert load("folder", write(tmp_path, {"train": 2, "bus": 3})).classes == ("bus", "train")


def test_names_of_two_lines_do_not_break_a_message(tmp_path, caplog):
    write(tmp_path, {"go\nod": 2, "bad": 2})
    (tmp_path / "go\nod" / "a.tx\nt").write_text("")
    load("folder", tmp_path)
    assert caplog.messages == [f"left out of {tmp_path}: .tx\\nt (1)"]
    (tmp_path / "a\nb").mkdir()
    with pytest.raises(InputError, match=r"class folder .*a\\nb$"):
        load("folder", tmp_path)


SYSTEM = [
    "__MACOSX/good/._00.png", "__MACOSX/00.png", ".ipynb_checkpoints/00.png", "@eaDir/00.png", "$RECYCLE.BIN/00.png",
    "__pycache__/my.pyc", "features/folder-0123.npy", "runs/autoencoder-smoke/folder/figures/roc.png", "report/index.html",
    "good/.ipynb_checkpoints/00.png", "good/__MACOSX/00.png", "good/Thumbs.db", "good/desktop.ini", "Thumbs.db",
]  # fmt: skip


@pytest.mark.parametrize("layout", [FEW, MVTEC], ids=["flat", "split"])
def test_what_systems_and_we_put_there_is_neither_class_nor_identity_nor_named(tmp_path, caplog, layout):
    write(tmp_path, layout)
    first, *_ = layout
    before = content_digest(load("folder", tmp_path))
    for name in SYSTEM:
        path = tmp_path / name.replace("good/", f"{first}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path, format="png")
    datasets._load.cache_clear()
    data = load("folder", tmp_path)
    assert content_digest(data) == before
    assert data.classes == tuple(sorted({name.rpartition("/")[2] for name in layout}))
    assert not caplog.messages


def test_a_class_may_be_called_as_our_folders_are(tmp_path):
    assert load("folder", write(tmp_path, {"features": 2, "runs": 3})).classes == ("features", "runs")


def test_a_root_that_holds_its_own_runs_is_the_same_next_time(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, FEW))
    for _ in range(2):
        records = experiment(
            ".", tmp_path / "runs", "--normal", "good", "--protocols", "hold_out", "--presets", "classical-lof"
        )
        assert records["classical-lof"]["n_classes"] == 2


# Other images under the same names, sizes and times


def retake(path):
    """Other pixels in the file, its size and its times as they were."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_retaken_images_are_read_again_in_the_same_process(tmp_path):
    write(tmp_path, FEW, ["bmp"])
    before = load("folder", tmp_path)
    digest = content_digest(before)
    retake(tmp_path / "good" / "07.bmp")
    after = load("folder", tmp_path)
    assert after is not before
    assert content_digest(after) != digest


def test_a_rewritten_array_file_is_read_again(tmp_path):
    path = tmp_path / "my.npz"
    for value in (3, 5):
        np.savez(path, X=np.full((4, 5), value, np.uint8), y=[0, 0, 1, 1])
        os.utime(path, ns=(10**18, 10**18))
        assert (load(str(path), tmp_path).images == value).all()


class Pixels(torch.nn.Module):
    """Frozen layers that give every image's own pixels."""

    def forward(self, images):
        return images.flatten(1)

    def key(self):
        return "pixels"


def test_features_are_those_of_the_images_whatever_their_names_and_times(tmp_path):
    trees = [write(tmp_path / name / "photos", FEW, ["bmp"]) for name in ("a", "b")]
    retake(trees[1] / "good" / "07.bmp")
    for path in trees[0].rglob("*.bmp"):
        time = path.stat().st_mtime_ns
        os.utime(trees[1] / path.relative_to(trees[0]), ns=(time, time))
    for root in trees:
        images = load("folder", root).images
        found = features(Pixels(), images, Preprocessing(), tmp_path / "features", "folder")
        expected = images[torch.arange(34)].flatten(1) / 255
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2


def test_a_record_of_images_that_were_retaken_is_stale(tmp_path):
    write(tmp_path / "photos", FEW, ["bmp"])
    settings = Settings(root=tmp_path / "photos", runs=tmp_path / "runs", device="cpu")
    cell = Cell("classical-lof", "folder", "hold_out", "good", 0)
    run(cell, settings)
    assert finished(cell, settings)["stale"] == ""
    retake(tmp_path / "photos" / "good" / "07.bmp")
    assert finished(cell, settings)["stale"] == "the data have changed"

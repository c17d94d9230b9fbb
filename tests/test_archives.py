"""COIL-100, Caltech-101, Caltech-256 and UCSD Ped2 in their published layouts, from files to frame-level results."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer

from autoencoder import Autoencoder
from common.classical import fit_and_score
from common.data import OneClassDataModule, datasets, load
from common.data.images import ImageFiles, Patches, places
from common.errors import DataMissingError, InputError
from common.evaluation import evaluate
from common.experiment import Experiment, Grid, run_experiment
from common.experiment.cell import Settings
from common.experiment.plan import cells_of
from common.experiment.records import read_record
from common.scoring import Scored, highest_of_each
from common.shallow import Mahalanobis
from experiments import alocc

pytestmark = pytest.mark.usefixtures("blank_figures")

RANDOM = np.random.default_rng(0)
CATEGORIES = {"001.ak47": 9, "002.american-flag": 3, "056.dog": 8, "198.spider": 4, "257.clutter": 20}
HEIGHT, WIDTH, SIZE = 47, 68, 30
CLIPS = {"Train/Train001": 7, "Train/Train002": 5, "Test/Test001": 4, "Test/Test002": 6, "Test/Test003": 3}
TRUTH = """\
% frames with anomalies, such as gt_frame = [1:9];
TestVideoFile = {};
TestVideoFile{end+1}.gt_frame = [2:3];
TestVideoFile{end+1}.gt_frame = [1, 4:5 , 6:6];  % a bicycle
TestVideoFile{end+1}.gt_frame = [];
"""
ABNORMAL = [0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0]  # of all test frames


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    datasets._load.cache_clear()


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def caltech(tmp_path):
    """Files of several sizes, one of them grey, and what is found beside them in the archive and on Macs."""
    base = tmp_path / "256_ObjectCategories"
    for name, n in CATEGORIES.items():
        for i in range(n, 0, -1):
            shape = (20 + i, 31) if i == 1 else (20 + i, 31, 3)
            save(base / name / f"{name[:3]}_{i:04}.jpg", RANDOM.integers(0, 256, shape, dtype=np.uint8))
    (base / "056.dog" / "greg" / "vision309").mkdir(parents=True)
    save(base / "greg" / "0001.jpg", np.zeros((4, 4), np.uint8))
    for stray in ("198.spider/RENAME2", "198.spider/._198_0001.jpg", ".DS_Store", "300.txt"):
        (base / stray).write_text("no image")
    return tmp_path


@pytest.fixture
def caltech101(tmp_path):
    """Categories whose names begin with large and small letters, images that are no category, and a list of them."""
    base = tmp_path / "101_ObjectCategories"
    for name, n in {"accordion": 4, "BACKGROUND_Google": 9, "Faces": 5, "Faces_easy": 2}.items():
        for i in range(1, n + 1):
            shape = (20 + i, 31) if i == 1 else (20 + i, 31, 3)
            save(base / name / f"image_{i:04}.jpg", RANDOM.integers(0, 256, shape, dtype=np.uint8))
    for stray in ("BACKGROUND_Google/tmp", ".DS_Store"):
        (base / stray).write_text("no image")
    return tmp_path


@pytest.fixture
def ped2(tmp_path):
    """Frames that are all different, the ground truth, and the archive's debris; returns the root and all the frames."""
    base = tmp_path / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped2"
    frames = RANDOM.integers(0, 256, (sum(CLIPS.values()), HEIGHT, WIDTH), dtype=np.uint8)
    paths = [base / clip / f"{i + 1:03}.tif" for clip, n in CLIPS.items() for i in range(n)]
    for path, frame in zip(paths, frames, strict=True):
        save(path, frame)
    (base / "Test" / "UCSDped2.m").write_text(TRUTH)
    for stray in ("Test/Test001_gt/001.tif", "Test/Test001_gt/002.bmp", "Train/Other001/001.tif", "Train/Train001/deep/9.tif"):
        save(base / stray, np.zeros((9, 9), np.uint8))
    for stray in ("Test/Test017/.DS_Store", "Train/.DS_Store", "Train/Train001/._001.tif", "Test/Test004", "Test/._Test001"):
        (base / stray).parent.mkdir(exist_ok=True)
        (base / stray).write_text("no image")
    return tmp_path, frames


@pytest.fixture
def coil(tmp_path):
    """Three objects in six views each, whose pixels are their object's number and angle, and debris."""
    base = tmp_path / "coil-100"
    for number in (1, 2, 10):
        for angle in range(0, 360, 60):
            save(base / f"obj{number}__{angle}.png", np.full((128, 128, 3), (number, angle // 5, 0), np.uint8))
    for stray in ("convertGroupppm2png.pl", "._obj1__0.png", "obj3.png"):
        (base / stray).write_text("no image")
    return tmp_path


def test_coil100_in_order_of_object_and_angle(coil):
    data = load("coil100", coil)
    assert data.classes == ("obj1", "obj2", "obj10")
    assert data.images.shape == (18, 3, 64, 64)
    assert data.targets.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    pixels = data.images[torch.arange(18)][:, :2, 5, 5].tolist()
    assert pixels == [[number, angle // 5] for number in (1, 2, 10) for angle in range(0, 360, 60)]
    assert not data.official_test.any()


def test_coil100_is_split_in_half_normal_half_anomalous(coil):
    data = OneClassDataModule("coil100", root=coil, normal=1, protocol="balanced", image_size=8)
    label = data.data.targets[data.splits.test] != 1
    assert len(data.splits.train) + len(data.splits.val) == 5
    assert label.tolist().count(True) == label.tolist().count(False) == 1


def test_coil100_without_images(tmp_path):
    (tmp_path / "coil-100").mkdir()
    with pytest.raises(InputError, match=r"no images objN__ANGLE\.png"):
        load("coil100", tmp_path)


def test_caltech256(caltech):
    data = load("caltech256", caltech)
    assert data.classes == tuple(CATEGORIES)
    assert data.images.shape == (sum(CATEGORIES.values()), 3, 64, 64)
    assert data.targets.tolist() == [k for k, n in enumerate(CATEGORIES.values()) for _ in range(n)]
    assert not data.official_test.any()
    assert data.groups is None
    assert [path.name for path in data.images.paths[:9]] == [f"001_{i:04}.jpg" for i in range(1, 10)]
    grey = data.images[torch.tensor([0])][0]
    assert torch.equal(grey[0], grey[2])
    assert load("caltech256", caltech, (28, 20), 1).images[torch.arange(5)].shape == (5, 1, 28, 20)


def test_caltech256_in_a_folder_of_its_own(caltech):
    (caltech / "256_ObjectCategories").rename(caltech / "moved")
    (caltech / "caltech256").mkdir()
    (caltech / "moved").rename(caltech / "caltech256" / "256_ObjectCategories")
    assert load("caltech256", caltech).classes == tuple(CATEGORIES)


def test_caltech256_with_an_empty_category(caltech):
    (caltech / "256_ObjectCategories" / "100.hawksbill").mkdir()
    with pytest.raises(InputError, match=r"no images in the class folder .*100\.hawksbill"):
        load("caltech256", caltech)


@pytest.mark.parametrize("place", ["", "caltech101", "caltech-101"])
def test_caltech101_whose_first_class_is_no_category(caltech101, place):
    if place:
        (caltech101 / place).mkdir()
        (caltech101 / "101_ObjectCategories").rename(caltech101 / place / "101_ObjectCategories")
    data = load("caltech101", caltech101)
    assert data.classes == ("BACKGROUND_Google", "Faces", "Faces_easy", "accordion")
    assert data.images.shape == (20, 3, 64, 64)
    assert np.bincount(data.targets).tolist() == [9, 5, 2, 4]
    assert not data.official_test.any()
    grey, coloured = data.images[torch.tensor([9, 10])]
    assert torch.equal(grey[0], grey[2])
    assert not torch.equal(coloured[0], coloured[2])


def test_the_draws_of_categories_leave_out_what_is_no_category():
    grids = [grid for grid in alocc.EXPERIMENT.also if grid.datasets == ("caltech101",)]
    draws = [[list(map(int, normal.split("+"))) for normal in grid.normal] for grid in grids]
    assert [[len(set(draw)) for draw in three] for three in draws] == [[1] * 3, [3] * 3, [5] * 3]
    drawn = {number for three in draws for draw in three for number in draw}
    assert 1 <= min(drawn) <= max(drawn) <= 101
    many = [int(draw) for n in range(1, 102) for draw in alocc.categories(n, of=101, first=1)[0].split("+")]
    assert set(many) == set(range(1, 102))
    assert {grid.protocols for grid in grids} == {("no_split,share=0.5,limit=150,anomalous=BACKGROUND_Google",)}


@pytest.mark.parametrize(
    ("name", "layout", "source"),
    [
        ("coil100", "coil-100/objN__ANGLE.png", "cs.columbia.edu"),
        ("caltech256", "256_ObjectCategories/NNN.name/NNN_MMMM.jpg", "data.caltech.edu"),
        ("caltech101", "101_ObjectCategories/<category>/image_NNNN.jpg", "data.caltech.edu"),
        ("ucsd_ped2", "UCSDped2/{Train,Test}/{Train,Test}NNN/NNN.tif", "svcl.ucsd.edu/projects/anomaly"),
    ],
)
def test_data_that_must_be_fetched_by_hand(tmp_path, name, layout, source):
    with pytest.raises(DataMissingError, match=re.escape(f"{name} is not in {tmp_path}")) as error:
        load(name, tmp_path)
    assert layout in str(error.value)
    assert source in str(error.value)
    assert "\n" not in str(error.value)


def corners(n_frames, tops, lefts):
    return [(frame, top, left) for frame in range(n_frames) for top in tops for left in lefts]


def test_ped2_is_patches_of_frames(ped2):
    root, frames = ped2
    data = load("ucsd_ped2", root)
    train = corners(12, (0, 17), (0, 25, 38))
    test = [(12 + frame, top, left) for frame, top, left in corners(13, (0, 10, 17), (0, 10, 20, 30, 38))]
    expected = np.stack([frames[f, top : top + SIZE, left : left + SIZE] for f, top, left in train + test])
    n = len(expected)
    assert data.images.shape == (n, 1, SIZE, SIZE)
    order = torch.from_numpy(RANDOM.permutation(n))
    patches = data.images[order]
    assert patches.dtype == torch.uint8
    np.testing.assert_array_equal(patches[:, 0], expected[order])
    assert data.groups.tolist() == [f for f, _, _ in train + test]
    assert data.official_test.tolist() == [False] * len(train) + [True] * len(test)
    assert data.classes == ("normal", "abnormal")
    np.testing.assert_array_equal(data.targets, np.array([0] * 12 + ABNORMAL)[data.groups])
    assert data.targets.dtype == data.groups.dtype == np.int64


@pytest.mark.parametrize(
    ("size", "per_train_frame", "per_test_frame"),
    [((47, 68), 1, 1), ((47, 60), 2, 2), ((22, 18), 2 * 3, 4 * 6), ((20, 18), 3 * 3, 4 * 6)],
)
def test_patches_cover_the_frames_without_repetition(ped2, size, per_train_frame, per_test_frame):
    root, frames = ped2
    data = load("ucsd_ped2", root, size)
    assert np.bincount(data.groups).tolist() == [per_train_frame] * 12 + [per_test_frame] * 13
    assert len(np.unique(data.images.corners, axis=0)) == len(data.groups)
    covered = np.zeros((len(frames), HEIGHT, WIDTH), bool)
    for frame, top, left in data.images.corners.tolist():
        covered[frame, top : top + size[0], left : left + size[1]] = True
    assert covered[12:].all()
    assert covered[0, [0, -1]][:, [0, -1]].all()


@pytest.mark.parametrize("place", ["UCSDped2", "ucsd_ped2/UCSD_Anomaly_Dataset.v1p2/UCSDped2"])
def test_ped2_in_other_places(ped2, place):
    root, _ = ped2
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped2").rename(root / place)
    assert load("ucsd_ped2", root).groups.max() == 24


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: (base / "Test/UCSDped2.m").unlink(), r"no .*UCSDped2\.m, the frames' ground truth"),
        (lambda base: (base / "Test/Test002").rename(base / "Test/x"), r"Test has 2 clips, but UCSDped2\.m lists 3"),
        (lambda base: (base / "Test/UCSDped2.m").write_text("x"), r"Test has 3 clips, but UCSDped2\.m lists 0"),
        (lambda base: (base / "Test/Test002/005.tif").unlink(), r"Test002 lacks frame 5, which UCSDped2\.m lists"),
        (lambda base: (base / "Train").rename(base / "x"), r"no frames TrainNNN/NNN\.tif in .*Train"),
        (lambda base: (base / "Train/Train002/003.tif").write_text("x"), r"cannot read the image .*003\.tif"),
        (lambda base: save(base / "Train/Train002/003.tif", np.zeros((9, 9), np.uint8)), r"003\.tif is 9x9"),
    ],
)
def test_damaged_ped2(ped2, damage, message):
    root, _ = ped2
    damage(root / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped2")
    with pytest.raises(InputError, match=message) as error:
        load("ucsd_ped2", root)
    assert "\n" not in str(error.value)


def test_frames_are_decoded_once_for_patches_of_every_size(ped2, monkeypatch):
    decoded = []
    decode = ImageFiles.decode
    monkeypatch.setattr(ImageFiles, "decode", lambda self, index: decoded.append(index) or decode(self, index))
    small, large = (load("ucsd_ped2", ped2[0], size).images for size in ((20, 20), (30, 30)))
    assert sorted(decoded) == list(range(25))
    assert small.frames.data_ptr() == large.frames.data_ptr()
    assert small.shape[2:] == (20, 20)


def test_a_patch_is_named_by_its_frame_and_place(ped2):
    root, frames = ped2
    images = load("ucsd_ped2", root).images
    table = places(images, np.array([len(images.corners) - 1, 8]))
    assert [path.rpartition("UCSDped2/")[2] for path in table["path"]] == ["Test/Test003/003.tif", "Train/Train001/002.tif"]
    assert (table["top"], table["left"]) == ([17, 0], [38, 38])
    with Image.open(table["path"][0]) as image:
        np.testing.assert_array_equal(np.asarray(image)[17:, 38:], frames[-1, 17:, 38:])
        np.testing.assert_array_equal(images[torch.tensor([-1])][0, 0], frames[-1, 17:, 38:])


def test_frames_that_come_from_no_files_have_no_names():
    assert places(Patches(torch.zeros(1, 9, 9, dtype=torch.uint8), np.zeros((1, 3), np.int64), (4, 4)), [0]) == {}


def test_patches_are_cut_by_no_worker(ped2):
    data = OneClassDataModule("ucsd_ped2", root=str(ped2[0]), memory_gib=1e-9, workers=2)
    data.setup()
    assert {loader.num_workers for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())} == {0}


@pytest.mark.parametrize("presets", [("autoencoder-smoke",), ("classical-pca",)])
def test_abnormal_frames_are_never_the_normal_class(ped2, presets):
    """No abnormal frame is in the official training set, so nothing could be trained on them."""
    cells = cells_of(Grid(presets, ("ucsd_ped2",)), (0,), Settings(root=ped2[0]))
    assert [cell.normal for cell in cells] == ["0"]


def test_patches_larger_than_the_frames(ped2):
    with pytest.raises(InputError, match="image_size 48x30 exceeds the frames' 47x68"):
        load("ucsd_ped2", ped2[0], (48, 30))


@pytest.mark.parametrize(
    "options", [{"normal": 2}, {"anomalous": [2]}, {"anomalous": "2"}, {"protocol": "standard,anomalous=abnormal+2"}], ids=str
)
def test_no_such_class_of_ped2(ped2, options):
    with pytest.raises(InputError, match="'ucsd_ped2' has no class '2': choose from normal, abnormal"):
        OneClassDataModule("ucsd_ped2", root=str(ped2[0]), **options).setup()


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("standard", {}),
        ("standard,n_train=8", {}),
        ("proportion", {"share": 0.3}),
        ("balanced", {"contamination": 0.1}),
        ("no_split", {"limit": 8}),
    ],
)
def test_frames_are_split_and_not_patches(ped2, protocol, options):
    options = {"normal": 0, "val_fraction": 0.25, "split_seed": 3, "protocol": protocol, **options}
    data = OneClassDataModule("ucsd_ped2", root=str(ped2[0]), **options)
    frames = [np.unique(data.groups[part]) for part in data.splits]
    for part, whole in zip(data.splits, frames, strict=True):
        np.testing.assert_array_equal(part, np.flatnonzero(np.isin(data.groups, whole)))
    assert not np.intersect1d(frames[0], frames[1]).size
    if protocol == "standard":
        assert (len(frames[0]), len(frames[1]), frames[2].tolist()) == (9, 3, list(range(12, 25)))
    if protocol == "standard,n_train=8":
        assert (len(frames[0]), len(frames[1]), frames[2].tolist()) == (6, 2, list(range(12, 25)))
    if protocol == "no_split":
        assert np.sort(np.append(frames[0], frames[1])).tolist() == frames[2].tolist() == list(range(8))


def test_ungrouped_data_has_no_groups():
    assert OneClassDataModule("digits").groups is None


def test_highest_of_each():
    n = 200
    groups, low = RANDOM.integers(0, 9, n) * 7, RANDOM.normal(size=n) - 50
    target, label = RANDOM.integers(0, 3, n), RANDOM.integers(0, 2, n)
    parts = Scored(RANDOM.permutation(n), target, label, {"a": RANDOM.normal(size=n), "b": low})
    wholes = highest_of_each(parts, groups, "b")
    for row, group in enumerate(range(0, 63, 7)):
        of_group = np.flatnonzero(groups == group)
        shown = of_group[low[of_group].argmax()]
        assert (wholes.index[row], wholes.target[row], wholes.label[row]) == (parts.index[shown], target[shown], label[shown])
        assert {name: values[row] for name, values in wholes.scores.items()} == {
            name: values[of_group].max() for name, values in parts.scores.items()
        }
    assert all(len(values) == 9 for values in (*wholes[:3], *wholes.scores.values()))


MODES = {"resident": {}, "streamed": {"memory_gib": 1e-9, "workers": 0}, "by a worker": {"memory_gib": 1e-9, "workers": 1}}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def trained(data, tmp_path):
    module = Autoencoder(data.shape, widths=(4, 8), latent=4)
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module.groups = data.groups
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return module.eval(), trainer


@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.filterwarnings("ignore")
def test_ped2_from_files_to_frame_level_error(ped2, tmp_path, mode):
    data = OneClassDataModule(
        "ucsd_ped2", root=str(ped2[0]), batch_size=16, eval_batch_size=50, val_fraction=0.25, **MODES[mode]
    )
    module, trainer = trained(data, tmp_path)

    def of_frames(part):
        with torch.no_grad():
            scores = module(data.images(part)).double().numpy()
        frames = data.groups[part]
        return {frame: scores[frames == frame].max() for frame in np.unique(frames)}

    expected = of_frames(data.splits.test)
    assert list(expected) == data.groups[module.scored.index].tolist() == list(range(12, 25))
    np.testing.assert_allclose(module.scored.scores["reconstruction"], list(expected.values()), rtol=1e-5)
    assert module.scored.label.tolist() == module.scored.target.tolist() == ABNORMAL
    shown = of_frames(module.scored.index)
    np.testing.assert_allclose(list(shown.values()), list(expected.values()), rtol=1e-5)
    metrics = module.test_metrics()["reconstruction"]
    assert (metrics["n_normal"], metrics["n_anomalous"]) == (7, 6)
    assert trainer.callback_metrics["test/eer"].item() == pytest.approx(evaluate(list(expected.values()), ABNORMAL)["eer"])
    held_out = of_frames(data.splits.val)
    assert len(held_out) == 3
    assert module.threshold.item() == pytest.approx(np.quantile(list(held_out.values()), 0.95), rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_scores_of_many_batches_do_not_pile_up(ped2, tmp_path, monkeypatch):
    """Many small tensors between batches of images would keep the memory of each batch."""
    data = OneClassDataModule("ucsd_ped2", root=str(ped2[0]), eval_batch_size=10)
    module, _ = trained(data, tmp_path)
    at_once = module.score(data.test_dataloader())
    monkeypatch.setattr("common.scoring.MERGED_AFTER", 4)
    waiting = []
    step = Autoencoder.validation_step
    monkeypatch.setattr(Autoencoder, "validation_step", lambda *args: (step(*args), waiting.append(len(module._collected))))
    merged = module.score(data.test_dataloader())
    assert len(waiting) == 20
    assert max(waiting) == 3
    for one, other in zip((*at_once[:3], *at_once.scores.values()), (*merged[:3], *merged.scores.values()), strict=True):
        np.testing.assert_array_equal(one, other)


@modes
@pytest.mark.filterwarnings("ignore")
def test_caltech256_from_files_to_metrics(caltech, tmp_path, mode):
    options = {"protocol": "no_split", "share": 0.5, "limit": 5, "anomalous": [4], "val_fraction": 0.2}
    options |= {"root": str(caltech), "normal": ["056.dog", 0], "image_size": 16, "batch_size": 4}
    data = OneClassDataModule("caltech256", **options, **mode)
    module, trainer = trained(data, tmp_path)
    metrics = module.test_metrics()["reconstruction"]
    assert (metrics["n_normal"], metrics["n_anomalous"]) == (10, 10)
    names = [data.data.images.paths[i].name for i in module.scored.index[module.scored.label == 0]]
    assert names == [f"{k}_{i:04}.jpg" for k in ("001", "056") for i in range(1, 6)]
    assert (len(data.splits.train), len(data.splits.val)) == (8, 2)
    assert trainer.callback_metrics["test/eer"].item() == pytest.approx(metrics["eer"])


@pytest.mark.filterwarnings("ignore")
def test_the_baseline_judges_frames(ped2):
    data = OneClassDataModule("ucsd_ped2", root=str(ped2[0]), val_fraction=0.25)
    scored, results = fit_and_score("ocsvm", data, seed=0)
    assert scored.label.tolist() == ABNORMAL
    assert results["metrics"]["ocsvm"]["n_anomalous"] == 6


@pytest.mark.filterwarnings("ignore")
def test_a_baseline_scores_a_large_test_set_in_parts(ped2, monkeypatch):
    data = OneClassDataModule("ucsd_ped2", root=str(ped2[0]), val_fraction=0.25, eval_batch_size=20)
    whole, _ = fit_and_score("mahalanobis", data, seed=0)
    monkeypatch.setattr("common.classical.SCORED_TOGETHER", 50)
    rows = []
    score_samples = Mahalanobis.score_samples
    monkeypatch.setattr(Mahalanobis, "score_samples", lambda self, X: rows.append(len(X)) or score_samples(self, X))
    parts, _ = fit_and_score("mahalanobis", data, seed=0)
    assert rows == [60, 60, 60, 15, 18]  # 13 test frames of 15 patches, three held-out frames of six
    np.testing.assert_allclose(parts.scores["mahalanobis"], whole.scores["mahalanobis"])
    assert parts.index.tolist() == whole.index.tolist()
    assert parts.label.tolist() == ABNORMAL


CALTECH = "no_split,share=0.5,limit=8,anomalous=4"
ALOCC = Experiment(
    name="alocc",
    title="ALOCC",
    main=Grid(("smoke",), ("ucsd_ped2",), normal=("0",), metrics=("eer", "auroc")),
    also=(
        Grid(
            ("smoke",),
            ("caltech256",),
            ("no_split,share=0.5,limit=8,anomalous=4",),
            ("0", "1", "2"),
            ("auroc", "f1_max_normal"),
        ),
        Grid(("smoke",), ("caltech256",), ("no_split,share=0.5,limit=8,anomalous=4",), ("0+1+2", "0+2+3"), ("auroc",)),
    ),
    compare={"alocc-smoke discriminator_reconstruction": ("ALOCC D(R(X))",), "alocc-smoke discriminator": ("ALOCC D(X)",)},
    seeds=(0,),
)


def test_alocc_makes_its_tables_of_both_archives(caltech, ped2, tmp_path, capsys):
    """The published numbers stand beside ours, of one, and of three categories, and of frames."""
    run_experiment(ALOCC, ["--root", str(tmp_path), "--runs", str(tmp_path / "runs"), "--jobs", "1", "--image-size", "30"])
    table = pd.read_csv(tmp_path / "runs" / "alocc.csv", dtype={"normal": str}, keep_default_na=False)
    measured = table[table["n_seeds"] == 1].set_index(["dataset", "normal", "score", "metric"])
    for score, eer in (("discriminator_reconstruction", 0.13), ("discriminator", 0.16)):
        assert float(measured.loc[("ucsd_ped2", "0", score, "eer"), "paper"]) == eer
    for normal, paper in (("mean", 0.942), ("mean of 3", 0.938)):
        assert float(measured.loc[("caltech256", normal, "discriminator_reconstruction", "auroc"), "paper"]) == paper
    beside = table[table["status"] == "reported"]
    assert {"IBC", "R-graph"} <= set(beside["name"])
    assert not (table["status"] == "not run").any()
    assert "IBC" in capsys.readouterr().out
    path = next((tmp_path / "runs").rglob("ucsd_ped2/**/metrics.json"))
    frames = pd.read_csv(path.with_name("scores.csv"))["path"].str.extract(r"Test/(Test\d+)/(\d+)\.tif$")
    assert frames.agg("/".join, axis=1).tolist() == [
        f"Test{k:03}/{i:03}" for k, n in ((1, 4), (2, 6), (3, 3)) for i in range(1, n + 1)
    ]
    record = read_record(path)
    assert record["metrics"]["discriminator"]["n_normal"] == ABNORMAL.count(0)


def test_what_cannot_be_run_is_said_and_stands_in_the_table(ped2, tmp_path, capsys):
    flags = ["--root", str(tmp_path), "--runs", str(tmp_path / "runs"), "--jobs", "1", "--image-size", "30"]
    run_experiment(ALOCC, flags)
    output = capsys.readouterr().out
    assert re.search(r"not run: .*256_ObjectCategories", output)
    table = pd.read_csv(tmp_path / "runs" / "alocc.csv", dtype={"normal": str}, keep_default_na=False)
    absent = table[table["dataset"] == "caltech256"]
    assert set(absent["status"]) == {"not run", "reported"}
    ours = absent[absent["status"] == "not run"]
    assert set(ours["name"]) == {"alocc-smoke"}
    assert set(ours["normal"]) == {"mean", "mean of 3", "mean of 5"}
    assert (ours["mean"] == "").all()
    assert "not run" in (tmp_path / "runs" / "alocc.md").read_text()
    with pytest.raises(SystemExit) as ended:
        run_experiment(ALOCC, [*flags, "--datasets", "caltech256"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")

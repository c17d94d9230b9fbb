"""Data of a user's own: arrays, ``.npz`` files, functions, tables; and that they are trained on like any other."""

import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from common.classical import fit_and_score
from common.data import (
    ImageData,
    OneClassDataModule,
    content_digest,
    datasets,
    image_data,
    load,
    load_arrays,
    save_arrays,
)
from common.data.arrays import checked
from common.data.images import Patches
from common.data.splitting import class_numbers
from common.deploy.export import metadata
from common.deploy.folder import predict_folder
from common.deploy.load import load_detector
from common.errors import InputError
from common.names import dataset_label
from common.presets import preset_path, read_config
from common.training.lightning import assemble

RANDOM = np.random.default_rng(0)
N = 40
X, Y = RANDOM.integers(0, 256, (N, 8, 8), dtype=np.uint8), np.arange(N) % 4
TABLE = RANDOM.normal(size=(N, 5)) * [1, 1e3, 1e-3, 1, 0] + [0, 5, 0, 1e6, 3]


@pytest.fixture(autouse=True)
def _nothing_loaded():
    yield
    datasets._load.cache_clear()


@pytest.mark.parametrize(
    ("samples", "shape"),
    [(X, (1, 8, 8)), (X[:, None], (1, 8, 8)), (np.stack([X] * 3, 1), (3, 8, 8)), (TABLE, (5,)), (X / 255, (1, 8, 8))],
    ids=["(N, H, W)", "(N, 1, H, W)", "(N, 3, H, W)", "(N, F)", "float"],
)
@pytest.mark.parametrize("has_test", [True, False])
def test_what_is_saved_is_loaded(tmp_path, samples, shape, has_test):
    arrays = (samples[:30], Y[:30], samples[30:], Y[30:]) if has_test else (samples, Y)
    save_arrays(tmp_path / "new" / "my.npz", *arrays)
    data, expected = load(str(tmp_path / "new" / "my.npz"), tmp_path / "not needed"), image_data(*arrays)
    assert data.images.shape == (N, *shape)
    assert data.images.dtype == (torch.uint8 if samples.dtype == np.uint8 else torch.float64)
    np.testing.assert_array_equal(data.images.reshape(N, -1), samples.reshape(N, -1))
    assert data.targets.tolist() == Y.tolist()
    assert data.official_test.tolist() == [has_test and i >= 30 for i in range(N)]
    assert data.classes == ("0", "1", "2", "3")
    assert content_digest(data) == content_digest(expected)


def test_an_npz_of_numpys_own(tmp_path):
    np.savez(tmp_path / "my.npz", X=X, y=Y, classes=np.array(["a", "b", "c", "d"]), notes=np.arange(3))
    assert load_arrays(tmp_path / "my.npz").classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("labels", "classes", "targets", "names"),
    [
        ([7, 3, 7], None, [1, 0, 1], ("3", "7")),
        ([-1, 1, 1], None, [0, 1, 1], ("-1", "1")),
        ([0.0, 2.0, 2.0], None, [0, 1, 1], ("0", "2")),
        ([True, False, True], None, [1, 0, 1], ("0", "1")),
        ([0, 2, 2], ["a", "b", "c"], [0, 2, 2], ("a", "b", "c")),
        (["good", "bad", "good"], None, [1, 0, 1], ("bad", "good")),
        (["good", "bad", "good"], ["good", "bad"], [0, 1, 0], ("good", "bad")),
        (pd.Series(["good", "bad", "good"], dtype=object), None, [1, 0, 1], ("bad", "good")),
    ],
)
def test_labels(tmp_path, labels, classes, targets, names):
    save_arrays(tmp_path / "my.npz", X[:3], labels, classes=classes)
    for data in (image_data(X[:3], labels, classes=classes), load_arrays(tmp_path / "my.npz")):
        assert (data.targets.tolist(), data.classes) == (targets, names)
        assert data.targets.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float16, ">f8", ">i2"])
def test_numbers_of_any_type(dtype):
    images = image_data((X > 100).astype(dtype), Y).images
    assert images.dtype == (torch.float32 if dtype == np.float16 else torch.float64)
    np.testing.assert_array_equal(images[:, 0], X > 100)


LAYOUTS = {
    "reversed": lambda x: x[::-1],
    "mirrored": lambda x: x[..., ::-1],
    "columns first": np.asfortranarray,
    "transposed": lambda x: x.swapaxes(-1, -2),
    "read-only": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, ">f4", np.float16, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_of_any_layout_in_memory(layout, dtype):
    x = layout(X.astype(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = checked(ImageData(x, Y, Y < 0, ("a", "b", "c", "d"))).images
    np.testing.assert_array_equal(images[:, 0], x)


BAD_ARRAYS = [
    ((X, Y[:-1]), "there are 40 samples but 39 labels"),
    ((X[:, 0, 0], Y), r"X_train must be \(N, H, W\), \(N, C, H, W\) or \(N, F\), not \(40,\)"),
    ((X[:0], Y[:0]), "X_train must be"),
    ((np.stack([X] * 3, -1), Y), r"1 or 3 channels, not 8: channels come first, try X.transpose\(0, 3, 1, 2\)"),
    ((np.stack([X] * 4, 1), Y), "1 or 3 channels, not 4$"),
    ((np.where(TABLE > 1e6, np.nan, TABLE), Y), "X_train holds NaN or infinity"),
    ((X, Y, np.full((2, 8, 8), np.inf), [0, 1]), "X_test holds NaN or infinity"),
    ((X.astype(str), Y), "X_train must hold numbers, not <U3"),
    ((X.astype(object), Y), "X_train must hold numbers, not object"),
    ((X, Y[:, None]), r"y_train must be \(N,\), one label for each sample, not \(40, 1\)"),
    ((X, Y + 0.5), "y_train must hold integers or text, not float64"),
    ((X, np.where(Y == 0, np.nan, Y)), "y_train holds NaN or infinity: give every sample a label"),
    ((X, Y.astype("S")), r"y_train must hold text, not bytes: try y_train.astype\(str\)"),
    ((X, Y.astype(object)), "y_train must hold integers or text, not object"),
    ((X, Y, X), "X_test and y_test belong together"),
    ((X, Y, X[:, :4], Y), r"X_train and X_test differ: \(1, 8, 8\) uint8 and \(1, 4, 8\) uint8"),
    ((X, Y, X / 255, Y), "X_train and X_test differ"),
    ((X, Y, X, Y.astype(str)), "y_train and y_test must have the same type"),
    ((X, Y, None, None, ["a", "b"]), "targets must be class numbers from 0 to 1"),
    ((X, Y, None, None, ["a", "b", "c", "a"]), "class names must differ"),
    ((X, Y.astype(str), None, None, ["0", "1", "2"]), "classes must name every label, and 3 is missing: 0, 1, 2"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS)
def test_arrays_that_do_not_fit(tmp_path, arrays, message):
    with pytest.raises(InputError, match=message) as error:
        save_arrays(tmp_path / "my.npz", *arrays)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def write(path, **arrays):
    np.savez(path, **arrays)


BAD_FILES = {
    "absent": (lambda path: None, "there is no such file"),
    "text": (lambda path: path.write_text("no arrays"), "is not a .npz of plain arrays"),
    "empty": (lambda path: path.write_text(""), "is not a .npz of plain arrays"),
    "npy": (lambda path: np.save(path.open("wb"), X), "is not a .npz of plain arrays"),
    "cut": (lambda path: (write(path, X=X, y=Y), path.write_bytes(path.read_bytes()[:900])), "is not a .npz"),
    "objects": (lambda path: write(path, X=X, y=Y.astype(object)), "is not a .npz of plain arrays: Object arrays cannot"),
    "a key": (
        lambda path: write(path, X_train=X, y_train=Y, x_test=X),
        "lacks X_test, y_test: give X_train, y_train, X_test and y_test",
    ),
    "other keys": (lambda path: write(path, images=X), "lacks X_train, y_train, X_test, y_test: .*, or X and y"),
    "shapes": (lambda path: write(path, X=X, y=Y[:3]), "there are 40 samples but 3 labels"),
    "bytes": (
        lambda path: write(path, X=X, y=Y, classes=np.array([b"a", b"b", b"c", b"d"])),
        "classes must hold text, not bytes",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_are_no_data_set(tmp_path, spoil, message):
    path = tmp_path / "my.npz"
    spoil(path)
    with pytest.raises(InputError, match=f"{path}.*{message}") as error:
        load(str(path), tmp_path)
    assert "\n" not in str(error.value)


def test_another_ending(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.npz"):
        save_arrays(tmp_path / "my.npy", X, Y)


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    path = tmp_path / "my.npz"
    save_arrays(path, X, Y)
    first = load(str(path), tmp_path)
    assert load(str(path), tmp_path) is first
    save_arrays(path, X[:30], Y[:30])
    assert load(str(path), tmp_path).images.shape[0] == 30


# Functions


@pytest.fixture
def function(monkeypatch):
    """Puts a function into an importable module, and returns its name."""

    def put(result):
        monkeypatch.setitem(sys.modules, "my_data", SimpleNamespace(load=lambda: result))
        return "my_data:load"

    return put


def test_a_function_is_a_data_set(function, tmp_path):
    made = ImageData(X[:, None], Y.tolist(), Y == 3, ["a", "b", "c", "d"], groups=np.arange(N) % 8)
    data = load(function(made), tmp_path / "not needed")
    assert torch.equal(data.images, torch.from_numpy(X[:, None]))
    assert (data.targets.dtype, data.official_test.dtype, data.groups.dtype) == (np.int64, np.bool_, np.int64)
    assert data.classes == ("a", "b", "c", "d")


def test_images_that_are_made_on_demand_are_a_data_set(function, tmp_path):
    frames = torch.from_numpy(X)
    patches = Patches(frames, np.stack([np.arange(N), Y, Y], 1), (4, 4))
    lazy = type("Lazy", (), {"shape": patches.shape, "dtype": torch.uint8, "__getitem__": lambda self, i: patches[i]})()
    data = load(function(ImageData(lazy, Y, Y == 3, tuple("abcd"))), tmp_path)
    assert data.images is lazy
    pixels = image_data(patches[torch.arange(N)].numpy(), Y, classes=tuple("abcd"))._replace(official_test=Y == 3)
    assert content_digest(data) == content_digest(pixels)


GOOD = ImageData(torch.from_numpy(X[:, None]), Y, Y == 3, tuple("abcd"))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"X": X}, "a dict is not a data set: give an ImageData"),
        (None, "a NoneType is not a data set"),
        (GOOD._replace(images=GOOD.images[:5]), r"targets and official_test must have the shape \(5,\), not \(40,\)"),
        (GOOD._replace(targets=Y + 1), "targets must be class numbers from 0 to 3"),
        (GOOD._replace(targets=Y - 1), "targets must be class numbers"),
        (GOOD._replace(targets=Y / 1), "targets must be class numbers"),
        (GOOD._replace(images=torch.full((N, 2), torch.nan)), "images holds NaN"),
        (GOOD._replace(groups=np.arange(5)), "groups must be integers, one for each of 40 images"),
        (GOOD._replace(groups=np.zeros(N, int)), "the images of a group must share their class"),
        (GOOD._replace(groups=Y, official_test=np.arange(N) > 20), "the images of a group must share their official part"),
    ],
)
def test_functions_that_make_no_data_set(function, tmp_path, made, message):
    with pytest.raises(InputError, match=f"my_data:load: {message}"):
        load(function(made), tmp_path)


def test_a_function_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (
        "import numpy as np\nfrom common.data import image_data\n\ndef load():\n    return image_data(np.eye(6), [0, 1] * 3)\n"
    )
    (tmp_path / "data_of_mine.py").write_text(code)
    assert load("data_of_mine:load", tmp_path).images.shape == (6, 6)
    with pytest.raises(InputError, match="the module data_of_mine has no function 'lod'"):
        load("data_of_mine:lod", tmp_path)


# Identity and names


@pytest.mark.parametrize(
    "other",
    [
        GOOD._replace(images=GOOD.images + 1),
        GOOD._replace(images=GOOD.images / 1),
        GOOD._replace(images=GOOD.images.transpose(2, 3)),
        GOOD._replace(images=GOOD.images.reshape(N, 1, 4, 16)),
        GOOD._replace(targets=Y[::-1].copy()),
        GOOD._replace(official_test=Y == 2),
        GOOD._replace(classes=tuple("abce")),
        GOOD._replace(groups=Y),
        ImageData(*(part[::-1].copy() if isinstance(part, np.ndarray) else part for part in GOOD[:4])),
    ],
)
def test_whatever_differs_has_another_identity(other):
    assert content_digest(other) != content_digest(GOOD)


def test_identity_does_not_depend_on_the_layout_in_memory():
    images = GOOD.images.contiguous(memory_format=torch.channels_last)
    assert content_digest(GOOD._replace(images=images.clone())) == content_digest(GOOD)


@pytest.mark.parametrize(
    ("name", "label"),
    [("mnist", "mnist"), ("folder", "folder"), ("path/my.npz", "my"), ("a.b.npz", "a.b"), ("my_data:load", "my_data.load")],
)
def test_labels_of_data_sets(name, label):
    assert dataset_label(name) == label


# Like any other set


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows of two classes whose columns have very different units."""
    path = tmp_path_factory.mktemp("tables") / "table.npz"
    y = np.where(np.arange(200) % 4 == 0, "bad", "good")
    rows = RANDOM.normal(size=(200, 1)) @ RANDOM.normal(size=(1, 6)) + 0.1 * RANDOM.normal(size=(200, 6))
    rows += np.where(y == "bad", 1, 0)[:, None] * RANDOM.normal(size=(200, 6))
    rows = rows * np.logspace(-3, 3, 6) + 10
    save_arrays(path, rows[:120], y[:120], rows[120:], y[120:])
    return str(path)


def trained(dataset, folder, **data):
    """A run of the smoke preset with everything that ``oneclass fit`` does."""
    config = read_config(preset_path("autoencoder-smoke"))
    config["model"]["init_args"] |= {"latent": 2}
    config["data"] = {**config.get("data", {}), "dataset": dataset, **data}
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "name": "", "version": ""}}
    config["trainer"] |= {"accelerator": "cpu", "default_root_dir": str(folder), "logger": logger, "enable_progress_bar": False}
    cli = assemble(config)
    cli.trainer.fit(cli.model, cli.datamodule)
    cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return cli


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return trained(table, folder, normal="good"), folder


def test_a_table_is_trained_on_and_its_range_travels_in_the_checkpoint(run, table):
    cli, folder = run
    data = cli.datamodule
    assert data.shape == tuple(cli.model.hparams["shape"]) == (6,)
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape[1:] == (6,)
    rows = data.data.images[torch.from_numpy(data.splits.train)]
    torch.testing.assert_close(data.preprocessing.minimum, rows.amin(0))
    assert data.class_names() == ["good"]
    assert np.isfinite(cli.model.test_metrics()["reconstruction"]["auroc"])
    detector = load_detector(folder / "checkpoints" / "last.ckpt")
    assert detector.stored == (6,)
    scores = detector.scores(data.data.images[torch.from_numpy(cli.model.scored.index)])
    np.testing.assert_allclose(scores, cli.model.scored.scores["reconstruction"], rtol=1e-5)
    assert metadata(detector)["preprocessing"]["minimum"] == pytest.approx(rows.amin(0).tolist())


def test_a_tables_figures_are_those_that_need_no_images(run):
    _, folder = run
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"roc", "precision_recall", "score_histogram"} <= names
    assert not names & {"extremes", "flagged", "reconstructions"}


def test_a_detector_of_rows_is_not_for_folders(run, tmp_path):
    _, folder = run
    with pytest.raises(InputError, match=r"last\.ckpt scores rows of 6 columns, not images"):
        predict_folder(folder / "checkpoints" / "last.ckpt", tmp_path, tmp_path / "out.csv")


def test_float_images_are_trained_on_and_their_detector_is_not_for_files(tmp_path):
    save_arrays(tmp_path / "my.npz", X / 7 - 3, Y)
    cli = trained(str(tmp_path / "my.npz"), tmp_path, normal="2", protocol="balanced")
    images = cli.datamodule.images(cli.datamodule.splits.train)
    low, high = (-1, 1) if cli.datamodule.preprocessing.normalization == "symmetric" else (0, 1)
    assert (images.min().item(), images.max().item()) == pytest.approx((low, high))
    assert (tmp_path / "figures" / "extremes.png").is_file()
    with pytest.raises(InputError, match=r"last\.ckpt was trained on float images"):
        predict_folder(tmp_path / "checkpoints" / "last.ckpt", tmp_path, tmp_path / "out.csv")


@pytest.mark.parametrize("preset", ["ocsvm", "iforest", "kde_ruff_gcn"])
def test_baselines_take_tables(table, preset):
    scored, record = fit_and_score(preset, OneClassDataModule(table, normal="good"), seed=0)
    assert len(scored.index) == 80
    assert record["metrics"][preset]["auroc"] > 0.5


def test_a_baseline_of_images_refuses_tables(table):
    with pytest.raises(InputError, match="HOG needs the pixels of images, not 6 features or columns"):
        fit_and_score("hog_ocsvm", OneClassDataModule(table, normal="good"), seed=0)


def test_frozen_layers_refuse_tables(table):
    data = OneClassDataModule(table, normal="good")
    data.extractor = torch.nn.Identity()
    with pytest.raises(InputError, match="is a table, but a backbone takes images"):
        data.setup()


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_image_size_and_channels_do_not_matter_to_tables(table, memory_gib):
    plain, other = (
        OneClassDataModule(table, "good"),
        OneClassDataModule(table, "good", image_size=16, channels=3, memory_gib=memory_gib, workers=0),
    )
    for data in (plain, other):
        data.setup()
    assert other.shape == (6,)
    for ours, theirs in zip(plain.test_dataloader(), other.test_dataloader(), strict=True):
        assert torch.equal(ours.image, theirs.image)


def test_a_data_module_of_arrays():
    data = OneClassDataModule.of(image_data(TABLE, Y, classes=["a", "b", "c", "01"]), "mine", normal="01", protocol="balanced")
    data.setup()
    assert (data.dataset, data.normal, data.class_names()) == ("mine", [3], ["01"])
    assert {k for batch in data.train_dataloader() for k in batch.target.tolist()} == {3}
    with pytest.raises(InputError, match="is not a data set"):
        OneClassDataModule.of({"X": TABLE})


NAMES = image_data(TABLE, Y, classes=["0", "01", "1", "a+b"])


@pytest.mark.parametrize(
    ("normal", "numbers"),
    [
        ("01", [1]), ("1", [2]), (1, [2]), ("3", [3]), ("a+b", [3]), ("0+01", [0, 1]), (["01", "a+b"], [1, 3]), (["02"], [2]),
    ],
    ids=str,
)  # fmt: skip
def test_a_class_is_found_by_its_name_before_its_number(normal, numbers):
    data = OneClassDataModule.of(NAMES, normal=normal)
    assert data.normal == numbers
    assert data.class_names() == [NAMES.classes[number] for number in numbers]


@pytest.mark.parametrize(("anomalous", "numbers"), [("a+b", {3}), ("1+0", {0, 2}), (["1", "a+b"], {2, 3}), (3, {3})])
def test_anomalous_classes_are_found_by_name(anomalous, numbers):
    data = OneClassDataModule.of(NAMES, normal="01", anomalous=anomalous, protocol="no_split")
    assert set(data.data.targets[data.splits.test]) == numbers | {1}
    texts = "+".join(map(str, anomalous)) if isinstance(anomalous, list) else anomalous
    if texts != "1+a+b":
        again = OneClassDataModule.of(NAMES, normal="01", anomalous=["0"], protocol=f"no_split,anomalous={texts}")
        assert again.splits.test.tolist() == data.splits.test.tolist()


@pytest.mark.parametrize(("name", "text"), [("[a]", "a"), ("[a, b]", "a+b"), ("[a, b]", ["a", "b"])])
def test_a_class_that_the_command_reads_as_a_list_is_not_taken_for_another(name, text):
    classes = [name, "[", "a", "b"]
    with pytest.raises(InputError, match=rf"the class '{re.escape(name)}' reads as a list, which chooses 'a.*': rename it"):
        class_numbers(text, classes, "mine")
    assert class_numbers([name, "["], classes, "mine") == [0, 1]
    assert class_numbers("b", classes, "mine") == [3]


def test_the_command_keeps_class_names_as_text(tmp_path):
    save_arrays(tmp_path / "my.npz", TABLE, Y, classes=["0", "1", "01", "007"])
    model = {"class_path": "autoencoder.Autoencoder", "init_args": {}}
    for normal, numbers in (("01", [2]), ("007", [3]), (1, [1]), (["007", "1"], [3, 1]), ("01+007", [2, 3])):
        data = {"dataset": str(tmp_path / "my.npz"), "normal": normal, "protocol": "balanced,anomalous=0"}
        cli = assemble({"model": model, "data": data, "trainer": {"logger": False, "accelerator": "cpu"}})
        assert cli.datamodule.normal == numbers
        dumped = yaml.safe_load(cli.parser.dump(cli.config))
        assert dumped["data"]["normal"] == normal

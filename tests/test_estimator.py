"""OneClassEstimator keeps scikit-learn's contract, and is the module behind it and nothing more."""

import pickle
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from autoencoder import Autoencoder
from common.data import Preprocessing, image_data
from common.errors import InputError
from common.estimator import OneClassEstimator
from common.evaluation import quantile_threshold
from common.presets import preset_path, read_config

METHODS = ("autoencoder", "alocc", "ocgan", "ocnn")
DIGITS = load_digits()
ZEROS, OTHERS = DIGITS.images[DIGITS.target == 0], DIGITS.images[DIGITS.target != 0]


def quick(method="autoencoder", **options):
    return OneClassEstimator(method, **{"max_epochs": 2, "random_state": 0, **options})


@pytest.fixture(scope="module")
def table():
    """Columns of very different scale, one of them constant."""
    rows = np.random.default_rng(0).normal(size=(400, 5)) @ np.random.default_rng(1).normal(size=(5, 5))
    return np.column_stack([rows * [1e6, 1, 1e-6, 1, 1] + [1e9, 0, 0, 5, 0], np.full(400, 7.0)])


@parametrize_with_checks([quick(method) for method in METHODS])
def test_scikit_learn(estimator, check):
    check(estimator)


@parametrize_with_checks([quick(latent=3)])
def test_scikit_learn_with_an_argument_of_the_module(estimator, check):
    check(estimator)


@pytest.mark.parametrize("flat", [False, True], ids=["images", "table"])
@pytest.mark.parametrize("method", METHODS)
def test_quality_with_the_default_preset(method, flat):
    train, normal = (x.reshape(len(x), -1) if flat else x for x in (ZEROS[:140], ZEROS[140:]))
    others = OTHERS[:400].reshape(400, -1) if flat else OTHERS[:400]
    detector = OneClassEstimator(method, random_state=0).fit(train)
    scores = detector.score_samples(np.concatenate([normal, others]))
    assert roc_auc_score(np.arange(len(scores)) < len(normal), scores) > 0.9
    assert (detector.predict(others) == -1).mean() > 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(30,), (9, 13), (1, 8, 8), (3, 12, 8)])
def test_shapes(method, shape):
    x = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    detector = quick(method, max_epochs=1).fit(x)
    assert detector.n_features_in_ == shape[0]
    assert detector.shape_ == shape
    for values in (detector.score_samples(x), detector.decision_function(x), detector.predict(x)):
        assert values.shape == (20,)
        assert np.isfinite(values).all()


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_module_one_by_one_or_together(method):
    detector = quick(method).fit(ZEROS)
    scores = detector.score_samples(OTHERS[:50])
    low, high = ZEROS.min(), ZEROS.max()
    unit = torch.from_numpy((OTHERS[:50, None] - low) / (high - low)).float()
    symmetric = method != "ocnn"
    with torch.no_grad():
        expected = detector.module_.scores((2 * unit - 1 if symmetric else unit).double())
    np.testing.assert_allclose(-scores, expected[detector.module_.hparams["score"]], rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([detector.score_samples(OTHERS[i : i + 1]) for i in range(50)]), scores, 1e-9)


def test_the_parameter_score_names_the_score():
    detectors = [quick("alocc", score=score).fit(ZEROS) for score in ("discriminator", "reconstruction")]
    assert detectors[1].score_samples(OTHERS).max() <= 0 < detectors[0].score_samples(OTHERS).max()


def test_signs():
    detector = OneClassEstimator("autoencoder", max_epochs=20, random_state=0).fit(ZEROS)
    assert detector.score_samples(ZEROS).mean() > detector.score_samples(OTHERS).mean()
    decision = detector.decision_function(OTHERS)
    np.testing.assert_array_equal(decision, detector.score_samples(OTHERS) - detector.offset_)
    np.testing.assert_array_equal(detector.predict(OTHERS), np.where(decision < 0, -1, 1))
    assert detector.offset_ == -detector.module_.threshold.item()


@pytest.mark.parametrize("n_outliers", [1, 20, 89])
def test_contamination_is_the_share_of_outliers_in_training(n_outliers):
    detector = quick(contamination=n_outliers / len(ZEROS))
    assert (detector.fit_predict(ZEROS) == -1).sum() == n_outliers


def test_auto_calls_the_expected_share_of_fresh_normals_outliers():
    draw = np.random.default_rng(0).normal
    detector = quick(val_fraction=0.5, threshold_quantile=0.8).fit(draw(size=(2000, 6)))
    assert (detector.predict(draw(size=(5000, 6))) == -1).mean() == pytest.approx(0.2, abs=0.03)


def test_auto_is_the_modules_quantile_of_what_is_held_out_and_nothing_else_is_seen():
    x = np.arange(20.0)[:, None] % 7
    detector = quick(val_fraction=0.25, batch_size=15).fit(x)
    held_out = np.random.RandomState(0).permutation(20) < 5
    scores = -detector.score_samples(x[held_out])
    assert detector.offset_ == -quantile_threshold(scores, 0.95)
    assert detector.module_.calibration.tolist() == sorted(scores)
    x[held_out] += 1e6
    np.testing.assert_array_equal(detector.score_samples([[3.0]]), clone(detector).fit(x).score_samples([[3.0]]))


def test_uint8_images_are_float_images_and_units_of_a_table_do_not_matter(table):
    stored = (ZEROS * 15.9375).astype(np.uint8)
    assert stored.max() == 255
    as_stored, as_floats = (quick().fit(x).score_samples(x) for x in (stored, stored / 255))
    np.testing.assert_allclose(as_stored, as_floats, rtol=1e-6)
    in_metres, in_miles = (quick().fit(x).score_samples(x) for x in (table, table * 1609.344 - 20))
    np.testing.assert_allclose(in_metres, in_miles, rtol=1e-3)


def test_uint8_images_are_scaled_by_255_whatever_their_range():
    dark = quick().fit((ZEROS * 5).astype(np.uint8))
    assert next(dark._inputs(np.full((1, 8, 8), 255, np.uint8))).min() == 1
    assert next(dark._inputs(np.zeros((1, 8, 8), np.uint8))).max() == -1


@pytest.mark.parametrize("preset", ["small", "dcae", "dcae.cifar10"])
def test_samples_are_scaled_as_those_of_a_data_set(table, preset):
    data = read_config(preset_path(f"autoencoder-{preset}"))["data"]
    for x in (table, ZEROS, (ZEROS * 15).astype(np.uint8)):
        detector = quick(preset=preset, max_epochs=1, contamination=0.1, batch_size=400).fit(x)
        stored = image_data(x, np.zeros(len(x), int)).images
        preprocessing = Preprocessing(data["normalization"], data.get("class_mean", False)).fit(stored)
        torch.testing.assert_close(next(detector._inputs(x)), preprocessing(stored))


def test_far_outliers_have_finite_low_scores(table):
    detector = quick().fit(table)
    far = table[:1] + np.logspace(3, 300, 5)[:, None]
    assert np.isfinite(detector.score_samples(far)).all()
    assert (detector.predict(far) == -1).all()


def test_presets_image_size_channels_and_frozen_layers():
    detector = quick("ocnn", preset="tuned.cifar10", weights=None, max_epochs=1, iterations=1).fit(ZEROS[:12])
    assert tuple(detector.module_.hparams["shape"]) == (3, 96, 96)
    assert np.isfinite(detector.score_samples(OTHERS[:2])).all()


@pytest.mark.parametrize("preset", ["dcae", "dcae.cifar10", "denoising.cifar10"])
@pytest.mark.parametrize("x", [ZEROS[:20], ZEROS[:20].reshape(20, -1)], ids=["images", "table"])
def test_every_normalization(preset, x):
    assert np.isfinite(quick(preset=preset, max_epochs=1).fit(x).score_samples(x)).all()


@pytest.mark.parametrize("n", [3, 4, 5, 32, 33, 34, 35])
@pytest.mark.parametrize("method", METHODS)
def test_few_samples_and_odd_last_batches(method, n):
    x = ZEROS[: n + 1] if n > 30 else ZEROS[:n]
    for samples in (x, x.reshape(len(x), -1)):
        assert np.isfinite(quick(method, max_epochs=1, val_fraction=0.01).fit(samples).offset_)


def test_seeds_and_the_global_state():
    def state():
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002

    before, seed = state(), np.random.RandomState(3)
    first, second, other = (quick(random_state=s).fit(ZEROS).score_samples(OTHERS) for s in (1, 1, 2))
    shared = [quick(random_state=seed).fit(ZEROS).offset_ for _ in range(2)]
    assert state() == before
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert shared[0] != shared[1]
    np.random.seed(5)  # noqa: NPY002
    expected = quick(random_state=None).fit(ZEROS).offset_
    np.random.seed(5)  # noqa: NPY002
    assert quick(random_state=None).fit(ZEROS).offset_ == expected


def test_nothing_is_said_or_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick().fit(ZEROS).predict(OTHERS)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    quick(verbose=True).fit(ZEROS)
    assert "Epoch 1" in capfd.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_a_pickle_scores_alike_and_holds_no_data(method):
    detector = quick(method).fit(ZEROS)
    stored = pickle.dumps(detector)
    assert sum(p.numel() * p.itemsize for p in detector.module_.state_dict().values()) + 60_000 > len(stored)
    loaded = pickle.loads(stored)
    np.testing.assert_array_equal(loaded.score_samples(OTHERS), detector.score_samples(OTHERS))
    np.testing.assert_array_equal(loaded.predict(OTHERS), detector.predict(OTHERS))
    assert loaded.get_params() == detector.get_params()


def test_a_pickle_is_as_small_after_many_batches():
    few, many = (len(pickle.dumps(quick().fit(np.tile(ZEROS, (k, 1, 1))))) for k in (1, 10))
    assert many < 1.01 * few


def test_parameters():
    detector = OneClassEstimator("ocgan", latent=4)
    assert detector.get_params()["latent"] == 4
    assert "latent=4" in repr(detector)
    detector.set_params(latent=5, width=8, max_epochs=3)
    assert clone(detector).get_params() == detector.get_params()
    assert (detector.max_epochs, detector.get_params()["width"]) == (3, 8)
    assert detector.fit(ZEROS).module_.hparams["latent"] == 5


def test_grid_search_and_pipeline():
    x = np.concatenate([ZEROS, OTHERS[:60]]).reshape(-1, 64)
    y = np.repeat([1, -1], [len(ZEROS), 60])
    grid, folds = {"latent": [1, 8]}, StratifiedKFold(2)
    search = GridSearchCV(quick(max_epochs=10), grid, scoring="roc_auc", cv=folds, error_score="raise").fit(x, y)
    assert search.best_score_ > 0.6
    assert search.best_estimator_.module_.hparams["latent"] == search.best_params_["latent"]
    pipeline = make_pipeline(StandardScaler(), quick(max_epochs=10)).fit(x[: len(ZEROS)])
    assert roc_auc_score(y, pipeline.decision_function(x)) > 0.8
    assert set(pipeline.set_params(oneclassestimator__latent=2).fit(x).predict(x)) == {-1, 1}


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (ZEROS[:1], ValueError, "1 sample"),
        (ZEROS[:2], ValueError, "minimum of 3"),
        (ZEROS[0, 0], ValueError, "2D array"),
        (ZEROS[:, None, None], InputError, r"\(N, C, H, W\)"),
        (np.where(ZEROS == 0, np.nan, 1), ValueError, "NaN"),
        (np.where(ZEROS == 0, np.inf, 1), ValueError, "infinity"),
        (ZEROS[:, 0] + 1j, ValueError, "Complex"),
        (csr_matrix(ZEROS[:, 0]), TypeError, "dense data is required"),
        ([["a", "b"]] * 5, ValueError, "strings"),
    ],
)
def test_samples_that_cannot_be_trained_on(x, error, says):
    with pytest.raises(error, match=says):
        quick().fit(x)


def test_samples_of_another_shape():
    with pytest.raises(ValueError, match="9 features, but OneClassEstimator is expecting 8"):
        quick().fit(ZEROS).predict(np.zeros((2, 9, 8)))
    with pytest.raises(InputError, match=r"shape \(8, 9\): give \(8, 8\)"):
        quick().fit(ZEROS).predict(np.zeros((2, 8, 9)))


@pytest.mark.parametrize(
    ("parameters", "error", "says"),
    [
        ({"method": "nothing"}, InputError, "no method 'nothing': choose from alocc, autoencoder, ocgan, ocnn"),
        ({"preset": "nothing"}, InputError, "choose from dcae, denoising"),
        ({"latnet": 3}, InputError, "Autoencoder has no argument latnet: choose from betas, latent"),
        ({"shape": (3,)}, InputError, "no argument shape"),
        ({"contamination": 0.0}, ValueError, "contamination"),
        ({"contamination": 0.6}, ValueError, "contamination"),
        ({"contamination": "some"}, TypeError, "contamination"),
        ({"val_fraction": 1.0}, ValueError, "val_fraction"),
        ({"max_epochs": 0}, ValueError, "max_epochs"),
        ({"batch_size": 1}, ValueError, "batch_size"),
        ({"random_state": "x"}, ValueError, "seed"),
        ({"device": "abacus"}, InputError, "no device 'abacus': choose from auto, cpu and cuda"),
        ({"latent": 0}, InputError, "latent must be at least 1, not 0"),
        ({"schedule": "linear"}, InputError, "schedule must be 'milestones', 'inverse_time', 'cosine', not linear"),
        ({"latent": "x"}, InputError, "latent must be int, not x"),
        ({"latent": 2.5}, InputError, "latent must be int, not 2.5"),
        ({"score": "error"}, InputError, "score must be 'reconstruction', not error"),
        ({"widths": [4, 0]}, InputError, r"widths must be at least 1, not \[4, 0\]"),
    ],
)
def test_parameters_that_make_no_sense(parameters, error, says):
    with pytest.raises(error, match=says):
        quick().set_params(**parameters).fit(ZEROS)


def test_numbers_may_be_numpys():
    """As a grid search over ``np.arange`` gives them."""
    numbers = {"max_epochs": np.int64(1), "batch_size": np.int64(4), "latent": np.int64(2), "lr": np.float32(0.5)}
    plain = {name: number.item() for name, number in numbers.items()} | {"widths": [4, 8]}
    fitted = [quick().set_params(**given).fit(ZEROS) for given in (plain, numbers | {"widths": np.array([4, 8])})]
    assert np.array_equal(*(detector.score_samples(ZEROS) for detector in fitted))


def test_a_gpu_that_is_not_here(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="device 'cuda' is not available, because PyTorch finds no GPU here: choose cpu"):
        quick(device="cuda").fit(ZEROS)
    assert quick(device="auto").fit(ZEROS).module_.device.type == "cpu"


def test_channels_that_a_preset_cannot_convert():
    with pytest.raises(InputError, match="images of 4 channels cannot be converted to 3: give images of 1 or 3 channels"):
        quick("ocnn", preset="tuned").fit(np.random.default_rng(0).random((20, 4, 8, 8)))


LAYOUTS = {
    "reversed": lambda x: x[::-1],
    "mirrored": lambda x: x[..., ::-1],
    "columns first": np.asfortranarray,
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


TYPES = [np.uint8, np.float32, ">f4", np.float16, np.float64, np.int16, bool]


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [("mirrored", dtype) for dtype in TYPES] + [(name, dtype) for name in LAYOUTS for dtype in (np.uint8, ">f4")],
)
def test_arrays_of_any_type_and_layout_in_memory(layout, dtype):
    for samples in (ZEROS, ZEROS.reshape(-1, 64)):
        x = LAYOUTS[layout](samples.astype(dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = quick(max_epochs=1).fit(x).score_samples(x)
        same = np.array(x, np.uint8 if dtype == np.uint8 else np.float64, order="C")
        np.testing.assert_allclose(scores, quick(max_epochs=1).fit(same).score_samples(same), rtol=1e-6)


def preset(path, text):
    path.write_text("model: {class_path: autoencoder.Autoencoder, init_args: {widths: [4], latent: 4}}\n" + text)
    return str(path)


@pytest.mark.parametrize("text", ["data:", "trainer:", "", "data: {image_size: null}\ntrainer: {callbacks: null}"])
def test_a_preset_may_leave_out_data_and_trainer(tmp_path, text):
    detector = OneClassEstimator(preset(tmp_path / "my.yaml", text), max_epochs=1).fit(ZEROS)
    assert detector.module_.hparams["shape"] == [1, 8, 8]


def test_a_preset_may_leave_out_the_arguments_of_its_module(tmp_path):
    (tmp_path / "my.yaml").write_text("model: {class_path: autoencoder.Autoencoder, init_args: }")
    assert OneClassEstimator(str(tmp_path / "my.yaml"), max_epochs=1, latent=3).fit(ZEROS).module_.hparams["latent"] == 3


@pytest.mark.parametrize("name", ["autoencoder.Nope", "nowhere.Nope", "torch.nn.Linear"])
def test_a_preset_of_no_method_is_refused(tmp_path, name):
    (tmp_path / "my.yaml").write_text(f"model: {{class_path: {name}}}")
    with pytest.raises(InputError, match=f"'{name}'"):
        OneClassEstimator(str(tmp_path / "my.yaml"), max_epochs=1).fit(ZEROS)


@pytest.mark.parametrize(("size", "shape"), [("[8, 12]", [1, 8, 12]), ("6", [1, 6, 6])])
def test_a_preset_sets_height_and_width(tmp_path, size, shape):
    detector = OneClassEstimator(preset(tmp_path / "my.yaml", f"data: {{image_size: {size}}}"), max_epochs=1)
    assert detector.fit(ZEROS).module_.hparams["shape"] == shape


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainer: {callbacks: [{class_path: EarlyStopping}]}", "does not use the preset's trainer.callbacks: remove them"),
        ("trainer: {max_epoch: 3}", "Lightning refuses the preset's trainer: .*max_epoch"),
        ("data: {image_size: [8]}", r"image_size must be one positive number or \[height, width\], not \[8\]"),
    ],
)
def test_a_preset_that_cannot_be_used(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        OneClassEstimator(preset(tmp_path / "my.yaml", text), max_epochs=1).fit(ZEROS)


@pytest.mark.parametrize("shape", [(32, 48, 3), (32, 32, 4), (28, 28, 1)], ids=str)
def test_channels_last_are_not_taken_for_channels(shape):
    images = np.zeros((20, *shape))
    with pytest.raises(
        InputError, match=rf"X has images of {shape[0]} channels: channels come first, try X.transpose\(0, 3, 1, 2\)"
    ):
        quick().fit(images)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (5, 16, 1)], ids=str)
def test_channels_first_and_signals_of_several_channels_are_as_they_were(shape):
    detector = quick(max_epochs=1).fit(np.random.default_rng(0).random((20, *shape)))
    assert detector.shape_ == shape
    assert detector.module_.hparams["shape"] == list(shape)


@pytest.mark.parametrize("contamination", ["auto", 0.1])
def test_a_data_frame_is_fitted_and_scored_without_warnings(contamination):
    frame = pd.DataFrame(np.random.default_rng(0).random((30, 3)), columns=["a", "b", "c"])
    detector = quick(contamination=contamination)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = detector.fit(frame).score_samples(frame)
    np.testing.assert_array_equal(
        scores, quick(contamination=contamination).fit(frame.to_numpy()).score_samples(frame.to_numpy())
    )
    assert detector.feature_names_in_.tolist() == ["a", "b", "c"]


def test_each_epoch_trains_on_every_sample_in_an_order_of_its_own(monkeypatch):
    seen, step = [], Autoencoder.training_step
    monkeypatch.setattr(Autoencoder, "training_step", lambda self, b, i: (seen.extend(b.index.tolist()), step(self, b, i))[1])
    quick(contamination=0.1, batch_size=20).fit(ZEROS[:40])
    first, second = seen[:40], seen[40:]
    assert sorted(first) == sorted(second) == list(range(40))
    assert len({tuple(order) for order in (first, second, range(40))}) == 3


def test_the_data_settings_of_a_preset_count_where_none_are_given(monkeypatch):
    def changed(path):
        config = read_config(path)
        return config | {"data": config["data"] | {"val_fraction": 0.25, "batch_size": 17, "class_mean": True}}

    monkeypatch.setattr("common.estimator.read_config", changed)
    detector = quick(max_epochs=1).fit(ZEROS[:40])
    assert (len(detector.module_.calibration), detector.batch_size_, detector._preprocessing.class_mean) == (10, 17, True)
    given = quick(max_epochs=1, val_fraction=0.5, batch_size=9).fit(ZEROS[:40])
    assert (len(given.module_.calibration), given.batch_size_) == (20, 9)


def test_a_sample_at_the_threshold_is_an_inlier_as_in_scikit_learn():
    detector = quick().fit(ZEROS)
    detector.offset_ = detector.score_samples(OTHERS[:1]).item()
    assert detector.decision_function(OTHERS[:1]).tolist() == [0]
    assert detector.predict(OTHERS[:1]).tolist() == [1]


def test_the_seed_reaches_the_training_and_not_only_what_is_held_out():
    first, second, other = (quick(contamination=0.1, random_state=s).fit(ZEROS).score_samples(ZEROS[:5]) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)

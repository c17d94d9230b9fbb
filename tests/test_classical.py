"""The classical detectors: their own estimators against numbers, and every preset on the embedded digits."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from skimage.feature import hog
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.svm import OneClassSVM

from common.classical import DETECTORS, fit_and_score
from common.data import OneClassDataModule, image_data
from common.errors import InputError
from common.experiment import Cell
from common.experiment.cell import Settings
from common.experiment.published import published
from common.experiment.run import run
from common.shallow import (
    HOG,
    DenseKernelDensity,
    Mahalanobis,
    MinimaxProbabilityMachine,
    NearestNeighborDistance,
    PCAReconstruction,
    PrincipalComponents,
    WideOneClassSVM,
    diameter,
)
from experiments.classical import EXPERIMENT

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
X = np.random.default_rng(0).normal(size=(60, 7))
NEW = np.random.default_rng(1).normal(size=(9, 7))
SEEDED = {"elliptic", "iforest", "pca_iforest", "iforest_ruff", "bsvm"}


def scored(preset, seed=0, **data):
    return fit_and_score(preset, OneClassDataModule("digits", normal=3, **{**DETECTORS[preset].data, **data}), seed)


def test_diameter():
    assert diameter(X) == pytest.approx(pdist(X).max())


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
@pytest.mark.parametrize("bandwidth", [0.3, 2.0])
def test_kernel_density_is_scikit_learns_but_for_a_constant(kernel, bandwidth):
    ours = DenseKernelDensity(bandwidth, kernel).fit(X).score_samples(NEW)
    theirs = KernelDensity(bandwidth=bandwidth, kernel=kernel).fit(X).score_samples(NEW)
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=1e-9)


def test_scotts_bandwidth_is_scikit_learns():
    assert DenseKernelDensity().fit(X).bandwidth_ == KernelDensity(bandwidth="scott").fit(X).bandwidth_


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_kernel_density_is_a_mean_and_not_a_sum(kernel):
    """The same samples twice over are no denser."""
    once, twice = (DenseKernelDensity(0.7, kernel).fit(samples).score_samples(NEW) for samples in (X, np.tile(X, (2, 1))))
    np.testing.assert_allclose(once, twice)


@pytest.mark.parametrize(("kernel", "power"), [("exponential", 1), ("gaussian", 2)])
def test_a_very_wide_kernel_orders_by_the_mean_distance(kernel, power):
    density = DenseKernelDensity("diameter", kernel).fit(X)
    assert density.bandwidth_ == pytest.approx(pdist(X).max() ** 2)
    distances = np.linalg.norm(NEW[:, None] - X, axis=-1) ** power
    assert density.score_samples(NEW).argsort().tolist() == (-distances.mean(1)).argsort().tolist()


def test_wide_svm_is_scikit_learns_with_its_gamma():
    reference = OneClassSVM(nu=0.2, gamma=1 / pdist(X).max() ** 2).fit(X)
    np.testing.assert_allclose(WideOneClassSVM(0.2).fit(X).score_samples(NEW), reference.score_samples(NEW))


def test_reconstruction_error_is_the_distance_to_the_plane():
    plane = X[:, :2] @ np.random.default_rng(2).normal(size=(2, 7)) + 5
    detector = PCAReconstruction(2).fit(plane)
    basis = np.linalg.svd(plane - plane.mean(0), full_matrices=False)[2][:2]
    centred = NEW - plane.mean(0)
    expected = ((centred - centred @ basis.T @ basis) ** 2).sum(1)
    np.testing.assert_allclose(-detector.score_samples(NEW), expected)
    np.testing.assert_allclose(detector.score_samples(plane), 0, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 7), (60, 4)])
def test_there_are_fewer_components_than_samples_and_features(shape):
    detector = PCAReconstruction(32).fit(X[: shape[0], : shape[1]])
    assert detector.pca_.n_components_ == min(shape) - 1
    assert (detector.score_samples(NEW[:, : shape[1]]) < 0).all()


@pytest.mark.parametrize("shape", [(60, 7), (5, 7)])
def test_principal_components_are_scikit_learns(shape):
    samples = X[: shape[0], : shape[1]]
    ours = PrincipalComponents(0.8).fit(samples).transform(NEW)
    theirs = PCA(0.8, svd_solver="full").fit(samples).transform(NEW)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)


def test_reconstruction_uses_no_random_solver():
    many = np.random.default_rng(0).normal(size=(900, 600))
    first, second = (PCAReconstruction(2).fit(many).score_samples(many[:5]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_nearest_neighbours_by_hand():
    samples = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 10.0], [100.0, 0.0]])
    assert DETECTORS["knn"].build().get_params()["n_neighbors"] == 2
    detector = DETECTORS["knn"].build().fit(samples)
    np.testing.assert_allclose(detector.score_samples(samples[:1]), [-(0 + 5) / 2], atol=1e-7)
    np.testing.assert_allclose(detector.score_samples(np.array([[0.0, 20.0]])), [-(10 + np.hypot(3, 16)) / 2])
    np.testing.assert_allclose(NearestNeighborDistance(3).fit(samples).score_samples(samples[:1]), [-(0 + 5 + 10) / 3])


def test_fewer_samples_than_neighbours():
    np.testing.assert_allclose(NearestNeighborDistance(2).fit(X[:1]).score_samples(NEW), -np.linalg.norm(NEW - X[0], axis=1))


def test_mahalanobis_is_scikit_learns():
    np.testing.assert_allclose(Mahalanobis().fit(X).score_samples(NEW), -EmpiricalCovariance().fit(X).mahalanobis(NEW))


@pytest.mark.parametrize("channels", [1, 3])
def test_hog_is_scikit_images(channels):
    images = np.random.default_rng(0).random((2, channels, 16, 12))
    features = HOG(images.shape[1:]).fit_transform(images.reshape(2, -1))
    assert features.shape == (2, 3 * 2 * 36)
    expected = hog(images[1].transpose(1, 2, 0), pixels_per_cell=(4, 4), cells_per_block=(2, 2), channel_axis=-1)
    np.testing.assert_allclose(features[1], expected)


def test_hog_tells_directions_apart():
    stripes = np.tile(np.sin(np.arange(8)), (8, 1))
    across, along = HOG((1, 8, 8)).fit_transform(np.stack([stripes.ravel(), stripes.T.ravel()])).reshape(2, 4, 9).argmax(-1)
    assert set(across) == {0}
    assert set(along) == {4}


@pytest.mark.parametrize(
    ("shape", "says"), [((1, 2, 4), "2 x 4|8 x 8 pixels or more"), ((3, 28, 28), "leave out the backbone")]
)
def test_hog_says_what_it_wants(shape, says):
    with pytest.raises(InputError, match=says):
        HOG(shape).fit(np.zeros((3, 8)))


@pytest.mark.parametrize(
    ("estimator", "method"),
    [
        (MinimaxProbabilityMachine(components=10), "score_samples"),
        (PCAReconstruction(10), "score_samples"),
        (PrincipalComponents(10), "transform"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_random_number_plays_a_part_in_wide_data(estimator, method):
    X = np.random.default_rng(0).normal(size=(60, 1200))
    first, second = (getattr(estimator.fit(X), method)(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("preset", sorted(DETECTORS.keys() - {"bsvm", "mpm"}))
def test_scores_are_higher_for_anomalies(preset):
    found, results = scored(preset)
    assert results["metrics"][preset]["auroc"] > 0.8
    values = found.scores[preset]
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert results["metrics"][preset]["auroc"] == pytest.approx(roc_auc_score(found.label, values))


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("ocsvm", {"nu": 0.1, "gamma": "scale", "kernel": "rbf"}),
        ("hog_ocsvm", {"oneclasssvm__nu": 0.1, "hog__cell": 4}),
        ("ocsvm_ruff", {"nu": 0.1, "kernel": "rbf"}),
        ("kde_ruff", {"bandwidth": "diameter", "kernel": "exponential"}),
        ("kde_ruff_gcn", {"densekerneldensity__bandwidth": "diameter", "densekerneldensity__kernel": "gaussian"}),
        ("ocsvm_linear", {"nu": 0.5, "kernel": "linear"}),
        ("bsvm", {"sigma": 0.01, "C": 0.5}),
        ("svdd", {"nu": 0.5}),
    ],
)
def test_settings_that_published_rows_were_made_with(preset, settings):
    estimator = DETECTORS[preset].build()
    parameters = vars(estimator) | estimator.get_params()
    assert {name: parameters[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("preset", "normalization", "steps"),
    [
        ("kde_ruff_gcn", "gcn", [PrincipalComponents, DenseKernelDensity]),
        ("iforest_ruff", "gcn", [PrincipalComponents, IsolationForest]),
        ("kde_ruff", None, [DenseKernelDensity]),
        ("ocsvm_ruff", None, [WideOneClassSVM]),
    ],
)
def test_deep_svdds_rows_are_of_whole_classes_in_its_own_preprocessing(preset, normalization, steps):
    """Two of them on contrast-normalised images, two on pixels; nothing is held out."""
    data, estimator = DETECTORS[preset].data, DETECTORS[preset].build()
    assert (data.get("normalization"), data["val_fraction"]) == (normalization, 0)
    assert [type(step) for _, step in getattr(estimator, "steps", [("", estimator)])] == steps


def test_lof_and_mahalanobis_are_of_euclidean_neighbours_and_of_all_samples():
    lof = DETECTORS["lof"].build()
    reference = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(X)
    np.testing.assert_allclose(lof.fit(X).score_samples(NEW), reference.score_samples(NEW))
    mahalanobis = DETECTORS["mahalanobis"].build().fit(X)
    kept = PCA(0.95, svd_solver="full").fit(X)
    expected = EmpiricalCovariance().fit(kept.transform(X)).mahalanobis(kept.transform(NEW))
    np.testing.assert_allclose(mahalanobis.score_samples(NEW), -expected)


def test_the_threshold_is_of_held_out_scores():
    """Not of those that are tested: five per cent of the held-out normals are above it, whatever the test set holds."""
    data = OneClassDataModule("digits", normal=3, val_fraction=0.4)
    _, results = fit_and_score("pca", data, 0)
    train, held_out = (data.inputs(part).flatten(1).double().numpy() for part in data.splits[:2])
    scores = -PCAReconstruction().fit(train).score_samples(held_out)
    assert results["threshold"] == pytest.approx(np.quantile(scores, 0.95))
    assert results["metrics"]["pca"]["threshold"] == results["threshold"]


def test_groups_are_scored_by_their_most_anomalous_sample():
    """In the test and for the threshold, in whatever order the samples of a group stand."""
    random = np.random.default_rng(0)
    groups, frames = random.permutation(np.repeat(np.arange(40), 3)), np.arange(40)
    is_anomalous, official_test = frames >= 30, frames >= 20
    rows = random.normal(size=(120, 4)) + 2 * is_anomalous[groups][:, None]
    table = image_data(rows, is_anomalous[groups].astype(int))
    table = table._replace(official_test=official_test[groups], groups=groups)
    data = OneClassDataModule.of(table, normal=0, val_fraction=0.4)
    found, results = fit_and_score("knn", data, 0)
    detector = NearestNeighborDistance().fit(data.inputs(data.splits.train).double().numpy())

    def of_groups(part):
        values = -detector.score_samples(data.inputs(part).double().numpy())
        return [values[groups[part] == group].max() for group in np.unique(groups[part])]

    np.testing.assert_allclose(found.scores["knn"], of_groups(data.splits.test))
    assert found.label.tolist() == [0] * 10 + [1] * 10
    assert results["threshold"] == pytest.approx(np.quantile(of_groups(data.splits.val), 0.95))


@pytest.mark.parametrize("preset", DETECTORS)
def test_scores_do_not_depend_on_the_batch(preset):
    whole, parts = (scored(preset, eval_batch_size=size, batch_size=size)[0] for size in (1000, 7))
    np.testing.assert_allclose(whole.scores[preset], parts.scores[preset], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("preset", DETECTORS)
def test_seeds_change_what_is_random_and_nothing_else(preset):
    first, other = (scored(preset, seed)[0].scores[preset] for seed in (0, 1))
    if preset in SEEDED:
        np.testing.assert_array_equal(first, scored(preset, 0)[0].scores[preset])
    assert (first != other).any() == (preset in SEEDED) == Cell(f"classical-{preset}", "digits", "standard", "0", 0).seeded


@pytest.mark.parametrize("preset", DETECTORS)
def test_a_preset_brings_its_data_settings(preset, tmp_path):
    cell = Cell(f"classical-{preset}", "digits", "standard", "3", 0)
    config = cell.config(Settings())["data"]
    assert {key: config[key] for key in DETECTORS[preset].data} == DETECTORS[preset].data
    given = Cell(f"classical-{preset}", "digits", "standard,val_fraction=0.5", "3", 0).config(Settings())["data"]
    splits = OneClassDataModule(**given).splits
    assert len(splits.val) == pytest.approx(len(splits.train), abs=1), "the protocol's option counts"


def test_data_settings_reach_the_record(tmp_path):
    published, ours = (
        run(Cell(f"classical-{name}", "digits", "standard", "3", 0), Settings(runs=tmp_path, threads=1))
        for name in ("iforest_ruff", "pca_iforest")
    )
    assert np.isnan(published["threshold"]), "nothing is held out"
    assert np.isfinite(ours["threshold"])
    assert published["metrics"]["iforest_ruff"]["auroc"] != ours["metrics"]["pca_iforest"]["auroc"]


def test_hog_on_features_is_refused(tmp_path):
    cell = Cell("classical-hog_ocsvm,backbone=squeezenet1_0,weights=null,image_size=40", "digits", "standard", "3", 0)
    with pytest.raises(InputError, match="leave out the backbone"):
        run(cell, Settings(runs=tmp_path, threads=1))


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        ("lof,neighbours=5", "options of a detector"),
        ("lof,backbone=squeezenet1_0,weights=null,head_layers=1,fine_tuned=true", "options of a detector"),
        ("lof,x", "give key=value"),
    ],
)
def test_an_unknown_option_gets_one_line(preset, says, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        run(Cell(f"classical-{preset}", "digits", "standard", "3", 0), Settings(runs=tmp_path, threads=1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", ["ocsvm_ruff", "kde_ruff"])
def test_the_committed_rows_are_the_published_ones(preset):
    table = published(EXPERIMENT)
    rows = table[(table["n_seeds"] > 0) & (table["name"] == f"classical-{preset}") & (table["dataset"] == "mnist")]
    assert set(rows["normal"]) == {*map(str, range(10)), "mean"}
    assert rows["reference"].str.endswith("Ruff2018 T1").all()
    assert rows["delta"].abs().max() < 0.001


def test_the_card_names_every_preset():
    card = (EXPERIMENTS / "classical.md").read_text()
    assert [preset for preset in DETECTORS if f"`{preset}`" not in card] == []

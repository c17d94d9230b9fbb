"""The classical detectors on MNIST, Fashion-MNIST and CIFAR-10, beside published numbers; see ``classical.md``."""

from common.experiment import Experiment, Grid, run_experiment

BASELINES = ("classical-ocsvm", "classical-hog_ocsvm", "classical-lof", "classical-knn", "classical-pca")
"""The detectors in every paper's table."""

DETECTORS = (
    "ocsvm", "hog_ocsvm", "lof", "knn", "pca", "kde", "mahalanobis", "elliptic", "iforest", "pca_iforest", "ocsvm_ruff",
    "kde_ruff", "kde_ruff_gcn", "iforest_ruff", "ocsvm_linear", "bsvm", "mpm", "svdd",
)  # fmt: skip
"""All of :data:`common.classical.DETECTORS`, by name, as an experiment is declared before anything heavy is imported."""

LABELS = {f"classical-{preset}": preset for preset in DETECTORS}

EXPERIMENT = Experiment(
    name="classical",
    title="Classical one-class detectors",
    main=Grid(DETECTORS, ("mnist", "fashion_mnist", "cifar10")),
    compare={
        "classical-ocsvm": ("OCSVM, Perera2019 T2", "OCSVM, Perera2019 T3"),
        "classical-kde": ("KDE, Perera2019 T2", "KDE, Perera2019 T3"),
        "classical-ocsvm_ruff": ("OCSVM, Ruff2018 T1",),
        "classical-kde_ruff": ("KDE, Ruff2018 T1",),
        "classical-kde_ruff_gcn": ("KDE, Ruff2018 T1",),
        "classical-iforest_ruff": ("IF, Ruff2018 T1",),
    },
    labels=LABELS | {"auroc": "AUROC"},
)

if __name__ == "__main__":
    run_experiment(EXPERIMENT)

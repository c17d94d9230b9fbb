"""The autoencoder's tables: one class against the rest, and the contaminated MNIST recipe."""

from common.experiment import Experiment, Grid, run_experiment
from experiments.classical import BASELINES, LABELS

PRESETS = ("paper", "dcae", "denoising", "small")

EXPERIMENT = Experiment(
    name="autoencoder",
    title="Convolutional autoencoder: reconstruction error as anomaly score",
    main=Grid(
        presets=(*PRESETS, *BASELINES, "classical-ocsvm_ruff"),
        datasets=("mnist", "fashion_mnist", "cifar10"),
    ),
    also=(
        # The recipe: find 1 % of threes among the ones by a threshold, on the images that were trained on
        Grid(
            presets=("paper",),
            datasets=("mnist",),
            protocols=("in_sample,contamination=0.01,anomalous=3",),
            normal=("1",),
            metrics=("auroc", "threshold", "flagged", "precision_threshold", "recall_threshold"),
        ),
        # The same training, tested on ones and threes of the official test set, with a threshold from clean images
        Grid(
            presets=("paper",),
            datasets=("mnist",),
            protocols=("standard,contamination=0.01,anomalous=3",),
            normal=("1",),
            metrics=("auroc", "false_alarm_rate", "precision_threshold", "recall_threshold"),
        ),
    ),
    compare={
        "autoencoder-paper": ("PyImageSearch",),
        "autoencoder-dcae": ("DCAE",),
        "autoencoder-denoising": ("AE only", "DAE"),
        "deep_svdd": ("DSVDD",),
        "classical-ocsvm_ruff": ("OCSVM, Ruff2018 T1",),
    },
    labels=LABELS | {"auroc": "AUROC"} | {f"autoencoder-{preset}": preset for preset in PRESETS},
)

if __name__ == "__main__":
    run_experiment(EXPERIMENT)

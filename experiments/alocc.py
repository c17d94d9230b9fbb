"""ALOCC's tables: Fig. 8 (MNIST), Table 1 (Caltech-256, and Caltech-101 in its place) and Table 2 (UCSD Ped2)."""

from numpy.random import default_rng

from common.experiment import Experiment, Grid, run_experiment
from experiments.classical import BASELINES

PRESETS = ("paper", "official", "stable")
F1 = tuple(f"f1_normal_{share}" for share in (10, 20, 30, 40, 50))
LABELS = {
    "discriminator_reconstruction": "D(R(X))",
    "discriminator": "D(X)",
    "reconstruction": "squared error",
    "auroc": "AUROC",
    "auroc_spread": "spread",
    "f1_max_normal": "max F1",
    "eer": "EER",
} | {f1: f"F1@{f1[-2:]}" for f1 in F1}


ON_PATCHES = ("classical-pca", "classical-mahalanobis", "classical-iforest")
"""The classical detectors that score 1.5 million patches in minutes; neighbours and kernels would take hours."""


def categories(n: int, of: int, first: int = 0) -> tuple[str, ...]:
    """Three random draws of ``n`` of the categories ``first`` to ``first + of - 1``, as normal classes joined by ``+``."""
    draws = [sorted(first + default_rng(i).choice(of, n, replace=False)) for i in range(3)]
    return tuple("+".join(map(str, draw)) for draw in draws)


EXPERIMENT = Experiment(
    name="alocc",
    title="ALOCC: adversarially learned one-class classifier",
    # Fig. 8, tested on the official test set; anomalies weighted to be 10 to 50 % of it
    main=Grid((*PRESETS, *BASELINES), ("mnist",), metrics=("auroc", *F1, "auroc_spread")),
    also=(
        # Fig. 8, in another reading: tested on the normal images that were trained on
        Grid((*PRESETS, *BASELINES), ("mnist",), ("no_split",), metrics=("auroc", *F1, "auroc_spread")),
        # No table of the paper
        Grid(("stable",), ("fashion_mnist", "cifar10"), metrics=("auroc",)),
        # Table 1: 1, 3 and 5 categories, at most 150 images of each, as many images of the clutter category
        *(
            Grid(
                PRESETS,
                ("caltech256",),
                ("no_split,share=0.5,limit=150,anomalous=256",),
                categories(n, of=256),
                ("auroc", "f1_max_normal"),
            )
            for n in (1, 3, 5)
        ),
        # The same on another data set: Caltech-101, whose class 0 is no category, in place of clutter
        *(
            Grid(
                (*PRESETS, *BASELINES),
                ("caltech101",),
                ("no_split,share=0.5,limit=150,anomalous=BACKGROUND_Google",),
                categories(n, of=101, first=1),
                ("auroc", "f1_max_normal"),
            )
            for n in (1, 3, 5)
        ),
        # Table 2: trained on 600 frames, as the code; a frame is as anomalous as its most anomalous patch
        Grid((*PRESETS, *ON_PATCHES), ("ucsd_ped2",), ("standard,n_train=600",), ("0",), ("eer", "auroc")),
        # The same with a tenth of the frames, for two cores
        Grid(("stable", "classical-pca"), ("ucsd_ped2",), ("standard,n_train=60",), ("0",), ("eer", "auroc")),
    ),
    compare={f"alocc-{preset} discriminator_reconstruction": ("ALOCC D(R(X))",) for preset in PRESETS}
    | {f"alocc-{preset} discriminator": ("ALOCC D(X)",) for preset in PRESETS}
    | {"classical-lof": ("LOF",)},
    labels=LABELS,
)

if __name__ == "__main__":
    run_experiment(EXPERIMENT)

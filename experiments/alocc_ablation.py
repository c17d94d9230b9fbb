"""Ablation of ALOCC's ``stable`` preset on four hard digits: one part is removed at a time."""

from common.experiment import Experiment, Grid, run_experiment
from experiments.alocc import LABELS

REMOVED = (
    "alpha=0,beta=0",  # D only tells X from R(X~), as published
    "alpha=0",
    "latent=null",
    "discriminator_norm=batch",
    "sigma=0.31",
    "averaging=0,schedule=constant",
)

EXPERIMENT = Experiment(
    name="alocc_ablation",
    title="ALOCC: ablation of the stable preset",
    main=Grid(
        presets=("alocc-stable", *(f"alocc-stable,{part}" for part in REMOVED)),
        datasets=("mnist",),
        normal=("2", "3", "5", "8"),
        metrics=("auroc", "auroc_spread"),
    ),
    labels=LABELS,
)

if __name__ == "__main__":
    run_experiment(EXPERIMENT)

"""Every method and the classical baselines on scikit-learn's digits, all ten classes, in a minute and a half."""

from common.experiment import Experiment, Grid, run_experiment
from experiments.alocc import LABELS
from experiments.classical import BASELINES

EXPERIMENT = Experiment(
    name="quickstart",
    title="Quickstart: scikit-learn's digits, one class against the rest",
    main=Grid(presets=("autoencoder-small", "alocc-small", "ocgan-small", "ocnn-small", *BASELINES), datasets=("digits",)),
    labels=LABELS | {"relative_reconstruction": "relative error", "logit_difference": "Δlogit", "ocsvm": "OC-SVM+"},
    seeds=(0,),
)

if __name__ == "__main__":
    run_experiment(EXPERIMENT)

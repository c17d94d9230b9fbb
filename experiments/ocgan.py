"""OCGAN's tables: 1 (MNIST, COIL-100, Fashion-MNIST), 2 (MNIST), 3 (CIFAR-10) and 4 (ablation)."""

from common.experiment import Experiment, Grid, run_experiment
from experiments.classical import BASELINES

PRESETS = ("paper", "official", "small", "tuned")
AE_ONLY = "tuned,weight_latent=0,weight_visual=0"
LATENT = "tuned,weight_visual=0"
VISUAL = "tuned,mining_steps=null"
UNMINED = "tuned,mining_steps=0"  # C is trained but unused; not in the paper
MEAN = "paper,reduction=mean"  # the squared norm averaged over the pixels, as in the authors' code
MEAN_UNMINED = f"{MEAN},mining_steps=0"
DISTANCE = "classical-kde_ruff,data.normalization=gcn"  # mean distance from the training images, without a net
SCORES = ("reconstruction", "relative_reconstruction")

EXPERIMENT = Experiment(
    name="ocgan",
    title="OCGAN: one-class novelty detection with a constrained latent space",
    # Tables 2 and 3, "protocol 2"
    main=Grid((*PRESETS, *BASELINES), ("mnist", "cifar10")),
    also=(
        # Beside Table 3
        Grid((DISTANCE,), ("cifar10",)),
        # Table 4
        Grid((AE_ONLY, LATENT, VISUAL, UNMINED, "tuned"), ("mnist",)),
        Grid((MEAN, MEAN_UNMINED), ("mnist",), normal=("8",)),
        # Table 1, "protocol 1"
        Grid((*PRESETS, *BASELINES), ("mnist", "coil100", "fashion_mnist"), ("balanced",)),
        Grid(("autoencoder-denoising",), ("coil100",), ("balanced",)),
        # No table of the paper
        Grid(("tuned",), ("fashion_mnist",)),
    ),
    compare={f"ocgan-{preset} {score}": ("OCGAN",) for preset in (*PRESETS, MEAN) for score in SCORES}
    | {f"ocgan-{AE_ONLY} {score}": ("AE only",) for score in SCORES}
    | {f"ocgan-{LATENT} {score}": ("+ latent",) for score in SCORES}
    | {f"ocgan-{VISUAL} {score}": ("+ visual",) for score in SCORES}
    | {"classical-ocsvm": ("OCSVM",)},
    labels={
        f"ocgan-{AE_ONLY}": "tuned, AE only",
        f"ocgan-{LATENT}": "tuned, AE + Dl",
        f"ocgan-{VISUAL}": "tuned, AE + Dl + Dv",
        f"ocgan-{UNMINED}": "tuned, unmined C",
        DISTANCE: "distance after GCN",
        "reconstruction": "squared error",
        "relative_reconstruction": "relative error",
        "discriminator": "Dv(x)",
        "auroc": "AUROC",
    },
)

if __name__ == "__main__":
    run_experiment(EXPERIMENT)

"""OC-CNN's tables: its three data sets, cats against dogs, CIFAR-10 on pretrained features, digits and clothes, ablations."""

from common.experiment import Experiment, Grid, run_experiment
from common.presets import row_name
from experiments.classical import BASELINES

PRESETS = ("small", "keras,backbone=squeezenet1_0,head_layers=0", "tuned")
DETECTORS = ("ocsvm_linear", "bsvm", "mpm", "svdd", "knn")
METRICS = ("auroc", "accuracy_fixed", "balanced_accuracy_threshold")

# The paper's two nets without their linear layers; docs/backbones.md says how to get these files of weights
VGG16 = "backbone=vgg16,weights=vgg16_features.pth,head_layers=0"
ALEXNET = "backbone=alexnet,weights=alexnet_features.pth,head_layers=0"


def compared(features: str, size: int) -> tuple[str, ...]:
    """The presets of the compared classical methods on features of a backbone."""
    return tuple(f"classical-{detector},{features},image_size={size}" for detector in DETECTORS)


ON_SQUEEZENET = (
    *compared("backbone=squeezenet1_0,head_layers=0", 224),
    *compared("backbone=squeezenet1_0,head_layers=0,instance_norm=true", 224),
)
ON_CIFAR10 = (
    *compared("backbone=squeezenet1_0,head_layers=0", 96),
    f"tuned,{VGG16},pooling=avg",
    *compared(f"{VGG16},pooling=avg,instance_norm=true", 96),
)
ON_CLASSES = compared("backbone=squeezenet1_0,head_layers=1", 224)
ON_FC7 = compared("backbone=alexnet,head_layers=2", 224)
PAPER = ("paper", "paper,backbone=vgg16", "official", "official,backbone=vgg16", *ON_FC7)

CONVOLUTIONS = (
    *(
        f"tuned,{net}{change}"
        for net in (VGG16, ALEXNET)
        for change in (
            ",pooling=avg",
            "",
            ",pooling=avg,sigma=0.01",
            ",pooling=avg,sigma=0.1",
            ",pooling=avg,instance_norm=false",
            ",pooling=avg,classifier_widths=[]",
        )
    ),
    f"keras,{VGG16},pooling=avg",
    *compared(f"{VGG16},pooling=avg", 224),
    *compared(f"{VGG16},pooling=avg,instance_norm=true", 224),
    *compared(f"{ALEXNET},pooling=avg", 224),
    *compared(f"{ALEXNET},pooling=avg,instance_norm=true", 224),
)

ABLATION = (
    *(f"tuned{change}" for change in ("", ",sigma=0.01", ",sigma=0.1", ",instance_norm=false", ",classifier_widths=[]")),
    "tuned,head_layers=0",
    "tuned,head_layers=1",
    "tuned,head_layers=1,fine_tuned=true",
    "small",
    "small,sigma=1",
    "small,instance_norm=false",
)

SHORT = (
    (f"{VGG16},pooling=avg", "VGG16"),
    (f"{ALEXNET},pooling=avg", "AlexNet"),
    (VGG16, "VGG16 grid"),
    (ALEXNET, "AlexNet grid"),
    ("backbone=squeezenet1_0,head_layers=0", "SqueezeNet"),
    ("backbone=squeezenet1_0,head_layers=1", "SqueezeNet classes"),
    (",image_size=224", ""),
    (",image_size=96", ""),
    (",", ", "),
)
"""Parts of a row's name, and what replaces them in pictures and in the terminal."""


def short_name(preset: str) -> str:
    """A readable name of a row: the method, the net, then what differs.

    Example:
        >>> short_name(f"classical-knn,{VGG16},pooling=avg,instance_norm=true,image_size=224")
        'knn, VGG16, instance_norm=true'
    """
    text = preset.removeprefix("classical-")
    for part, name in SHORT:
        text = text.replace(part, name)
    return text


EXPERIMENT = Experiment(
    name="ocnn",
    title="OC-CNN: one-class convolutional neural network",
    main=Grid((*PRESETS, *ON_SQUEEZENET, *ON_CLASSES), ("cats_dogs",), metrics=METRICS),
    also=(
        Grid(ABLATION, ("cats_dogs",), metrics=METRICS),
        Grid(CONVOLUTIONS, ("cats_dogs",), metrics=METRICS),
        Grid(("keras",), ("cats_dogs",), metrics=METRICS),
        Grid((*PRESETS, *ON_CIFAR10, *BASELINES), ("cifar10",), metrics=("auroc",)),
        Grid(("small",), ("mnist", "fashion_mnist"), metrics=("auroc",)),
        # The paper's Tables I and II: each class is tested beside the abnormal images of the same class
        *(Grid(PAPER, ("abnormality1001",), (f"standard,anomalous={k + 6}",), (str(k),), ("auroc",)) for k in range(6)),
        Grid(PAPER, ("umdaa02",), metrics=("auroc",)),
        Grid(PAPER, ("founder200",), ("standard,anomalous=100",), tuple(map(str, range(100))), ("auroc",)),
    ),
    compare={
        f"ocnn-{preset} logit_difference": ("Keras tutorial",)
        for preset in ("keras", "keras,backbone=squeezenet1_0,head_layers=0", "tuned", row_name(f"tuned,{VGG16},pooling=avg"))
    },
    labels={
        row_name(preset if preset.startswith("classical-") else f"ocnn-{preset}"): short_name(preset)
        for preset in (*PRESETS, *CONVOLUTIONS, *ON_SQUEEZENET, *ON_CLASSES, *ABLATION, *ON_CIFAR10)
    }
    | {
        "logit_difference": "Δlogit",
        "ocsvm": "OC-SVM+",
        "auroc": "AUROC",
        "accuracy_fixed": "acc@0.5",
        "balanced_accuracy_threshold": "bacc@val",
    },
)

if __name__ == "__main__":
    run_experiment(EXPERIMENT)

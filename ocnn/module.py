"""OC-CNN: its nets, optimisers, training step and scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from sklearn.svm import OneClassSVM
from torch import Tensor
from torch.optim import Adam, Optimizer

from common.backbones import Frozen
from common.data import Sample
from common.module import OneClassModule
from ocnn.losses import cross_entropy, instance_norm, logit_difference, pseudo_negatives
from ocnn.networks import classifier, extractor


class OCCNN(OneClassModule):
    """A classifier that tells features of normal images from Gaussian noise in feature space; anomalies look like noise.

    Oza and Patel, "One-Class Convolutional Neural Network", IEEE Signal Processing Letters 2018. Presets in ``configs``:
    ``paper``, ``official``, ``keras``, ``tuned`` and smaller ones; the card says what each is.

    Args:
        shape: ``(C, H, W)`` of an image in [0, 1], or ``(F,)`` of a flat vector, which is used as feature.
        backbone: A net of torchvision; ``none`` trains a small convolutional net from scratch.
        weights: A member of the backbone's weights in torchvision, or a ``.pth`` file of the whole net or of its
            convolutions; None for random weights.
        head_layers: Number of linear layers of the backbone's classifier that are kept; nothing follows the last of them.
            Several numbers concatenate the features after each of those layers.
        fine_tuned: Whether these layers are trained; otherwise they are frozen. Convolutions are always frozen.
        pooling: ``avg`` averages the last feature map, instead of VGG's or AlexNet's grid of means; without linear layers.
        instance_norm: Whether the features of images are normalised, separately for each layer; noise never is.
        classifier_widths: Hidden layers of the classifier; the paper has one as wide as the features, its code none.
        sigma: Standard deviation of the noise, σ.
        lr: Adam's rate, for both optimisers: that of the backbone's layers and that of the classifier.
        iterations: Number of batches; training ends with the epoch that reaches it. None for the trainer's epochs.
        nu: ν of the linear one-class SVM on the features, the paper's OC-SVM+.
        score: ``logit_difference`` or ``ocsvm``.
        threshold_quantile: Quantile of the held-out samples' scores that becomes the threshold, in (0, 1).

    Attributes:
        coef: ``(D,)`` weights of the SVM, fitted after every epoch that may be tested; zero before.
        intercept: The SVM's intercept, a scalar.

    Raises:
        InputError: :func:`ocnn.networks.extractor` refuses the arguments.

    Example:
        >>> import torch
        >>> module = OCCNN(shape=(1, 8, 8), backbone="none")
        >>> {name: tuple(s.shape) for name, s in module.eval().scores(torch.rand(4, 1, 8, 8)).items()}
        {'logit_difference': (4,), 'ocsvm': (4,)}
    """

    monitor = "val/logit_difference"
    fixed_thresholds: ClassVar[Mapping[str, float]] = {"logit_difference": 0.0, "ocsvm": 0.0}
    offline_kwargs: ClassVar[Mapping[str, Any]] = {"weights": None}
    coef: Tensor
    intercept: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        backbone: str = "squeezenet1_0",
        weights: str | None = "DEFAULT",
        head_layers: int | Sequence[int] = 0,
        fine_tuned: bool = False,
        pooling: Literal["avg"] | None = None,
        instance_norm: bool = True,
        classifier_widths: Sequence[int] = (),
        sigma: float = 0.01,
        lr: float = 1e-4,
        iterations: int | None = None,
        nu: float = 0.5,
        score: Literal["logit_difference", "ocsvm"] = "logit_difference",
        threshold_quantile: float = 0.95,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.extractor: Frozen | None
        self.extractor, self.head = extractor(shape, backbone, weights, head_layers, fine_tuned, pooling)
        with torch.no_grad():
            size = self.head.eval()(self.fixed(torch.zeros(1, *shape))).shape[1]
        self.classifier = classifier(size, classifier_widths)
        self.train()
        self.register_buffer("coef", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("intercept", torch.zeros((), dtype=torch.float64))

    def named_optimizers(self) -> dict[str, Optimizer]:
        """Adam for the trained layers of the backbone, if there are any, and Adam for the classifier."""
        nets = {"backbone": self.head, "classifier": self.classifier}
        return {name: Adam(net.parameters(), self.hparams.lr) for name, net in nets.items() if len(net)}

    def training_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """Classifies the features of B images and B rows of noise, and takes one step of both optimisers on Eq. 1."""
        # 1. features of B target images, instance-normalised
        features = self.features(batch.image)

        # 2. B pseudo-negatives from N(0, σ² I), appended along the batch axis
        noise = pseudo_negatives(features, self.hparams.sigma)
        logits = self.classifier(torch.cat([features, noise]))

        # 3. extractor's trained layers and classifier: descend the cross-entropy of Eq. 1
        loss = cross_entropy(logits)
        self.descend(["backbone", "classifier"] if len(self.head) else "classifier", loss)
        return {"loss": loss}

    def after_epoch(self, batches: Iterable[Sample]) -> None:
        """OC-SVM+: fits the one-class SVM to the features of the training set, in eval mode, gathered from all processes."""
        features = torch.cat([self.features(batch.image).relu() for batch in batches])
        features = torch.as_tensor(self.all_gather(features)).flatten(0, -2)
        svm = OneClassSVM(kernel="linear", nu=self.hparams.nu).fit(features.double().cpu().numpy())
        self.coef.copy_(torch.tensor(svm.coef_[0]))
        self.intercept.copy_(torch.tensor(svm.intercept_[0]))

    def fixed(self, x: Tensor) -> Tensor:
        """Features of the frozen layers, ``(B, F)``; returns ``x`` if it holds features already or nothing is frozen."""
        return x if self.extractor is None or x.ndim == 2 else self.extractor(x)

    def features(self, x: Tensor) -> Tensor:
        """The features of images that the classifier sees, ``(B, D)``."""
        features: Tensor = self.head(self.fixed(x))
        sizes = () if self.extractor is None else self.extractor.sizes
        return instance_norm(features, sizes) if self.hparams.instance_norm else features

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Logit of noise minus logit of the target class, and the negative decision function of the SVM; each ``(B,)``."""
        features = self.features(x)
        ocsvm = -(features.relu().double() @ self.coef + self.intercept)
        return {"logit_difference": logit_difference(self.classifier(features)), "ocsvm": ocsvm}

    def embed(self, x: Tensor) -> Tensor:
        """The features that the classifier sees, ``(B, D)``."""
        return self.features(x)

    def frozen(self) -> Frozen | None:
        """The backbone's frozen layers."""
        return self.extractor

    def on_fit_start(self) -> None:
        """Sets the number of epochs from the number of iterations."""
        super().on_fit_start()
        if self.hparams.iterations:
            loop = self.trainer.fit_loop
            loop.setup_data()
            epochs = -(-self.hparams.iterations // int(self.trainer.num_training_batches))
            loop.max_epochs = epochs if loop.max_epochs in {None, -1} else min(epochs, loop.max_epochs)

"""The contract of :class:`common.module.OneClassModule` as checks that any module can be put to.

Copy a paper's folder, fill in your own, and run ``for check in CHECKS: check(factory)`` (the tests do, for every package that
defines a module). Each check raises AssertionError with what is wrong.
"""

import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.metrics import roc_auc_score
from torch import Tensor

from common.data import ResidentLoader, Sample
from common.deploy.export import ChosenScore, program
from common.module import OneClassModule

Factory = Callable[[Sequence[int]], OneClassModule]
"""A shape, ``(C, H, W)`` or ``(F,)``, to a new module; small enough to be trained in a second."""

SHAPE = (1, 16, 16)
ODD_SHAPES: tuple[tuple[int, ...], ...] = ((1, 28, 28), (1, 45, 45), (3, 33, 47), (30,))
N = 64


def toy_samples(n: int = N, shape: Sequence[int] = SHAPE, seed: int = 0, anomalous: bool = False) -> Sample:
    """Normals are smooth waves in [0, 1] that differ in phase; anomalies are noise of the same mean and range."""
    random = torch.Generator().manual_seed(seed)
    if anomalous:
        image = torch.rand(n, *shape, generator=random)
    else:
        phase = torch.rand(n, *[1] * len(shape), generator=random)
        axis = torch.linspace(0, 2, shape[-1])
        image = (0.5 + 0.4 * torch.sin(2 * torch.pi * (axis + phase))).expand(n, *shape).contiguous()
    return Sample(image, torch.full((n,), int(anomalous)), torch.full((n,), int(anomalous)), torch.arange(n))


def fit(module: OneClassModule, epochs: int, folder: Path, resume: bool = False) -> Trainer:
    """Trains on the toy normals, validates on others, and keeps ``folder/last.ckpt``."""
    callback = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = _trainer(epochs, folder, [callback])
    checkpoint = str(folder / "last.ckpt") if resume else None
    with _seeded():
        trainer.fit(module, _loader(toy_samples()), _loader(toy_samples(seed=1)), ckpt_path=checkpoint, weights_only=True)
    return trainer


def trained(factory: Factory, epochs: int = 2) -> OneClassModule:
    """A module after a few epochs on the toy normals, in eval mode."""
    with tempfile.TemporaryDirectory() as folder:
        module = _new(factory)
        fit(module, epochs, Path(folder))
    return module.eval()


def optimizer_steps(module: OneClassModule, batches: int = 4) -> list[int]:
    """The order in which ``training_step`` uses its optimisers over some batches, as positions of their declaration."""
    steps: list[int] = []
    _train(module, batches, steps.append)
    return steps


def check_optimizers_move_their_own(factory: Factory) -> None:
    """Every trainable parameter belongs to one optimiser, is moved by its steps, and by nothing else."""
    module = _new(factory)
    names = {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}
    before: dict[str, Tensor] = {}
    moved: set[str] = set()
    own: list[set[str]] = []

    def snapshot() -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for parameter, name in names.items()}

    def changes() -> set[str]:
        return {name for parameter, name in names.items() if not torch.equal(parameter, before[name])}

    def before_step(position: int) -> None:
        assert not changes(), f"these parameters are moved by something else than an optimiser: {sorted(changes())}"

    def after_step(position: int) -> None:
        changed = changes()
        others = sorted(changed - own[position])
        assert not others, f"a step of optimiser {position} moved parameters that are not its own: {others}"
        moved.update(changed)
        before.update(snapshot())

    def begin(optimizers: list[torch.optim.Optimizer]) -> None:
        own.extend({names[p] for group in o.param_groups for p in group["params"] if p in names} for o in optimizers)
        for position, one in enumerate(own):
            for later, other in enumerate(own[position + 1 :], position + 1):
                assert not one & other, f"optimisers {position} and {later} share parameters: {sorted(one & other)}"
        orphans = sorted(set(names.values()) - set().union(*own))
        assert not orphans, f"no optimiser has these trainable parameters: {orphans}"
        before.update(snapshot())

    _train(module, 4, after_step, begin, before_step)
    before_step(-1)
    still = sorted(set(names.values()) - moved)
    assert not still, f"these parameters never move, is their loss back-propagated? {still}"


def check_optimizers_in_declared_order(factory: Factory) -> None:
    """Each batch uses every optimiser, first uses come in the order of declaration, and all batches are alike."""
    with_batches = [optimizer_steps(_new(factory), batches) for batches in (1, 3)]
    first = list(dict.fromkeys(with_batches[0]))
    assert first, "training_step takes no optimiser step"
    assert first == sorted(first), f"optimisers are first used in the order {first}, not as they are declared"
    assert with_batches[1] == 3 * with_batches[0], f"steps differ from batch to batch: {with_batches[1]}"


def check_scores(factory: Factory) -> None:
    """Scores are ``(B,)``, finite, spread out, named by the hyper-parameter, and ``forward`` is the named one."""
    module = trained(factory)
    x = torch.cat([toy_samples(16, seed=2).image, toy_samples(16, seed=2, anomalous=True).image])
    scores = _scores(module, x)
    assert module.hparams["score"] in scores, f"score '{module.hparams['score']}' is not among {sorted(scores)}"
    for name, values in scores.items():
        assert values.shape == (32,), f"score '{name}' has the shape {values.shape}, not (32,)"
        assert np.isfinite(values).all(), f"score '{name}' is not finite"
        spread = values.std() / max(np.abs(values).mean(), 1e-12)
        distinct = len(np.unique(values))
        collapsed = spread <= 1e-4 or distinct <= 16
        assert not collapsed, f"score '{name}' has collapsed: {distinct} values, spread {spread:.1e}"
    with torch.no_grad():
        assert np.array_equal(module(x).double().numpy(), scores[module.hparams["score"]]), "forward is not the chosen score"


def check_orientation(factory: Factory) -> None:
    """After training on waves, noise scores higher: the AUROC of the chosen score is above 0.75."""
    module = trained(factory, epochs=20)
    normal, noise = (_scores(module, toy_samples(seed=3, anomalous=kind).image) for kind in (False, True))
    name = module.hparams["score"]
    auroc = roc_auc_score([0] * N + [1] * N, np.concatenate([normal[name], noise[name]]))
    assert auroc > 0.75, f"higher must mean more anomalous: score '{name}' has an AUROC of {auroc:.3f} on noise against waves"


def check_batch_independence(factory: Factory) -> None:
    """In eval mode a score depends on its own image alone, and scoring changes nothing in the module."""
    module = trained(factory)
    x = torch.cat([toy_samples(8, seed=4).image, toy_samples(8, seed=4, anomalous=True).image])
    state = {name: value.clone() for name, value in module.state_dict().items()}
    together, again, order = _scores(module, x), _scores(module, x), torch.randperm(16)
    shuffled = _scores(module, x[order])
    alone = [_scores(module, x[i : i + 1]) for i in range(16)]
    for name, values in together.items():
        assert np.array_equal(values, again[name]), f"score '{name}' differs when it is computed twice"
        one_by_one = np.array([one[name][0] for one in alone])
        for others, expected in ((shuffled[name], values[order]), (one_by_one, values)):
            same = np.allclose(others, expected, rtol=1e-3, atol=1e-5 * np.abs(values).max())
            assert same, f"score '{name}' depends on the other images of the batch"
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]) or value.isnan().all(), f"scoring changed '{name}'"


def check_same_seed_same_scores(factory: Factory) -> None:
    """Two trainings from one seed end in the same scores."""
    x = toy_samples(seed=5).image
    first, second = (_scores(trained(factory), x) for _ in range(2))
    for name, values in first.items():
        assert np.array_equal(values, second[name]), f"the same seed gives another '{name}'"


def check_checkpoint(factory: Factory) -> None:
    """A checkpoint loads with ``weights_only=True``, and brings the same scores and the threshold."""
    x = toy_samples(seed=6).image
    with tempfile.TemporaryDirectory() as name:
        module = _new(factory)
        fit(module, 2, Path(name))
        path = Path(name, "last.ckpt")
        loaded = type(module).load_from_checkpoint(path, weights_only=True, map_location="cpu").eval()
    assert module.threshold.isfinite(), "the threshold is not set after a validation"
    assert loaded.threshold == module.threshold, "the threshold does not travel with the checkpoint"
    first, second = _scores(module.eval(), x), _scores(loaded, x)
    for score, values in first.items():
        same = np.allclose(values, second[score], rtol=1e-4, atol=1e-5 * np.abs(values).max())
        assert same, f"score '{score}' changed on the way through a checkpoint"


def check_export(factory: Factory) -> None:
    """``forward`` is traced by ``torch.export`` to a program that scores alike, whatever the batch size."""
    net = ChosenScore(trained(factory)).eval()
    x = toy_samples(9, seed=7).image
    try:
        exported = program(net, x[:2]).module()
    except Exception as error:
        raise AssertionError(f"forward cannot be exported: {error}") from error
    with torch.no_grad():
        for n in (1, 9):
            first, second = net(x[:n]), exported(x[:n])
            same = torch.allclose(first, second, rtol=1e-4, atol=1e-4 * float(first.abs().max()))
            assert same, f"an exported program scores a batch of {n} differently"


def check_resume(factory: Factory) -> None:
    """Two epochs and, from the checkpoint, two more are four epochs, bit for bit."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        whole, begun, resumed = _new(factory), _new(factory), _new(factory)
        fit(whole, 4, Path(one))
        fit(begun, 2, Path(other))
        torch.rand(1)
        fit(resumed, 4, Path(other), resume=True)
    resumed_state = resumed.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed_state[name]), f"'{name}' differs between a resumed and an uninterrupted run"


def check_shapes(factory: Factory) -> None:
    """Images of odd sizes and channels, and flat vectors, can be trained on and scored."""
    for shape in ODD_SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            module = _new(factory, shape)
            sample = toy_samples(16, shape)
            with _seeded():
                _trainer(1, Path(folder), []).fit(module, _loader(sample), _loader(sample))
        for name, values in _scores(module.eval(), sample.image).items():
            assert values.shape == (16,), f"score '{name}' has the shape {values.shape} for inputs {shape}"
            assert np.isfinite(values).all(), f"score '{name}' is not finite for inputs {shape}"


def check_docstrings(factory: Factory) -> None:
    """The class and its three overridden methods say what they do."""
    cls = type(_new(factory))
    for name in ("", "scores", "training_step", "configure_optimizers"):
        member = getattr(cls, name) if name else cls
        assert inspect.getdoc(member), f"{cls.__name__}.{name} has no docstring"


CHECKS: tuple[Callable[[Factory], None], ...] = (
    check_optimizers_move_their_own,
    check_optimizers_in_declared_order,
    check_scores,
    check_orientation,
    check_batch_independence,
    check_same_seed_same_scores,
    check_checkpoint,
    check_export,
    check_resume,
    check_shapes,
    check_docstrings,
)


def _new(factory: Factory, shape: Sequence[int] = SHAPE) -> OneClassModule:
    with _seeded():
        return factory(shape)


@contextmanager
def _seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    yield
    torch.set_num_threads(threads)


def _trainer(epochs: int, folder: Path, callbacks: list[ModelCheckpoint], **options: int) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,  # type: ignore[arg-type]
    )


def _loader(samples: Sample) -> ResidentLoader:
    return ResidentLoader(samples, batch_size=16, shuffle=True)


def _train(
    module: OneClassModule,
    batches: int,
    after_step: Callable[[int], None],
    begin: Callable[[list[torch.optim.Optimizer]], None] = lambda optimizers: None,
    before_step: Callable[[int], None] = lambda position: None,
) -> None:
    """Trains for some batches; the hooks are told the position of the optimiser that steps."""

    def configure() -> object:
        configured = configure_optimizers()
        optimizers = optimizers_of(configured)
        begin(optimizers)
        for position, optimizer in enumerate(optimizers):
            optimizer.register_step_pre_hook(lambda *_, position=position: before_step(position))
            optimizer.register_step_post_hook(lambda *_, position=position: after_step(position))
        return configured

    configure_optimizers = module.configure_optimizers
    module.configure_optimizers = configure  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, _seeded():
        trainer = _trainer(1, Path(folder), [], limit_train_batches=batches, limit_val_batches=0)
        trainer.fit(module, _loader(toy_samples(shape=module.hparams["shape"])))


def optimizers_of(configured: object) -> list[torch.optim.Optimizer]:
    """From whatever ``configure_optimizers`` may return."""
    if isinstance(configured, torch.optim.Optimizer):
        return [configured]
    if isinstance(configured, dict):
        return [configured["optimizer"]]
    if isinstance(configured, tuple | list):
        found = [optimizers_of(item) for item in configured if not isinstance(item, torch.optim.lr_scheduler.LRScheduler)]
        return [optimizer for group in found for optimizer in group]
    return []


def _scores(module: OneClassModule, x: Tensor) -> dict[str, NDArray[np.float64]]:
    with torch.no_grad():
        return {name: values.double().numpy() for name, values in module.scores(x).items()}

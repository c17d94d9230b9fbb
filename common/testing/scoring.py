"""Checks of the contract that look at a module's scores."""

import inspect
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from common.deploy.export import ChosenScore, program
from common.errors import InputError
from common.testing.toys import Factory, N, new, scores_of, toy_loader, toy_samples, trained, trainer

ODD_SHAPES: tuple[tuple[int, ...], ...] = ((1, 28, 28), (1, 45, 45), (3, 33, 47), (30,))


def check_docstrings(factory: Factory) -> None:
    """The class and its three overridden methods say what they do."""
    cls = type(new(factory))
    for name in ("", "scores", "training_step", "named_optimizers"):
        member = getattr(cls, name) if name else cls
        assert inspect.getdoc(member), f"{cls.__name__}.{name} has no docstring"


def check_shapes(factory: Factory) -> None:
    """Images of odd sizes and channels, and flat vectors, can be trained on and scored, unless an InputError refuses them."""
    for shape in ODD_SHAPES:
        try:
            module = new(factory, shape)
        except InputError:
            continue
        sample = toy_samples(16, shape)
        with tempfile.TemporaryDirectory() as folder:
            trainer(module.phases[-1] + 1, Path(folder)).fit(module, toy_loader(sample), toy_loader(sample))
        for name, values in scores_of(module.eval(), sample.image).items():
            assert values.shape == (16,), f"score '{name}' has the shape {values.shape} for inputs {shape}"
            assert np.isfinite(values).all(), f"score '{name}' is not finite for inputs {shape}"


def check_scores(factory: Factory) -> None:
    """Scores are ``(B,)``, finite, spread out, named by the hyper-parameter, and ``forward`` is the named one."""
    module = trained(factory)
    x = torch.cat([toy_samples(16, seed=2).image, toy_samples(16, seed=2, anomalous=True).image])
    scores = scores_of(module, x)
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
    normal, noise = (scores_of(module, toy_samples(seed=3, anomalous=kind).image) for kind in (False, True))
    name = module.hparams["score"]
    auroc = roc_auc_score([0] * N + [1] * N, np.concatenate([normal[name], noise[name]]))
    assert auroc > 0.75, f"higher must mean more anomalous: score '{name}' has an AUROC of {auroc:.3f} on noise against waves"


def check_batch_independence(factory: Factory) -> None:
    """In eval mode a score depends on its own image alone, and scoring changes nothing in the module."""
    module = trained(factory)
    x = torch.cat([toy_samples(8, seed=4).image, toy_samples(8, seed=4, anomalous=True).image])
    state = {name: value.clone() for name, value in module.state_dict().items()}
    together, again, order = scores_of(module, x), scores_of(module, x), torch.randperm(16)
    shuffled = scores_of(module, x[order])
    alone = [scores_of(module, x[i : i + 1]) for i in range(16)]
    for name, values in together.items():
        assert np.array_equal(values, again[name]), f"score '{name}' differs when it is computed twice"
        one_by_one = np.array([one[name][0] for one in alone])
        for others, expected in ((shuffled[name], values[order]), (one_by_one, values)):
            same = np.allclose(others, expected, rtol=1e-3, atol=1e-5 * np.abs(values).max())
            assert same, f"score '{name}' depends on the other images of the batch"
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]) or value.isnan().all(), f"scoring changed '{name}'"


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

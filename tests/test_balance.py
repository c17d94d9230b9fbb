"""How strongly each term of OCGAN's objective pulls, told from checkpoints."""

import pytest
import torch

from experiments.ocgan_balance import balance, gradient_norm
from ocgan import OCGAN


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return OCGAN(shape=(1, 8, 8), width=8, latent=4, visual_width=4, classifier_width=4).train()


def test_a_gradient_has_the_norm_of_all_its_entries():
    net = torch.nn.Linear(2, 1, bias=False)
    x = torch.tensor([3.0, 4.0])
    assert gradient_norm(2 * net(x).sum(), net) == pytest.approx(10)
    assert gradient_norm(torch.zeros((), requires_grad=True) * 1, net) == 0


def test_pulls_grow_with_their_weights_and_with_no_others(module):
    image = torch.rand(8, 1, 8, 8)
    torch.manual_seed(1)
    before = balance(module, image)
    module.hparams["weight_latent"] = 3.0
    torch.manual_seed(1)
    after = balance(module, image)
    module.hparams["weight_latent"] = 1.0
    ratios = {name: after[name] / before[name] for name in before if before[name]}
    assert ratios.pop("En D_l") == pytest.approx(3, rel=1e-3)
    assert all(ratio == pytest.approx(1, rel=1e-3) for ratio in ratios.values())
    assert all(0 <= before[name] <= 1 for name in before if name.startswith("acc"))

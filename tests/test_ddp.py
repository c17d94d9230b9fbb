"""One training in two processes, by Lightning's DDP, beside the same in one."""

import socket

import ddp
import pandas as pd
import pytest
import torch

from common.data import loaders
from common.data.loaders import EpochSampler


@pytest.mark.parametrize("n", [96, 97, 5])
def test_the_processes_share_the_order_of_one(n, monkeypatch):
    """The k-th batches of two, 8 large, are the k-th batch of one, 16 large."""
    whole = EpochSampler(n, 16, shuffle=True).order()[: n - n % 2]
    tested = EpochSampler(n, 16, shuffle=False)
    shares, parts = [], []
    for rank in range(2):
        monkeypatch.setattr(loaders, "_rank_and_processes", lambda rank=rank: (rank, 2))
        sampler = EpochSampler(n, 8, shuffle=True)
        shares.append(list(sampler))
        parts.append(list(tested))
        assert len(sampler) == len(shares[-1]) == n // 2
        assert len(tested) == len(parts[-1]) == -(-n // 2)
    for k, batch in enumerate(whole.split(16)):
        together = [position for share in shares for position in share[8 * k : 8 * (k + 1)]]
        assert sorted(together) == sorted(batch.tolist())
    assert set(parts[0]) | set(parts[1]) == set(range(n))


def test_no_process_gets_a_single_sample(monkeypatch):
    monkeypatch.setattr(loaders, "_rank_and_processes", lambda: (1, 2))
    assert len(EpochSampler(34, 8, shuffle=True)) == 16


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_train_and_test_like_one(tmp_path, monkeypatch, fork):
    """Up to float32: the mean of two halves' gradients is rounded otherwise than the mean of all, about 1e-7 of it, which
    Adam's 32 steps of 5e-3 carry to 3e-7 of a parameter here, on another machine to 1e-5 at most."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    ddp.train(1, str(tmp_path))
    predicted = pd.read_csv(tmp_path / "predictions.csv")
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    processes = []
    for rank in "01":
        for name, value in {**both, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)  # as Lightning sets them for the processes that it starts
        processes.append(fork(ddp.train, 2, str(tmp_path)))
    assert [process.wait() for process in processes] == [0, 0], [process.output for process in processes]
    assert not any("strides" in process.output for process in processes)
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for name in ("index", "scores", "calibration", "order"):
        assert torch.equal(first[name], second[name]), "the processes disagree"
    assert torch.equal(first["order"], one["order"]), "the first pass sees the whole set, in order, in every process"
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name])
        torch.testing.assert_close(value, one["state"][name], rtol=0, atol=1e-5)
    assert first["metrics"] == second["metrics"]
    assert torch.equal(first["index"], one["index"]), "the whole test set, each sample once, in its order"
    torch.testing.assert_close(first["scores"], one["scores"], rtol=1e-4, atol=0)
    torch.testing.assert_close(first["calibration"], one["calibration"], rtol=1e-4, atol=0)
    for name in ("auroc", "aupr_anomaly", "n_normal", "n_anomalous"):
        assert first["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-4)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "predictions.csv"), predicted, rtol=1e-4)

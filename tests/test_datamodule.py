"""Batches: what a module may rely on, whether the data is resident or streamed."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from common.data import OneClassDataModule, Sample, image_data
from common.data.datamodule import default_root
from common.data.loaders import EpochSampler, ResidentLoader
from common.errors import InputError

STAGES = ["train", "val", "test"]


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes, 14 training and 5 test images each, RGB, 10 high and 12 wide."""
    root, random = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for (part, n), name in itertools.product([("train", 14), ("test", 5)], ["ant", "bee", "cat"]):
        (root / part / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(root / part / name / f"{i:02}.png")
    return str(root)


def digits(**options):
    data = OneClassDataModule("digits", **{"normal": 3, "batch_size": 32, "eval_batch_size": 100, **options})
    data.setup()
    return data


def bees(root, **options):
    data = OneClassDataModule("folder", root=root, **{"normal": "bee", "batch_size": 5, "eval_batch_size": 4, **options})
    data.setup()
    return data


def loader(data, stage):
    return getattr(data, f"{stage}_dataloader")()


def epoch(loader, number=0):
    loader.sampler.set_epoch(number)
    return list(loader)


def order(loader, number=0):
    return [i for batch in epoch(loader, number) for i in batch.index.tolist()]


MODES = {"resident": {}, "streamed": {"memory_gib": 0, "workers": 0}}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@modes
@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_is_a_sample(root, mode, stage):
    data = bees(root, **mode)
    batches = epoch(loader(data, stage))
    assert len(batches) == len(loader(data, stage))
    assert sum(len(batch.index) for batch in batches) == len(getattr(data.splits, stage))
    for batch in batches:
        n = len(batch.index)
        assert isinstance(batch, Sample)
        assert 1 <= n <= 5
        assert batch.image.shape == (n, 3, 10, 12)
        assert batch.image.dtype == torch.float32
        for values in batch[1:]:
            assert values.shape == (n,)
            assert values.dtype == torch.int64
        assert torch.equal(batch.target, torch.from_numpy(data.data.targets)[batch.index])
        assert torch.equal(batch.label, (batch.target != 1).long())
        assert torch.equal(batch.image, data.data.images[batch.index] / 255)


@modes
def test_loaders_are_resident_unless_too_large(root, mode):
    expected = DataLoader if "memory_gib" in mode else ResidentLoader
    assert all(isinstance(loader(bees(root, **mode), stage), expected) for stage in STAGES)


def test_the_limit_counts_floats():
    n_bytes = 4 * len(digits().splits.train) * 64
    for margin, expected in [(-1, DataLoader), (1, ResidentLoader)]:
        data = digits(memory_gib=(n_bytes + margin) / 2**30, workers=0)
        assert isinstance(data.train_dataloader(), expected)


@pytest.mark.parametrize("protocol", ["standard", "balanced", "proportion"])
def test_training_and_validation_hold_normal_samples_only(protocol):
    data = digits(protocol=protocol, normal=[3, 5])
    for stage in ("train", "val"):
        batches = epoch(loader(data, stage))
        assert {k for batch in batches for k in batch.target.tolist()} == {3, 5}
        assert not any(batch.label.any() for batch in batches)
    labels = torch.cat([batch.label for batch in epoch(data.test_dataloader())])
    assert set(labels.tolist()) == {0, 1}


def test_contamination_is_in_training_batches_under_its_label():
    data = digits(contamination=0.1, anomalous=[8])
    batches = epoch(data.train_dataloader())
    anomalies = [k for batch in batches for k in batch.target[batch.label == 1].tolist()]
    official = data.data.targets[~data.data.official_test]
    assert anomalies == [8] * int(0.1 * (official == 3).sum())


@modes
def test_every_sample_comes_once_in_an_epoch(root, mode):
    data = bees(root, **mode)
    for number in range(3):
        assert sorted(order(data.train_dataloader(), number)) == data.splits.train.tolist()


@modes
def test_the_order_depends_on_seed_and_epoch_alone(root, monkeypatch, mode):
    train = bees(root, **mode).train_dataloader()
    first, second = order(train, 0), order(train, 1)
    assert first != second
    torch.manual_seed(9)
    again = bees(root, **mode).train_dataloader()
    assert (order(again, 1), order(again, 0)) == (second, first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert order(train, 0) != first


@modes
@pytest.mark.parametrize("stage", ["val", "test"])
def test_evaluation_keeps_the_order_of_the_data_set(root, mode, stage):
    data = bees(root, val_fraction=0.4, **mode)
    for number in range(2):
        assert order(loader(data, stage), number) == getattr(data.splits, stage).tolist()


@modes
def test_a_lone_last_sample_is_left_out(root, mode):
    train = bees(root, batch_size=4, **mode).train_dataloader()
    epochs = [epoch(train, number) for number in range(40)]
    assert len(train) == 3
    assert all([len(batch.index) for batch in batches] == [4, 4, 4] for batches in epochs)
    assert len({i for batches in epochs for batch in batches for i in batch.index.tolist()}) == 13


@pytest.mark.parametrize(
    ("n", "batch_size", "shuffle", "used"),
    [(9, 4, True, 8), (9, 4, False, 9), (10, 4, True, 10), (9, 1, True, 9), (1, 4, True, 1), (4, 4, True, 4)],
)
def test_which_samples_an_epoch_uses(n, batch_size, shuffle, used):
    sampler = EpochSampler(n, batch_size, shuffle)
    assert len(sampler) == len(list(sampler)) == len(set(sampler)) == used


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"normalization": "gcn", "class_mean": True, "image_size": [7, 9], "channels": 1}])
def test_streamed_and_resident_loaders_yield_the_same(root, workers, options):
    resident, streamed = bees(root, **options), bees(root, memory_gib=0, workers=workers, **options)
    for stage, number in [("train", 0), ("train", 1), ("val", 0), ("test", 0)]:
        pairs = zip(epoch(loader(resident, stage), number), epoch(loader(streamed, stage), number), strict=True)
        for ours, theirs in pairs:
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, other)


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
def test_a_stream_goes_on_where_shared_memory_is_full(root):
    """A limit on the size of files is one on that of shared memory."""
    import resource

    options = {"image_size": 96, "batch_size": 14, "val_fraction": 0}
    resident, streamed = bees(root, **options), bees(root, memory_gib=0, workers=1, **options)
    loader = streamed.train_dataloader()
    loader.timeout = 60
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        (batch,) = epoch(loader)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (expected,) = epoch(resident.train_dataloader())
    assert batch.image.nbytes > 2**16
    assert not batch.image.is_shared()
    for ours, theirs in zip(batch, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


class Recorder(LightningModule):
    """Trains nothing and keeps the order in which samples came."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.seen = {}

    def configure_optimizers(self):
        return None

    def training_step(self, batch):
        assert isinstance(batch, Sample)
        self.seen.setdefault(self.current_epoch, []).extend(batch.index.tolist())


@modes
@pytest.mark.filterwarnings("ignore")
def test_lightning_tells_the_loader_its_epoch(root, mode):
    data, module = bees(root, **mode), Recorder()
    trainer(max_epochs=2).fit(module, datamodule=data)
    assert module.seen == {number: order(data.train_dataloader(), number) for number in range(2)}


@modes
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_goes_on_in_the_order_of_its_epoch(root, mode, workers, tmp_path):
    data, module = bees(root, **mode | {"workers": workers}), Recorder()
    first = trainer(max_epochs=1)
    first.fit(module, datamodule=data)
    first.save_checkpoint(tmp_path / "one.ckpt")
    data, module = bees(root, **mode | {"workers": workers}), Recorder()
    trainer(max_epochs=3).fit(module, datamodule=data, ckpt_path=tmp_path / "one.ckpt")
    assert module.seen == {number: order(data.train_dataloader(), number) for number in (1, 2)}


class Flat(torch.nn.Module):
    """Frozen layers that give every image's own pixels."""

    def forward(self, images):
        return images.flatten(1)

    def key(self):
        return "flat"


def trainer(max_epochs=1):
    return Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_frozen_layers_are_handed_over_and_not_asked_for(tmp_path):
    module = Recorder()
    module.frozen = Flat
    data = digits(root=str(tmp_path))
    trainer().fit(module, data)
    assert next(iter(data.train_dataloader())).image.shape[1:] == (1, 8, 8)
    images = data.images(data.splits.test)
    data.extractor = Flat()
    trainer().fit(module, data)
    torch.testing.assert_close(torch.cat([batch.image for batch in data.test_dataloader()]), images.flatten(1))
    torch.testing.assert_close(data.inputs(data.splits.test), images.flatten(1))
    torch.testing.assert_close(data.images(data.splits.test), images)
    data.extractor = None
    data.setup()
    assert next(iter(data.train_dataloader())).image.shape[1:] == (1, 8, 8)


@modes
@pytest.mark.parametrize("normalization", ["unit", "symmetric", "gcn"])
def test_training_images_are_channels_last_in_memory(root, mode, normalization):
    batch = next(iter(bees(root, normalization=normalization, **mode).train_dataloader()))
    assert batch.image.stride() == (3 * 10 * 12, 1, 3 * 12, 3)


@modes
def test_images_are_what_batches_hold(root, mode):
    data = bees(root, normalization="gcn", class_mean=True, **mode)
    for batch in epoch(data.train_dataloader()):
        torch.testing.assert_close(data.images(batch.index.tolist()), batch.image)
        torch.testing.assert_close(data.images(batch.index.numpy()), batch.image)


@modes
def test_preprocessing_is_fitted_on_training_images(mode):
    data = digits(normalization="gcn", class_mean=True, **mode)
    train = torch.cat([batch.image for batch in epoch(data.train_dataloader())])
    fitted = data.preprocessing
    assert len(train) == len(data.splits.train)
    torch.testing.assert_close(train.mean(0), torch.zeros(1, 8, 8), atol=1e-5, rtol=0)
    lowest, highest = (train + fitted.mean).min(), (train + fitted.mean).max()
    torch.testing.assert_close(torch.stack([lowest, highest]), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("normal", "numbers"), [(3, [3]), ("3", [3]), ([3], [3]), ([5, "3"], [5, 3]), (["0", 9], [0, 9])], ids=str
)
def test_normal_digits(normal, numbers):
    data = digits(normal=normal)
    assert data.normal == numbers
    assert set(data.data.targets[data.splits.train].tolist()) == set(numbers)


@pytest.mark.parametrize(
    ("normal", "numbers"), [("bee", [1]), (1, [1]), ("1", [1]), (["cat", 0], [2, 0]), (["ant", "cat"], [0, 2])], ids=str
)
def test_normal_classes_of_a_folder(root, normal, numbers):
    data = bees(root, normal=normal)
    assert data.normal == numbers
    test = torch.cat([batch.label for batch in epoch(data.test_dataloader())])
    assert (test == 0).sum() == 5 * len(numbers)


@pytest.mark.parametrize(("normal", "named"), [(3, "3"), (-1, "-1"), ("dog", "dog"), (["bee", "²"], "²"), ([0, ""], "")])
def test_no_such_normal_class(root, normal, named):
    with pytest.raises(InputError, match=f"'folder' has no class '{named}': choose from ant, bee, cat"):
        bees(root, normal=normal)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "leave-one-out"}, "unknown protocol 'leave-one-out': choose from standard"),
        ({"share": 0.3}, "protocol 'standard' has no option 'share'; its options: val_fraction, contamination, anomalous"),
        ({"protocol": "balanced", "share": 0.3}, "protocol 'balanced' has no option 'share'"),
        ({"protocol": "proportion", "limit": 3}, "protocol 'proportion' has no option 'limit'; its options: share"),
        ({"image_size": 0}, "image_size must be one positive number or .*, not 0"),
        ({"image_size": -3}, "image_size"),
        ({"image_size": []}, "image_size"),
        ({"image_size": [28]}, r"image_size .* not \[28\]"),
        ({"image_size": [28, 0]}, "image_size"),
        ({"image_size": [3, 28, 28]}, "image_size"),
        ({"protocol": "standard,share=0.3"}, "protocol 'standard' has no option 'share'"),
        ({"protocol": "standard,contamination=much"}, "'much' is not a valid contamination"),
        ({"protocol": "no_such_module:f"}, "'no_such_module:f' cannot be imported"),
        ({"batch_size": 0}, "batch_size"),
        ({"eval_batch_size": -1}, "eval_batch_size"),
        ({"workers": -1}, "workers at least 0"),
    ],
    ids=str,
)
def test_arguments_that_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        OneClassDataModule("digits", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "imagenet"}, "unknown data set 'imagenet'"),
        ({"dataset": "folder", "root": "no such folder"}, "no folder no such folder"),
        ({"protocol": "proportion", "share": 1.5}, "share"),
        ({"contamination": 1.0}, "contamination"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"anomalous": [0, 3]}, "both normal and anomalous"),
    ],
    ids=str,
)
def test_arguments_that_are_refused_at_setup(options, message):
    data = OneClassDataModule(**{"dataset": "digits", "normal": 3, **options})
    with pytest.raises(InputError, match=message):
        data.setup()


def test_a_broken_image_is_named_by_a_worker(tmp_path):
    for name in ("ant", "bee"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (4, 4), 100 * i).save(tmp_path / part / name / f"{i}.png")
    broken = tmp_path / "train" / "bee" / "1.png"
    data = bees(str(tmp_path), memory_gib=0, workers=1, val_fraction=0)
    broken.write_text("no image")
    with pytest.raises(InputError, match=str(broken)):
        epoch(data.train_dataloader())


@pytest.mark.parametrize("image_size", [None, 16, [6, 9], [8, 8]])
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_shape_is_that_of_a_batch(root, dataset, image_size, channels):
    options = {"image_size": image_size, "channels": channels, "val_fraction": 0}
    data = digits(**options) if dataset == "digits" else bees(root, **options)
    own_channels, *own_size = (1, 8, 8) if dataset == "digits" else (3, 10, 12)
    size = own_size if image_size is None else [image_size] * 2 if isinstance(image_size, int) else image_size
    assert data.shape == (channels or own_channels, *size)
    for stage in ("train", "test"):
        assert next(iter(loader(data, stage))).image.shape[1:] == data.shape


@modes
def test_nothing_held_out(root, mode):
    data = bees(root, val_fraction=0, **mode)
    assert data.val_dataloader() == []
    assert len(data.splits.train) == 14


def test_prediction_is_on_the_test_set():
    data = digits()
    assert data.predict_dataloader() is data.test_dataloader()


def test_batch_sizes():
    data = digits(batch_size=32, eval_batch_size=100)
    assert {len(batch.index) for batch in epoch(data.train_dataloader())[:-1]} == {32}
    assert [len(batch.index) for batch in data.test_dataloader()] == [100] * 5 + [40]
    assert len(data.train_dataloader()) == math.ceil(len(data.splits.train) / 32)


def test_setting_up_again_changes_nothing(monkeypatch):
    data = digits(normalization="gcn")
    before = [loader(data, stage) for stage in STAGES]
    preprocessing = data.preprocessing
    monkeypatch.setattr("common.data.transforms.Preprocessing.fit", lambda *_: pytest.fail("fitted again"))
    for stage in (None, "fit", "test"):
        data.setup(stage)
    assert all(loader(data, stage) is kept for stage, kept in zip(STAGES, before, strict=True))
    assert data.preprocessing is preprocessing


def of_range(high, **options):
    """Images whose values go from 0 to ``high``, and end in one with all values up to 1000."""
    images = np.linspace(0, high, 40 * 64).reshape(40, 8, 8).astype(np.float32)
    images[-1] = np.linspace(0, 1000, 64).reshape(8, 8)
    data = image_data(images, np.zeros(40, int), classes=["good"])
    module = OneClassDataModule.of(data, protocol="no_split", normal="good", **options)
    module.setup()
    return module


@pytest.mark.parametrize("options", [{}, {"normalization": "gcn", "class_mean": True}], ids=str)
def test_a_checkpoints_module_sees_other_data_in_the_scaling_of_its_training(options):
    trained, other = of_range(1000.0, **options), of_range(60_000.0, **options)
    last = trained.images([39])
    assert not torch.allclose(other.images([39]), last)
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.images([39]), last)
    tested = next(batch for batch in other.test_dataloader() if 39 in batch.index)
    assert torch.equal(tested.image[tested.index == 39], last), "the loaders too"
    loaders = [loader(trained, stage) for stage in STAGES]
    trained.load_state_dict(trained.state_dict())
    assert all(loader(trained, stage) is kept for stage, kept in zip(STAGES, loaders, strict=True)), "nothing to build again"


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ({"image_size": 12}, {"image_size": 16}, r"have image_size \[12, 12\], not \[16, 16\]: give --data.image_size"),
        ({"image_size": 12, "fit": "pad"}, {"image_size": 12}, "have fit pad, not crop: give --data.fit 'pad'"),
        (
            {"image_size": 12, "channels": 1},
            {"image_size": 12, "channels": 3},
            "have channels 1, not 3: give --data.channels '1'",
        ),
    ],
)
def test_a_checkpoints_images_came_to_their_size_in_the_same_way(root, then, now, says):
    trained, other = bees(root, **then), bees(root, **now)
    with pytest.raises(InputError, match=says):
        other.load_state_dict(trained.state_dict())


def test_a_protocols_options_may_stand_in_its_text():
    text, arguments = digits(protocol="proportion,share=0.2,anomalous=8+5"), {"share": 0.2, "anomalous": [8, "5"]}
    as_arguments = digits(protocol="proportion", **arguments)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(text.splits, as_arguments.splits, strict=True))
    both = digits(protocol="standard,val_fraction=0.5", val_fraction=0.1)
    assert len(both.splits.val) == pytest.approx(len(both.splits.train), abs=1)


def test_the_split_seed_is_not_the_training_seed(monkeypatch):
    first = digits().splits.train.tolist()
    assert digits(split_seed=1).splits.train.tolist() != first
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert digits().splits.train.tolist() == first


def test_root(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "oneclass"
    assert default_root().is_dir()
    monkeypatch.setenv("ONECLASS_DATA", str(tmp_path / "given"))
    assert default_root() == tmp_path / "given"
    assert OneClassDataModule().root == tmp_path / "given"
    assert OneClassDataModule(root="mine").root == Path("mine")


@pytest.mark.parametrize(("n", "batch_size", "length"), [(5, 1, 5), (1, 32, 1), (33, 32, 32), (34, 32, 34), (65, 32, 64)])
def test_only_a_last_sample_that_is_alone_is_left_out(n, batch_size, length):
    """Not where all batches are of one sample, and not the only sample."""
    sampler = EpochSampler(n, batch_size, shuffle=True)
    assert len(sampler) == len(set(sampler)) == length
    assert list(EpochSampler(n, batch_size, shuffle=False)) == list(range(n))


def test_processes_share_the_batches_of_one_with_a_larger_batch(monkeypatch):
    def order(n, batch_size, shuffle, rank=0, processes=1):
        monkeypatch.setattr("common.data.loaders._rank_and_processes", lambda: (rank, processes))
        return EpochSampler(n, batch_size, shuffle).order().tolist()

    of_each = [order(12, 2, True, rank, 2) for rank in (0, 1)]
    whole = order(12, 4, True)
    for k in range(3):
        together = [*of_each[0][2 * k :][:2], *of_each[1][2 * k :][:2]]
        assert sorted(together) == sorted(whole[4 * k :][:4])
    of_each = [order(5, 2, False, rank, 2) for rank in (0, 1)]
    assert [len(part) for part in of_each] == [3, 3], "as many in each, or one would wait for the other for ever"
    assert {*of_each[0], *of_each[1]} == set(range(5))


def test_a_checkpoint_of_a_table_with_other_columns_is_refused():
    tables = [image_data(np.random.default_rng(0).random((60, n)), np.arange(60) % 3) for n in (5, 6)]
    five, six = (OneClassDataModule.of(table, protocol="balanced", normal=1) for table in tables)
    for data in (five, six):
        data.setup()
    with pytest.raises(InputError, match=r"the checkpoint's data have the shape \[5\], not \[6\]"):
        six.load_state_dict(five.state_dict())

"""Presets by name and by file, overrides of any key, and the flags that say the same."""

import sys
from pathlib import Path

import pytest

from common.errors import InputError
from common.experiment import Cell
from common.experiment.cell import Settings
from common.experiment.plan import bases
from common.presets import flags, merged, preset_path, read_config, row_name, split_preset


@pytest.mark.parametrize(
    ("overrides", "place", "value"),
    [
        ("latent=4", ("model", "init_args", "latent"), 4),
        ("model.latent=4", ("model", "init_args", "latent"), 4),
        ("model.init_args.latent=4", ("model", "init_args", "latent"), 4),
        ("widths=[4,8]", ("model", "init_args", "widths"), [4, 8]),
        ("lr=1e-5", ("model", "init_args", "lr"), 1e-5),
        ("score=null", ("model", "init_args", "score"), None),
        ("trainer.max_epochs=7", ("trainer", "max_epochs"), 7),
        ("trainer.logger.class_path=CSVLogger", ("trainer", "logger", "class_path"), "CSVLogger"),
        ("data.batch_size=32", ("data", "batch_size"), 32),
        ("data.image_size=[12,10]", ("data", "image_size"), [12, 10]),
        ("speed.fused=false", ("speed", "fused"), False),
        ("rule=validation", ("rule",), "validation"),
    ],
)
def test_an_override_is_any_key_of_the_command(overrides, place, value):
    config = Cell(f"autoencoder-smoke,{overrides}", "digits", "standard", "3", 0).config()
    for key in place:
        config = config[key]
    assert config == value


def test_overrides_are_split_at_commas_outside_of_brackets():
    assert split_preset("a-b,widths=[4,8],x={y: 1, z: [2,3]},lr=1") == ("a-b", ["widths=[4,8]", "x={y: 1, z: [2,3]}", "lr=1"])


@pytest.mark.parametrize("option", ["latent", "latent:4"])
def test_an_override_without_a_value_is_refused(option):
    with pytest.raises(InputError, match="give key=value"):
        Cell(f"autoencoder-smoke,{option}", "digits", "standard", "3", 0).config()


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        ("autoencoder-smoke,data.dataset=mnist", "give --datasets instead"),
        ("classical-lof,data.normal=3", "give --normal instead"),
        ("classical-lof,trainer.max_epochs=5", "a classical detector has no trainer"),
    ],
)
def test_an_override_that_would_be_lost_is_refused(preset, says):
    with pytest.raises(InputError, match=says):
        Cell(preset, "digits", "standard", "3", 0).config()


def test_an_override_counts_more_than_a_flag_and_detectors_keep_their_channels():
    named = Cell("autoencoder-smoke,trainer.max_epochs=5", "digits", "standard", "3", 0)
    assert named.config(Settings(max_epochs=2))["trainer"]["max_epochs"] == 5
    data = Cell("classical-lof,data.val_fraction=0.2", "digits", "standard", "3", 0).config()["data"]
    assert (data["val_fraction"], data.get("channels")) == (0.2, None)
    on_net = Cell("classical-lof,backbone=squeezenet1_0,image_size=40", "digits", "standard", "3", 0).config()
    assert (on_net["backbone"], on_net["data"]["channels"], on_net["data"]["image_size"]) == ({"name": "squeezenet1_0"}, 3, 40)


def test_a_file_is_a_variant_of_one_before_it(tmp_path):
    config = "model:\n  class_path: autoencoder.Autoencoder\n"
    paths = [str(tmp_path / f"{name}.yaml") for name in ("first", "second")]
    for path in paths:
        Path(path).write_text(config)
    assert bases(paths) == {"second": "first"}
    assert bases(["autoencoder-smoke", "ocgan-smoke", *paths]) == {"first": "autoencoder-smoke", "second": "autoencoder-smoke"}


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.yaml").write_text("model:\n  class_path: nowhere.Mine\ntrainer:\n  max_epochs: 3\n")
    return tmp_path / "mine.yaml"


def test_a_preset_file_names_its_row_and_makes_its_folder_importable(mine):
    assert read_config(preset_path(str(mine)))["trainer"]["max_epochs"] == 3
    assert str(mine.parent) in sys.path
    cell = Cell(f"{mine},lr=0.1", "digits", "standard", "3", 0)
    assert cell.name == row_name(f"{mine},lr=0.1") == "mine,lr=0.1"
    assert cell.directory(mine.parent).parts[-5] == "mine,lr=0.1"


@pytest.fixture
def two_folders(tmp_path, monkeypatch):
    """Presets of one name beside modules of one name, the first of which is in Python's way."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_module.py").write_text(f"from autoencoder import Autoencoder\nWHERE = '{name}'\n")
        (tmp_path / name / "mine.yaml").write_text("model:\n  class_path: my_module.Autoencoder\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), *sys.path])
    yield tmp_path
    sys.modules.pop("my_module", None)


def test_a_class_is_that_beside_its_preset_wherever_python_searches_first(two_folders):
    read_config(preset_path(str(two_folders / "second" / "mine.yaml")))
    assert sys.modules["my_module"].WHERE == "second"
    assert sys.path[0] == str(two_folders / "first")
    with pytest.raises(
        InputError, match=r"first/mine.yaml needs .*first/my_module.py, but 'my_module' is already .*second/my_module.py"
    ):
        read_config(preset_path(str(two_folders / "first" / "mine.yaml")))


def test_a_module_that_fails_is_told_in_one_line(two_folders):
    (two_folders / "first" / "my_module.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"first/my_module.py cannot be imported: ZeroDivisionError: division by zero"):
        read_config(preset_path(str(two_folders / "first" / "mine.yaml")))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no preset file"),
        ("model: [", "cannot read the preset"),
        ("model: {}", "has no model.class_path"),
        ("3", "is not a preset"),
    ],
)
def test_a_preset_file_that_is_none_is_named(content, says, tmp_path):
    if content is not None:
        (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(InputError, match=says):
        read_config(preset_path(str(tmp_path / "bad.yaml")))


def test_the_file_of_a_data_set_is_taken_where_there_is_one():
    assert preset_path("ocgan-tuned", "cifar10").name == "tuned.cifar10.yaml"
    assert preset_path("ocgan-tuned", "mnist").name == "tuned.yaml"
    assert preset_path("ocgan-tuned.cifar10").name == "tuned.cifar10.yaml"


@pytest.mark.parametrize(
    "cell",
    [
        Cell("ocgan-tuned,mining_steps=0,trainer.max_epochs=5,data.batch_size=32", "cifar10", "standard", "3", 1),
        Cell("autoencoder-smoke,widths=[4,8],lr=1e-5", "digits", "standard,contamination=0.01,anomalous=3", "0+1", 2),
        Cell("ocnn-tuned,head_layers=[0,1],weights=null", "cats_dogs", "balanced", "01", 0),
    ],
    ids=lambda cell: cell.name,
)
def test_a_row_is_a_command(cell):
    """The flags of the printed line make the very configuration that the grid runs."""
    import shlex

    settings = Settings(root=Path("my data"), threads=1, max_epochs=9, image_size=20)
    words = shlex.split(cell.command(settings))
    assert words[:2] == ["oneclass", "fit"]
    config = merged(words[2:])
    assert config.pop("directory") == cell.directory(settings.runs).as_posix()
    assert config.pop("threads") == 1
    assert config == cell.config(settings)
    assert config["data"]["root"] == "my data"


def test_a_second_file_adds_to_the_first_unless_it_names_another_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(
        "model: {class_path: autoencoder.Autoencoder, init_args: {widths: [4, 8], lr: 0.1}}\n"
        "trainer: {logger: {class_path: CSVLogger, init_args: {name: mine}}}\n"
    )
    Path("b.yaml").write_text("model: {class_path: autoencoder.Autoencoder, init_args: {latent: 4, lr: 0.2}}\n")
    Path("c.yaml").write_text("model: {class_path: ocgan.OCGAN, init_args: {latent: 4}}\n")
    both = merged(["--config", "a.yaml", "--config", "b.yaml"])
    assert both["model"]["init_args"] == {"widths": [4, 8], "lr": 0.2, "latent": 4}
    assert both["trainer"]["logger"]["init_args"] == {"name": "mine"}
    other = merged(["--config", "a.yaml", "--config", "c.yaml"])
    assert other["model"] == {"class_path": "ocgan.OCGAN", "init_args": {"latent": 4}}


def test_flags_write_values_as_they_are_read():
    config = {"model": {"init_args": {"a": None, "b": [1, 2.5], "c": "text", "d": True}}, "trainer": {"max_epochs": 1}}
    assert merged(list(flags(config)))["model"] == config["model"]

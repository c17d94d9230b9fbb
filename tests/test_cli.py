"""The ``oneclass`` command: every preset parses, and mistakes are told in one line."""

import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning import seed_everything
from pytorch_lightning.accelerators import CPUAccelerator

from common.cli import main
from common.deploy.load import load_checkpoint
from common.errors import InputError
from common.experiment import Cell
from common.experiment.cell import Settings
from common.experiment.records import read_record
from common.module import OneClassModule
from common.training.lightning import assemble
from common.training.process import chosen_device, configure_process

pytestmark = pytest.mark.usefixtures("blank_figures")

ROOT = Path(__file__).parents[1]
PRESETS = sorted(ROOT.glob("*/configs/*.yaml"))
SMOKE = ROOT / "autoencoder" / "configs" / "smoke.yaml"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    main(["fit", "--config", str(SMOKE), "--trainer.logger.save_dir", str(folder), *QUIET])
    return next(folder.rglob("last.ckpt"))


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    output = capsys.readouterr()
    assert ended.value.code == 2
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1, output.err
    return output.err


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: f"{file.parents[1].name}-{file.stem}")
def test_every_preset_trains_through_the_parser(file, tmp_path):
    """On the digits, and for one small batch, whatever the preset's own data set; a pretrained net is one without weights."""
    config = yaml.safe_load(file.read_text())
    backbone = config["model"]["init_args"].get("backbone", "none")
    if backbone != "none":
        config["model"]["init_args"] |= {"backbone": "squeezenet1_0", "weights": None}
        if backbone != "squeezenet1_0":
            config["model"]["init_args"]["head_layers"] = 1
        config["data"]["image_size"] = 32
    config["trainer"] |= {"fast_dev_run": True, "accelerator": "cpu", "logger": False}
    config["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
    data = {"dataset": "digits", "normal": 3, "batch_size": 8, "eval_batch_size": 8}
    cli = assemble({**config, "data": {**config["data"], **data}})
    cli.trainer.fit(cli.model, cli.datamodule)
    cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert cli.model.scored is not None
    size = config["data"].get("image_size", 8)
    assert cli.model.hparams["shape"] == [config["data"].get("channels", 1), size, size]


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: f"{file.parents[1].name}-{file.stem}")
def test_every_preset_is_a_cell(file):
    preset, _, dataset = file.stem.partition(".")
    if dataset == "vectors":  # the variant for tables is none for a data set
        preset, dataset = file.stem, "digits"
    config = Cell(f"{file.parents[1].name}-{preset}", dataset or "folder", "standard", "0", 0).config(Settings())
    assert config["model"] == yaml.safe_load(file.read_text())["model"]


def test_fit_test_and_predict(checkpoint, tmp_path, capsys):
    assert load_checkpoint(checkpoint)["method"] == "Autoencoder"
    common = ["--config", SMOKE, "--ckpt_path", checkpoint, *QUIET, "--trainer.logger.save_dir", tmp_path]
    main(["test", *map(str, common)])
    assert "test/auroc" in capsys.readouterr().out
    main(["predict", *map(str, common)])
    predictions = pd.read_csv(next(tmp_path.rglob("predictions.csv")))
    assert list(predictions) == ["index", "reconstruction", "anomalous"]
    assert len(predictions) == 540
    threshold = load_checkpoint(checkpoint)["state_dict"]["threshold"].item()
    assert (predictions.anomalous == (predictions.reconstruction >= threshold)).all()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data.dataset", "nope"], "unknown data set 'nope'"),
        (["--data.dataset", "mnist", "--data.root", "/nowhere"], "no folder /nowhere"),
        (["--data.normal", "17"], "'digits' has no class '17'"),
        (["--data.contamination", "1"], "contamination must lie in [0, 1), not 1.0"),
        (["--data.val_fraction", "1"], "val_fraction must lie in [0, 1), not 1.0"),
        (["--data.protocol", "nope"], "unknown protocol 'nope'"),
        (["--data.share", "0.3"], "protocol 'standard' has no option 'share'"),
        (["--data.normalization", "nope"], "normalization"),
        (["--data.image_size", "0"], "image_size"),
        (["--model.init_args.latnt", "3"], "autoencoder.Autoencoder: Option 'latnt' is not accepted"),
        (["--data.bacth_size", "3"], "bacth_size"),
        (["--model.init_args.network", "nope"], "unknown network 'nope': choose from strided, lenet, bounded"),
        (["--model", "autoencoder.Nope"], "autoencoder.Nope: module 'autoencoder' has no attribute 'Nope'"),
        (["--model", "nonsense"], "model must be class path, not nonsense"),
        (["--model", "os.system"], "model: Import path does not correspond to a subclass of OneClassModule"),
        (["--model.init_args.widths", "wide"], "autoencoder.Autoencoder: widths must be Sequence, not wide"),
        (["--model.init_args.latent", "-3"], "latent must be at least 1, not -3"),
        (["--model.init_args.latent", "1000000000000000"], "model or data cannot be made of these values: "),
        (["--model.init_args.lr", "-1"], "Invalid learning rate: -1.0"),
        (["--data.channels", "2"], "data.channels must be 1, 3, not 2"),
        (["--seed_everything", "-4"], "a seed lies in [0, 4294967296)"),
        (["--trainer.accelerator", "gpu"], "PyTorch finds no GPU here"),
        (["--trainer.accelerator", "tpu"], "the trainer cannot be made: Requirement 'torch_xla"),
        (["--trainer.strategy", "nope"], "the trainer cannot be made: You selected an invalid strategy name"),
        (["--trainer.logger", "nope"], "trainer.logger must be class path or Iterable or bool, not nope"),
        (["--trainer.callbacks.class_path", "EarlyStopping"], "EarlyStopping: the following arguments are required: monitor"),
        (["--trainer.precision", "bf16-true"], "precision bf16-true rounds scores and thresholds"),
        (["--directory", "cell", "--data", "3"], "'data=3': data is a group of keys, give data.KEY=VALUE"),
        (["--directory", "cell", "--threads", "many"], "threads must be a number of at least 1, not many"),
        (["--directory", "cell", "--seed_everything", "x"], "seed_everything must be a number of at least 0, not x"),
        (["--directory", "cell", "--trainer.logger.name", "x"], "trainer.logger names no class"),
        (["--directory", "cell", "--data.batch_size", "null"], "batch_size and eval_batch_size must be at least 1"),
        (["--trainer.max_epochs", "many"], "max_epochs"),
        (["--rule", "best-on-test"], "rule"),
        (["--rule", "validation", "--data.val_fraction", "0"], "rule 'validation' needs held-out normal samples"),
        (["--ckpt_path", "nope.ckpt"], "no checkpoint nope.ckpt"),
        (["--ckpt_path", "last"], "no checkpoint runs/fit/version_0/checkpoints/last.ckpt"),
        (["--ckpt_path", "best"], "no checkpoint runs/fit/version_0/checkpoints/best.ckpt"),
        (["--ckpt_path", "hpc"], "--ckpt_path hpc finds no checkpoint of an earlier job"),
        (["--trainer.max_epochs", "0"], "trains nothing"),
        (["--trainer.max_epochs", "-1", "--model.schedule", "cosine"], "give trainer.max_epochs"),
        (["--config", "nope.yaml"], "nope.yaml"),
    ],
)
def test_mistakes_get_one_line_and_status_2(flags, says, capsys, tmp_path):
    assert says in refused(capsys, "fit", "--config", SMOKE, *QUIET, *flags)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_early_stopping_on_a_key_that_is_not_logged(capsys):
    flags = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/nothing", "--trainer.max_epochs=1"]
    assert "EarlyStopping's monitor is no logged key" in refused(capsys, "fit", "--config", SMOKE, *QUIET, *flags)


@pytest.mark.parametrize("method", ["autoencoder", "ocnn"])
def test_double_precision_gives_the_numbers_of_single_precision(method):
    scores = []
    for precision in ("32-true", "64-true"):
        config = yaml.safe_load((ROOT / method / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
        config["data"] |= {"dataset": "digits", "normal": "3"}
        config["trainer"] |= {"precision": precision, "max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}
        seed_everything(0, verbose=False)
        cli = assemble(config | {"seed_everything": 0})
        cli.trainer.fit(cli.model, cli.datamodule)
        cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        scores.append(cli.model.scored.scores[cli.model.hparams["score"]])
    assert {parameter.dtype for parameter in cli.model.parameters()} == {torch.float64}
    assert np.corrcoef(scores)[0, 1] > 0.999


def test_a_text_is_no_configuration(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("a text of several words")
    assert "--config names a file without keys and values" in refused(capsys, "fit", "--config", SMOKE, "--config", "notes.txt")


def test_misspelt_key_in_a_file(capsys, tmp_path):
    config = yaml.safe_load(SMOKE.read_text())
    config["data"]["bacth_size"] = 3
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    assert "bacth_size" in refused(capsys, "fit", "--config", tmp_path / "mine.yaml")


def test_checkpoint_of_another_method(checkpoint, capsys, tmp_path):
    contents = torch.load(checkpoint, weights_only=True)
    torch.save({**contents, "method": "OCGAN"}, tmp_path / "other.ckpt")
    says = refused(capsys, "test", "--config", SMOKE, "--ckpt_path", tmp_path / "other.ckpt", *QUIET)
    assert "the checkpoint is one of OCGAN, not of Autoencoder" in says


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_flags_that_contradict_the_checkpoint_are_refused(command, checkpoint, capsys):
    common = [command, "--config", SMOKE, "--ckpt_path", checkpoint, *QUIET]
    says = refused(capsys, *common, "--model.init_args.lr", "1e-5", "--model.threshold_quantile=0.95")
    assert f"{checkpoint} has lr 0.005, not 1e-05" in says
    assert "has threshold_quantile 0.95, not 0.5" in refused(capsys, *common, "--model.threshold_quantile=0.5")


def test_a_checkpoint_of_other_data_or_of_another_net_is_refused(checkpoint, capsys):
    ocgan = ROOT / "ocgan" / "configs" / "smoke.yaml"
    says = refused(capsys, "test", "--config", ocgan, "--ckpt_path", checkpoint, *QUIET)
    assert "the checkpoint is one of Autoencoder, not of OCGAN" in says
    common = ["--config", SMOKE, "--ckpt_path", checkpoint, *QUIET]
    says = refused(capsys, "test", *common, "--data.normalization", "symmetric")
    assert "was trained with normalization unit: give --data.normalization unit" in says
    says = refused(capsys, "test", *common, "--data.class_mean", "true")
    assert "was trained with class_mean False: give --data.class_mean False" in says
    for command in ("fit", "test"):
        says = refused(capsys, command, *common, "--data.image_size", "16", "--trainer.max_epochs", "3")
        assert "the checkpoint's net is none for samples of shape [1, 16, 16]" in says


def test_a_configuration_takes_the_checkpoints_arguments_and_says_so(checkpoint, capsys):
    config = yaml.safe_load(SMOKE.read_text())
    config["model"]["init_args"]["latent"] = 4
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    main(["test", "--config", "mine.yaml", "--ckpt_path", str(checkpoint), *QUIET])
    assert capsys.readouterr().err == f"taken from {checkpoint}: latent=8\n"
    main(["test", "--config", str(SMOKE), *QUIET])
    assert capsys.readouterr().err == "no --ckpt_path is given: the net is untrained\n"


def test_a_configuration_that_contradicts_a_checkpoint_given_by_name_is_refused(checkpoint, capsys):
    """The net is made before the checkpoint is found, so it cannot take the checkpoint's arguments."""
    config = yaml.safe_load(SMOKE.read_text())
    config["model"]["init_args"]["latent"] = 4
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    flags = ["--ckpt_path", "last", "--trainer.default_root_dir", checkpoint.parents[1]]
    assert f"{checkpoint} has latent 8, not 4" in refused(capsys, "test", "--config", "mine.yaml", *flags, *QUIET)


def same_weights(*paths):
    first, second = (load_checkpoint(Path(path))["state_dict"] for path in paths)
    return all(torch.equal(second[name], value) for name, value in first.items())


def test_last_goes_on_where_it_was_stopped_and_ctrl_c_says_from_where(checkpoint, capsys, monkeypatch):
    fit, start = ["fit", "--config", str(SMOKE), *QUIET], OneClassModule.on_train_epoch_start
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press(module):
        if module.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        start(module)

    with monkeypatch.context() as patch:
        patch.setattr(OneClassModule, "on_train_epoch_start", press)
        with pytest.raises(SystemExit) as ended:
            main(fit)
    signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    saved = "runs/fit/version_0/checkpoints/last.ckpt"
    assert capsys.readouterr().err == f"interrupted: go on with --ckpt_path {saved}\n"
    assert load_checkpoint(Path(saved))["epoch"] == 0
    main([*fit, "--ckpt_path", saved])
    assert same_weights(checkpoint, "runs/fit/version_1/checkpoints/last.ckpt")
    main([*fit, "--ckpt_path", "last", "--trainer.default_root_dir", "runs/fit/version_0"])
    assert same_weights(checkpoint, saved)


def test_a_configuration_of_the_users_stays_as_it_is():
    content = f"# mine\n{SMOKE.read_text()}"
    Path("config.yaml").write_text(content)
    for number in (1, 2):
        main(["fit", "--config", "config.yaml", *QUIET, "--trainer.logger", "false", "--model.latent", str(number)])
        assert Path("config.yaml").read_text() == content
        assert yaml.safe_load(Path(f"config-{number}.yaml").read_text())["model"]["init_args"]["latent"] == number
        shutil.rmtree("checkpoints")  # else the next training is refused


def test_another_training_in_the_same_folder_is_refused_and_goes_on_where_that_is_asked_for(capsys):
    fit = ["fit", "--config", str(SMOKE), *QUIET, "--trainer.default_root_dir", "mine", "--trainer.max_epochs"]
    main([*fit, "1"])
    before = Path("mine/checkpoints/last.ckpt").read_bytes()
    assert "mine holds another training: --ckpt_path last goes on with it" in refused(capsys, *fit, "2")
    assert Path("mine/checkpoints/last.ckpt").read_bytes() == before
    main([*fit, "2", "--ckpt_path", "last"])
    assert load_checkpoint(Path("mine/checkpoints/last.ckpt"))["epoch"] == 1


def test_fit_says_what_it_trains_on_and_which_checkpoint_the_rule_chooses(capsys):
    main(["fit", "--config", str(SMOKE), *QUIET, "--trainer.default_root_dir", "mine", "--rule", "validation"])
    printed = capsys.readouterr().out
    assert re.search(r"^normal: 0, \d+ samples to train on, \d+ held out$", printed, re.MULTILINE)
    assert (
        "written: mine/checkpoints/best.ckpt, the epoch that the rule chooses\nwritten: mine/checkpoints/last.ckpt" in printed
    )


def test_without_a_threshold_predict_calls_nothing_normal(capsys):
    quiet = ["--config", str(SMOKE), "--data.val_fraction", "0", *QUIET, "--trainer.default_root_dir", "mine"]
    main(["fit", *quiet])
    main(["predict", *quiet, "--ckpt_path", "last"])
    assert "no column 'anomalous', because the checkpoint has no held-out scores" in capsys.readouterr().out
    assert "anomalous" not in pd.read_csv("mine/predictions.csv")


def test_a_class_path_may_name_the_method_of_a_cell():
    flags = ["--model.widths=[4, 8]", "--model.latent=4", "--trainer.max_epochs=1", "--threads=1"]
    main(["fit", "--model", "autoencoder.Autoencoder", *flags, "--data.normal=3", "--directory", "runs/mine"])
    assert Path("runs/mine/metrics.json").is_file()


@pytest.mark.filterwarnings("ignore:no anomalous samples:RuntimeWarning")
def test_a_cell_that_tests_one_class_has_no_auroc_when_it_is_made_and_when_it_is_read(capsys):
    X = np.random.default_rng(0).random((40, 6))
    np.savez("one.npz", X_train=X[:20], y_train=np.zeros(20), X_test=X[20:], y_test=np.zeros(20))
    flags = ["--config", "autoencoder-smoke", "--data.dataset=one.npz", "--trainer.max_epochs=1", "--threads=1"]
    for _ in range(2):
        main(["fit", *flags, "--data.root", ".", "--directory", "runs/one"])
        assert "reconstruction: no AUROC, as it tests one class only, by the epoch 1 (rule: last)" in capsys.readouterr().out
    command = read_record(Path("runs/one/metrics.json"))["command"]
    assert command.endswith("--threads=1 --directory runs/one"), "the place of the data is no part of it"


def test_checkpoint_that_is_truncated_or_something_else(checkpoint, capsys, tmp_path):
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(checkpoint.read_bytes()[:1000])
    assert "is not a readable checkpoint" in refused(capsys, "test", "--config", SMOKE, "--ckpt_path", damaged, *QUIET)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "else.ckpt")
    says = refused(capsys, "test", "--config", SMOKE, "--ckpt_path", tmp_path / "else.ckpt", *QUIET)
    assert "is not a checkpoint of this package" in says


@pytest.mark.parametrize("content", ["a text of several words", "", "root:x:0:0:root"])
def test_a_text_is_no_checkpoint_and_nobody_advises_to_load_it(content, capsys, tmp_path):
    (tmp_path / "notes.ckpt").write_text(content)
    says = refused(capsys, "test", "--config", SMOKE, "--ckpt_path", "notes.ckpt", *QUIET)
    assert says == "error: notes.ckpt is not a readable checkpoint: it is damaged, or a file of another kind\n"


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_pickled_code_is_not_run(checkpoint, tmp_path):
    torch.save({**torch.load(checkpoint, weights_only=True), "extra": Harmful()}, tmp_path / "harmful.ckpt")
    with pytest.raises(InputError, match="it holds objects besides tensors and plain values, which are never run"):
        load_checkpoint(tmp_path / "harmful.ckpt")
    assert not Path("harm").exists()


@pytest.mark.parametrize(("there", "auto"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_one(there, auto, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert [chosen_device(name) for name in ("auto", "cpu", "cuda")] == [auto, "cpu", "cuda"]


def test_auto_is_never_apples_gpu_which_lacks_float64(monkeypatch):
    for library in ("lightning_fabric", "pytorch_lightning"):
        monkeypatch.setattr(f"{library}.accelerators.mps.MPSAccelerator.is_available", lambda: True)
    config = yaml.safe_load(SMOKE.read_text())
    config["data"] |= {"dataset": "digits", "normal": "3"}
    assert isinstance(assemble(config).trainer.accelerator, CPUAccelerator)


@pytest.mark.parametrize(("there", "visible"), [(False, ""), (True, None)])
def test_a_driver_is_not_sought_at_every_step_where_there_is_none(monkeypatch, there, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    configure_process()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible

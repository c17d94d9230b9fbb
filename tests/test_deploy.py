"""A trained detector outside of its training: thresholds, folders of images, exported programs."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image

from autoencoder import Autoencoder
from common.cli import main
from common.data import OneClassDataModule
from common.data.transforms import Preprocessing
from common.deploy import export as exporting
from common.deploy import folder as folder_module
from common.deploy.load import load_checkpoint, load_detector
from common.errors import InputError
from common.evaluation import conformal_p_value, image_grid

pytestmark = pytest.mark.usefixtures("blank_figures")

ROOT = Path(__file__).parents[1]
METHODS = ("autoencoder", "alocc", "ocgan", "ocnn")
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def fitted(method, folder, *flags):
    config = ROOT / method / "configs" / "smoke.yaml"
    main(["fit", "--config", str(config), "--data.normal", "3", "--trainer.logger.save_dir", str(folder), *QUIET, *flags])
    return next(folder.rglob("last.ckpt"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {method: fitted(method, tmp_path_factory.mktemp(method)) for method in METHODS}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The test digits as files, one of them below a folder of its own, and the same as a data module's batch."""
    folder = tmp_path_factory.mktemp("digits")
    data = OneClassDataModule("digits", normal=3)
    data.setup()
    (folder / "below").mkdir()
    images = data.data.images[torch.from_numpy(data.splits.test[:100])]
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / ("below" if i == 99 else "") / f"{i:03}.png")
    return folder, images


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Bank(Autoencoder):
    """Keeps the training codes, whose number is not known before."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.register_buffer("bank", torch.empty(0, self.hparams.latent))

    def after_epoch(self, batches):
        self.bank = torch.cat([self.embed(batch.image) for batch in batches])

    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        self.bank = torch.empty_like(checkpoint["state_dict"]["bank"])


def test_a_checkpoint_may_hold_more_than_a_new_module(monkeypatch):
    """As with Lightning's own loading, a module makes room before its state is loaded."""
    flags = ["--model.widths=[4, 8]", "--model.latent=4", "--data.normal=3", "--trainer.max_epochs=1", *QUIET]
    main(["fit", "--model", f"{__name__}.Bank", *flags, "--trainer.default_root_dir", "mine"])
    loaded = load_detector(Path("mine/checkpoints/last.ckpt")).module
    assert loaded.bank.shape[1] == 4
    assert loaded.bank.abs().sum() > 0


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_scores_as_the_test_set_does(method, checkpoints, digits):
    folder, _ = digits
    path = checkpoints[method]
    main(["predict-folder", str(path), str(folder), "--device", "cpu"])
    table = pd.read_csv("predictions.csv")
    assert list(table) == ["path", "score", "p_value", "label"]
    order = [int(Path(name).stem) for name in table["path"]]
    assert sorted(order) == list(range(100))
    main(["predict", "--config", str(ROOT / method / "configs" / "smoke.yaml"), "--data.normal", "3",
          "--ckpt_path", str(path), "--trainer.logger.save_dir", "trainer", *QUIET])  # fmt: skip
    expected = pd.read_csv(next(Path("trainer").rglob("predictions.csv"))).iloc[order]
    name = load_checkpoint(path)["hyper_parameters"]["score"]
    np.testing.assert_allclose(table["score"], expected[name], rtol=1e-4, atol=1e-5)
    assert (table["label"] == expected["anomalous"].to_numpy()).mean() > 0.98
    calibration = load_checkpoint(path)["calibration"].numpy()
    assert len(calibration) > 10
    np.testing.assert_allclose(table["p_value"], conformal_p_value(table["score"], calibration))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_an_exported_file_scores_as_the_folder_does(kind, method, checkpoints, digits, capsys):
    folder, images = digits
    path = checkpoints[method]
    main(["export", str(path), "--format", kind, "--out", "program"])
    assert "written: program" in capsys.readouterr().out
    main(["predict-folder", str(path), str(folder)])
    with open("predictions.csv") as file:
        expected = {Path(row["path"]).stem: float(row["score"]) for row in csv.DictReader(file)}
    if kind == "onnx":
        session = onnxruntime.InferenceSession("program")
        metadata = json.loads(session.get_modelmeta().custom_metadata_map["oneclass"])
    else:
        extra = {exporting.METADATA: ""}
        program = torch.export.load("program", extra_files=extra).module()
        metadata = json.loads(extra[exporting.METADATA])
    prepared = Preprocessing(**metadata["preprocessing"])(images)
    scores = session.run(None, {"image": prepared.numpy()})[0] if kind == "onnx" else program(prepared).detach().numpy()
    wanted = np.array([expected[f"{i:03}"] for i in range(100)])
    assert np.abs(scores - wanted).max() <= 1e-4 * max(1, np.abs(wanted).max())
    assert metadata["threshold"] == load_checkpoint(path)["state_dict"]["threshold"].item()
    assert metadata["stored"] == metadata["input"] == [1, 8, 8]
    assert metadata["score"] == load_checkpoint(path)["hyper_parameters"]["score"]


def test_preprocessing_travels(tmp_path, digits):
    images = digits[1]
    flags = ["--data.normalization=gcn", "--data.class_mean=true", "--data.image_size=[10, 12]", "--data.channels=3"]
    path = fitted("autoencoder", tmp_path / "fit", *flags)
    data = OneClassDataModule("digits", 3, normalization="gcn", class_mean=True, image_size=[10, 12], channels=3)
    data.setup()
    detector = load_detector(path)
    assert detector.stored == (1, 8, 8)
    assert torch.equal(detector.preprocessing(images), data.images(data.splits.test[:100]))
    metadata = exporting.metadata(detector)
    assert (metadata["input"], metadata["stored"]) == ([3, 10, 12], [1, 8, 8])


def test_threshold_is_adjusted_without_training(checkpoints, digits):
    path, folder = str(checkpoints["autoencoder"]), str(digits[0])
    calibration = load_checkpoint(checkpoints["autoencoder"])["calibration"].numpy()
    for rule, flagged in {
        "quantile=0.5": lambda t: t["score"] >= np.median(calibration),
        "alpha=0.2": lambda t: t["p_value"] <= 0.2,
        "0.16": lambda t: t["score"] >= 0.16,
    }.items():
        main(["predict-folder", path, folder, "--threshold", rule])
        table = pd.read_csv("predictions.csv")
        assert (table["label"] == flagged(table)).all(), rule
        assert 0 < table["label"].sum() < 100, rule


def test_too_few_held_out_samples_for_a_share_are_counted(checkpoints, digits, capsys):
    path = checkpoints["autoencoder"]
    n = len(load_checkpoint(path)["calibration"])
    main(["predict-folder", str(path), str(digits[0]), "--threshold", "alpha=0.01"])
    assert f"no image can be flagged: alpha=0.01 needs 99 held-out scores, not {n}" in capsys.readouterr().out
    assert pd.read_csv("predictions.csv")["label"].sum() == 0
    main(["predict-folder", str(path), str(digits[0]), "--threshold", f"alpha={1 / (n + 1)}"])
    assert "images reach the threshold" in capsys.readouterr().out


def test_predictions_go_into_a_pipe(checkpoints, digits, tmp_path):
    arguments = ["predict-folder", str(checkpoints["autoencoder"]), str(digits[0])]
    main(arguments)
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDWR | os.O_NONBLOCK)
    main([*arguments, "--out", "pipe"])
    assert os.read(reader, 2**16) == Path("predictions.csv").read_bytes()
    os.close(reader)
    assert Path("pipe").is_fifo()


def test_an_export_follows_links(checkpoints):
    Path("link.pt2").symlink_to("target.pt2")
    main(["export", str(checkpoints["autoencoder"]), "--format", "torch", "--out", "link.pt2"])
    assert Path("link.pt2").is_symlink()
    assert torch.export.load("target.pt2")


def test_a_device_that_is_not_here(checkpoints, digits, capsys):
    says = refused(capsys, "predict-folder", checkpoints["autoencoder"], digits[0], "--device", "cuda")
    assert "no device 'cuda' here" in says


def test_a_score_that_is_the_threshold_is_flagged(checkpoints, digits):
    path, folder = str(checkpoints["autoencoder"]), str(digits[0])
    main(["predict-folder", path, folder])
    third = pd.read_csv("predictions.csv", float_precision="round_trip")["score"].nlargest(3).iloc[-1]
    main(["predict-folder", path, folder, "--threshold", repr(float(third))])
    assert pd.read_csv("predictions.csv")["label"].sum() == 3


def test_the_sheet_shows_the_most_and_the_least_anomalous_in_order(checkpoints, digits, monkeypatch):
    drawn = []
    monkeypatch.setattr(folder_module, "image_grid", lambda *a: (drawn.append(a), image_grid(*a))[1])
    main(["predict-folder", str(checkpoints["autoencoder"]), str(digits[0]), "--figures", "look"])
    table = pd.read_csv("predictions.csv").sort_values("score", ascending=False)
    ((groups, titles, _),) = drawn
    for name, shown in (("most", table[:16]), ("least", table[:-17:-1])):
        numbers = [int(Path(path).stem) for path in shown["path"]]
        assert torch.equal(groups[name], digits[1][numbers])
    assert [float(title) for title in titles[:16]] == pytest.approx(table["score"][:16].tolist(), rel=1e-3)
    assert [float(title) for title in titles[16:]] == pytest.approx(table["score"][:-17:-1].tolist(), rel=1e-3)


def test_without_held_out_scores_there_is_no_label(tmp_path, digits, capsys):
    path = fitted("autoencoder", tmp_path / "fit", "--data.val_fraction", "0")
    main(["predict-folder", str(path), str(digits[0])])
    assert "no labels" in capsys.readouterr().out
    assert pd.read_csv("predictions.csv")[["p_value", "label"]].isna().all(axis=None)
    main(["predict-folder", str(path), str(digits[0]), "--threshold", "0.16"])
    assert pd.read_csv("predictions.csv")["label"].notna().all()
    assert "needs held-out scores" in refused(capsys, "predict-folder", path, digits[0], "--threshold", "alpha=0.1")


def test_unreadable_files_are_named_and_left_out(checkpoints, tmp_path, capsys):
    folder = tmp_path / "photographs"
    (folder / ".hidden").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(70):
        pixels = random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    (folder / "12_broken.png").write_text("nothing")
    (folder / ".hidden" / "0.png").write_text("nothing")
    (folder / "notes.txt").write_text("nothing")
    main(["predict-folder", str(checkpoints["alocc"]), str(folder), "--figures", "look"])
    output = capsys.readouterr().out
    assert output.count("left out: ") == 1
    assert "12_broken.png" in output
    assert sorted(Path(path).stem for path in pd.read_csv("predictions.csv")["path"]) == sorted(map(str, range(70)))
    assert {path.name for path in Path("look").iterdir()} == {"contact_sheet.png", "score_histogram.png"}
    (folder / "all").mkdir()
    (folder / "all" / "broken.png").write_text("nothing")
    Path("predictions.csv").unlink()
    assert "can be read" in refused(capsys, "predict-folder", checkpoints["alocc"], folder / "all")
    assert not Path("predictions.csv").exists()


def test_links_are_followed_and_other_files_named(checkpoints, digits, tmp_path, capsys):
    folder, _ = digits
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "camera").symlink_to(folder)
    for name in ("a.heic", "b.HEIC", "notes.txt", "Thumbs.db", ".hidden.png"):
        (tmp_path / "new" / name).write_text("")
    main(["predict-folder", str(checkpoints["autoencoder"]), "new", "--device", "cpu"])
    assert len(pd.read_csv("predictions.csv")) == 100
    assert "left out of new: .heic (2), .txt (1)\n" in capsys.readouterr().out
    (tmp_path / "new" / "camera").unlink()
    assert "no images in new; left out of new: .heic (2), .txt (1)" in refused(
        capsys, "predict-folder", checkpoints["autoencoder"], "new"
    )


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_sheet_of_few_images(n, checkpoints, tmp_path):
    for i in range(n):
        (tmp_path / "few").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / "few" / f"{i}.png")
    main(["predict-folder", str(checkpoints["autoencoder"]), "few", "--figures", "look"])
    assert Path("look", "contact_sheet.png").stat().st_size > 1000


def test_mistakes_in_predict_folder(checkpoints, digits, capsys, tmp_path):
    good, folder = checkpoints["autoencoder"], digits[0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("nothing")
    for arguments, says in [
        ((good, "empty"), "no images in empty"),
        ((good, "nowhere"), "no folder nowhere"),
        (("nowhere.ckpt", folder), "no checkpoint nowhere.ckpt"),
        ((tmp_path / "file", folder), "is not a readable checkpoint"),
        ((good, folder, "--threshold", "much"), "invalid threshold 'much': give quantile=Q or alpha=A"),
        ((good, folder, "--threshold", "alpha=2"), "alpha must lie strictly between 0 and 1"),
        ((good, folder, "--out", "file/a.csv"), "cannot write file/a.csv"),
        ((good, folder, "--out", "empty"), "cannot write empty"),
        ((good,), "the following arguments are required: DIR"),
    ]:
        assert says in refused(capsys, "predict-folder", *arguments)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]


def test_a_place_that_cannot_be_written_is_refused_before_anything_is(checkpoints, digits, capsys, tmp_path):
    (tmp_path / "file").write_text("nothing")
    (tmp_path / "look" / "score_histogram.png").mkdir(parents=True)
    Path("predictions.csv").write_text("earlier")
    for figures in ("file", "file/below", "look"):
        says = refused(capsys, "predict-folder", checkpoints["autoencoder"], digits[0], "--figures", figures)
        assert f"cannot write {figures}" in says
        assert Path("predictions.csv").read_text() == "earlier"
    assert [path.name for path in Path("look").iterdir()] == ["score_histogram.png"]


@pytest.mark.parametrize("score", ["-1e-3", "-.5", "-5.9", "-1E+2"])
def test_a_threshold_may_be_negative(score, checkpoints, digits):
    main(["predict-folder", str(checkpoints["autoencoder"]), str(digits[0]), "--threshold", score])
    assert pd.read_csv("predictions.csv")["label"].all()


def test_mistakes_in_export(checkpoints, capsys, tmp_path, monkeypatch):
    good = checkpoints["autoencoder"]
    (tmp_path / "file").write_text("nothing")
    assert "invalid choice: 'pickle'" in refused(capsys, "export", good, "--format", "pickle")
    assert "cannot write file/program" in refused(capsys, "export", good, "--out", "file/program")
    read = exporting._read_torch
    # One that is wrong everywhere, and one that is right at the batch size of the example alone
    for factor in (lambda n: 0, lambda n: 1 if n == 2 else np.nan):
        broken = lambda path, factor=factor: lambda images: read(path)(images) * factor(len(images))  # noqa: E731
        monkeypatch.setattr(exporting, "_read_torch", broken)
        assert "differ from the module's" in refused(capsys, "export", good, "--format", "torch", "--out", "program")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert "pip install -e '.[export]'" in refused(capsys, "export", good, "--out", "program")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"class_path": "os.system"}, "'os.system' is not a class derived from"),
        ({"class_path": "nowhere.Method"}, "cannot import 'nowhere.Method'"),
        ({"class_path": ""}, "cannot import ''"),
        ({"state_dict": {}}, "is not a complete checkpoint of Autoencoder"),
        ({"hyper_parameters": {"shape": [1, 8, 8], "latent": 3}}, "is not a complete checkpoint of Autoencoder"),
        ({"OneClassDataModule": {}}, "is not a complete checkpoint of Autoencoder"),
        ({"extra": Harmful()}, "is not a readable checkpoint"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_checkpoints_that_are_refused(change, says, checkpoints, digits, capsys):
    torch.save({**load_checkpoint(checkpoints["autoencoder"]), **change}, "changed.ckpt")
    assert says in refused(capsys, "predict-folder", "changed.ckpt", digits[0])
    assert not Path("harm").exists()
    assert not Path("predictions.csv").exists()


def test_a_pretrained_backbone_comes_from_the_checkpoint(tmp_path, digits, monkeypatch):
    """The checkpoint says that its weights were torchvision's; none are at hand when it is loaded."""
    flags = ["--model.init_args.backbone", "squeezenet1_0", "--model.init_args.weights", "null"]
    path = fitted("ocnn", tmp_path / "fit", *flags, "--data.channels", "3", "--data.image_size", "32")
    contents = load_checkpoint(path)
    contents["hyper_parameters"]["weights"] = "DEFAULT"
    torch.save(contents, "pretrained.ckpt")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    images = digits[1]
    detector = load_detector(Path("pretrained.ckpt"))
    assert torch.equal(detector.scores(images), load_detector(path).scores(images))
    assert detector.scores(images).unique().numel() > 50


def test_a_checkpoint_is_not_loaded_as_another_method(checkpoints):
    contents = load_checkpoint(checkpoints["ocgan"])
    torch.save({**contents, "class_path": "alocc.module.ALOCC"}, "mixed.ckpt")
    with pytest.raises(InputError, match="is not a complete checkpoint of ALOCC"):
        load_detector(Path("mixed.ckpt"))


def test_no_command_writes_over_what_it_reads(checkpoints, tmp_path, capsys):
    checkpoint, image = tmp_path / "a.ckpt", tmp_path / "in" / "contact_sheet.png"
    checkpoint.write_bytes(checkpoints["autoencoder"].read_bytes())
    image.parent.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    before = image.read_bytes()
    Path("link").symlink_to(checkpoint)
    predict = ["predict-folder", checkpoint, "in", "--device", "cpu"]
    for out in ([*predict, "--out", "in/../a.ckpt"], [*predict, "--out", image], [*predict, "--figures", "in"],
                ["export", checkpoint, "--format", "torch", "--out", "link"]):  # fmt: skip
        assert "is read by this command" in refused(capsys, *out)
    assert checkpoint.read_bytes() == checkpoints["autoencoder"].read_bytes()
    assert image.read_bytes() == before
    assert not Path("predictions.csv").exists()

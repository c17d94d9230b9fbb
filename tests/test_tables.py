"""From records and reported numbers to the summary, and from that to the terminal and the files."""

import json
import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from fake_records import of_classes, record
from rich.console import Console

from common.errors import InputError
from common.experiment import Experiment, Grid
from common.experiment.documents import MOST_CLASSES, latex, markdown, write_tables
from common.experiment.perform import publish_records
from common.experiment.published import RESULTS, apart, commands, published, reported, tabulate, unmeasured
from common.experiment.records import read_published, row_key
from common.experiment.table import COLUMNS, LONG, as_summary, bootstrap_interval, long, status, summarise
from common.experiment.terminal import show
from common.presets import REPOSITORY
from experiments import autoencoder, classical, ocgan
from experiments.report import declared

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
RECORDED = {path.stem for path in RESULTS.glob("*.jsonl")}


def numbers(*rows, table="T1"):
    columns = ["dataset", "protocol", "method", "normal", "metric", "value"]
    frame = pd.DataFrame(rows, columns=columns).assign(table=table)
    return frame.assign(source=frame["method"] + ", " + frame["table"])


NUMBERS = numbers(
    ("mnist", "standard", "DAE", "3", "auroc", 0.90), ("mnist", "standard", "DAE", "mean", "auroc", 0.95)
)  # fmt: skip
COMPARE = {"autoencoder-small": ["AE only", "DAE"]}


def experiment(*grids, compare=None, name="trial"):
    main, *also = grids or [Grid((), ())]
    return Experiment(name, "A trial", main, tuple(also), compare or {})


TRIAL = experiment()


def summary(records, reported=NUMBERS, compare=COMPARE, metrics=("auroc",)):
    return summarise(long(records), reported, compare, metrics)


def printed(table, labels=None):
    """What a terminal of 80 columns shows; nothing is cut off."""
    console = Console(width=80, record=True, force_terminal=False)
    show(table, console, labels)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    return text


@pytest.fixture
def records():
    """Two classes with three seeds, of a data set that has no others."""
    values = {"3": (0.90, 0.92, 0.94), "4": (0.80, 0.80, 0.80)}
    return [
        record(normal, seed, auroc, n_classes=2) for normal, of_class in values.items() for seed, auroc in enumerate(of_class)
    ]


def test_the_long_frame_has_every_value_of_every_record(records):
    one = record("3", 0, 0.9, "a-b,c=1", dataset="my/set.npz", metrics={"eer": 0.1, "f1_max": None}, classes=["Dress"])
    frame = long([one])
    assert list(frame) == list(LONG)
    assert dict(zip(frame["metric"], frame["value"], strict=True)) == {"auroc": 0.9, "eer": 0.1}
    assert frame[["name", "base", "dataset", "class_name"]].drop_duplicates().to_numpy().tolist() == [
        ["a-b,c=1", "a-b", "set", "Dress"]
    ]
    assert frame["chosen"].all()
    assert list(long([record("3", 0, 0.9, classes=["3 - three"])])["class_name"]) == [""]


def test_a_value_of_zero_is_a_value():
    """Of no false alarm in one seed and two in ten in the other the mean is one in ten; only None is no value."""
    records = [record("3", seed, None, metrics={"false_alarm_rate": rate}) for seed, rate in enumerate((0.0, 0.2))]
    table = summary(records, metrics=("auroc", "false_alarm_rate"))
    assert table[["metric", "mean", "n_seeds"]].to_numpy().tolist() == [["false_alarm_rate", 0.1, 2]]


def test_rows_of_classes_and_of_their_mean(records):
    table = summary(records).set_index("normal")
    assert list(summary(records)) == list(COLUMNS)
    assert table.loc["3", "mean"] == pytest.approx(0.92)
    assert table.loc["3", "std"] == pytest.approx(np.std([0.90, 0.92, 0.94], ddof=1))
    assert table.loc["4", "std"] == pytest.approx(0)
    assert table.loc["mean", "mean"] == pytest.approx(0.86)
    assert table.loc["mean", "std"] == pytest.approx(np.std([0.85, 0.86, 0.87], ddof=1))
    assert (table["n_seeds"] == 3).all()
    assert table["n_classes"].to_dict() == {"3": 1, "4": 1, "mean": 2}
    assert table.loc["3", "delta"] == pytest.approx(0.02)
    assert table.loc["3", "reference"] == "DAE, T1"
    assert table.loc["4", "reference"] == ""
    assert np.isnan(table.loc["4", "paper"])
    assert table.loc["mean", "status"] == "below"


def test_protocol_options_do_not_hide_the_reported_number(records):
    with_option = [{**r, "cell": {**r["cell"], "protocol": "standard,contamination=0.01"}} for r in records]
    assert summary(with_option).set_index("normal").loc["3", "paper"] == 0.90
    other = [{**r, "cell": {**r["cell"], "protocol": "balanced"}} for r in records]
    assert summary(other)["paper"].isna().all()


def test_mean_row_uses_seeds_that_all_classes_have(records):
    row = summary(records[:-1]).set_index("normal").loc["mean"]
    assert row["n_seeds"] == 2
    assert row["mean"] == pytest.approx(0.855)
    assert list(summary([records[0], record("4", 7, 0.5)])["normal"]) == ["3", "4"], "no seed in common, no mean"


def test_one_class_has_no_mean_row(records):
    assert list(summary(records[:3])["normal"]) == ["3"]


def test_metrics_that_are_missing_leave_no_row():
    table = summary([record("3", 0, None, metrics={"f1_max": 0.5})], metrics=("auroc", "f1_max"))
    assert list(table["metric"]) == ["f1_max"]
    assert summary([]).empty


def test_a_test_set_without_anomalies_has_its_false_alarms():
    table = tabulate(TRIAL, [record("3", 0, None, metrics={"false_alarm_rate": 0.1, "flagged": 5.0})])
    assert table[["metric", "mean"]].to_numpy().tolist() == [["false_alarm_rate", 0.1], ["flagged", 5.0]]
    assert "0.100 (1)" in printed(table)


def test_every_score_of_a_method_has_its_rows():
    two = record("3", 0, 0.9)
    two["metrics"]["discriminator"] = {"auroc": 0.7}
    assert set(summary([two])["score"]) == {"reconstruction", "discriminator"}


def test_a_mean_over_some_classes_says_which(records):
    some = [{**one, "n_classes": 10} for one in records]
    assert list(summary(some)["normal"]) == ["3", "4", "mean of 3, 4"]
    assert summary(of_classes(range(9), 2))["normal"].iloc[-1] == "mean of 9 classes"
    assert summary(of_classes(range(10), 2))["normal"].iloc[-1] == "mean"
    unknown = [{**one, "n_classes": None, "cell": {**one["cell"], "dataset": "my.npz"}} for one in records]
    assert summary(unknown)["normal"].iloc[-1] == "mean of 3, 4", "nobody says that these are all"


def test_a_mean_stands_beside_the_same_classes_or_beside_nothing(records):
    """The paper's mean over ten digits is not one over two of them."""
    some = [{**one, "n_classes": 10} for one in records]
    of_each = [("mnist", "standard", "DAE", k, "auroc", value) for k, value in (("3", 0.9), ("4", 0.7), ("5", 0.2))]
    beside = {
        "nothing": numbers(("mnist", "standard", "DAE", "mean", "auroc", 0.95)),
        "one of them": NUMBERS,
        "both": numbers(*of_each, ("mnist", "standard", "DAE", "mean", "auroc", 0.95)),
    }
    found = {name: summary(some, frame).set_index("normal").loc["mean of 3, 4"] for name, frame in beside.items()}
    assert np.isnan([found["nothing"]["paper"], found["one of them"]["paper"]]).all()
    assert found["both"]["paper"] == pytest.approx(0.8)
    assert found["both"]["delta"] == pytest.approx(0.06)
    assert found["both"]["reference"] == "DAE, T1"
    without_mean = summary(records, numbers(*of_each)).set_index("normal").loc["mean"]
    assert without_mean["paper"] == pytest.approx(0.8), "a paper that prints classes alone has a mean over the same"


def test_interval_is_stratified():
    low, high = bootstrap_interval([[0.5, 0.5, 0.5], [0.9, 0.9, 0.9]])
    assert (low, high) == pytest.approx((0.7, 0.7))
    low, high = bootstrap_interval([[0.90, 0.92, 0.94], [0.80, 0.82, 0.84]])
    assert 0.85 <= low < 0.87 < high <= 0.89
    assert all(np.isnan(bootstrap_interval([[0.9], [0.8, 0.9]])))
    assert bootstrap_interval([[0.1, 0.4]]) == bootstrap_interval([[0.1, 0.4]])


def test_each_class_is_resampled_at_its_own_number_of_seeds():
    """Two seeds that agree and a hundred that are 0 or 1: the mean's standard error is that of the hundred, 0.05, by two."""
    low, high = bootstrap_interval([[0.5, 0.5], [0.0, 1.0] * 50])
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.005)


def test_the_interval_of_a_mean_resamples_each_classs_own_seeds():
    """All that a class has, also where another lacks the seed; not the seeds' class means, which may cancel."""
    values = {"3": (0.90, 0.92, 0.94), "4": (0.84, 0.80)}
    records = [
        record(normal, seed, auroc, n_classes=2) for normal, of_class in values.items() for seed, auroc in enumerate(of_class)
    ]
    table = summary(records).set_index("normal")
    for normal, classes in (("3", [values["3"]]), ("4", [values["4"]]), ("mean", [*values.values()])):
        assert tuple(table.loc[normal, ["ci_low", "ci_high"]]) == pytest.approx(bootstrap_interval(classes))


def test_interval_covers_the_mean_of_seeds():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval(random.normal(0.9, 0.01, (10, 5)), resamples=500)
        inside += low <= 0.9 <= high
    assert 170 <= inside <= 199


@pytest.mark.parametrize(
    ("paper", "mean", "low", "high", "expected"),
    [
        (0.957, 0.957, 0.95, 0.96, "matches"),
        (0.95, 0.957, 0.95, 0.96, "matches"),
        (0.96, 0.957, 0.95, 0.96, "matches"),
        (0.957, 0.965, 0.964, 0.966, "close"),
        (0.957, 0.93, 0.92, 0.94, "below"),
        (0.957, 0.99, 0.98, 1.0, "above"),
        (0.957, 0.96, np.nan, np.nan, "close"),
        (np.nan, 0.96, 0.95, 0.97, ""),
    ],
)
def test_status(paper, mean, low, high, expected):
    assert status(paper, mean, low, high) == expected


VARIANT = "autoencoder-small,latent=4"


def variant(records, change):
    return [record(r["cell"]["normal"], r["cell"]["seed"], r["metrics"]["reconstruction"]["auroc"] + change(i), VARIANT)
            for i, r in enumerate(records)]  # fmt: skip


def test_a_variant_has_the_paired_difference_to_its_base(records):
    changes = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    table = summary([*records, *variant(records, lambda i: changes[i])]).set_index(["name", "normal"])
    row = table.loc[(VARIANT, "mean of 3, 4")]
    assert row["base"] == "autoencoder-small"
    assert row["base_delta"] == pytest.approx(0.035)
    assert (row["base_low"], row["base_high"]) == pytest.approx(bootstrap_interval([changes]))
    assert table.loc[(VARIANT, "3"), "base_delta"] == pytest.approx(0.02)
    assert table.xs("autoencoder-small")["base_delta"].isna().all()
    constant = summary([*records, *variant(records, lambda i: 0.01)]).iloc[-1]
    assert (constant["base_low"], constant["base_high"]) == pytest.approx((0.01, 0.01)), "seeds that vary together cancel"


def test_only_pairs_that_both_have_are_compared(records):
    fewer = variant(records, lambda i: 0.01)[:2]
    row = summary([*records, *fewer]).query("name == @VARIANT").iloc[0]
    assert row["base_delta"] == pytest.approx(0.01)
    one = summary([*records, fewer[0]]).query("name == @VARIANT").iloc[0]
    assert one["base_delta"] == pytest.approx(0.01)
    assert np.isnan(one["base_low"]), "one pair says nothing about spread"
    elsewhere = [{**r, "cell": {**r["cell"], "protocol": "balanced"}} for r in fewer]
    assert summary([*records, *elsewhere])["base_delta"].isna().all()
    other_score = [{**r, "metrics": {"another": r["metrics"]["reconstruction"]}} for r in fewer]
    assert summary([*records, *other_score])["base_delta"].isna().all()


def test_without_the_preset_itself_the_row_with_most_of_the_same_overrides_is_the_base():
    names = ["autoencoder-small,lr=1", "autoencoder-small,lr=1,latent=4", "autoencoder-small,latent=4,sigma=2,lr=1"]
    several = [one for k, name in enumerate(names) for one in of_classes("34", 2, name, 0.9 - k / 10)]
    table = summary(several)
    assert table.drop_duplicates("name").set_index("name")["base"].to_dict() == {
        names[0]: "autoencoder-small",
        names[1]: names[0],
        names[2]: names[1],
    }
    assert table.set_index("name")["base_delta"].dropna().to_numpy() == pytest.approx(-0.1)


def test_what_is_stale_is_marked_and_last_and_no_base(records):
    old = [{**one, "stale": "the code has changed"} for one in records]
    table = tabulate(TRIAL, [*old, *variant(records, lambda i: 0.01)])
    assert table["base_delta"].isna().all(), "a difference between two sources is nobody's"
    assert list(table["name"]) == [VARIANT] * 3 + ["autoencoder-small"] * 3
    assert set(table.loc[table["name"] == "autoencoder-small", "stale"]) == {"the code has changed"}
    for text in (printed(table), markdown(table, "A trial"), latex(table, "A trial")):
        assert "autoencoder-small (stale)" in text
        assert "latent=4 (stale)" not in text


def test_differences_to_the_base_stand_in_every_form(records):
    later = of_classes("34", 1, "classical-lof", n_classes=2)
    table = tabulate(TRIAL, [*variant(records, lambda i: (0.01, 0.03)[i % 2]), *later, *records])
    assert list(dict.fromkeys(table["name"])) == ["autoencoder-small", VARIANT, "classical-lof"], "beside its base"
    lines = [" ".join(line.split()) for line in printed(table).splitlines()]
    assert "Δ to autoencoder-small +0.020 +.013 to +.027" in lines
    assert "| +0.020 (+0.013 to +0.027) | autoencoder-small |" in markdown(table, "A trial")
    assert "& +0.020 (+0.013 to +0.027) &" in latex(table, "A trial")
    assert "base" not in markdown(table[table["name"] != VARIANT], "A trial")


def test_class_means_are_computed_where_a_paper_prints_none():
    table = reported("autoencoder")
    row = table[
        (table.method == "DCAE") & (table.dataset == "mnist") & (table.normal == "mean") & (table.table == "Ruff2018 T1")
    ]
    assert row["value"].item() == pytest.approx(0.8965, abs=5e-5)
    assert row["source"].item() == "DCAE, Ruff2018 T1"
    assert reported("no such paper").empty


def test_a_mean_is_computed_of_ten_classes_and_of_no_other_number(tmp_path, monkeypatch):
    """Not of three classes, nor of nine beside a mean that is printed."""
    classes = {"ten": range(10), "three": range(3), "nine": [*range(9), "mean"], "eleven": [*range(10), "mean"]}
    rows = [
        {"table": "T1", "page": 1, "dataset": "mnist", "protocol": "standard", "method": method, "normal": normal,
         "metric": "auroc", "value": 0.7 if normal == "mean" else normal / 10, "std": None}
        for method, of_method in classes.items() for normal in of_method
    ]  # fmt: skip
    (tmp_path / "experiments" / "reported").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(tmp_path / "experiments" / "reported" / "trial.csv", index=False)
    monkeypatch.setattr("common.experiment.published.REPOSITORY", tmp_path)
    means = reported("trial").query("normal == 'mean'")
    assert dict(zip(means["method"], means["value"], strict=True)) == {"ten": 0.45, "nine": 0.7, "eleven": 0.7}
    assert len(means) == 3


def test_classes_stand_beside_where_a_paper_prints_no_mean():
    printed_classes = numbers(*[("mnist", "standard", "DAE", normal, "auroc", 0.9) for normal in "34"])
    table = unmeasured(experiment(Grid(("autoencoder-small",), ("mnist",))), as_summary([]), printed_classes)
    assert table[["name", "normal"]].to_numpy().tolist() == [["DAE", "3"], ["DAE", "4"]]


def test_a_place_that_is_named_twice_has_the_first_ones_metrics():
    grids = [Grid(("autoencoder-small",), ("mnist",), metrics=metrics) for metrics in (("auroc",), ("eer",))]
    assert set(tabulate(experiment(*grids), [record("3", 0, 0.9, metrics={"eer": 0.1})])["metric"]) == {"auroc"}


def test_tables_fit_a_terminal():
    contaminated = [record("1", seed, 0.99, protocol="in_sample", metrics={"flagged": 7}) for seed in range(3)]
    flagged = Grid(("autoencoder-small",), ("mnist",), ("in_sample",), metrics=("auroc", "flagged"))
    table = pd.concat([summary(of_classes(range(10), 3)), tabulate(experiment(flagged), contaminated)])
    text = printed(table)
    for expected in ("autoencoder-small", "0.946 ± 0.001 (3)", "DAE, T1", ".950", "flagged"):
        assert expected in text


def test_a_class_with_a_plus_in_its_name_is_one_class():
    normals = {"good": ["good"], "b+d": ["b+d"], "good+b+d": ["good", "b+d"]}
    several = [record(name, 0, 0.5, dataset="mine", classes=classes, n_classes=2) for name, classes in normals.items()]
    head = next(line for line in printed(summary(several)).splitlines() if line.split()[-1:] == ["mean"])
    assert head.split() == ["b+d", "good", "mean"]


def test_ten_perfect_classes_with_names_fit_a_terminal():
    perfect = [record(str(k), seed, 1.0, classes=[FASHION[k]]) for k in range(10) for seed in (0, 1)]
    long_name = [{**one, "name": f"{VARIANT},widths=[4,8],trainer.max_epochs=50,corruption=gaussian"} for one in perfect]
    text = printed(summary([*perfect, *long_name]))
    assert text.count("1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00 1.00") == 2
    assert "0 T-shirt/top, 1 Trouser" in text
    page = markdown(summary(perfect), "A trial")
    assert "| 3 Dress |" in page


@pytest.mark.parametrize("n", [12, 100])
def test_of_many_classes_the_lowest_and_the_highest_are_named(n):
    values = [record(str(k), seed, 0.5 + k / 1000, n_classes=n, classes=[f"object {k}"]) for k in range(n) for seed in (0, 1)]
    text = printed(summary(values))
    last = f"{0.5 + (n - 1) / 1000:.3f}"[1:]
    mean = f"{0.5 + (n - 1) / 2000:.3f}"[1:]
    (line,) = [line.split() for line in text.splitlines() if "object 0" in line]
    assert line == ["autoencoder-small", ".500", "0", "object", "0", last, str(n - 1), "object", str(n - 1), mean]


def test_more_metrics_than_fit_stand_in_several_tables():
    metrics = {f"a_metric_of_a_long_name_{i}": 0.5 for i in range(7)}
    records = [record(str(k), 0, 0.9, metrics=metrics, n_classes=2) for k in range(2)]
    text = printed(summary(records, metrics=("auroc", *metrics)))
    assert all(name in text for name in metrics)


@pytest.mark.parametrize("declared", [classical.EXPERIMENT, autoencoder.EXPERIMENT], ids=lambda declared: declared.name)
def test_tables_of_classical_detectors_fit_a_terminal(declared):
    names = dict.fromkeys(place.name for place in declared.places)
    records = [one for name in names for one in of_classes(range(10), 3, name, score=name.partition("-")[2])]
    text = printed(tabulate(declared, records), declared.labels)
    assert all(name.partition("-")[2] in text for name in names)


def test_written_files_hold_the_table_and_its_command(records, tmp_path):
    table = tabulate(experiment(compare=COMPARE), records)
    paths = write_tables(table, TRIAL, tmp_path / "results")
    assert [path.name for path in paths] == ["trial.csv", "trial.md"]
    read = pd.read_csv(paths[0], dtype={"normal": str}, keep_default_na=False)
    assert list(read) == list(COLUMNS)
    assert len(read) == len(table)
    page = paths[1].read_text()
    assert page == markdown(table, "A trial")
    command = "python -m experiments.trial --presets autoencoder-small --datasets mnist --protocols standard --seeds 0 1 2"
    assert f"`{command}`" in page
    assert set(read["command"]) == {command}
    assert page.count("| autoencoder-small |") == 2, "its mean, and its classes in columns"
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"trial.csv", "trial.md"}


def test_rows_that_share_all_flags_share_a_command(records):
    others = of_classes("345", 1, "classical-lof", n_classes=2)
    more = {"rules": {"oracle": {"metrics": {}}}, "command": "oneclass fit --config x --trainer.max_epochs=2 --data.normal=3"}
    longer = of_classes("3", 1, "my/l1.yaml", **more)
    small = "python -m experiments.classical --presets classical-lof --datasets mnist --normal 3 --seeds 0 --image-size 32"
    resized = of_classes("3", 1, "classical-pca", command=small)
    made_by = commands("trial", [*records, *variant(records, lambda i: 0), *others, *longer, *resized])
    python = "python -m experiments.trial --presets"
    assert [*dict.fromkeys(made_by.values())] == [
        f"{python} autoencoder-small --datasets mnist --protocols standard --seeds 0 1 2",
        f"{python} autoencoder-small,latent=4 --datasets mnist --protocols standard --normal 3 4 --seeds 0 1 2",
        f"{python} classical-lof --datasets mnist --protocols standard --seeds 0",
        f"{python} my/l1.yaml --datasets mnist --protocols standard --normal 3 --seeds 0 --max-epochs 2 --oracle",
        f"{python} classical-pca --datasets mnist --protocols standard --normal 3 --seeds 0 --image-size 32",
    ]
    same = of_classes("34", 3, "alocc-paper", n_classes=2)
    assert len({*commands("trial", [*records, *same]).values()}) == 1
    assert "--presets autoencoder-small alocc-paper " in commands("trial", [*records, *same]).popitem()[1]


def test_a_page_shows_the_ends_of_many_classes():
    """Two lines of 30 classes: of each the mean, the lowest and the highest; the table has them all."""
    many = [
        record(str(k), 0, value(k), name, n_classes=30, classes=[f"obj{k + 1}"])
        for name, value in (("autoencoder-small", lambda k: 0.7 + k / 100), ("classical-lof", lambda k: 0.9 - k / 100))
        for k in range(30)
    ]
    table = tabulate(TRIAL, many)
    assert (table["n_classes"] == 1).sum() == 60
    lines = markdown(table, "A trial").splitlines()
    assert "| method | score | rule | seeds | lowest | highest | mean | by |" in lines
    assert [line.split(" | ")[4:7] for line in lines if line.endswith("| 1 |") and "(1)" not in line] == [
        ["0.700 (0 obj1)", "0.990 (29 obj30)", "0.845"],
        ["0.610 (29 obj30)", "0.900 (0 obj1)", "0.755"],
    ]
    few = markdown(tabulate(TRIAL, many[:MOST_CLASSES]), "A trial")
    assert "lowest" not in few
    heading = next(line for line in few.splitlines() if "0 obj1 |" in line)
    assert heading.count(" obj") == MOST_CLASSES


def test_of_many_equal_classes_one_is_both_the_lowest_and_the_highest():
    table = summary([record(str(k), 0, 1.0, n_classes=30, classes=[f"obj{k + 1}"]) for k in range(30)])
    assert table["paper"].notna().any(), "the paper's number stands beside them"
    assert "| 1.000 (0 obj1) | 1.000 (0 obj1) | 1.000 |" in markdown(table, "A trial")
    assert "1.00 0 obj1" in printed(table)
    assert latex(table, "A trial").count("0 obj1") == 2


def test_classes_stand_in_columns_with_the_papers_numbers_below(records):
    """Two of ten classes for one row, all that the data set has for the other, one class for the third."""
    few = [{**one, "n_classes": 10, "name": VARIANT} for one in records]
    lone = [record("3", 0, 0.6, "classical-lof", n_classes=2)]
    above, _, below = markdown(summary([*records, *few, *lone]), "A trial").partition("Each class as the normal one:")
    assert below.split("\n")[2:] == [
        "| method | score | rule | seeds | 3 | 4 | mean | by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| autoencoder-small | reconstruction | last | 3 | 0.920 | 0.800 | 0.860 |  |",
        "|  | reported: DAE, T1 |  |  | 0.900 |  | 0.950 |  |",
        f"| {VARIANT} | reconstruction | last | 3 | 0.920 | 0.800 |  |  |",  # its mean is not over all classes
        "",
    ]
    assert "| classical-lof | reconstruction | 3 |  | 0.600 (1) |" in above
    assert "| 4 |" not in above


def test_some_classes_have_a_page_where_a_paper_prints_means_alone():
    """The papers' means stand in lines without classes, and our own is over fewer classes."""
    some = of_classes("78", 2, "ocgan-tuned,mining_steps=null", value=0.5)
    table = tabulate(ocgan.EXPERIMENT, some)
    assert (table["normal"] == "mean").any(), "what others report"
    below = markdown(table, "A trial").partition("Each class as the normal one:")[2]
    assert below.split("\n")[2:6] == [
        "| method | score | rule | seeds | 7 | 8 | mean | by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| ocgan-tuned,mining_steps=null | reconstruction | last | 2 | 0.571 | 0.581 | 0.576 | 1 |",
        "",
    ]


@pytest.mark.parametrize("known", [each for each in declared() if each.name in RECORDED], ids=lambda each: each.name)
@pytest.mark.parametrize("ends", [[0], [0, -1]], ids=["one", "two"])
def test_a_few_classes_are_shown_in_every_form(known, ends):
    """Papers' means may stand where no mean of ours is, and may have fewer metrics; choices of classes may differ in size."""
    records = read_published(RESULTS / f"{known.name}.jsonl")
    normals = {row_key(each): {} for each in records}
    for each in records:
        normals[row_key(each)][each["cell"]["normal"]] = None
    few = {row: {list(those)[end] for end in ends} for row, those in normals.items()}
    table = tabulate(known, [each for each in records if each["cell"]["normal"] in few[row_key(each)]])
    for text in (markdown(table, "A trial"), latex(table, "A trial").replace(r"\_", "_").replace(", ", ",")):
        assert all(f" {name} " in text or f"\n{name} " in text for name in table["name"])
    assert "measured (seeds)" in printed(table, known.labels)


def test_a_page_names_no_more_than_four_presets_in_a_command(records):
    several = [of_classes("34", 1, f"autoencoder-small,latent={k}", n_classes=2) for k in range(5)]
    assert "--presets 'METHOD' --datasets" in markdown(tabulate(TRIAL, [one for row in several for one in row]), "A trial")
    page = markdown(tabulate(TRIAL, [one for row in several[:4] for one in row]), "A trial")
    assert "--presets autoencoder-small,latent=0 autoencoder-small,latent=1 " in page


def test_a_page_names_commands_and_their_commits(records):
    later = of_classes("34", 1, "classical-lof", git="0123456789ab-dirty", n_classes=2)
    page = markdown(tabulate(TRIAL, [*records, *later]), "A trial")
    assert "\n1. `python -m experiments.trial --presets autoencoder-small" in page
    assert "--seeds 0` (commit 0123456-dirty)\n" in page
    by = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in page.splitlines() if "-" in line[:20]}
    assert (by["autoencoder-small"], by["classical-lof"]) == ("1", "2")


def committed(folder, records):
    """A results folder with published records."""
    (folder / "trial.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


def test_records_of_a_runs_folder_replace_the_published_ones_of_their_cells_unless_they_are_stale(records, tmp_path):
    folder = committed(tmp_path, records)
    before = (folder / "trial.jsonl").read_bytes()
    new = record("3", 0, 0.5)
    means = published(TRIAL, [new], folder).set_index("normal")["mean"]
    assert means["3"] == pytest.approx((0.5 + 0.92 + 0.94) / 3), "a cell's published record gives way to a new one"
    assert means["4"] == published(TRIAL, folder=folder).set_index("normal").loc["4", "mean"]
    stale = published(TRIAL, [new | {"stale": "the code has changed"}], folder)
    pd.testing.assert_frame_equal(stale, published(TRIAL, folder=folder))
    assert (folder / "trial.jsonl").read_bytes() == before


def test_other_settings_make_a_variant_and_no_mean_of_both(records, tmp_path):
    """Of a runs folder; a trial of one epoch replaces no published cell, and trials of one and of nine epochs are two rows."""
    folder = committed(tmp_path, records)
    trial = record("3", 0, 0.5, command="oneclass fit --config autoencoder-small --trainer.max_epochs=1")
    table = published(TRIAL, [trial], folder)
    pd.testing.assert_frame_equal(table[table["name"] == "autoencoder-small"], published(TRIAL, folder=folder))
    variant = table[table["name"] == "autoencoder-small,trainer.max_epochs=1"].iloc[0]
    assert (variant["mean"], variant["base"], variant["base_delta"]) == (0.5, "autoencoder-small", pytest.approx(-0.4))
    assert "--presets autoencoder-small,trainer.max_epochs=1 --datasets mnist" in variant["command"]
    nine = record("4", 0, 0.7, command="oneclass fit --trainer.max_epochs 9")
    assert list(published(TRIAL, [trial, nine], tmp_path / "none")["name"]) == [
        "autoencoder-small", "autoencoder-small,trainer.max_epochs=9"
    ]  # fmt: skip
    assert [one["name"] for one in apart([nine, record("4", 1, 0.7)], [])] == [variant["name"][:-1] + "9", "autoencoder-small"]


def test_a_record_of_other_data_or_without_its_rows_setting_is_stale(tmp_path):
    made = record("3", 0, 0.9, command="python -m experiments.classical --image-size 32", identity={"data": "a"})
    same, whole = made | {"identity": {"data": "a"}}, made | {"command": "python -m experiments.classical"}
    other = made | {"identity": {"data": "b"}}
    assert [one["stale"] for one in apart([same, whole, other], [made])] == [
        "", "made without --image-size 32, unlike its row", "other data than its row's"
    ]  # fmt: skip


def test_records_of_other_settings_or_data_are_not_published_into_a_row(records, tmp_path, monkeypatch):
    of_data = [one | {"identity": {"data": "a"}} for one in records]
    monkeypatch.setattr("common.experiment.perform.RESULTS", committed(tmp_path, of_data))
    before = (tmp_path / "trial.jsonl").read_bytes()
    trial = of_data[0] | {"git": "a1", "command": "oneclass fit --trainer.max_epochs=1"}
    with pytest.raises(
        InputError, match=r"published with other settings: call this row autoencoder-small,trainer\.max_epochs=1"
    ):
        publish_records(TRIAL, [trial])
    with pytest.raises(InputError, match="autoencoder-small cannot be published: other data than its row's"):
        publish_records(TRIAL, [of_data[0] | {"git": "a1", "identity": {"data": "b"}}])
    assert (tmp_path / "trial.jsonl").read_bytes() == before
    assert publish_records(TRIAL, [of_data[0] | {"git": "a1"}]) == 1


def test_rows_are_in_the_experiments_order_and_those_of_no_place_come_last(records, tmp_path):
    declared = experiment(Grid(("autoencoder-paper", "autoencoder-small", "classical-lof"), ("mnist",)))
    made = [*of_classes("34", 1, "classical-lof"), *records]
    made += of_classes("34", 2, "autoencoder-other") + of_classes("34", 2, "autoencoder-paper")
    names = dict.fromkeys(published(declared, folder=committed(tmp_path, made))["name"])
    measured = [name for name in names if name.startswith(("autoencoder", "classical"))]
    assert measured == ["autoencoder-paper", "autoencoder-small", "classical-lof", "autoencoder-other"]


def test_places_are_in_the_experiments_order_those_without_a_measured_row_last(tmp_path):
    declared = experiment(Grid(("autoencoder-small",), ("cifar10",)), Grid(("autoencoder-small",), ("mnist", "digits")))
    made = [record("3", 0, 0.5, dataset=dataset) for dataset in ("digits", "mine", "mnist")]
    table = published(declared, folder=committed(tmp_path, made))
    assert list(table["dataset"]) == ["mnist", "digits", "mine"]
    unrun = experiment(Grid(("autoencoder-denoising",), ("cifar10", "mnist")), name="autoencoder", compare={"KDE": ["KDE"]})
    places = dict.fromkeys(tabulate(unrun, [record("3", 0, 0.5, dataset="mnist")])["dataset"])
    assert list(places) == ["mnist", "cifar10"]


@pytest.mark.parametrize("name", sorted(RECORDED - {"benchmark"}))
def test_committed_pages_are_made_of_committed_records(name):
    declared = import_module(f"experiments.{name}").EXPERIMENT
    assert markdown(published(declared), declared.title) == (RESULTS / f"{name}.md").read_text()


CHECKED = re.findall(
    r"^\| `(\w+)-(\w+)`, (.+) \| ([\d.]+) \| ([\d.]+)–([\d.]+) \| ([\d.]+) \| (yes|no)",
    (REPOSITORY / "docs" / "numbers.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("method", "preset", "score", "mean", "low", "high", "new", "inside"), CHECKED)
def test_the_check_of_the_intervals_is_of_the_records(method, preset, score, mean, low, high, new, inside):
    """docs/numbers.md compares seeds 0 to 2 of a row with its seeds 3 to 5."""
    names = {"squared error": "reconstruction", "D(R(X))": "discriminator_reconstruction"}
    row = (f"{method}-{preset}", "mnist", "standard")
    of_row = [each for each in read_published(RESULTS / f"{method}.jsonl") if row_key(each) == row]
    here = {"normal": "mean", "score": names.get(score, score.strip("`")), "rule": of_row[0]["rule"]}
    halves = []
    for seeds in ((0, 1, 2), (3, 4, 5)):
        table = summary([each for each in of_row if each["cell"]["seed"] in seeds])
        halves += table[(table[list(here)] == list(here.values())).all(axis=1)].to_dict("records")
    first, second = halves
    assert first["n_seeds"] == second["n_seeds"] == 3
    found = [f"{value:.4f}" for value in (first["mean"], first["ci_low"], first["ci_high"], second["mean"])]
    assert found == [mean, low, high, new]
    assert (first["ci_low"] <= second["mean"] <= first["ci_high"]) == (inside == "yes")


def test_what_is_said_of_a_second_machine_is_of_its_records():
    """docs/numbers.md says how far D(R(X)) of alocc-stable on CIFAR-10 depends on the machine."""
    files = (RESULTS / "alocc.jsonl", RESULTS / "second_machine" / "alocc.jsonl")
    values = []
    for path in files:
        frame = long(one for one in read_published(path) if row_key(one) == ("alocc-stable", "cifar10", "standard"))
        frame = frame[(frame["score"] == "discriminator_reconstruction") & (frame["metric"] == "auroc")]
        values.append(frame.pivot(index="seed", columns="normal", values="value"))
    first, second = values
    assert first.shape == second.shape == (3, 10)
    differences = (second - first).abs().to_numpy()
    inside = int(second.mean().between(first.min(), first.max()).sum())
    low, high = bootstrap_interval([first[normal] for normal in first])
    page = " ".join((REPOSITORY / "docs" / "numbers.md").read_text(encoding="utf-8").split())
    assert (differences > 0.0005).all()
    assert f"None of the 30 cells is the same: D(R(X)) differs by {differences.mean():.3f} on average." in page
    assert f"The mean of the classes, {second.mean().mean():.3f}, lies in the table's interval, {low:.3f}–{high:.3f};" in page
    assert f"range of its three seeds in {inside} of 10 classes" in page
    assert low < second.mean().mean() < high


def test_a_number_of_one_of_several_tables(records):
    two = pd.concat([NUMBERS, NUMBERS.assign(table="T2", source="DAE, T2", value=0.5)])
    compare = {"autoencoder-small": ["DAE, T2"]}
    table = summary(records, two, compare)
    assert table.set_index("normal").loc["3", ["paper", "reference"]].tolist() == [0.5, "DAE, T2"]
    beside = unmeasured(experiment(Grid(("autoencoder-small",), ("mnist",)), compare=compare), table, two)
    assert list(beside["reference"]) == ["DAE, T1"], "the other table's row stands by itself"


SEVERAL = numbers(
    *[("mnist", "standard", method, "mean", metric, value)
      for method, values in {"ALOCC D(R(X))": (0.97, 0.88), "ALOCC D(X)": (0.93, 0.82), "DRAE": (0.95, 0.73)}.items()
      for metric, value in zip(("f1_normal_10", "f1_normal_50"), values, strict=True)], table="F8"
)  # fmt: skip
SCORES = {"alocc-stable fake": ["ALOCC D(R(X))"], "alocc-stable real": ["ALOCC D(X)"], "alocc-paper fake": ["ALOCC D(R(X))"]}
METRICS = ("auroc", "f1_normal_10", "f1_normal_50")
STABLE = Grid(("alocc-stable",), ("mnist",), metrics=METRICS)
BOTH = experiment(replace(STABLE, presets=("alocc-stable", "alocc-paper")), compare=SCORES)


@pytest.fixture
def adversarial():
    """Two classes of two, two seeds, two scores, three rules."""

    def metrics(value):
        return {name: {"auroc": value, "f1_normal_10": value, "f1_normal_50": value - 0.1} for name in ("fake", "real")}

    rules = {"rho": {"metrics": metrics(0.8)}, "oracle": {"metrics": metrics(0.95)}}
    return [
        {**record(normal, seed, 0, "alocc-stable", score="fake", n_classes=2), "metrics": metrics(0.9), "rules": dict(rules)}
        for normal in "01" for seed in (0, 1)
    ]  # fmt: skip


def test_each_score_stands_beside_its_own_reported_number(adversarial):
    table = summary(adversarial, SEVERAL, SCORES, METRICS)
    rows = table[(table.normal == "mean") & (table.metric == "f1_normal_50") & (table.rule == "last")].set_index("score")
    assert rows["paper"].to_dict() == {"fake": 0.88, "real": 0.82}
    assert rows["mean"].to_dict() == pytest.approx({"fake": 0.8, "real": 0.8})


def test_other_rules_have_rows_where_epochs_were_compared(adversarial):
    assert set(summary(adversarial, SEVERAL, SCORES, METRICS)["rule"]) == {"last", "rho", "oracle"}
    frame = long(adversarial)
    assert frame.loc[frame["chosen"], ["rule", "score"]].drop_duplicates().to_numpy().tolist() == [["last", "fake"]]
    for one in adversarial:
        del one["rules"]["oracle"]
    assert set(summary(adversarial, SEVERAL, SCORES, METRICS)["rule"]) == {"last"}


def test_means_of_several_normal_classes_are_kept_apart():
    records = [
        record(normal, 0, auroc, n_classes=2) for normal, auroc in (("1", 0.9), ("2", 0.8), ("1+2+3", 0.7), ("4+5+6", 0.5))
    ]
    table = summary(records).set_index("normal")
    assert table.loc["mean", "mean"] == pytest.approx(0.85)
    assert table.loc["mean of 3", "mean"] == pytest.approx(0.6)


def test_random_choices_of_classes_are_a_papers_mean():
    records = [record(normal, 0, 0.5, dataset="caltech256", n_classes=256) for normal in ("3", "77", "200")]
    assert summary(records)["normal"].iloc[-1] == "mean"
    assert summary(records[:2])["normal"].iloc[-1] == "mean of 3, 77"


def test_what_was_not_measured_is_said(adversarial):
    table = summary(adversarial, SEVERAL, SCORES, METRICS)
    beside = unmeasured(BOTH, table, SEVERAL)
    assert list(beside) == list(COLUMNS)
    assert (beside["n_seeds"] == 0).all()
    kinds = beside.groupby("status")["name"].unique().map(list).to_dict()
    assert kinds == {"reported": ["DRAE"], "not run": ["alocc-paper"]}
    assert list(beside.loc[beside["status"] == "not run", "paper"]) == [0.97, 0.88]
    single = unmeasured(experiment(replace(STABLE, normal=("0",)), compare=SCORES), table, SEVERAL)
    assert single.empty, "beside one class no mean stands"


def test_a_method_without_all_classes_is_still_to_run(adversarial):
    part = [{**one, "n_classes": 3} for one in adversarial]
    for some in (part, part[:2]):
        table = summary(some, SEVERAL, SCORES, METRICS)
        assert "mean" not in set(table["normal"])
        beside = unmeasured(experiment(STABLE, compare=SCORES), table, SEVERAL)
        assert set(beside.loc[beside["name"] == "alocc-stable", "status"]) == {"not run"}


def test_many_metrics_stand_in_one_table(adversarial):
    table = summary(adversarial, SEVERAL, SCORES, METRICS).assign(command="python -m experiments.trial")
    table = pd.concat([table, unmeasured(BOTH, table, SEVERAL)], ignore_index=True)
    text = printed(table, {"fake": "D(R(X))", "real": "D(X)", "f1_normal_10": "F1 10%", "f1_normal_50": "F1 50%"})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    ours = ("D(R(X)) last .900 .900 .800", "D(R(X)) oracle .950 .950 .850")
    theirs = ("ALOCC D(X) .930 .820", "DRAE .950 .730", "alocc-paper (not run) .970 .880")
    for expected in (*ours, *theirs):
        assert expected in lines
    page = markdown(table, "A trial")
    assert "| alocc-stable | fake | last | 2 | 0.900 ± 0.000 | 0.900 ± 0.000 | 0.800 ± 0.000 |" in page
    assert "| alocc-paper fake | not run: ALOCC D(R(X)), F8 |  |  |  | 0.970 | 0.880 |" in page


def test_a_method_that_two_sources_report_stands_twice():
    rows = [
        {"name": "KDE", "metric": metric, "paper": value, "reference": f"KDE, T{i}", "dataset": "mnist", "protocol": "standard",
         "normal": "mean", "status": "reported"}
        for i, value in ((1, 0.8), (2, 0.9)) for metric in "abc"
    ]  # fmt: skip
    text = markdown(as_summary(rows), "A trial")
    assert "| KDE | reported: KDE, T1 |  |  | 0.800 | 0.800 | 0.800 |" in text
    assert "reported: KDE, T2 |  |  | 0.900 | 0.900 | 0.900 |" in text


def test_class_names_of_any_characters_in_every_form():
    names = ["c++", "a+b", "a^b", "$x_1$", "m|n", "50%&#"]
    records = [record(name, 0, 0.5 + i / 10, classes=[name], n_classes=len(names)) for i, name in enumerate(names)]
    pair = record("c+++a^b", 0, 0.7, classes=["c++", "a^b"], n_classes=len(names))
    table = summary([*records, pair]).set_index("normal")
    assert table["n_classes"].to_dict() == {**dict.fromkeys([*names, "c+++a^b"], 1), "mean": 6}
    assert table.loc["mean", "mean"] == pytest.approx(0.75)
    table = table.reset_index()
    shown = printed(table[table["normal"] != "c+++a^b"])
    assert all(name in shown for name in names if name != "a+b")
    heading, _, row, _ = markdown(table, "A trial").splitlines()[-4:]
    assert heading.replace(r"\|", "").count("|") == row.count("|") == len([*names, pair, "mean"]) + 6
    assert r"| m\|n |" in heading
    text = latex(table, "A trial")
    assert r"\$x\_1\$" in text
    assert r"50\%\&\#" in text

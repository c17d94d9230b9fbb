from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from common.errors import InputError
from common.experiment import Cell
from common.experiment.command import split_name
from common.experiment.presentation import add, markdown, merged, show, write
from common.experiment.report import COLUMNS, bootstrap_interval, only_reported, reported, status, tabulate
from experiments import autoencoder, classical

ROOT = Path(__file__).parents[1]
NUMBERS = pd.DataFrame(
    [("T1", "mnist", "standard", "DAE", "3", "auroc", 0.90), ("T1", "mnist", "standard", "DAE", "mean", "auroc", 0.95)],
    columns=["table", "dataset", "protocol", "method", "normal", "metric", "value"],
)


def record(normal, seed, auroc, method="autoencoder", preset="small", protocol="standard", score="reconstruction", **metrics):
    cell = {"method": method, "preset": preset, "dataset": "mnist", "protocol": protocol, "normal": normal, "seed": seed}
    return {"cell": cell, "rule": "last", "score": score, "metrics": {score: {"auroc": auroc, **metrics}}, "also": {}}


@pytest.fixture
def records():
    values = {"3": (0.90, 0.92, 0.94), "4": (0.80, 0.80, 0.80)}
    return [record(normal, seed, auroc) for normal, of_class in values.items() for seed, auroc in enumerate(of_class)]


def test_rows_of_classes_and_of_their_mean(records):
    table = tabulate(records, NUMBERS, {"autoencoder-small": ["AE only", "DAE"]}).set_index("normal")
    assert list(tabulate(records, NUMBERS, {})) == list(COLUMNS)
    assert table.loc["3", "mean"] == pytest.approx(0.92)
    assert table.loc["3", "std"] == pytest.approx(np.std([0.90, 0.92, 0.94], ddof=1))
    assert table.loc["4", "std"] == pytest.approx(0)
    assert table.loc["mean", "mean"] == pytest.approx(0.86)
    assert table.loc["mean", "std"] == pytest.approx(np.std([0.85, 0.86, 0.87], ddof=1))
    assert (table["n_seeds"] == 3).all()
    assert table.loc["3", "delta"] == pytest.approx(0.02)
    assert table.loc["3", "reference"] == "DAE, T1"
    assert table.loc["4", "reference"] == ""
    assert np.isnan(table.loc["4", "paper"])
    assert table.loc["mean", "status"] == "below"


def test_protocol_options_do_not_hide_the_reported_number(records):
    with_option = [{**r, "cell": {**r["cell"], "protocol": "standard,contamination=0.01"}} for r in records]
    table = tabulate(with_option, NUMBERS, {"autoencoder-small": ["DAE"]})
    assert table.set_index("normal").loc["3", "paper"] == 0.90
    other = [{**r, "cell": {**r["cell"], "protocol": "balanced"}} for r in records]
    assert tabulate(other, NUMBERS, {"autoencoder-small": ["DAE"]})["paper"].isna().all()


def test_mean_row_uses_seeds_that_all_classes_have(records):
    row = tabulate(records[:-1], NUMBERS, {}).set_index("normal").loc["mean"]
    assert row["n_seeds"] == 2
    assert row["mean"] == pytest.approx(0.855)


def test_one_class_has_no_mean_row(records):
    assert list(tabulate(records[:3], NUMBERS, {})["normal"]) == ["3"]


def test_metrics_that_are_missing_leave_no_row():
    table = tabulate([record("3", 0, None, f1_max=0.5)], NUMBERS, {}, metrics=("auroc", "f1_max"))
    assert list(table["metric"]) == ["f1_max"]
    assert tabulate([], NUMBERS, {}).empty


def test_every_score_of_a_method_has_its_rows():
    two = record("3", 0, 0.9)
    two["metrics"]["discriminator"] = {"auroc": 0.7}
    assert set(tabulate([two], NUMBERS, {})["score"]) == {"reconstruction", "discriminator"}


def test_interval_is_stratified():
    low, high = bootstrap_interval([[0.5, 0.5, 0.5], [0.9, 0.9, 0.9]])
    assert (low, high) == pytest.approx((0.7, 0.7))
    low, high = bootstrap_interval([[0.90, 0.92, 0.94], [0.80, 0.82, 0.84]])
    assert 0.85 <= low < 0.87 < high <= 0.89
    assert all(np.isnan(bootstrap_interval([[0.9], [0.8, 0.9]])))
    assert bootstrap_interval([[0.1, 0.4]]) == bootstrap_interval([[0.1, 0.4]])


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
        (0.957, 0.965, 0.964, 0.966, "close"),
        (0.957, 0.93, 0.92, 0.94, "below"),
        (0.957, 0.99, 0.98, 1.0, "above"),
        (0.957, 0.96, np.nan, np.nan, "close"),
        (np.nan, 0.96, 0.95, 0.97, ""),
    ],
)
def test_status(paper, mean, low, high, expected):
    assert status(paper, mean, low, high) == expected


def test_class_means_are_computed_where_a_paper_prints_none():
    table = reported("autoencoder")
    row = table[
        (table.method == "DCAE") & (table.dataset == "mnist") & (table.normal == "mean") & (table.table == "Ruff2018 T1")
    ]
    assert row["value"].item() == pytest.approx(0.8965, abs=5e-5)
    assert reported("no such paper").empty


def test_tables_fit_a_terminal(records):
    classes = [record(str(k), seed, 0.9 + seed / 100) for k in range(10) for seed in range(3)]
    contaminated = [record("1", seed, 0.99, protocol="in_sample", flagged=7) for seed in range(3)]
    numbers = NUMBERS.assign(dataset="mnist")
    table = pd.concat(
        [
            tabulate(classes, numbers, {"autoencoder-small": ["DAE"]}),
            tabulate(contaminated, numbers, {}, ("auroc", "flagged")),
        ]
    )
    console = Console(width=80, record=True, force_terminal=False)
    show(table, console)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("autoencoder-small", "0.910 ± 0.010 (3)", "DAE, T1", ".950", "flagged"):
        assert expected in text


@pytest.mark.parametrize("experiment", [classical.EXPERIMENT, autoencoder.EXPERIMENT], ids=lambda declared: declared.name)
def test_tables_of_classical_detectors_fit_a_terminal(experiment):
    names = [split_name(preset, experiment.name) for preset in experiment.main.presets]
    records = [
        record(str(k), seed, 0.9 + seed / 100, method, preset, score=preset)
        for method, preset in names for k in range(10) for seed in range(3)
    ]  # fmt: skip
    numbers = reported(experiment.name)
    table = tabulate(records, numbers, experiment.compare)
    beside = only_reported(table, [("classical-ocsvm", "mnist", "standard")], numbers, experiment.compare, ("auroc",))
    console = Console(width=80, record=True, force_terminal=False)
    show(pd.concat([table, beside]), console, experiment.labels)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert all(preset in text for _, preset in names)


def test_written_files_hold_the_table_and_its_command(records, tmp_path):
    table = tabulate(records, NUMBERS, {"autoencoder-small": ["DAE"]})
    paths = write(table, tmp_path / "results", "trial", "A trial", "python -m experiments.trial")
    assert [path.name for path in paths] == ["trial.csv", "trial.md"]
    read = pd.read_csv(paths[0], dtype={"normal": str}, keep_default_na=False)
    assert list(read) == list(COLUMNS)
    assert len(read) == len(table)
    page = paths[1].read_text()
    assert page == markdown(table.assign(command="python -m experiments.trial"), "A trial")
    assert "`python -m experiments.trial`" in page
    assert page.count("autoencoder-small") == 3
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"trial.csv", "trial.md"}


def added(records, folder, command, wanted=()):
    """What a command adds to a folder, read again; other normal classes than 3 and 4 are not reported."""
    compare = {f"autoencoder-{name}": ["DAE"] for name in ("small", "large")}
    table = tabulate(records, NUMBERS, compare)
    beside = only_reported(table, [(name, "mnist", "standard") for name in wanted], NUMBERS, compare, ("auroc",))
    table = pd.concat([part for part in (table, beside) if len(part)], ignore_index=True)
    paths = add(table, folder, "trial", "A trial", command)
    return pd.read_csv(paths[0], dtype={"normal": str}, keep_default_na=False), paths[1].read_text()


def test_rows_of_earlier_commands_are_kept(records, tmp_path):
    first, page = added(records, tmp_path, "one")
    assert list(first) == [*COLUMNS, "command"]
    assert "Written by `one`" in page
    assert "| by |" not in page
    of_lof = [record(normal, 0, 0.97, "classical", "lof", score="lof") for normal in "34"]
    second, page = added(of_lof, tmp_path, "two --presets classical-lof")
    assert second[second["command"] == "one"].to_csv() == first.to_csv(), "to the last digit, in their order"
    assert list(second["preset"]) == ["small"] * 3 + ["lof"] * 3
    assert "\n1. `one`\n2. `two --presets classical-lof`\n" in page
    by = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in page.splitlines() if "-" in line[:20]}
    assert by["autoencoder-small"] == "1"
    assert by["classical-lof"] == "2"
    again, same = added(of_lof, tmp_path, "two --presets classical-lof")
    assert (again.to_csv(), same) == (second.to_csv(), page)


def test_a_method_is_replaced_with_all_its_classes_and_their_mean(records, tmp_path):
    added(records, tmp_path, "one")
    table, page = added([record("3", 7, 0.5)], tmp_path, "two")
    assert list(table["normal"]) == ["3"], "a mean of two sittings is nobody's"
    assert list(table["command"]) == ["two"]
    assert "one" not in page.split("`")


def test_another_score_metric_or_rule_is_another_block(records, tmp_path):
    added(records, tmp_path, "one")
    other = [{**one, "rule": "validation"} for one in records]
    table, _ = added(other, tmp_path, "two")
    assert table.groupby("rule")["command"].unique().map(list).to_dict() == {"last": ["one"], "validation": ["two"]}


def test_what_an_earlier_command_measured_is_not_called_not_run(records, tmp_path):
    table, _ = added(records, tmp_path, "one", wanted=["autoencoder-small", "autoencoder-large"])
    assert list(table[table["status"] == "not run"]["preset"]) == ["large"]
    larger = [record(normal, 0, 0.9, preset="large") for normal in "34"]
    table, _ = added(larger, tmp_path, "two", wanted=["autoencoder-small", "autoencoder-large"])
    assert "not run" not in set(table["status"])
    assert list(table["n_seeds"]) == [3, 3, 3, 1, 1, 1]


def test_reported_rows_are_not_doubled(records):
    numbers = NUMBERS.assign(method="others")
    beside = only_reported(
        tabulate(records, numbers, {}), [("autoencoder-small", "mnist", "standard")], numbers, {}, ("auroc",)
    )
    table = beside.assign(command="one")
    assert len(merged(table, table.assign(command="two"))) == len(table) == 1


def test_a_file_that_is_no_table_is_named_and_left(records, tmp_path):
    (tmp_path / "trial.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"trial\.csv is no result table .*: move it away, or give another --out"):
        added(records, tmp_path, "one")
    assert (tmp_path / "trial.csv").read_text() == "a,b\n1,2\n"


TABLES = sorted({*(ROOT / "experiments" / "results").glob("*.csv")} - {ROOT / "experiments" / "results" / "false_alarms.csv"})


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_committed_pages_are_those_of_their_tables(path, tmp_path):
    page = path.with_suffix(".md").read_text()
    (tmp_path / path.name).write_text(path.read_text())
    nothing = pd.DataFrame(columns=list(COLUMNS))
    written = add(nothing, tmp_path, path.stem, page.splitlines()[0].removeprefix("# "), "none")
    assert sorted(written[0].read_text().splitlines()) == sorted(path.read_text().splitlines())
    assert sorted(written[1].read_text().splitlines()) == sorted(page.splitlines())


def test_a_number_of_one_of_several_tables(records):
    numbers = pd.concat([NUMBERS, NUMBERS.assign(table="T2", value=0.5)])
    table = tabulate(records, numbers, {"autoencoder-small": ["DAE, T2"]}).set_index("normal")
    assert table.loc["3", ["paper", "reference"]].tolist() == [0.5, "DAE, T2"]
    beside = only_reported(table.reset_index(), [("autoencoder-small", "mnist", "standard")], numbers,
                           {"autoencoder-small": ["DAE, T2"]}, ("auroc",))  # fmt: skip
    assert list(beside["reference"]) == ["DAE, T1"], "the other table's row stands by itself"


SEVERAL = pd.DataFrame(
    [("F8", "mnist", "standard", method, "mean", metric, value)
     for method, values in {"ALOCC D(R(X))": (0.97, 0.88), "ALOCC D(X)": (0.93, 0.82), "DRAE": (0.95, 0.73)}.items()
     for metric, value in zip(("f1_normal_10", "f1_normal_50"), values, strict=True)],
    columns=["table", "dataset", "protocol", "method", "normal", "metric", "value"],
)  # fmt: skip
COMPARE = {"alocc-stable fake": ["ALOCC D(R(X))"], "alocc-stable real": ["ALOCC D(X)"], "alocc-paper fake": ["ALOCC D(R(X))"]}
METRICS = ("auroc", "f1_normal_10", "f1_normal_50")


@pytest.fixture
def adversarial():
    """Two classes, two seeds, two scores, three rules."""

    def metrics(value):
        return {name: {"auroc": value, "f1_normal_10": value, "f1_normal_50": value - 0.1} for name in ("fake", "real")}

    records = [record(normal, seed, 0, "alocc", "stable", score="fake") for normal in "01" for seed in (0, 1)]
    return [
        {**one, "metrics": metrics(0.9), "also": {"rho": {"metrics": metrics(0.8)}, "oracle": {"metrics": metrics(0.95)}}}
        for one in records
    ]  # fmt: skip


def test_each_score_stands_beside_its_own_reported_number(adversarial):
    table = tabulate(adversarial, SEVERAL, COMPARE, METRICS)
    rows = table[(table.normal == "mean") & (table.metric == "f1_normal_50") & (table.rule == "last")].set_index("score")
    assert rows["paper"].to_dict() == {"fake": 0.88, "real": 0.82}
    assert rows["mean"].to_dict() == pytest.approx({"fake": 0.8, "real": 0.8})


def test_other_rules_have_rows_where_epochs_were_compared(adversarial):
    table = tabulate(adversarial, SEVERAL, COMPARE, METRICS)
    assert set(table["rule"]) == {"last", "rho", "oracle"}
    for one in adversarial:
        del one["also"]["oracle"]
    assert set(tabulate(adversarial, SEVERAL, COMPARE, METRICS)["rule"]) == {"last"}


def test_means_of_several_normal_classes_are_kept_apart():
    records = [record(normal, 0, auroc) for normal, auroc in (("1", 0.9), ("2", 0.8), ("1+2+3", 0.7), ("4+5+6", 0.5))]
    table = tabulate(records, NUMBERS, {}).set_index("normal")
    assert table.loc["mean", "mean"] == pytest.approx(0.85)
    assert table.loc["mean of 3", "mean"] == pytest.approx(0.6)


def test_what_was_not_measured_is_said(adversarial):
    table = tabulate(adversarial, SEVERAL, COMPARE, METRICS)
    wanted = [("alocc-stable", "mnist", "standard"), ("alocc-paper", "mnist", "standard")]
    beside = only_reported(table, wanted, SEVERAL, COMPARE, METRICS)
    assert list(beside) == list(COLUMNS)
    assert (beside["n_seeds"] == 0).all()
    kinds = beside.groupby("status")["method"].unique().map(list).to_dict()
    assert kinds == {"reported": ["DRAE"], "not run": ["alocc"]}
    absent = beside[beside["status"] == "not run"]
    assert set(absent["preset"]) == {"paper"}
    assert list(absent["paper"]) == [0.97, 0.88]


def test_many_metrics_stand_in_one_table(adversarial):
    table = tabulate(adversarial, SEVERAL, COMPARE, METRICS)
    wanted = [("alocc-stable", "mnist", "standard"), ("alocc-paper", "mnist", "standard")]
    table = pd.concat([table, only_reported(table, wanted, SEVERAL, COMPARE, METRICS)], ignore_index=True)
    console = Console(width=80, record=True, force_terminal=False)
    show(table, console, {"fake": "D(R(X))", "real": "D(X)", "f1_normal_10": "F1 10%", "f1_normal_50": "F1 50%"})
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in text.splitlines()]
    ours = ("D(R(X)) last .900 .900 .800", "D(R(X)) oracle .950 .950 .850")
    theirs = ("ALOCC D(X) .930 .820", "DRAE .950 .730", "alocc-paper (not run) .970 .880")
    for expected in (*ours, *theirs):
        assert expected in lines
    page = markdown(table.assign(command="python -m experiments.trial"), "A trial")
    assert "| alocc-stable | fake | last | 2 | 0.900 ± 0.000 | 0.900 ± 0.000 | 0.800 ± 0.000 |" in page
    assert "| alocc-paper fake | not run: ALOCC D(R(X)), F8 |  |  |  | 0.970 | 0.880 |" in page


def test_no_mean_while_a_class_is_missing(adversarial):
    cells = [Cell(**one["cell"]) for one in adversarial] + [Cell("alocc", "stable", "mnist", "standard", "2", 0)]
    part = tabulate(adversarial, SEVERAL, COMPARE, METRICS, cells)
    assert set(part["normal"]) == {"0", "1"}
    assert "mean" in set(tabulate(adversarial, SEVERAL, COMPARE, METRICS, cells[:-1])["normal"])
    for some in (part, part[part["normal"] == "0"]):
        beside = only_reported(some, [("alocc-stable", "mnist", "standard")], SEVERAL, COMPARE, METRICS)
        assert set(beside.loc[beside["method"] == "alocc", "status"]) == {"not run"}

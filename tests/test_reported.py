"""The reported numbers are well formed and agree with themselves."""

from pathlib import Path

import pandas as pd
import pytest

REPORTED = Path(__file__).resolve().parents[1] / "experiments" / "reported"
FILES = sorted(REPORTED.glob("*.csv"))
HEADER = "table,page,dataset,protocol,method,normal,metric,value,std"
KEY = ["table", "dataset", "protocol", "method", "normal", "metric"]
ROW = [column for column in KEY if column != "normal"]  # one row of a printed table
TEN_CLASSES = {"digits", "mnist", "fashion_mnist", "cifar10"}
ROUNDING = 6e-4  # cells printed with three decimals, and a mean with three or four


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """One file of reported numbers."""
    param: Path = request.param
    return param


@pytest.fixture
def reported(path: Path) -> pd.DataFrame:
    """The file's rows: text as written, `value` and `std` as numbers."""
    # Only an empty field is missing, so that no method's name is read as NaN.
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame["value"] = pd.to_numeric(frame["value"])
    frame["std"] = pd.to_numeric(frame["std"].replace("", None))
    return frame


def test_there_are_reported_numbers() -> None:
    # An empty parameter list would skip everything below without a word.
    assert FILES, f"no CSV under {REPORTED}"


def test_header(path: Path) -> None:
    assert path.read_text(encoding="utf-8").splitlines()[0] == HEADER


def test_every_cell_is_filled(reported: pd.DataFrame) -> None:
    assert len(reported) > 0
    assert (reported[KEY] != "").all(axis=None)
    assert reported["value"].notna().all()
    for column in KEY:
        assert (reported[column] == reported[column].str.strip()).all(), column
    assert reported["page"].str.fullmatch(r"\d*").all()
    assert reported["normal"].str.fullmatch(r"\d+|mean( of \d+)?").all()


def test_auroc_is_a_fraction(reported: pd.DataFrame) -> None:
    # Percentages forgotten in a column would show here.
    auroc = reported[reported["metric"] == "auroc"]
    assert auroc["value"].between(0, 1).all()
    assert auroc["std"].dropna().between(0, 1).all()


def test_no_duplicate_keys(reported: pd.DataFrame) -> None:
    duplicates = reported[reported.duplicated(KEY, keep=False)]
    assert duplicates.empty, f"reported more than once:\n{duplicates.to_string()}"


def test_ten_classes(reported: pd.DataFrame) -> None:
    auroc = reported[reported["metric"] == "auroc"]
    cells = auroc[auroc["dataset"].isin(TEN_CLASSES) & (auroc["normal"] != "mean")]
    for row, group in cells.groupby(ROW):
        assert set(group["normal"]) == set(map(str, range(10))), row


def test_printed_means(reported: pd.DataFrame) -> None:
    is_mean = reported["normal"] == "mean"
    is_class = reported["normal"].str.fullmatch(r"\d+")
    printed = reported[is_mean].set_index(ROW)["value"]
    computed = reported[is_class].groupby(ROW)["value"].mean()
    both = pd.concat({"printed": printed, "computed": computed}, axis=1).dropna()
    off = both[(both["printed"] - both["computed"]).abs() > ROUNDING]
    assert off.empty, f"printed means disagree with their classes:\n{off.to_string()}"


def test_a_row_is_the_same_in_all_files() -> None:
    everything = pd.concat(pd.read_csv(path, dtype=str, keep_default_na=False) for path in FILES)
    differing = everything.drop_duplicates().loc[lambda rows: rows.duplicated(KEY, keep=False)]
    assert differing.empty, f"reported differently:\n{differing.to_string()}"


def test_every_source_is_explained() -> None:
    text = (REPORTED / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        for table in pd.read_csv(path, dtype=str)["table"].unique():
            assert table.split(" ")[0] in text, table

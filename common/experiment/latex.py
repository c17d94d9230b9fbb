"""The result table as LaTeX."""

import re

import pandas as pd

from common.experiment.presentation import means_first, readable

PACKAGES = r"\usepackage{booktabs,longtable,array}"
_FORMAT = r">{\raggedright\arraybackslash}p{0.19\linewidth}llllrrr>{\raggedright\arraybackslash}p{0.2\linewidth}"


def latex(table: pd.DataFrame, title: str) -> str:
    r"""The table as a fragment to ``\input``, in booktabs' rules; the preamble needs :data:`PACKAGES`.

    One table for each data set, protocol and metric, class means first; where there are more than two metrics, the classes
    stand only with the first. A row that is not measured says so in place of a number.

    Args:
        table: As :func:`common.experiment.report.tabulate` gives it, with a column ``command``.
        title: For the comment on top, which names the commands too.

    Example:
        >>> from common.experiment.report import COLUMNS
        >>> row = dict.fromkeys(COLUMNS, "") | {"method": "DAE", "dataset": "mnist", "normal": "mean", "metric": "f1_max"}
        >>> row |= dict.fromkeys(("mean", "std", "delta", "ci_low", "ci_high"), float("nan"))
        >>> print(latex(pd.DataFrame([{**row, "paper": 0.9, "n_seeds": 0, "status": "reported", "command": "one"}]), "A trial"))
        ... # doctest: +ELLIPSIS
        % A trial; needs \usepackage{booktabs,longtable,array}
        ...
        DAE &  & mean &  & 0.900 & reported &  &  &  \\
        ...
    """
    comments = [f"{title}; needs {PACKAGES}", *(f"made by: {command}" for command in dict.fromkeys(table["command"]))]
    parts = ["".join(f"% {comment}\n" for comment in comments)]
    parts.append("\\begingroup\\footnotesize\\setlength{\\tabcolsep}{3pt}\\setlength{\\LTcapwidth}{\\linewidth}\n")
    for (dataset, protocol), group in table.groupby(["dataset", "protocol"], sort=False):
        metrics = list(dict.fromkeys(group["metric"]))
        is_mean = group["normal"].str.startswith("mean")
        several = is_mean.any() and len(metrics) > 2
        for metric in metrics:
            rows = group[(group["metric"] == metric) & (is_mean | (not several or metric == metrics[0]))]
            if len(rows):
                parts.append(_longtable(means_first(rows), (str(dataset), str(protocol), str(metric)), title))
    return "".join([*parts, "\\endgroup\n"])


def _longtable(rows: pd.DataFrame, place: tuple[str, str, str], title: str) -> str:
    shown = readable(rows)
    ours = rows["n_seeds"] > 0
    columns = {
        "method": shown["method"].str.replace(",", ", "),  # may be broken there
        "score": shown["score"],
        "normal": shown["normal"],
        "rule": shown["rule"],
        "paper": shown["paper"],
        "ours": shown["measured (seeds)"].str.replace(r" \(\d+\)", "", regex=True).where(ours, shown["status"]),
        "$n$": rows["n_seeds"].astype(str).where(ours, ""),
        r"$\Delta$": shown["Δ"],
        "whose number": shown["reference"],
    }
    caption = f"{title}: {', '.join(place)}; mean ± standard deviation over $n$ seeds".replace("_", r"\_")
    text: str = (
        pd.DataFrame(columns)
        .style.hide(axis="index")
        .format(escape="latex")
        .to_latex(
            environment="longtable",
            hrules=True,
            column_format=_FORMAT,
            caption=caption,
            label="tab:" + re.sub(r"[^a-z0-9]+", "-", " ".join((title, *place)).lower()),
        )
    )
    return text.replace("±", r"$\pm$").replace("& -", "& $-$") + "\n"

"""The tables and the picture of the comparison with PyTorch, from its results alone."""

from pathlib import Path

import rich.box
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from rich.console import Console
from rich.table import Table


def show(results: dict, console: Console) -> None:
    found = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    console.print(f"{results['machine']}; {found}\n")
    console.print(parity_table(results), losses_table(results), speed_table(results))
    for line in results["missed"]:
        console.print(f"[red]parity missed: {line}")


def parity_table(results: dict) -> Table:
    parity, to_formula = results["parity"], results["reference_to_formula"]
    title = "Largest relative difference from pytorch_reference; of each weight, its gradient's"
    table = make_table(title, "", *parity)
    if to_formula:
        table.add_column("reference to\nformula", justify="right")
    for what in next(iter(parity.values())):
        cells = [f"{row[what]:.1e}" for row in parity.values()]
        table.add_row(what, *cells, *([f"{to_formula[what]:.1e}"] if to_formula else []))
    return table


def losses_table(results: dict) -> Table:
    table = make_table("Loss of the first training steps", "step", *results["losses"])
    for k, row in enumerate(zip(*results["losses"].values(), strict=True)):
        table.add_row(str(k + 1), *(f"{value:.8f}" for value in row))
    return table


def speed_table(results: dict) -> Table:
    columns = ("ms", "times\nreference", "of closed\nform", "compile\ns")
    table = make_table("Time: medians of interleaved runs", "", "contender", *columns)
    for row in results["rows"]:
        if row["contender"] == "pytorch_reference":
            table.add_section()
        compile_s = "" if row["compile_ms"] is None else f"{row['compile_ms'] / 1e3:.1f}"
        table.add_row(
            row["what"] if row["contender"] == "pytorch_reference" else "",
            row["contender"],
            f"{row['median_ms']:.4g}",
            f"{row['ratio']:.1f}",
            f"{row['to_closed_form']:.2f}",
            compile_s,
        )
    return table


def make_table(title: str, first: str, *columns: str) -> Table:
    """A table that fits 80 columns: the contenders' names on two lines."""
    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in columns:
        head = column.replace("_", "_\n", 1) if "\n" not in column else column
        left = column == "contender"
        table.add_column(head, justify="left" if left else "right", no_wrap=left)
    return table


def plot(results: dict, path: Path) -> None:
    """A bar for each contender's training step, on a logarithmic axis."""
    rows = [row for row in results["rows"] if row["what"] == "train_step"]
    rows.sort(key=lambda row: -row["median_ms"])
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    colors = ["#1f6fb4" if r["contender"].startswith("argmin") else "#b8b8b8" for r in rows]
    bars = axes.barh([r["contender"] for r in rows], [r["median_ms"] for r in rows], color=colors)
    axes.bar_label(bars, [_label(row) for row in rows], fontsize=9)
    axes.set(xscale="log", xlabel="milliseconds a training step (median, logarithmic)")
    axes.set_xlim(0.5, max(r["median_ms"] for r in rows) * 8)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _label(row: dict) -> str:
    ms = row["median_ms"]
    times = (
        "" if row["contender"] == "pytorch_reference" else f"  ({row['ratio']:.0f} times faster)"
    )
    return f" {ms:,.0f} ms{times}" if ms >= 100 else f" {ms:.3g} ms{times}"

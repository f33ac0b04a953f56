"""Prices: where they come from, and what is asked of them before anyone learns from them."""

import importlib.util
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

BUNDLED_NAMES = ("AAPL", "GOOG", "IBM", "MSFT")
KAGGLE_NAMES = ("AAPL", "GOOGL", "MSFT", "AMZN")
LONGEST_GAP = 14  # calendar days; the longest in the bundled prices, September 2001, is 7

COLUMNS = ("date", "name", "close")

# Two new shares for an old one, on the first day of the new price.
BUNDLED_SPLITS = (("AAPL", "2000-06-21"), ("AAPL", "2005-02-28"), ("MSFT", "2003-02-18"))


def load_prices(path: str | Path | None = None, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Daily closing prices as a tidy table.

    Args:
        path: a CSV file (``.csv`` or ``.csv.gz``) with at least the columns Date (YYYY-MM-DD),
            Close and Name, such as Kaggle's ``all_stocks_2006-01-01_to_2018-01-01.csv.gz``. By
            default the prices that the package bokeh-sampledata ships: AAPL, FB, GOOG, IBM and
            MSFT, March 2000 to March 2013, public domain.
        names: the stocks to return. By default AAPL, GOOG, IBM and MSFT of the bundled prices;
            those of AAPL, GOOGL, MSFT and AMZN that a file has, or all of its stocks if it has
            none of these.

    Returns:
        A frame with the columns date (datetime64), name (str) and close (float64, dollars),
        sorted by name and date.

    Prices are what was paid on the day. The bundled ones are not adjusted for splits: AAPL
    halves on 2000-06-21 and 2005-02-28, MSFT on 2003-02-18.

    Raises:
        FileNotFoundError: there is no such file, or bokeh-sampledata is not installed.
        ValueError: the file is not such a table, a name is not in it, or the prices of a chosen
            stock are not usable: see `check_prices`.
    """
    table = _read_bundled() if path is None else _read_file(Path(path))
    source = "the bundled prices" if path is None else str(path)
    known = sorted(table["name"].unique())
    if names is None:
        usual = BUNDLED_NAMES if path is None else KAGGLE_NAMES
        names = [name for name in usual if name in known] or known
    _check_names(names, known, source)
    chosen = table.loc[table["name"].isin(list(names)).to_numpy()]
    prices = _parse(chosen, source)
    prices = prices.sort_values(["name", "date"], kind="stable").reset_index(drop=True)
    check_prices(prices)
    return prices


def adjust_for_splits(prices: pd.DataFrame) -> pd.DataFrame:
    """The prices with those before each of `BUNDLED_SPLITS` halved, so that a return across the
    day is that of who held the stock. A split that the prices do not show (they fall by less than
    a third, as those of a file that is adjusted already) is left as it is."""
    close = prices["close"].to_numpy(np.float64).copy()
    name, date = prices["name"].to_numpy(), prices["date"].to_numpy()
    for stock, day in BUNDLED_SPLITS:
        before = np.flatnonzero((name == stock) & (date < np.datetime64(day)))
        after = np.flatnonzero((name == stock) & (date >= np.datetime64(day)))
        if len(before) and len(after) and close[after[0]] < 2 / 3 * close[before[-1]]:
            close[before] /= 2
    return prices.assign(close=close)


def check_prices(prices: pd.DataFrame) -> None:
    """Raises ValueError unless every stock has positive finite prices on rising dates, without
    a gap of more than `LONGEST_GAP` calendar days, sorted by name and date."""
    missing = [column for column in COLUMNS if column not in prices.columns]
    if missing:
        raise ValueError(
            f"prices must have the columns {', '.join(COLUMNS)}; {', '.join(missing)} missing. "
            "data.load_prices returns such a table."
        )
    if prices.empty:
        raise ValueError("prices must have rows; found an empty table.")
    _check_values(prices)
    for name, stock in prices.groupby("name"):
        _check_dates(str(name), pd.Series(stock["date"]))


def _read_bundled() -> pd.DataFrame:
    spec = importlib.util.find_spec("bokeh_sampledata")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    for place in places:
        file = Path(place) / "_data" / "stocks.csv.gz"
        if file.exists():
            table = pd.read_csv(file, dtype=str)
            return table.rename(columns={"Date": "date", "Close": "close", "Ticker": "name"})
    raise FileNotFoundError(
        "The bundled prices come with the package bokeh-sampledata (2026.1 or newer), which was "
        "not found. Install it (pip install bokeh-sampledata), or give path= a CSV of prices."
    )


def _read_file(path: Path) -> pd.DataFrame:
    if not path.is_file():
        finding = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"path {str(path)!r} {finding}. Give a .csv or .csv.gz file of prices, or leave path "
            "out for the bundled ones."
        )
    try:
        table = pd.read_csv(path, dtype=str)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"path {str(path)!r} is not a CSV file: {error}") from error
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"path {str(path)!r} could not be read to its end: {error}. Download it again."
        ) from error
    missing = [column for column in ("Date", "Close", "Name") if column not in table.columns]
    if missing:
        raise ValueError(
            f"path {str(path)!r} must have the columns Date, Close and Name; "
            f"{', '.join(missing)} missing, found {', '.join(map(str, table.columns))}."
        )
    table = table.rename(columns={"Date": "date", "Close": "close", "Name": "name"})
    nameless = np.flatnonzero(table["name"].isna().to_numpy())
    if len(nameless):
        raise ValueError(
            f"path {str(path)!r}: no Name in {len(nameless)} rows, first in data row "
            f"{nameless[0] + 1}. Fill them in or remove the rows."
        )
    if table.empty:
        raise ValueError(f"path {str(path)!r} has a header but no rows.")
    return table


def _check_names(names: Sequence[str], known: list[str], source: str) -> None:
    if isinstance(names, str):
        raise ValueError(f"names must be a sequence of stock names; found the string {names!r}.")
    if not names:
        raise ValueError(f"names is empty. {source} has {', '.join(known)}.")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"names: {', '.join(map(str, unknown))} not in {source}, which has {', '.join(known)}."
        )


def _parse(prices: pd.DataFrame, source: str) -> pd.DataFrame:
    """Dates and numbers from text; an error names the first cell that is neither."""
    date = pd.Series(pd.to_datetime(prices["date"], format="%Y-%m-%d", errors="coerce"))
    close = pd.Series(pd.to_numeric(prices["close"], errors="coerce"), dtype=np.float64)
    _check_cells(prices, "date", date.isna(), "a date of the form YYYY-MM-DD", source)
    # An empty price is a missing one, and reported as such by check_prices.
    _check_cells(prices, "close", close.isna() & prices["close"].notna(), "a number", source)
    return pd.DataFrame({"date": date, "name": prices["name"], "close": close})


def _check_cells(prices: pd.DataFrame, column: str, bad: pd.Series, form: str, source: str) -> None:
    rows = np.flatnonzero(bad.to_numpy())
    if len(rows):
        first = prices.iloc[rows[0]]
        raise ValueError(
            f"{source}: the {column} {first[column]!r} of {first['name']} (data row "
            f"{prices.index[rows[0]] + 1}; {len(rows)} such rows) is not {form}. Correct or "
            "remove it."
        )


def _check_values(prices: pd.DataFrame) -> None:
    close = prices["close"].to_numpy(np.float64)
    bad = ~(np.isfinite(close) & (close > 0))
    if bad.any():
        first = prices.iloc[int(np.argmax(bad))]
        value = first["close"]
        finding = "missing (NaN)" if np.isnan(value) else f"{value}"
        raise ValueError(
            f"prices must be positive and finite; the close of {first['name']} on "
            f"{pd.Timestamp(first['date']):%Y-%m-%d} is {finding} ({int(bad.sum())} such rows). "
            "Correct or remove them, or leave that stock out by names."
        )


def _check_dates(name: str, date: pd.Series) -> None:
    if date.isna().any():
        raise ValueError(f"prices: {name} has {int(date.isna().sum())} rows without a date.")
    days = date.diff().dt.days.to_numpy()[1:]
    for bad, finding in (
        (days == 0, "has two prices on {after:%Y-%m-%d}. Remove one of them"),
        (days < 0, "goes back in time at {after:%Y-%m-%d}. Sort by name and date"),
        (
            days > LONGEST_GAP,
            "has a gap from {before:%Y-%m-%d} to {after:%Y-%m-%d}, more than {gap} calendar days."
            " Fill it, cut the prices to one side of it, or leave that stock out by names",
        ),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            text = finding.format(before=date.iloc[row], after=date.iloc[row + 1], gap=LONGEST_GAP)
            raise ValueError(f"prices: {name} {text}.")

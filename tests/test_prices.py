"""Prices: what is read, and what is refused."""

import gzip

import numpy as np
import pandas as pd
import pytest

from data import load_prices
from data.prices import check_prices

HEADER = "Date,Open,High,Low,Close,Volume,Name\n"


def write_kaggle(path, rows):
    """A file in Kaggle's form from (date, close, name)."""
    text = HEADER + "".join(f"{date},1,1,1,{close},100,{name}\n" for date, close, name in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def rows_of(name, count, first="2010-01-04"):
    return [
        (f"{date:%Y-%m-%d}", 10 + row, name)
        for row, date in enumerate(pd.bdate_range(first, periods=count))
    ]


def test_the_bundled_prices_are_tidy():
    prices = load_prices()
    assert list(prices.columns) == ["date", "name", "close"]
    assert sorted(prices["name"].unique()) == ["AAPL", "GOOG", "IBM", "MSFT"]
    assert prices["close"].dtype == np.float64 and len(prices) == 11958
    assert prices.equals(prices.sort_values(["name", "date"], ignore_index=True))


def test_all_bundled_rows_can_be_loaded():
    assert len(load_prices(names=["AAPL", "FB", "GOOG", "IBM", "MSFT"])) == 12154


@pytest.mark.parametrize("file", ["prices.csv", "prices.csv.gz"])
def test_a_kaggle_file_is_read_by_path_and_sorted(tmp_path, file):
    rows = rows_of("MSFT", 5)[::-1] + rows_of("AAPL", 5)
    prices = load_prices(write_kaggle(tmp_path / file, rows))
    assert list(prices["name"]) == ["AAPL"] * 5 + ["MSFT"] * 5
    assert list(prices["close"]) == [10, 11, 12, 13, 14] * 2


def test_a_file_gives_the_usual_four_stocks_or_all_if_it_has_none_of_them(tmp_path):
    rows = rows_of("AAPL", 3) + rows_of("XYZ", 3)
    assert set(load_prices(write_kaggle(tmp_path / "a.csv", rows))["name"]) == {"AAPL"}
    assert set(load_prices(write_kaggle(tmp_path / "b.csv", rows[3:]))["name"]) == {"XYZ"}


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"path 'nowhere\.csv' does not exist"):
        load_prices("nowhere.csv")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_prices(tmp_path)


def test_missing_columns_are_named(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("Date,Open,Name\n2010-01-04,1,A\n")
    with pytest.raises(ValueError, match="Close missing, found Date, Open, Name"):
        load_prices(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x81\x00", HEADER.encode()])
def test_a_file_that_is_no_table_of_prices_is_refused(tmp_path, content):
    path = tmp_path / "prices.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="path"):
        load_prices(path)


def test_a_truncated_archive_is_refused(tmp_path):
    path = write_kaggle(tmp_path / "prices.csv.gz", rows_of("A", 500))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="could not be read to its end"):
        load_prices(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("04/01/2010", 1, "A"), "date '04/01/2010' of A.*not a date of the form YYYY-MM-DD"),
        (("", 1, "A"), "not a date"),
        (("2010-02-30", 1, "A"), "2010-02-30"),
        (("2010-01-11", "ten", "A"), "close 'ten' of A .*not a number"),
        (("2010-01-11", "", "A"), r"close of A on 2010-01-11 is missing \(NaN\)"),
        (("2010-01-11", 0, "A"), "positive and finite"),
        (("2010-01-11", -3, "A"), "is -3"),
        (("2010-01-11", "inf", "A"), "is inf"),
        (("2010-01-08", 5, "A"), "A has two prices on 2010-01-08"),
        (("2010-01-26", 5, "A"), "A has a gap from 2010-01-08 to 2010-01-26"),
        (("2010-01-11", 5, ""), "no Name in 1 rows, first in data row 6"),
    ],
)
def test_a_bad_row_is_found_and_named(tmp_path, row, message):
    path = write_kaggle(tmp_path / "prices.csv", [*rows_of("A", 5), row])
    with pytest.raises(ValueError, match=message):
        load_prices(path)


def test_bad_rows_of_other_stocks_do_no_harm(tmp_path):
    path = write_kaggle(tmp_path / "p.csv", [*rows_of("A", 5), ("2010-01-04", "", "B")])
    assert len(load_prices(path, names=["A"])) == 5


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(ValueError, match="TSLA not in the bundled prices, which has AAPL, FB"):
        load_prices(names=["AAPL", "TSLA"])


@pytest.mark.parametrize("names", ["AAPL", []])
def test_names_must_be_a_sequence_of_names(names):
    with pytest.raises(ValueError, match="names"):
        load_prices(names=names)


def test_tables_made_by_hand_are_checked_too():
    with pytest.raises(ValueError, match="close missing"):
        check_prices(pd.DataFrame({"date": [], "name": []}))
    dates = pd.to_datetime(["2010-01-05", "2010-01-04"])
    with pytest.raises(ValueError, match="goes back in time"):
        check_prices(pd.DataFrame({"date": dates, "name": "A", "close": 1.0}))

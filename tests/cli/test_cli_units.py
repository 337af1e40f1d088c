import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3lm.errors import UserError
from i3lm.units import format_bytes, format_duration, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m", 5400), ("0.5H", 1800), ("2d", 172800)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("400MB", 400_000_000),
        ("1.5 GB", 1_500_000_000),
        ("512MiB", 2**29),
        ("7b", 7),
        ("1kb", 1000),
        ("200M", 200_000_000),
        ("0.5g", 500_000_000),
        ("1TB", 10**12),
        ("1TiB", 2**40),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "10", "m", "0s", "-1m", "10m5", "1..5s", "1e3s", "nan", "9" * 50 + "d"]
)
def test_no_durations(text):
    with pytest.raises(UserError, match="10m"):
        parse_duration(text)


@pytest.mark.parametrize(
    "text", ["", "10", "MB", "0MB", "0.1B", "-1MB", "1XB", "infMB", "9" * 50 + "B"]
)
def test_no_sizes(text):
    with pytest.raises(UserError, match="400MB"):
        parse_size(text)


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(UserError):
            assert parse(text) > 0


@given(st.integers(1, 10**8))
def test_a_printed_duration_is_a_duration(seconds):
    text = format_duration(seconds)
    assert parse_duration(text) == pytest.approx(seconds, abs=0.5 if seconds < 3600 else 30)


@given(st.integers(1, 10**17))
def test_a_printed_size_keeps_three_digits(size):
    text = format_bytes(size).replace("TB", "000GB").replace(",", "").replace(" ", "")
    number = float(text.rstrip("kMGB"))
    factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-2], 1)
    if "000GB" in text:
        number = float(text.removesuffix("000GB")) * 1000
    assert number * factor == pytest.approx(size, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m00s"), (3599.7, "1h00m"), (725, "12m05s"), (12000, "3h20m")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (999_999, "1 MB"), (50_764_744, "50.8 MB"), (5e12, "5 TB")],
)
def test_format_bytes(size, text):
    assert format_bytes(size) == text

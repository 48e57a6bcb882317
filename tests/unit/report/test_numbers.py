from __future__ import annotations

import pytest

from sqtool.report.numbers import milliseconds, percent, signed_points, size, span, value


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.97314), "97.31 %"),
        (signed_points(-0.0123), "-1.23"),
        (signed_points(-0.00001), "0.00"),
        (value(0.000123456), "0.000123"),
        (value(2.9), "2.9"),
        (value(612.345, 4), "612.3"),
        (value(1000.0, 3), "1000"),
        (value(2.904, 3), "2.9"),
        (value(float("nan")), "-"),
        (value(None), "-"),
        (milliseconds(0.123), "0.12"),
        (milliseconds(123.4), "123"),
        (size(31_400_000), "31.4 MB"),
        (size(12), "12 bytes"),
        (span(8.24), "8.2 s"),
        (span(59.9), "60 s"),
        (span(185), "3 min 05 s"),
        (span(7800), "2 h 10 min"),
        (span(None), ""),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected

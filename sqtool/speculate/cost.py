"""Cost per accepted answer: device seconds times price, over answers that their scorer accepts within the SLO."""

from __future__ import annotations

from typing import Any

import numpy as np

from sqtool.speculate.frame import Frame
from sqtool.speculate.latency import share_interval
from sqtool.speculate.missing import Missing
from sqtool.speculate.resample import Floats, Ints, Resamples, interval, why_no_interval
from sqtool.speculate.spec import PriceSpec

SECONDS_PER_HOUR = 3600.0
NOT_SCORED = "no request of this traffic has a scorer, so no answer is known to be accepted"


def accepted(frame: Frame, resamples: Resamples) -> dict[str, Any]:
    """Answers that their scorer accepted: n, of those that have a scorer, and within the SLO; the share's interval.

    A failed request that has a scorer was sent and not accepted: it counts in `of`.
    """
    scored = frame.only(frame.scored)
    count, size = int(scored.accepted.sum()), len(scored.rows)
    flags = scored.accepted.astype(np.float64)
    return {
        "n": count,
        "of": size,
        "within_slo": int((scored.accepted & scored.within).sum()),
        "share": count / size if size else None,
        "ci": share_interval(scored.unit, flags, resamples) if size else None,
    }


def cost(frame: Frame, resamples: Resamples, price: PriceSpec | None, missing: Missing) -> dict[str, Any]:
    """The `cost` entry: per_accepted_answer with interval and unit, or {missing: reason}.

    Charged are the wall seconds of the requests that have a scorer (their shares by `frame.apportion`), on the
    device(s) that one arm uses. Where every request is scored, that is the arm's whole time.
    """
    seconds, good, unit, reason = parts(frame)
    if reason:
        return missing.add("cost per accepted answer", reason, arm=frame.arm, load=frame.load)
    rate, name = per_second(price)
    units = len(np.unique(unit))
    ends = interval(resamples.ratio(unit, seconds * rate, good), units)
    if ends is not None and good.all():
        # No resample has an answer that was not accepted, but n accepted of n do not show that all would be: the upper
        # end allows for the share that the exact binomial interval allows for.
        exact = share_interval(unit, good, resamples)
        ends[1] /= exact[0] if exact else 1.0
    if ends is None:
        why = why_no_interval(units)
        missing.add("interval of cost per accepted answer", why, arm=frame.arm, load=frame.load)
    return {
        "per_accepted_answer": float(seconds.sum()) * rate / float(good.sum()),
        "ci": ends,
        "unit": name,
        "accepted": int(good.sum()),
        "seconds_charged": float(seconds.sum()),
    }


def parts(frame: Frame) -> tuple[Floats, Floats, Ints, str]:
    """(seconds charged [n], accepted within the SLO as 0 or 1 [n], ids' places [n], reason why there is no cost)."""
    scored = frame.only(frame.scored)
    good = (scored.accepted & scored.within).astype(np.float64)
    reason = ""
    if not len(scored.rows):
        reason = NOT_SCORED
    elif not good.sum():
        reason = f"none of {len(scored.rows)} scored answers was accepted within the SLO"
    return scored.seconds, good, scored.unit, reason


def per_second(price: PriceSpec | None) -> tuple[float, str]:
    """(price of a second, unit): the currency's name, or device_seconds without a price."""
    if price is None:
        return 1.0, "device_seconds"
    return price.per_hour / SECONDS_PER_HOUR, price.currency

"""What a library's answer is worth: right, wrong in silence, refused, not to be expressed."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .problem import Problem
from .worker import Outcome


class Kind(enum.StrEnum):
    RIGHT = "right"
    WRONG = "wrong in silence"
    REFUSED = "refused"
    CANNOT = "cannot express"
    HUNG = "hangs"


@dataclass(frozen=True)
class Verdict:
    kind: Kind
    error: float | None = None
    """The largest relative error of a param's gradient, where there is one to be right about."""
    note: str = ""
    """What the library said."""


def judge(
    problem: Problem, dtype: str, outcome: Outcome, truths: Sequence[Sequence[np.ndarray]]
) -> Verdict:
    """The verdict on an outcome. ``truths``: the derivative at each minimum, any of which will do;
    none where the library has to refuse; NaN where it has to refuse in part."""
    for key, kind in (("cannot", Kind.CANNOT), ("hung", Kind.HUNG), ("raised", Kind.REFUSED)):
        if key in outcome:
            return Verdict(kind, note=outcome[key])
    found = [np.asarray(array, dtype=float) for array in outcome["arrays"]]
    if not truths:
        if outcome["warned"]:
            return Verdict(Kind.REFUSED, note=outcome["warned"][0])
        if not all(np.all(np.isfinite(array)) for array in found):
            return Verdict(Kind.REFUSED, note="NaN")
        return Verdict(Kind.WRONG, note="a finite gradient where there is none")
    return min(
        (_against(problem, dtype, found, outcome["warned"], truth) for truth in truths),
        key=lambda verdict: np.inf if verdict.error is None else verdict.error,
    )


def _against(problem, dtype, found, warned, truth) -> Verdict:
    if any(np.any(np.isnan(t) & np.isfinite(f)) for f, t in zip(found, truth, strict=True)):
        return Verdict(Kind.WRONG, note="a finite gradient in a lane that has none")
    asked = [np.where(np.isnan(t), 0.0, f) for f, t in zip(found, truth, strict=True)]
    if not all(np.all(np.isfinite(f)) for f in asked):
        return Verdict(Kind.REFUSED, note="NaN")
    error = relative_error(asked, [np.nan_to_num(t) for t in truth])
    if error <= problem.tolerance(dtype):
        return Verdict(Kind.RIGHT, error)
    if warned:
        return Verdict(Kind.REFUSED, error, warned[0])
    return Verdict(Kind.WRONG, error)


def relative_error(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """The largest error of a param's gradient, relative to its norm; where that is zero, to the
    largest norm of all."""
    norms = [float(np.linalg.norm(t)) for t in truth]
    largest = max(norms)
    errors = [float(np.linalg.norm(f - t)) for f, t in zip(found, truth, strict=True)]
    return max(
        error / (norm if norm > 1e-12 * largest else largest)
        for error, norm in zip(errors, norms, strict=True)
    )

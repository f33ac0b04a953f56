"""The families: their cases, contenders and what is right for them."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import constrained, problems
from .programs import Contender


class Judge(Protocol):
    """Knows the right gradients of a case."""

    def error(self, y: np.ndarray, gradients: list[np.ndarray]) -> float: ...

    def error_of_point(self, y: np.ndarray) -> float: ...


@dataclass(frozen=True)
class Family:
    """Cases and contenders of one kind; the modules are imported by those that need them.

    Attributes:
        modules: each with the name of its table of contenders.
        judge: module and name of the class of the judge.
        quick: the cases of a quick run.
    """

    title: str
    cases: Callable[[], Mapping[str, Callable[[], Any]]]
    modules: tuple[tuple[str, str], ...]
    judge: tuple[str, str]
    quick: tuple[str, ...]

    def contenders(self) -> dict[str, Contender]:
        return {name: c for where in self.modules for name, c in _find(*where).items()}

    def make_judge(self, case: Any) -> Judge:
        return _find(*self.judge)(case)


def _find(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f".{module}", __package__), name)


FAMILIES = {
    "a": Family(
        "Unconstrained problems",
        problems.family_a,
        (("contenders", "MINIMISERS"), ("torch_contenders", "MINIMISERS")),
        ("reference", "Reference"),
        ("model's ridge", "Rosenbrock", "quartic"),
    ),
    "b": Family(
        "The same under vmap",
        problems.family_b,
        (("contenders", "MINIMISERS"),),
        ("reference", "Reference"),
        ("Rosenbrock x 64",),
    ),
    "c": Family(
        "Least squares with residuals that do not vanish",
        problems.family_c,
        (("contenders", "LEAST_SQUARES"),),
        ("reference", "Reference"),
        ("exponentials",),
    ),
    "d": Family(
        "Batches of quadratic programs",
        constrained.family_d,
        (("qp_contenders", "CONTENDERS"),),
        ("kkt", "Reference"),
        ("QP, n = 10",),
    ),
    "e": Family(
        "Small nonlinear programs",
        constrained.family_e,
        (("nlp_contenders", "CONTENDERS"),),
        ("kkt", "Reference"),
        ("HS71",),
    ),
}

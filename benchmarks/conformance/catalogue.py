"""All problems, by name."""

from .classics import CLASSICS
from .constrained import CONSTRAINED
from .faults import FAULTS
from .problem import Problem

GROUPS = {
    "Known faults": FAULTS,
    "Classics": CLASSICS,
    "Constraints": CONSTRAINED,
}
CATALOGUE: dict[str, Problem] = {
    problem.name: problem for group in GROUPS.values() for problem in group
}

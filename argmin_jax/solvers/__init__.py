"""Solvers of the forward problem, one algorithm a file. They know nothing of differentiation."""

from .adapters import Jaxopt as Jaxopt
from .adapters import Minimiser as Minimiser
from .adapters import adapt as adapt
from .lbfgs import LBFGS as LBFGS
from .newton_cg import NewtonCG as NewtonCG
from .scipy import Scipy as Scipy

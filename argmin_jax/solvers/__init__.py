"""Solvers of the forward problem, one algorithm a file. They know nothing of differentiation."""

from .adapters import ConstrainedMinimiser as ConstrainedMinimiser
from .adapters import Jaxopt as Jaxopt
from .adapters import Minimiser as Minimiser
from .adapters import ScalableMinimiser as ScalableMinimiser
from .adapters import adapt as adapt
from .adapters import adapt_least_squares as adapt_least_squares
from .adapters import adapt_root_finder as adapt_root_finder
from .interior_point import InteriorPoint as InteriorPoint
from .ipopt import Ipopt as Ipopt
from .lbfgs import LBFGS as LBFGS
from .newton_cg import NewtonCG as NewtonCG
from .nlp import NonlinearProgram as NonlinearProgram
from .scipy import Scipy as Scipy

"""argmin_jax: the differentiable argmin layer for JAX."""

# Sets that are often asked for: simplex, box, ball, affine, halfspaces.
from . import constraints as constraints

# Gradients of your own problem held against differences.
from .check import GradientCheck as GradientCheck
from .check import LeafCheck as LeafCheck
from .check import check_gradients as check_gradients

# The implicit function theorem as plain functions.
from .implicit import root_jvp as root_jvp
from .implicit import root_vjp as root_vjp

# The layer.
from .layer import LagrangeMultipliers as LagrangeMultipliers
from .layer import Solution as Solution
from .layer import argmin as argmin
from .layer import solve as solve

# Linear solvers of the backward pass, besides all of Lineax's.
from .linear_solve import SVD as SVD
from .linear_solve import Auto as Auto
from .linear_solve import solve_ls as solve_ls

# The relatives of argmin; each `solve_...` returns a `Solution`.
from .relatives import fixed_point as fixed_point
from .relatives import least_squares as least_squares
from .relatives import root as root
from .relatives import solve_fixed_point as solve_fixed_point
from .relatives import solve_least_squares as solve_least_squares
from .relatives import solve_root as solve_root

# What is known about a solution.
from .report import ArgminError as ArgminError
from .report import Report as Report
from .report import Status as Status

# Solvers of the forward problem, besides all of Optimistix's and your own.
from .solvers import LBFGS as LBFGS
from .solvers import InteriorPoint as InteriorPoint
from .solvers import Ipopt as Ipopt
from .solvers import Jaxopt as Jaxopt
from .solvers import NewtonCG as NewtonCG
from .solvers import Scipy as Scipy

__version__ = "0.1.0"

"""`build_problem`: bad arguments are refused by name, and no objective is ever out of date."""

import functools
import itertools
import tempfile
import types
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import argmin_jax
from argmin_jax import argmin
from argmin_jax.problem import build_problem, default_tolerance

from .problems import assert_close, cube_root

Y0 = jnp.zeros(2)


def square(y, t=1.0):
    return jnp.sum((y - t) ** 2)


BAD_ARGUMENTS = {
    "objective that is no function": (3.0, Y0, (), TypeError, r"objective must be a function"),
    "vector objective": (lambda y: y, Y0, (), ValueError, r"objective .* scalar .* shape \(2,\)"),
    "objective of shape (1,)": (lambda y: y[:1], Y0, (), ValueError, r"objective .* shape \(1,\)"),
    "pytree objective": (
        lambda y: (jnp.sum(y), y),
        Y0,
        (),
        ValueError,
        r"objective must return one scalar; found a pytree",
    ),
    "objective without a value": (lambda y: None, Y0, (), ValueError, r"objective .* one scalar"),
    "complex objective": (
        lambda y: jnp.sum(y) * 1j,
        Y0,
        (),
        ValueError,
        r"objective must return a real floating scalar .* complex128",
    ),
    "integer objective": (
        lambda y: jnp.sum(y > 0),
        Y0,
        (),
        ValueError,
        r"objective must return a real floating scalar",
    ),
    "integer start": (square, jnp.arange(2), (), TypeError, r"y0 must be of floating dtype .* int"),
    "complex start": (square, jnp.ones(2) * 1j, (), TypeError, r"y0 .* real and imaginary parts"),
    "boolean start": (square, jnp.array([True]), (), TypeError, r"y0 must be of floating .* bool"),
    "empty start": (square, jnp.zeros(0), (), ValueError, r"y0 is empty"),
    "start without leaves": (square, {}, (), ValueError, r"y0 is empty"),
    "NaN start": (square, jnp.array([0.0, jnp.nan]), (), ValueError, r"y0 is not finite"),
    "infinite start": (
        square,
        {"a": Y0, "b": np.array(np.inf)},
        (),
        ValueError,
        r"y0\['b'\] is not",
    ),
    "half precision": (square, jnp.zeros(2, jnp.float16), (), TypeError, r"y0 is of dtype float16"),
    "bfloat16": (square, jnp.zeros(2, jnp.bfloat16), (), TypeError, r"y0 is of dtype bfloat16"),
    "string start": (square, "zero", (), TypeError, r"y0 must be a floating array; found str"),
    "string in the start": (square, [Y0, "a"], (), TypeError, r"y0\[1\] must be a floating array"),
    "string param": (square, Y0, ("one",), TypeError, r"params\[0\] must be an array .* found str"),
    "function in a param": (
        square,
        Y0,
        ({"a": 1.0, "f": abs},),
        TypeError,
        r"params\[0\]\['f'\] must be an array .* builtin_function",
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_argument_is_refused_by_its_name(case):
    objective, y0, params, error, message = case
    for call in (argmin, argmin_jax.solve):
        with pytest.raises(error, match=message):
            call(objective, y0, *params)


BAD_OPTIONS = {
    "unknown policy": ({"on_failure": "explode"}, ValueError, "on_failure .* 'raise', 'warn'"),
    "policy of another type": ({"on_failure": None}, ValueError, "on_failure .* found None"),
    "tol of zero": ({"tol": 0.0}, ValueError, "tol must be .* found 0.0"),
    "negative tol": ({"tol": -1e-8}, ValueError, "tol must be"),
    "tol above one": ({"tol": 2.0}, ValueError, "tol must be .* found 2.0"),
    "NaN tol": ({"tol": float("nan")}, ValueError, "tol must be .* found nan"),
    "array tol": ({"tol": jnp.array(1e-8)}, ValueError, "tol must be a Python number"),
    "tol as text": ({"tol": "1e-8"}, ValueError, "tol must be a Python number"),
    "no steps": ({"max_steps": 0}, ValueError, "max_steps must be an int of at least 1; found 0"),
    "fractional steps": ({"max_steps": 10.0}, ValueError, "max_steps .* found 10.0"),
    "boolean steps": ({"max_steps": True}, ValueError, "max_steps .* found True"),
    "linear solver's class": (
        {"linear_solver": argmin_jax.SVD},
        TypeError,
        "linear_solver .* instance",
    ),
    "linear solver's name": ({"linear_solver": "svd"}, TypeError, "linear_solver .* found 'svd'"),
    "minimiser as linear solver": (
        {"linear_solver": argmin_jax.LBFGS()},
        TypeError,
        "linear_solver must be an instance of a Lineax solver",
    ),
    "solver's class": ({"solver": argmin_jax.LBFGS}, TypeError, r"solver .* class LBFGS. Call it"),
    "solver's name": ({"solver": "lbfgs"}, TypeError, "solver must be .* found 'lbfgs'"),
    "linear solver as solver": ({"solver": lx.CG(1e-6, 1e-6)}, TypeError, "solver must be"),
    "unknown option": ({"maxiter": 3}, TypeError, "unexpected keyword argument 'maxiter'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_option_is_refused_by_its_name(case):
    options, error, message = case
    for call in (argmin, argmin_jax.solve):
        with pytest.raises(error, match=message):
            call(cube_root, jnp.ones(3), jnp.ones(3), **options)


def test_traced_start_that_may_not_be_finite_is_not_looked_at():
    shape = jax.eval_shape(lambda y0: build_problem(square, y0, ()).start, jnp.full(2, jnp.nan))
    assert shape.shape == (2,)


def test_default_tolerance_follows_the_dtype():
    assert (default_tolerance(jnp.float64), default_tolerance(jnp.float32)) == (1e-8, 1e-4)


def test_start_is_flattened_in_order_and_unravelled_to_what_it_was():
    y0 = {"a": jnp.arange(4.0).reshape(2, 2), "b": (jnp.float32(7), None)}
    problem = build_problem(lambda y: jnp.sum(y["a"]), y0, ())
    assert_close(problem.start, jnp.array([0.0, 1.0, 2.0, 3.0, 7.0]), 0.0)
    back = problem.objective.unravel(problem.start)
    assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(lambda x: x.dtype, y0)
    assert_close(back, y0, 0.0)


def test_closed_over_arrays_travel_as_arguments():
    data = jnp.arange(2.0)
    problem = build_problem(lambda y: jnp.sum((y - data) ** 2), Y0, ())
    assert not [x for x in jax.tree.leaves(problem.objective) if eqx.is_array(x)]
    gradient = jax.grad(lambda args: problem.objective(problem.start, args), allow_int=True)
    (slope,) = [g for g in jax.tree.leaves(gradient(problem.args)) if g.shape == (2,)]
    assert_close(slope, 2 * data, 1e-15)


# What follows breaks the cache of traces, if it can be broken. Each case gives an objective whose
# value at 0 is the square of a number that it finds somewhere, and a function that sets that
# number: a trace that is out of date, here or in a compiled program, returns the old one.

_number = 1.0
_settings = types.ModuleType("settings")
_settings.number = 1.0
_inner = types.ModuleType("inner")
_settings.inner = _inner
_inner.number = 1.0
_array = jnp.array(1.0)


def _closed_over_name():
    number = 1.0

    def set_(value):
        nonlocal number
        number = value

    return lambda y: jnp.sum((y - number) ** 2), set_


def _name_that_an_inner_function_has_too():
    number = 1.0

    def set_(value):
        nonlocal number
        number = value

    def objective(y):
        def nothing(z):
            number = 0 * jnp.sum(z)  # its own, and captured by the lambda
            return jnp.sum(jax.vmap(lambda v: v * number)(z))

        return jnp.sum((y - number) ** 2) + nothing(y)

    return objective, set_


def _global_whose_name_an_inner_function_has():
    def objective(y):
        def nothing(z):
            _number = 0 * jnp.sum(z)
            return jnp.sum(jax.vmap(lambda v: v * _number)(z))

        return jnp.sum((y - _number) ** 2) + nothing(y)

    return objective, _set_global


def _file():
    path = Path(tempfile.mkdtemp()) / "number.npy"

    def set_(value):
        np.save(path, np.array(value))

    set_(1.0)
    name = str(path)
    return lambda y: jnp.sum((y - np.load(name)) ** 2), set_


def _closed_over_jax_array():
    array = jnp.ones(())

    def set_(value):
        nonlocal array
        array = array.at[()].set(value)

    return lambda y: jnp.sum((y - array) ** 2), set_


def _array_of_numpy(shape=(1,), dtype=np.float64):
    array = np.ones(shape, dtype)

    def objective(y):
        return jnp.sum((y - float(array.reshape(-1)[-1])) ** 2)

    def set_(value):
        array[..., -1:] = value  # in place

    return objective, set_


def _view_of_an_array():
    base = np.ones((3, 2))
    view = base[1]

    def set_(value):
        base[:] = value

    return lambda y: jnp.sum((y - view[0]) ** 2), set_


def _element(container):
    (key,) = range(len(container)) if isinstance(container, list) else container

    def set_(value):
        container[key] = value

    return lambda y: jnp.sum((y - container[key]) ** 2), set_


def _list_inside_a_tuple_inside_a_dict():
    numbers = [1.0]
    settings = {"a": (0, numbers)}

    def set_(value):
        numbers[0] = value

    return lambda y: jnp.sum((y - settings["a"][1][0]) ** 2), set_


def _attribute():
    settings = types.SimpleNamespace(number=1.0)
    return lambda y: jnp.sum((y - settings.number) ** 2), functools.partial(
        setattr, settings, "number"
    )


def _record():
    record = np.ones(1, [("number", float)])[0]  # a scalar of NumPy that can be changed

    def set_(value):
        record["number"] = value

    return lambda y: jnp.sum((y - record["number"]) ** 2), set_


def _default_argument():
    def objective(y, number=1.0):
        return jnp.sum((y - number) ** 2)

    def set_(value):
        objective.__defaults__ = (value,)

    return objective, set_


def _keyword_only_default():
    def objective(y, *, number=1.0):
        return jnp.sum((y - number) ** 2)

    def set_(value):
        objective.__kwdefaults__ = {"number": value}

    return objective, set_


def _mutable_default():
    def objective(y, numbers=[1.0]):  # noqa: B006
        return jnp.sum((y - numbers[0]) ** 2)

    def set_(value):
        objective.__defaults__[0][0] = value

    return objective, set_


def _attribute_of_the_function():
    def objective(y):
        return jnp.sum((y - objective.number) ** 2)

    objective.number = 1.0
    return objective, functools.partial(setattr, objective, "number")


def _exchanged_code():
    def objective(y):
        return jnp.sum((y - 1.0) ** 2)

    def two(y):
        return jnp.sum((y - 2.0) ** 2)

    def set_(value):
        objective.__code__ = two.__code__

    return objective, set_


def _set_global(value):
    global _number
    _number = value


def _set_global_array(value):
    global _array
    _array = jnp.array(value)


def _reads_global(y):
    return jnp.sum((y - _number) ** 2)


def _calls_what_reads_global(y):
    return 1 * _reads_global(y)


def _reads_global_in_a_lambda(y):
    return jnp.sum(jax.vmap(lambda x: (x - _number) ** 2)(y))


def _reads_global_in_a_comprehension(y):
    return sum([jnp.sum((x - _number) ** 2) for x in [y]])


def _reads_global_by_name(y):
    return jnp.sum((y - globals()["_number"]) ** 2)


def _reads_global_array(y):
    return jnp.sum((y - _array) ** 2)


def _reads_module(y):
    return jnp.sum((y - _settings.number) ** 2)


def _reads_inner_module(y):
    return jnp.sum((y - _settings.inner.number) ** 2)


def _reads_module_by_getattr(y):
    return jnp.sum((y - getattr(_settings, "num" + "ber")) ** 2)


def _number_of(module):
    return module.number


def _hands_module_on(y):
    return jnp.sum((y - _number_of(_settings)) ** 2)


def _imports_inside(y):
    from tests import test_problem

    return jnp.sum((y - test_problem._number) ** 2)


def _function_that_closes_over_a_name():
    objective, set_ = _closed_over_name()
    return lambda y: objective(y), set_


def _recursive_function():
    numbers = [1.0]

    def objective(y, depth=2):
        return objective(y, depth - 1) if depth else jnp.sum((y - numbers[0]) ** 2)

    def set_(value):
        numbers[0] = value

    return objective, set_


def _wrapped(wrap):
    objective, set_ = _closed_over_name()
    return wrap(objective), set_


def _partial():
    settings = {"number": 1.0}
    return functools.partial(
        lambda y, settings: jnp.sum((y - settings["number"]) ** 2), settings=settings
    ), functools.partial(settings.__setitem__, "number")


class _Holder:
    number = 1.0

    def objective(self, y):
        return jnp.sum((y - self.number) ** 2)

    __call__ = objective


def _holder(use):
    holder = _Holder()
    return use(holder), functools.partial(setattr, holder, "number")


def _class_attribute():
    class Holder:
        number = 1.0

    return lambda y: jnp.sum((y - Holder.number) ** 2), functools.partial(setattr, Holder, "number")


def _iterator():
    numbers = [1.0]

    def forever():
        while True:
            yield numbers[0]

    stream = forever()

    def set_(value):
        numbers[0] = value

    return lambda y: jnp.sum((y - next(stream)) ** 2), set_


def _numpy_function_of_the_user():
    numbers = [1.0]
    read = np.frompyfunc(lambda _: numbers[0], 1, 1)

    def set_(value):
        numbers[0] = value

    return lambda y: jnp.sum((y - read(0)) ** 2), set_


HIDING_PLACES = {
    "closed-over name": _closed_over_name,
    "closed-over jax array": _closed_over_jax_array,
    "numpy array": _array_of_numpy,
    "numpy array, large": lambda: _array_of_numpy((300, 300)),
    "numpy array, float16": lambda: _array_of_numpy(dtype=np.float16),
    "numpy array, bfloat16": lambda: _array_of_numpy(dtype=jnp.bfloat16),
    "numpy array of objects": lambda: _array_of_numpy(dtype=object),
    "view of a numpy array": _view_of_an_array,
    "name that an inner function has, too": _name_that_an_inner_function_has_too,
    "global whose name an inner function has": _global_whose_name_an_inner_function_has,
    "file": _file,
    "numpy record": _record,
    "list": lambda: _element([1.0]),
    "dict": lambda: _element({"a": 1.0}),
    "list of arrays": lambda: _element([np.ones(())]),
    "list inside a tuple inside a dict": _list_inside_a_tuple_inside_a_dict,
    "attribute": _attribute,
    "default argument": _default_argument,
    "keyword-only default": _keyword_only_default,
    "mutable default": _mutable_default,
    "attribute of the function": _attribute_of_the_function,
    "exchanged code": _exchanged_code,
    "global": lambda: (_reads_global, _set_global),
    "global of a callee": lambda: (_calls_what_reads_global, _set_global),
    "global in a lambda": lambda: (_reads_global_in_a_lambda, _set_global),
    "global in a comprehension": lambda: (_reads_global_in_a_comprehension, _set_global),
    "global by name": lambda: (_reads_global_by_name, _set_global),
    "global jax array": lambda: (_reads_global_array, _set_global_array),
    "module": lambda: (_reads_module, functools.partial(setattr, _settings, "number")),
    "module in a module": lambda: (
        _reads_inner_module,
        functools.partial(setattr, _inner, "number"),
    ),
    "module by getattr": lambda: (
        _reads_module_by_getattr,
        functools.partial(setattr, _settings, "number"),
    ),
    "module handed on": lambda: (_hands_module_on, functools.partial(setattr, _settings, "number")),
    "module imported inside": lambda: (_imports_inside, _set_global),
    "closure of a callee": _function_that_closes_over_a_name,
    "recursive function": _recursive_function,
    "under jax.vmap": lambda: _wrapped(lambda f: lambda y: jax.vmap(f)(y[None])[0]),
    "under eqx.filter_vmap": lambda: _wrapped(
        lambda f: lambda y: jnp.sum(eqx.filter_vmap(f)(y[:, None]))
    ),
    "under functools.wraps": lambda: _wrapped(lambda f: functools.wraps(f)(lambda y: f(y))),
    "partial": _partial,
    "object": lambda: _holder(lambda holder: holder),
    "bound method": lambda: _holder(lambda holder: holder.objective),
    "closed-over bound method": lambda: _holder(
        lambda h: (lambda method: lambda y: method(y))(h.objective)
    ),
    "class": _class_attribute,
    "iterator": _iterator,
    "numpy function of the user": _numpy_function_of_the_user,
}


@eqx.filter_jit
def evaluate(problem):
    return problem.objective(problem.start, problem.args)


@pytest.mark.parametrize("place", HIDING_PLACES.values(), ids=HIDING_PLACES.keys())
def test_change_that_an_objective_can_see_is_seen_by_the_next_call(place):
    objective, set_ = place()
    found = []
    for value in (None, 2.0):
        if value is not None:
            set_(value)
        found.append(float(evaluate(build_problem(objective, jnp.zeros(1), ()))))
    set_(1.0)
    assert found == [1.0, 4.0]


class _Model(eqx.Module):
    scale: jax.Array

    def __call__(self, y):
        return jnp.sum((self.scale * y - _number) ** 2)


class _Pair(NamedTuple):
    scale: jax.Array
    other: float

    def __call__(self, y):
        return jnp.sum((self.scale * y - _number) ** 2)


_PARTIAL = jax.tree_util.Partial(lambda scale, y: jnp.sum((scale * y - _number) ** 2), jnp.ones(1))


@pytest.mark.parametrize(
    "param", [_Model(jnp.ones(1)), _Pair(jnp.ones(1), 2.0), _PARTIAL], ids=type
)
def test_change_that_a_method_of_a_param_can_see_is_seen_by_the_next_call(param):
    def objective(y, models):
        return models["a"][0](y)

    def value():
        return float(evaluate(build_problem(objective, jnp.zeros(1), ({"a": [param]},))))

    try:
        assert value() == 1.0
        _set_global(2.0)
        assert value() == 4.0
    finally:
        _set_global(1.0)


def test_change_of_a_global_is_seen_by_argmin_and_its_gradient():
    def slope(t):
        return argmin(lambda y, t: jnp.sum((y - _number * t) ** 2), jnp.zeros(()), t)

    try:
        for number in (1.0, 3.0):
            _set_global(number)
            value, gradient = jax.value_and_grad(slope)(2.0)
            assert_close(value, jnp.array(2.0 * number), 1e-12)
            assert_close(gradient, jnp.array(number), 1e-12)
    finally:
        _set_global(1.0)


def test_size_of_a_named_axis_is_seen_anew():
    def objective(y):
        return jnp.sum((y - jax.lax.axis_size("lanes")) ** 2)

    def value(y):
        return evaluate(build_problem(objective, y, ()))

    for size in (2, 3):
        found = jax.vmap(value, axis_name="lanes")(jnp.zeros((size, 1)))
        assert_close(found, jnp.full(size, float(size**2)), 0.0)


COLLECTIVES = {
    "psum": lambda y: jax.lax.psum(jnp.sum(y**2), "lanes"),
    "pmax": lambda y: jnp.sum((y - jax.lax.pmax(y, "lanes")) ** 2),
    "all_gather": lambda y: jnp.sum(jax.lax.all_gather(y, "lanes") ** 2),
    "axis_index": lambda y: jnp.sum((y - jax.lax.axis_index("lanes")) ** 2),
    "psum, in a jitted function": jax.jit(lambda y: jax.lax.psum(jnp.sum(y**2), "lanes")),
}


@pytest.mark.parametrize("objective", COLLECTIVES.values(), ids=COLLECTIVES.keys())
def test_objective_that_looks_along_a_named_axis_is_told_that_each_lane_is_its_own(objective):
    with pytest.raises(ValueError, match="named axis 'lanes'"):
        jax.vmap(lambda y: argmin(objective, y), axis_name="lanes")(jnp.zeros((3, 1)))


def test_objective_may_have_a_named_axis_of_its_own():
    def objective(y, t):
        return jax.vmap(
            lambda t: jax.lax.pmean((y - t) ** 2, "samples"), axis_name="samples", out_axes=None
        )(t)

    lanes = jax.vmap(lambda t: argmin(objective, jnp.zeros(()), t), axis_name="lanes")
    assert_close(lanes(jnp.array([[0.0, 2.0], [1.0, 5.0]])), jnp.array([1.0, 3.0]), 1e-12)


def test_random_numbers_of_numpy_are_drawn_anew():
    def objective(y):
        return jnp.sum(y) + np.random.normal()

    first, second = (evaluate(build_problem(objective, Y0, ())) for _ in range(2))
    assert first != second


def _closes_over_data():
    data = jnp.ones(2)
    return lambda: lambda y, t: jnp.sum((y - t * data) ** 2)


_DATA = np.arange(6.0).reshape(3, 2)


def _loss(residuals):
    return jnp.mean(jnp.logaddexp(0.0, residuals) + jax.nn.softplus(residuals))


def _reads_much(y, t, power=2):
    return _loss(_DATA @ (y - t)) + sum([jnp.sum(y**power), *map(jnp.sum, [y])])


STABLE = {
    "function": lambda: cube_root,
    "lambda made anew": _closes_over_data(),
    "function of a module's data and helpers": lambda: _reads_much,
    "partial made anew": lambda: functools.partial(_reads_much, power=4),
    "jitted function": lambda: jax.jit(_reads_much),
    "checkpointed function": lambda: jax.checkpoint(_reads_much),
    "vmapped function": lambda: lambda y, t: jnp.sum(jax.vmap(cube_root)(y, t)),
}


@pytest.mark.parametrize("make", STABLE.values(), ids=STABLE.keys())
def test_same_objective_is_traced_once_so_that_its_solve_is_compiled_once(make):
    first = build_problem(make(), Y0, (Y0,))
    again = build_problem(make(), Y0 + 1, (Y0 + 2,))
    assert again.objective == first.objective
    assert_close(evaluate(again), make()(Y0 + 1, Y0 + 2), 1e-15)


def test_arguments_of_another_shape_or_dtype_or_structure_are_traced_anew():
    def objective(y, t):
        return jnp.sum(y**2) * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(t)).astype(y.dtype)

    wide, narrow = jnp.ones(2), jnp.ones(2, jnp.float32)
    calls = [(wide, wide), (jnp.ones(3), wide), (narrow, narrow), (wide, [wide]), (wide, 1.0)]
    kinds = [build_problem(objective, y0, (t,)).objective for y0, t in calls]
    assert not [pair for pair in itertools.combinations(kinds, 2) if pair[0] == pair[1]]
    assert [evaluate(build_problem(objective, y0, (t,))) for y0, t in calls] == [4, 6, 4, 4, 2]


def test_tracer_that_an_objective_closes_over_is_not_kept():
    def value(t):
        return evaluate(build_problem(lambda y: jnp.sum((y - t) ** 2), jnp.zeros(1), ()))

    for _ in range(2):
        assert_close(jax.jit(jax.grad(value))(3.0), 6.0, 1e-15)
        assert_close(jax.vmap(value)(jnp.array([1.0, 2.0])), jnp.array([1.0, 4.0]), 1e-15)


AUX_CASES = {
    "no pair": (lambda y: jnp.sum(y**2), r"objective must return a pair \(value, aux\)"),
    "no array": (
        lambda y: (jnp.sum(y**2), {"a": "text"}),
        r"aux\['a'\] must be an array; found str",
    ),
    "no scalar": (lambda y: (y**2, y), r"objective must return a real floating scalar"),
}


@pytest.mark.parametrize("case", AUX_CASES.values(), ids=AUX_CASES.keys())
def test_auxiliary_output_of_another_form_is_refused_by_name(case):
    objective, message = case
    with pytest.raises(ValueError, match=message):
        argmin(objective, Y0, has_aux=True)


def test_a_pair_without_has_aux_is_told_about_it():
    with pytest.raises(ValueError, match="has_aux=True"):
        argmin(lambda y: (jnp.sum(y**2), y), Y0)

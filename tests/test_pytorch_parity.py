"""The lecture notes' first example, computed by PyTorch while the test runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.datasets import make_regression
from sklearn.preprocessing import StandardScaler

from argmin_jax import SVD, Auto, argmin
from benchmarks.pytorch_forecaster import ReferenceArgmin, TunedArgmin

# With these no weight is near zero, where |w| has no derivative.
L1, L2 = 0.1, 0.5


@pytest.fixture(scope="module")
def data():
    x, t, _ = make_regression(
        n_samples=1000, n_features=20, coef=True, random_state=42, bias=10, noise=1
    )
    return StandardScaler().fit_transform(x), t - t.mean()


def by_pytorch(layer, x, t):
    x, t = torch.as_tensor(x), torch.as_tensor(t)

    def objective(w, l1, l2):
        fit = ((x @ w - t) ** 2).mean()
        return fit + (l1 * w.abs().mean() + l2 * (w**2).mean()).sum()

    l1, l2 = (torch.full((1, 1), v, dtype=torch.float64, requires_grad=True) for v in (L1, L2))
    w = layer.apply(objective, torch.ones(20, dtype=torch.float64), l1, l2)
    w.mean().backward()
    return w.detach().numpy(), np.array([l1.grad.item(), l2.grad.item()])


def by_jax(x, t, **options):
    def objective(w, l1, l2):
        fit = jnp.mean((x @ w - t) ** 2)
        return fit + jnp.sum(l1 * jnp.mean(jnp.abs(w)) + l2 * jnp.mean(w**2))

    def mean_weight(l1, l2):
        w = argmin(objective, jnp.ones(20), l1, l2, **options)
        return jnp.mean(w), w

    l1, l2 = jnp.full((1, 1), L1), jnp.full((1, 1), L2)
    gradient, w = jax.grad(mean_weight, argnums=(0, 1), has_aux=True)(l1, l2)
    return np.asarray(w), np.concatenate(gradient).ravel()


@pytest.mark.parametrize("linear_solver", [Auto(), SVD()], ids=["Auto", "SVD"])
def test_weights_and_gradients_in_l1_and_l2_are_those_of_pytorch(data, linear_solver):
    w, gradient = by_jax(*data, linear_solver=linear_solver)
    assert np.min(np.abs(w)) > 1e-4
    for layer in (ReferenceArgmin, TunedArgmin):
        expected_w, expected = by_pytorch(layer, *data)
        # PyTorch's L-BFGS stops where the loss, of curvature about 2, changes by less than 1e-9.
        np.testing.assert_allclose(w, expected_w, rtol=0, atol=3e-5)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)

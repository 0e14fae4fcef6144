"""Closed forms against numpy's least squares on the stored pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import D, pairs, sums

from subfit.errors import SubFitError
from subfit.fitting import regression


def centred(x, y):
    return regression.centre(sums(x, y))


def affine(x, y):
    """The least-squares map, and below it the bias."""
    return np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]


def loss(x, y, weight):
    """Squared error of the best affine map with this linear part."""
    error = (y - y.mean(0)) - (x - x.mean(0)) @ np.asarray(weight)
    return (error**2).sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_linear_equals_lstsq(seed):
    x, y = pairs(seed=seed)
    c = centred(x, y)
    weight = regression.least_squares(c, ridge=0.0).numpy()
    bias = c.mean_y.numpy() - c.mean_x.numpy() @ weight
    expected = affine(x, y)
    assert np.linalg.norm(weight - expected[:-1]) < 1e-6 * np.linalg.norm(expected[:-1])
    assert np.linalg.norm(bias - expected[-1]) < 1e-6 * np.linalg.norm(expected[-1])


def test_weights_are_those_of_weighted_least_squares():
    x, y = pairs()
    w = np.random.default_rng(1).uniform(0.1, 2, len(x))
    c = regression.centre(sums(x, y, w))
    root = np.sqrt(w)[:, None]
    expected = np.linalg.lstsq(root * np.c_[x, np.ones(len(x))], root * y, rcond=None)[0]
    weight = regression.least_squares(c, ridge=0.0).numpy()
    assert np.linalg.norm(weight - expected[:-1]) < 1e-6 * np.linalg.norm(expected[:-1])


def test_ridge_is_relative_to_the_scale_of_the_data():
    x, y = pairs()
    weight = regression.least_squares(centred(x, y), ridge=0.1).numpy()
    xc, yc = x - x.mean(0), y - y.mean(0)
    penalty = 0.1 * (xc**2).sum() / D  # lambda * n * mean variance
    expected = np.linalg.lstsq(np.r_[xc, np.sqrt(penalty) * np.eye(D)], np.r_[yc, np.zeros((D, D))], rcond=None)[0]
    np.testing.assert_allclose(weight, expected, rtol=1e-8, atol=1e-12)
    scaled = regression.least_squares(centred(1000 * x, 1000 * y), ridge=0.1).numpy()
    np.testing.assert_allclose(scaled, weight, rtol=1e-8)


@pytest.mark.parametrize("fit", [regression.least_squares, regression.scalar_weight, regression.diagonal_weights])
@pytest.mark.parametrize("ridge", [-1.0, float("nan")])
def test_a_negative_ridge_is_refused(fit, ridge):
    with pytest.raises(SubFitError, match=f"ridge is {ridge}; it must not be negative"):
        fit(centred(*pairs(50)), ridge)


@pytest.mark.parametrize("tokens", [1, 5, D])
def test_fewer_tokens_than_dimensions_give_the_predictions_of_lstsq(tokens):
    x, y = pairs(tokens=tokens)
    c = centred(x, y)
    weight = regression.least_squares(c, ridge=0.0).numpy()
    predicted = (x - x.mean(0)) @ weight + y.mean(0)
    np.testing.assert_allclose(predicted, np.c_[x, np.ones(len(x))] @ affine(x, y), rtol=1e-5, atol=1e-5)


def test_constant_and_repeated_features():
    x, y = pairs()
    x[:, 3], x[:, 5] = 7.0, x[:, 4]
    weight = regression.least_squares(centred(x, y), ridge=0.0).numpy()
    expected = np.c_[x, np.ones(len(x))] @ affine(x, y)
    np.testing.assert_allclose((x - x.mean(0)) @ weight + y.mean(0), expected, rtol=1e-6, atol=1e-6)
    nothing = regression.least_squares(centred(np.ones_like(x), y), ridge=1e-4)
    assert torch.equal(nothing, torch.zeros(D, D, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 3, D])
def test_reduced_rank_reaches_the_loss_of_projecting_the_full_fit(rank):
    x, y = pairs()
    a, b = (t.numpy() for t in regression.reduced_rank(centred(x, y), rank, ridge=0.0))
    assert a.shape == (D, rank) and b.shape == (rank, D)
    full = affine(x, y)[:-1]
    fitted = (x - x.mean(0)) @ full
    directions = np.linalg.svd(fitted, full_matrices=False)[2][:rank]  # reduced-rank regression, from the fitted values
    expected = loss(x, y, full @ directions.T @ directions)
    assert loss(x, y, a @ b) == pytest.approx(expected, rel=1e-9)


def test_reduced_rank_of_rank_deficient_data_is_filled_with_zeros():
    x, y = pairs(tokens=4)
    a, b = regression.reduced_rank(centred(x, y), 6, ridge=0.0)
    assert a.shape == (D, 6) and b.shape == (6, D) and a.isfinite().all() and b.isfinite().all()
    np.testing.assert_allclose((x - x.mean(0)) @ (a @ b).numpy(), y - y.mean(0), atol=1e-5)


@pytest.mark.real
def test_a_site_of_width_4096_is_fitted_to_working_precision(all_cores):
    """Its outputs span an invariant subspace of the whitened map's Gram matrix, and no direction that is left gains more."""
    width, rank, ridge = 4096, 512, 0.05
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(width + 512, width, generator=generator) * torch.logspace(0, -2, width)
    y = x @ torch.randn(width, width, generator=generator) + torch.randn(len(x), width, generator=generator)
    c = centred(x.double(), y.double())
    a, b = regression.reduced_rank(c, rank, ridge)
    gram = c.xy.T @ torch.linalg.solve(regression.ridged(c.xx, ridge), c.xy)
    moved = gram @ b.T
    gains = b @ moved
    error = (moved - b.T @ gains).norm() / moved.norm()
    rest = torch.randn(width, 1, generator=generator, dtype=torch.float64)
    for _ in range(50):
        rest = torch.nn.functional.normalize(rest - b.T @ (b @ rest), dim=0)
        rest = gram @ rest
    assert rest.norm() <= gains.diagonal().min() * (1 + 1e-9)
    assert error < 1e-9


def test_a_shared_basis_reaches_the_loss_of_joint_reduced_rank_regression():
    x, first = pairs(seed=0)
    _, second = pairs(seed=1)
    second = second + x @ np.random.default_rng(2).normal(size=(D, D)) / 5
    targets = [y / np.sqrt(y.var(0).sum()) for y in (first, second)]  # every site counts by its share of variance
    sites = [centred(x, first), centred(x, second)]  # one input, so that the joint problem is one regression
    basis = regression.shared_basis(iter(sites), 4, ridge=0.0)
    found = 0.0
    for y in targets:
        found += loss(x, y, (basis @ regression.least_squares(regression.project(centred(x, y), basis), ridge=0.0)).numpy())
    both = np.concatenate(targets, axis=1)
    full = affine(x, both)[:-1]
    directions = np.linalg.svd((x - x.mean(0)) @ full, full_matrices=False)[2][:4]
    assert found == pytest.approx(loss(x, both, full @ directions.T @ directions), rel=1e-6)


def test_output_maps_from_a_basis_are_least_squares_on_the_projected_inputs():
    x, y = pairs()
    basis = torch.randn(D, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = regression.least_squares(regression.project(centred(x, y), basis), ridge=0.0).numpy()
    np.testing.assert_allclose(weight, affine(x @ basis.numpy(), y)[:-1], rtol=1e-6, atol=1e-9)


def test_explained_variance_equals_that_of_the_residuals():
    x, y = pairs(noise=2.0)
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(D, D)) / 50, rng.normal(size=D)
    expected = 1 - ((y - x @ weight - bias) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    found = regression.explained_variance(sums(x, y), torch.from_numpy(weight), torch.from_numpy(bias))
    assert found == pytest.approx(expected, rel=1e-9)


def test_constant_targets_have_no_variance_to_explain():
    x, y = pairs(tokens=10_000)
    constant = np.tile(1e4 * np.random.default_rng(0).normal(size=D), (len(x), 1))
    given, bias = sums(x, constant), torch.from_numpy(constant[0])
    mean = given.y / len(x)
    assert given.yy / len(x) - mean @ mean > 0  # the sums are rounded
    assert regression.centre(given).yy == 0
    assert np.isnan(regression.explained_variance(given, torch.zeros(D, D, dtype=torch.float64), bias))
    almost = sums(x, constant + 0.1 * (y - y.mean(0)))
    assert regression.centre(almost).yy == pytest.approx(0.01 * y.var(0).sum(), rel=1e-3)
    alone, beside = (
        regression.shared_basis(iter(sites), 3, 0.0) for sites in ([centred(x, y)], [centred(x, y), centred(x, constant)])
    )
    torch.testing.assert_close(beside, alone)

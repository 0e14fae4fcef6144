import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subfit.calibration.moments import BLOCK, CHUNK, StreamingMoments
from subfit.errors import SubFitError

WIDTH = 5


def draw(tokens: int, seed: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(tokens, WIDTH, generator=generator).to(dtype) for _ in range(2))
    return x, y, torch.rand(tokens, generator=generator)


def moments_of(*batches) -> StreamingMoments:
    moments = StreamingMoments(WIDTH, WIDTH)
    for batch in batches:
        moments.update(*batch)
    return moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_equal_numpy(dtype):
    x, y, w = draw(CHUNK + 100, 0, dtype)
    sums = vars(moments_of((x, y, w)).compute())
    a, b, v = (t.double().numpy() for t in (x, y, w))
    expected = {
        "n": v.sum(),
        "tokens": len(a),
        "x": v @ a,
        "y": v @ b,
        "xx": np.einsum("t,ti,tj->ij", v, a, a),
        "xy": np.einsum("t,ti,tj->ij", v, a, b),
        "yy": (v[:, None] * b * b).sum(),
    }
    assert set(sums) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name].numpy(), value, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("features", [BLOCK - 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_many_features_are_summed_in_blocks(features, weighted):
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(90, features, generator=generator), torch.randn(90, 2, generator=generator)
    w = torch.rand(90, generator=generator) if weighted else torch.ones(90)
    moments = StreamingMoments(features, 2)
    for part in (slice(0, 40), slice(40, 90)):
        moments.update(x[part], y[part], w[part] if weighted else None)
    a, v = x.double().numpy(), w.double().numpy()
    np.testing.assert_allclose(moments.compute().xx.numpy(), (a * v[:, None]).T @ a, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_order_and_any_split_agree(sizes, random):
    x, y, w = draw(sum(sizes), 1)
    parts = list(zip(*(t.split(sizes) for t in (x, y, w)), strict=True))
    random.shuffle(parts)
    whole, split = vars(moments_of((x, y, w)).compute()), vars(moments_of(*parts).compute())
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-12, atol=1e-12)


def test_batches_of_windows_are_flattened_and_weights_default_to_one():
    x, y, _ = draw(24, 2)
    flat, windows = moments_of((x, y)).compute(), moments_of((x.view(2, 12, WIDTH), y.view(2, 12, WIDTH))).compute()
    assert flat.n == windows.n == 24
    torch.testing.assert_close(flat.xy, windows.xy)


def test_nothing_seen_and_nan_are_errors():
    with pytest.raises(SubFitError, match="no calibration token"):
        StreamingMoments(WIDTH, WIDTH).compute()
    x, y, _ = draw(8, 3)
    y[3, 1] = float("nan")
    with pytest.raises(SubFitError, match="moment y is not finite"):
        moments_of((x, y)).compute()

"""Advantages against their papers' definitions, written out in float64 numpy."""

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from nspo_jax.rl import advantages

DEFINITIONS = {
    "grpo": lambda r: (r - r.mean()) / (np.sqrt(np.mean((r - r.mean()) ** 2)) + 1e-4),
    "dr_grpo": lambda r: r - r.mean(),
    "rloo": lambda r: np.array([r[i] - np.delete(r, i).mean() for i in range(len(r))]),
}


@pytest.mark.parametrize("name", advantages.ESTIMATORS)
@hypothesis.given(
    groups=st.integers(1, 5), size=st.integers(2, 6), seed=st.integers(0, 2**31 - 1)
)  # fmt: skip
@hypothesis.settings(deadline=None, max_examples=50)
def test_a_group_s_advantages_have_their_definition_and_symmetries(name, groups, size, seed):
    estimator = advantages.ESTIMATORS[name]
    rewards = np.random.default_rng(seed).standard_normal((groups, size))
    result = estimator(rewards.reshape(-1), size)
    assert result.dtype == np.float32
    expected = np.concatenate([DEFINITIONS[name](group) for group in rewards])
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.reshape(groups, size).sum(axis=1), 0.0, atol=1e-5)
    shifted = rewards + 10 * np.arange(groups)[:, None]
    np.testing.assert_allclose(estimator(shifted.reshape(-1), size), result, atol=1e-5)
    scaled = estimator(7 * rewards.reshape(-1), size)
    if name == "grpo":  # no scale, but for epsilon beside the spread
        tolerance = 1e-5 + np.abs(result) * np.repeat(1e-4 / rewards.std(axis=1), size)
        assert np.all(np.abs(scaled - result) <= tolerance)
    else:
        np.testing.assert_allclose(scaled, 7 * result, rtol=1e-5, atol=1e-6)


def test_leave_one_out_is_centred_times_n_over_n_minus_one():
    rewards = np.random.default_rng(0).standard_normal(20)
    centred = advantages.centred_advantages(rewards, 5)
    np.testing.assert_allclose(
        advantages.leave_one_out_advantages(rewards, 5), 1.25 * centred, rtol=1e-6
    )


@pytest.mark.parametrize("estimator", advantages.ESTIMATORS.values())
def test_a_constant_group_teaches_nothing_and_bad_rewards_are_refused(estimator):
    mixed = estimator(np.array([0.1] * 3 + [0.0, 0.1, 0.2]), 3)  # 0.1 is not the mean of three 0.1
    assert not mixed[:3].any() and mixed[3:].any()
    for wrong, size in ((np.zeros(7), 5), (np.zeros(3), 1), (np.zeros((2, 5)), 5)):
        with pytest.raises(ValueError, match="whole groups of at least 2"):
            estimator(wrong, size)
    with pytest.raises(ValueError, match="1 of 4 rewards are not finite"):
        estimator(np.array([0, 1, np.nan, 0]), 2)


def gae_definition(rewards, values, length, gamma, lam):
    """The sum over all later one-step errors, for one row."""
    after = np.append(values[1:length], 0.0)
    errors = rewards[:length] + gamma * after - values[:length]
    powers = (gamma * lam) ** np.arange(length)
    return np.array([np.sum(powers[: length - t] * errors[t:]) for t in range(length)])


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.7), (0.9, 1.0), (0.9, 0.0), (1.0, 0.95)])
def test_generalised_advantages_have_their_definition(gamma, lam):
    rng, lengths = np.random.default_rng(0), [7, 3, 1, 0]
    mask = np.arange(7) < np.array(lengths)[:, None]
    rewards, values = rng.standard_normal((2, 4, 7))
    garbage = [np.where(mask, x, np.nan).astype(np.float32) for x in (rewards, values)]
    found, returns = jax.jit(advantages.generalised_advantages)(
        *garbage, mask, gamma=gamma, lam=lam
    )
    assert not np.any(found[~mask]) and not np.any(returns[~mask])
    np.testing.assert_allclose(returns[mask], (found + values)[mask], rtol=1e-5, atol=1e-6)
    for row, length in enumerate(lengths):
        expected = gae_definition(rewards[row], values[row], length, gamma, lam)
        np.testing.assert_allclose(found[row, :length], expected, rtol=1e-5, atol=1e-5)
        for t in range(length):
            if lam == 1:  # the discounted return
                to_go = sum(gamma ** (u - t) * rewards[row, u] for u in range(t, length))
                np.testing.assert_allclose(returns[row, t], to_go, rtol=1e-5, atol=1e-5)
            if lam == 0:  # one step
                after = values[row, t + 1] if t + 1 < length else 0.0
                error = rewards[row, t] + gamma * after
                np.testing.assert_allclose(returns[row, t], error, rtol=1e-5, atol=1e-5)

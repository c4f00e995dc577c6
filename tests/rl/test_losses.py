"""Policy, value and preference losses against float64 formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.rl import losses

RNG = np.random.default_rng(0)
SHAPE = (6, 7)
MASK = np.arange(7) < np.array([7, 3, 1, 0, 5, 2])[:, None]
LOGPROBS, REFERENCE = -np.abs(RNG.standard_normal((2, *SHAPE)))
OLD = LOGPROBS + 0.3 * RNG.standard_normal(SHAPE)
ADVANTAGES = RNG.standard_normal(6)
WEIGHTS = RNG.uniform(0.5, 2.0, SHAPE)
KL = {
    "k1": lambda policy, reference: policy - reference,
    "k2": lambda policy, reference: 0.5 * (policy - reference) ** 2,
    "k3": lambda policy, reference: np.exp(reference - policy) - 1 - (reference - policy),
}


def aggregated(rows, how):
    """rows: each sequence's list of token values."""
    if how == "sequence_mean":
        return sum(np.mean(row) for row in rows if row) / len(rows)
    total = sum(sum(row) for row in rows)
    if how == "sequence_sum":
        return total / len(rows)
    return total / (sum(map(len, rows)) if how == "token_mean" else MASK.size)


def definition(kind, how, *, clip, dual_clip, beta, estimator, high=0.0):
    """The papers' objectives, token by token in float64."""
    rows = []
    for row in range(len(MASK)):
        real, terms, advantage = np.flatnonzero(MASK[row]), [], ADVANTAGES[row]
        for t in real:
            ratio = np.exp(LOGPROBS[row, t] - OLD[row, t])
            if kind == "gspo":
                ratio = np.prod(np.exp(LOGPROBS[row] - OLD[row])[real]) ** (1 / len(real))
            gain = min(ratio * advantage, min(max(ratio, 1 - clip), 1 + (high or clip)) * advantage)
            if dual_clip and advantage < 0:
                gain = max(gain, dual_clip * advantage)
            penalty = KL[estimator](LOGPROBS[row, t], REFERENCE[row, t])
            terms.append(-gain * WEIGHTS[row, t] + beta * penalty)
        rows.append(terms)
    return aggregated(rows, how)


def float32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("how", losses.AGGREGATIONS)
@pytest.mark.parametrize(("kind", "clip"), [("grpo", 0.2), ("gspo", 0.05)])
def test_policy_losses_match_their_formulas(kind, clip, how):
    logprobs, old, advantages, weights, reference = float32(
        LOGPROBS, OLD, ADVANTAGES, WEIGHTS, REFERENCE
    )
    cases = ((0.0, 0.0, "k3"), (0.0, 0.2, "k3"), (1.1, 0.2, "k2"), (1.1, 0.2, "k1"))
    found = []
    for dual_clip, beta, estimator in cases:
        options = {"clip": clip, "dual_clip": dual_clip}
        result = losses.LOSSES[kind](
            logprobs, old, advantages, jnp.asarray(MASK), aggregation=how, weights=weights,
            kl_coefficient=beta, kl_estimator=estimator, reference_logprobs=reference, **options,
        )  # fmt: skip
        expected = definition(kind, how, beta=beta, estimator=estimator, **options)
        np.testing.assert_allclose(result.loss, expected, rtol=1e-5, atol=1e-6)
        assert 0 < result.clip_share < 1
        rows = [[KL["k3"](a, b) for a, b, real in zip(*row, strict=True) if real]
                for row in zip(LOGPROBS, REFERENCE, MASK, strict=True)]  # fmt: skip
        np.testing.assert_allclose(result.kl, aggregated(rows, "sequence_mean"), rtol=1e-5)
        found.append(float(result.loss))
    assert len(set(found)) == len(cases)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("kind", "clip", "high"), [("grpo", 0.2, 0.28), ("gspo", 3e-4, 4e-4)])
def test_a_clip_s_upper_bound_may_be_another(monkeypatch, kind, clip, high, sign):
    """DAPO's clip-higher, and GSPO's own bounds; the penalty is told apart."""
    monkeypatch.setitem(globals(), "ADVANTAGES", sign * ADVANTAGES)
    logprobs, old, advantages, reference = float32(LOGPROBS, OLD, ADVANTAGES, REFERENCE)
    result = losses.LOSSES[kind](
        logprobs, old, advantages, MASK, clip=clip, clip_high=high, weights=jnp.asarray(WEIGHTS),
        kl_coefficient=0.2, reference_logprobs=reference,
    )  # fmt: skip

    def expected(beta, high):
        options = {"clip": clip, "dual_clip": 0.0, "estimator": "k3"}
        return definition(kind, "sequence_mean", beta=beta, high=high, **options)

    np.testing.assert_allclose(result.loss, expected(0.2, high), rtol=1e-5)
    np.testing.assert_allclose(result.policy, expected(0.0, high), rtol=1e-5)
    if sign == (1 if kind == "grpo" else -1):  # where some ratio is above, and may rise
        assert abs(expected(0.0, 0.0) - expected(0.0, high)) > 1e-5


@pytest.mark.parametrize("kind", losses.LOSSES)
@pytest.mark.parametrize("gap", [99.0, 1e4, -99.0])
def test_loss_and_gradient_are_finite_however_far_the_policies_are_apart(kind, gap):
    logprobs, old = jnp.full((4, 3), gap - 100.0), jnp.full((4, 3), -100.0)
    for sign in (-1.0, 0.0, 1.0):
        for dual_clip in (0.0, 3.0):

            def loss_of(logprobs, sign=sign, dual_clip=dual_clip):
                return losses.LOSSES[kind](
                    logprobs, old, jnp.full(4, sign), jnp.ones((4, 3), bool),
                    dual_clip=dual_clip, kl_coefficient=0.1, reference_logprobs=old,
                ).loss  # fmt: skip

            loss, gradient = jax.value_and_grad(loss_of)(logprobs)
            assert np.isfinite(loss) and np.isfinite(gradient).all()
            if sign > 0 and gap > 0:  # the clip cuts: what is left is k3's pull, close to 1
                np.testing.assert_allclose(gradient, 0.1 / 12, rtol=1e-5)


def test_a_bounded_exponential_is_exact_below_its_bound():
    x = np.array([-80.0, -1.0, 0.0, 19.9, 25.0])
    value, slope = losses.bounded_exp(jnp.asarray(x)), jax.grad(losses.bounded_exp)
    np.testing.assert_allclose(value[:4], np.exp(x[:4]), rtol=1e-5)
    np.testing.assert_allclose(value[4], np.exp(20) * 6, rtol=1e-5)
    np.testing.assert_allclose([slope(at) for at in x], np.exp(np.minimum(x, 20)), rtol=1e-5)


def test_how_tokens_are_weighed():
    """A long and a short answer: the same per sequence, the same per token, or by neither."""
    mask, ones = jnp.arange(4)[None] < jnp.array([4, 1])[:, None], jnp.ones((2, 4))
    expected = {
        "sequence_mean": [[1 / 8] * 4, [1 / 2, 0, 0, 0]],
        "token_mean": [[1 / 5] * 4, [1 / 5, 0, 0, 0]],
        "sequence_sum": [[1 / 2] * 4, [1 / 2, 0, 0, 0]],
        "constant": [[1 / 8] * 4, [1 / 8, 0, 0, 0]],
    }
    for how in losses.AGGREGATIONS:
        np.testing.assert_allclose(jax.grad(losses.aggregate)(ones, mask, how), expected[how])
        nothing = losses.aggregate(ones, jnp.zeros((2, 4), bool), how)
        assert nothing == 0
    parts = [losses.aggregate(ones[i:][:1], mask[i:][:1], "token_mean", 5 / 2) for i in (0, 1)]
    np.testing.assert_allclose(np.mean(parts), 1.0, rtol=1e-6)
    with pytest.raises(ValueError, match="'mean'; expected one of sequence_mean, token_mean"):
        losses.aggregate(ones, mask, "mean")
    with pytest.raises(ValueError, match="'k4'; expected one of k1, k2, k3"):
        losses.kl_estimate(ones, ones, mask, "k4")


@pytest.mark.parametrize("loss", losses.LOSSES.values())
def test_padding_contributes_nothing_even_when_it_holds_garbage(loss):
    mask = jnp.array([[True, True, False], [True, False, False]])
    logprobs = jnp.array([[-1.0, -2.0, -jnp.inf], [-0.5, jnp.nan, 3e4]])
    old = jnp.where(mask, logprobs, -1e4)
    advantages = jnp.where(mask, jnp.array([[1.0], [-1.0]]), jnp.nan)
    for scale in (jnp.array([1.0, -1.0]), advantages):
        value, gradient = jax.value_and_grad(
            lambda values, scale=scale: (
                loss(
                    values, old, scale, mask, reference_logprobs=jnp.where(mask, logprobs, jnp.nan)
                ).loss
            )
        )(logprobs)
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        # -A / (tokens * sequences)
        np.testing.assert_allclose(gradient, [[-0.25, -0.25, 0.0], [0.5, 0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("loss", losses.LOSSES.values())
def test_advantages_of_tokens_weigh_their_own_gradients(loss):
    scale, logprobs, old = float32(WEIGHTS - 1.0, LOGPROBS, LOGPROBS)
    gradient = jax.grad(lambda values: loss(values, old, scale, jnp.asarray(MASK)).loss)(logprobs)
    lengths = np.maximum(MASK.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(gradient, np.where(MASK, -scale, 0) / lengths / 6, rtol=1e-5)


def test_clips_stop_the_gradient_only_on_the_far_side():
    mask, old = jnp.ones((1, 1), bool), jnp.zeros((1, 1))

    def gradient(ratio, advantage, **options):
        values, advantage = jnp.full((1, 1), jnp.log(ratio)), jnp.array([advantage])
        loss = lambda values: losses.grpo_loss(values, old, advantage, mask, **options)  # noqa: E731
        return float(jax.grad(lambda values: loss(values).loss)(values)[0, 0]), loss(values)

    for ratio, advantage, dual_clip, expected in (
        (1.5, 1.0, 0.0, 0.0), (1.5, -1.0, 0.0, 1.5), (0.5, 1.0, 0.0, -0.5), (0.5, -1.0, 0.0, 0.0),
        (1.1, 1.0, 0.0, -1.1), (5.0, -1.0, 0.0, 5.0), (5.0, -1.0, 3.0, 0.0), (2.0, -1.0, 3.0, 2.0),
        (0.5, -1.0, 3.0, 0.0), (5.0, 1.0, 3.0, 0.0), (0.1, 1.0, 3.0, -0.1),
    ):  # fmt: skip
        found, result = gradient(ratio, advantage, dual_clip=dual_clip)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{ratio} {advantage}")
        assert result.clip_share == (expected == 0.0)


def test_gspo_has_the_sequence_form_s_gradient():
    """-1/N sum min(s A, clip(s) A): a sequence inside the clip gives each token -s A / (T N)."""
    clip, advantages = 0.05, np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    gradient = jax.grad(
        lambda values, old: (
            losses.gspo_loss(
                values, old, jnp.asarray(advantages), jnp.asarray(MASK), clip=clip
            ).loss
        )
    )(*float32(LOGPROBS, OLD))
    expected, cut = np.zeros(SHAPE), 0
    for row in range(6):
        length = MASK[row].sum()
        if length:
            ratio = np.exp(np.sum((LOGPROBS - OLD)[row, :length]) / length)
            outside = (ratio - 1) * np.sign(advantages[row]) > clip
            cut += outside
            if not outside:
                expected[row, :length] = -ratio * advantages[row] / (length * 6)
    assert 0 < cut < 5
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_importance_weights_are_truncated_ratios_without_a_gradient():
    mask = jnp.array([[True, True, True, False]])
    trainer = jnp.log(jnp.array([[0.5, 0.5, 0.5, 0.5]]))
    sampler = jnp.log(jnp.array([[0.5, 0.8, 0.1, 0.0]]))
    weights = losses.importance_weights(trainer, sampler, mask, 2.0)
    np.testing.assert_allclose(weights, [[1.0, 0.625, 2.0, 1.0]], rtol=1e-6)
    assert not jax.grad(lambda values: losses.importance_weights(values, sampler, mask, 2.0).sum())(
        trainer
    ).any()


def test_value_loss_matches_the_released_code_s():
    rng, clip = np.random.default_rng(1), 0.5
    values, old, returns = rng.standard_normal((3, *SHAPE))
    clipped = old + np.clip(values - old, -clip, clip)
    errors = np.maximum((values - returns) ** 2, (clipped - returns) ** 2) / 2
    rows = [list(row[real]) for row, real in zip(errors, MASK, strict=True)]
    garbage = float32(*(np.where(MASK, x, np.nan) for x in (values, old, returns)))
    value, gradient = jax.value_and_grad(losses.value_loss)(*garbage, jnp.asarray(MASK), clip=clip)
    np.testing.assert_allclose(value, aggregated(rows, "sequence_mean"), rtol=1e-5)
    follows = (clipped == values) | ((values - returns) ** 2 > (clipped - returns) ** 2)
    weight = MASK / np.maximum(MASK.sum(1, keepdims=True), 1) / len(MASK)
    np.testing.assert_allclose(
        gradient, np.where(follows, values - returns, 0.0) * weight, rtol=1e-4, atol=1e-6
    )
    assert (MASK & follows).any() and (MASK & ~follows).any()


def test_dpo_has_the_paper_s_loss_and_gradient():
    rng, beta = np.random.default_rng(3), 0.3
    sums = -10 * np.abs(rng.standard_normal((4, 8)))
    margins = beta * (sums[0] - sums[2]) - beta * (sums[1] - sums[3])
    result = losses.dpo_loss(*float32(*sums), beta=beta)
    np.testing.assert_allclose(result.loss, np.mean(np.log1p(np.exp(-margins))), rtol=1e-5)
    np.testing.assert_allclose(result.margin, margins.mean(), rtol=1e-5)
    assert result.accuracy == np.mean(margins > 0) and 0 < result.accuracy < 1
    chosen, rejected = jax.grad(
        lambda *sums: losses.dpo_loss(*sums, beta=beta).loss, argnums=(0, 1)
    )(*float32(*sums))  # fmt: skip
    expected = beta / (1 + np.exp(margins)) / 8
    np.testing.assert_allclose(chosen, -expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(rejected, expected, rtol=1e-4, atol=1e-8)
    far = losses.dpo_loss(*float32([-1e5], [0.0], [0.0], [0.0]), beta=1.0)
    np.testing.assert_allclose(far.loss, 1e5)


def test_token_logprobs_and_their_gradient_have_the_closed_form():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((2, 3, 11))
    tokens = rng.integers(0, 11, (2, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, tokens[..., None], -1)[..., 0]
    result = models.token_logprobs(jnp.asarray(logits, jnp.float32), jnp.asarray(tokens))
    np.testing.assert_allclose(result, np.log(chosen), rtol=1e-5)
    gradient = jax.grad(lambda x: models.token_logprobs(x, jnp.asarray(tokens)).sum())(
        jnp.asarray(logits, jnp.float32)
    )
    np.testing.assert_allclose(gradient, np.eye(11)[tokens] - probabilities, atol=1e-6)

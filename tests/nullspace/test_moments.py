"""Second moments: exact sums, first tokens, gradients; spectra that say what they know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.nullspace import moments, projection
from tests.nullspace import test_artifacts as artifacts

CONFIG, batches = artifacts.CONFIG, artifacts.batches


@pytest.fixture(scope="module")
def params():
    return models.init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def source(params):
    return models.ParamsSource(CONFIG, params)


def test_sums_across_batches_lose_nothing():
    """A thousand terms of 1 beside a large one: float32 alone loses all of them."""
    sums = moments._add(None, jnp.full((2, 2), 2.0**26))
    for _ in range(1000):
        sums = moments._add(sums, jnp.ones((2, 2)))
    moment = moments.Moment(*sums, count=2)
    np.testing.assert_array_equal(moment.float64(), (2.0**26 + 1000) / 2)
    assert float(jnp.float32(2.0**26) + 1) == 2.0**26
    with pytest.raises(ValueError, match="moments of mlp/in in layer 3 are not finite"):
        moments.Moment(sums[0].at[0, 0].set(jnp.nan), sums[1], 2).check("mlp/in in layer 3")


def first_positions(batch):
    return np.argmax(batch["mask"], axis=1)


@pytest.mark.parametrize("choice", ["drop", "separate"])
def test_first_tokens_are_left_out_and_kept_apart(params, source, choice):
    found = list(moments.layer_moments(source, batches(0), first_token=choice))
    text = list(batches(0))
    rests = [b["mask"] & (np.arange(10) != first_positions(b)[:, None]) for b in text]
    inputs = [
        {
            site: np.asarray(x, np.float64).reshape(*x.shape[:-2], *b["mask"].shape, x.shape[-1])
            for site, x in models.forward(
                CONFIG, params, b["tokens"], b["mask"], observe=lambda site, x: x
            ).observations.items()
        }
        for b in text
    ]
    tokens = sum(b["mask"].sum() for b in text) if choice == "separate" else sum(map(np.sum, rests))
    for layer, sites in enumerate(found):
        for site, moment in sites.items():
            at = layer if site.startswith("layers/") else Ellipsis
            x = np.concatenate([i[site][at][r] for i, r in zip(inputs, rests, strict=True)])
            expected = x.T @ x / tokens
            scale = np.abs(expected).max()
            np.testing.assert_allclose(moment.float64(), expected, atol=1e-6 * scale)
            if choice == "drop":
                assert moment.first is None
                continue
            # one input a token that begins a row, whatever stands behind it
            firsts = np.concatenate(
                [
                    i[site][at][np.arange(8), first_positions(b)]
                    for i, b in zip(inputs, text, strict=True)
                ]
            )
            whole = np.einsum("n,ni,nj->ij", moment.first_counts, moment.first, moment.first)
            np.testing.assert_allclose(whole, firsts.T @ firsts, atol=1e-5 * np.trace(whole))
            heads = {
                b["tokens"][row, at] for b in text for row, at in enumerate(first_positions(b))
            }
            assert len(moment.first) == len(heads) < 24 == moment.first_counts.sum()


def test_first_tokens_alone_are_no_text(source):
    batch = {"tokens": np.ones((2, 3), np.int32), "mask": np.arange(3) == np.ones((2, 1))}
    with pytest.raises(ValueError, match="no calibration tokens.*first_token is 'drop'"):
        next(moments.layer_moments(source, [batch], first_token="drop"))


def test_gradient_moments_span_the_gradients(params):
    found = list(moments.gradient_moments(CONFIG, params, batches(0)))
    assert [sorted(part) for part in found[-1:]] == [["head/in"]] and len(found) == 3

    def loss(params, batch):
        hidden = models.forward(CONFIG, params, batch["tokens"], batch["mask"]).hidden
        logprobs = jax.nn.log_softmax(models.logits(CONFIG, params, hidden))[:, :-1]
        taken = jnp.take_along_axis(logprobs, batch["tokens"][:, 1:, None], -1)[..., 0]
        return -jnp.sum(taken * batch["answer_mask"][:, 1:]) / batch["answer_mask"][:, 1:].sum()

    gradients = [projection.leaves_by_path(jax.grad(loss)(params, batch)) for batch in batches(0)]
    for layer, sites in enumerate(found):
        for site, moment in sites.items():
            at = layer if site.startswith("layers/") else Ellipsis
            expected = sum(
                np.asarray(g[path][at], np.float64) @ np.asarray(g[path][at], np.float64).T
                for g in gradients
                for path in models.input_sites(CONFIG)[site]
            )
            scale = np.abs(expected).max() / 3
            np.testing.assert_allclose(moment.float64(), expected / 3, atol=1e-5 * scale)
    silent = [{**batch, "answer_mask": np.zeros((8, 10), bool)} for batch in batches(0)]
    with pytest.raises(ValueError, match="no answers to take gradients on"):
        next(moments.gradient_moments(CONFIG, params, silent))

"""PPO-Lagrangian: its formulas in float64, a constrained problem with a known optimum, and runs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import base_model, metrics, models, sharding
from nspo_jax.rl import train_step, trainer
from nspo_jax.rl.algorithms import ppo_lagrangian
from tests.rl.micro_run import assert_same_run, logged, micro, refuse, stop_at

PPO = {
    "rl.algorithm": "ppo_lagrangian", "rewards.terms": "reward_model=2+cost_model",
    "rewards.normalise": "batch", "reward_training.epochs": 1, "reward_training.batch_size": 256,
    "lagrangian.limit": 0.0, "optimizer.learning_rate": 1e-3,
}  # fmt: skip
FREE = {"lagrangian.limit": 1.0, "rl.microbatches": 2}
pytestmark = pytest.mark.usefixtures("compile_cache", "few_pairs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, baselines_workspace, compile_cache, few_pairs):
    """(workspace, workdir) of an uninterrupted run, which trained reward and cost model too."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    trainer.train(micro(baselines_workspace, **PPO), workdir)
    return baselines_workspace, workdir


# ----------------------------------------------------------------------------------- the multiplier


@pytest.mark.parametrize("initial", [0.1, 10.0])
def test_the_multiplier_finds_the_optimum_of_a_constrained_bandit(initial):
    """Two arms, one with reward 1 and cost 1, under a limit of 0.2 on the expected cost.

    A softmax policy climbs the exact expected gradient. With the penalty beta/2 KL(p || uniform),
    the arm's advantage over the other is 0 where (1 - l) / (1 + l) = beta/2 logit(p), so that
    p* = 0.2 has l* = (1 - k) / (1 + k), k = beta/2 logit(0.2).
    """
    beta, limit = 0.5, 0.2
    k = beta / 2 * np.log(limit / (1 - limit))
    expected = (1 - k) / (1 + k)
    assert expected == pytest.approx(2.0608, abs=1e-4)
    outcomes, mask = jnp.array([[1.0, 1.0], [0.0, 0.0]]), jnp.ones((2, 1), bool)

    def step(carry, _):
        logits, log_multiplier = carry
        logprobs = jax.nn.log_softmax(logits)
        p, uniform = jnp.exp(logprobs), jnp.log(jnp.full((2, 1), 0.5))
        log_multiplier = ppo_lagrangian.update_multiplier(
            log_multiplier, p @ outcomes[:, 1], limit=limit, learning_rate=0.02, largest=20.0
        )
        multiplier = jnp.exp(log_multiplier)
        rewards, costs = ppo_lagrangian.token_outcomes(
            outcomes, logprobs[:, None], uniform, mask, kl=beta
        )
        advantage = (rewards - multiplier * costs)[:, 0] / (1.0 + multiplier)
        gradient = p * (advantage - p @ advantage)
        return (logits + 0.5 * gradient, log_multiplier), None

    start = (jnp.zeros(2), jnp.log(initial))
    (logits, log_multiplier), _ = jax.lax.scan(step, start, None, 20000)
    assert jax.nn.softmax(logits)[0] == pytest.approx(limit, abs=1e-4)
    assert jnp.exp(log_multiplier) == pytest.approx(expected, abs=1e-3)


def test_the_multiplier_s_update_is_in_the_logarithm_and_capped():
    update = lambda multiplier, cost: float(  # noqa: E731
        jnp.exp(
            ppo_lagrangian.update_multiplier(
                jnp.log(multiplier), cost, limit=0.1, learning_rate=0.5, largest=4.0
            )
        )
    )
    assert update(2.0, 0.4) == pytest.approx(2.0 * np.exp(0.5 * 2.0 * 0.3), rel=1e-6)
    assert update(2.0, 0.0) == pytest.approx(2.0 * np.exp(-0.5 * 2.0 * 0.1), rel=1e-6)
    assert update(2.0, 0.1) == pytest.approx(2.0, rel=1e-6)
    assert update(3.9, 1.0) == pytest.approx(4.0, rel=1e-6)


# ----------------------------------------------------------------------------------- the advantages


def reference_advantages(outcomes, logprobs, base, values, multiplier, lengths, kl, lam):
    """A token at a time, in float64: (advantages, returns by objective), lists of rows."""
    weighed, returns = [], {"reward": [], "cost": []}
    for row, length in enumerate(lengths):
        found = {}
        for index, (name, sign) in enumerate([("reward", -1.0), ("cost", 1.0)]):
            token = [sign * kl / 2 * (logprobs[row, t] - base[row, t]) for t in range(length)]
            token[-1] += outcomes[row, index]
            value = [*values[name][row, :length], 0.0]
            delta = [token[t] + value[t + 1] - value[t] for t in range(length)]
            found[name] = [
                sum(lam**j * delta[t + j] for j in range(length - t)) for t in range(length)
            ]
            returns[name].append([a + v for a, v in zip(found[name], value, strict=False)])
        weighed.append([
            (r - multiplier * c) / (1 + multiplier)
            for r, c in zip(found["reward"], found["cost"], strict=True)
        ])  # fmt: skip
    tokens = np.concatenate(weighed)
    return [(np.array(row) - tokens.mean()) / tokens.std() for row in weighed], returns


def test_advantages_are_their_definition_whatever_stands_at_padding():
    rng, shape = np.random.default_rng(0), (5, 6)
    lengths = np.array([6, 1, 3, 5, 2])
    mask = np.arange(6) < lengths[:, None]
    outcomes = np.stack([rng.normal(2.0, 3.0, 5), rng.uniform(size=5)], axis=1)
    logprobs, base = -np.abs(rng.standard_normal((2, *shape)))
    values = dict(zip(("reward", "cost"), rng.standard_normal((2, *shape)), strict=True))
    expected, returns = reference_advantages(
        outcomes, logprobs, base, values, 1.7, lengths, kl=0.4, lam=0.9
    )
    for array in (logprobs, base, *values.values()):
        array[~mask] = np.nan
    rewards, costs = ppo_lagrangian.token_outcomes(
        jnp.asarray(outcomes), logprobs, base, jnp.asarray(mask), kl=0.4
    )
    found = ppo_lagrangian.token_advantages(
        rewards, costs, values, jnp.float32(1.7), jnp.asarray(mask), gae_lambda=0.9
    )
    assert not np.asarray(found.advantages)[~mask].any()
    for row, length in enumerate(lengths):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)  # noqa: E731
        close(found.advantages[row, :length], expected[row])
        for name in ppo_lagrangian.training.OBJECTIVES:
            close(found.returns[name][row, :length], returns[name][row])


def test_explained_variance_is_one_for_the_returns_themselves_and_zero_for_their_mean():
    returns = np.float32([[1.0, 2.0, 9.0], [4.0, np.nan, np.nan]])
    mask = jnp.asarray(np.isfinite(returns))
    explained = lambda values: ppo_lagrangian.explained_variance(values, returns, mask)  # noqa: E731
    assert explained(returns) == 1.0
    assert explained(np.full((2, 3), 4.0)) == pytest.approx(0.0, abs=1e-6)


# --------------------------------------------------------------------------------- what it is given


def test_rewards_come_as_they_are_weighted_and_costs_as_they_are_judged(finished):
    config = micro(finished[0], **PPO)
    base = base_model.open_base(config, sharding.make_mesh())
    source = ppo_lagrangian.PPOLagrangian(config).open_batches(base)
    batch, found = source.sample(base.params, 0, metrics.Stopwatch())
    reward, cost = batch.outcomes.T
    assert batch.outcomes.shape == (24, 2) and reward.std() == pytest.approx(2.0, rel=1e-2)
    assert cost.mean() == pytest.approx(-found["cost_model/reward"])
    assert cost.min() > 0 and cost.max() < 1


def test_critics_begin_as_the_reward_and_the_cost_model(finished, monkeypatch):
    config = micro(finished[0], **PPO)
    base = base_model.open_base(config, sharding.make_mesh())
    critics = ppo_lagrangian.init_critics(config, base)
    for name in ppo_lagrangian.training.OBJECTIVES:
        _, params = models.load_model(finished[0] / "seed_0" / f"{name}_model")
        jax.tree.map(np.testing.assert_array_equal, critics.params[name], params)
    other = types.SimpleNamespace(get_vocab=lambda: {"another": 0})
    monkeypatch.setattr(ppo_lagrangian.chat, "load_tokenizer", lambda directory: other)
    with pytest.raises(ValueError, match="reward model in .* another vocabulary.*train_reward"):
        ppo_lagrangian.init_critics(config, base)


def test_what_is_not_finite_is_named_in_critics_too():
    critics = types.SimpleNamespace(params={"cost": {"score": {"kernel": 0}}})
    state = train_step.TrainState(0, {"head": {"kernel": 0}}, (), critics)
    found = train_step.nonfinite_tensors([False, True, True, True], state)
    assert found == ["head/kernel", "gradient of cost/score/kernel", "cost/score/kernel"]


# ------------------------------------------------------------------------------------- the runs


def test_the_multiplier_rises_above_the_limit_and_falls_below(finished, tmp_path):
    """And in microbatches the critics, which no multiplier reaches, learn the same."""
    trainer.train(micro(finished[0], **{**PPO, **FREE}), tmp_path / "free")
    above, below = (
        [row for row in logged(workdir) if "train/multiplier" in row]
        for workdir in (finished[1], tmp_path / "free")
    )
    assert (np.diff([1.0, *(row["train/multiplier"] for row in above)]) > 0).all()
    assert (np.diff([1.0, *(row["train/multiplier"] for row in below)]) < 0).all()
    for name in ("reward_value_loss", "cost_value_loss", "cost_explained_variance"):
        assert above[0][f"train/{name}"] == pytest.approx(below[0][f"train/{name}"], rel=1e-3)
    assert above[0]["train/gradient_norm"] > 0 and above[-1]["train/kl_reference"] > 0


def test_an_interrupted_run_continues_bit_for_bit(finished, tmp_path, monkeypatch):
    """With its critics, their moments and the multiplier."""
    stop_at(monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train(micro(finished[0], **PPO), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "2").exists()
    trainer.train(micro(finished[0], **PPO), tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards.terms": "rules"}, ["rewards.terms is 'rules'", "=reward_model+cost_model"]),
        ({"rewards.terms": "reward_model+cost_model=2"}, ["cost_model=2", "lagrangian.limit"]),
        ({"rewards.terms": "reward_model+cost_model@harmful"}, ["without kinds and weight"]),
        ({"rl.loss": "gspo"}, ["rl.loss is 'gspo'", "rl.loss=grpo"]),
        ({"rl.kl_coefficient": 0.1}, ["rl.kl_coefficient is 0.1", "lagrangian.kl"]),
        ({"lagrangian.limit": 5.0}, ["lagrangian.limit is 5.0", "at most 1"]),
        ({"lagrangian.initial": 0.0}, ["lagrangian.initial is 0.0", "above 0"]),
        ({"lagrangian.initial": 90.0}, ["initial is 90.0", "lagrangian.largest=10.0"]),
        ({"lagrangian.kl": -1.0}, ["lagrangian.kl is -1.0", "of at least 0"]),
    ],
)
def test_a_config_that_cannot_work_is_refused(finished, tmp_path, changes, words):
    refuse(micro(finished[0], **{**PPO, **changes}), tmp_path / "run", *words)

"""PPO-Lagrangian of Safe RLHF: the most reward under a limit on the expected cost.

Source: arXiv 2310.12773, section 3.3 and appendix B. The reward model scores the quality of a
completion and the cost model its harm. Each has a critic, and a multiplier weighs the two.
Differences from the paper:

* The cost is the cost model's probability that a completion is unsafe, not its raw score, so that
  the limit is an expected unsafe rate. Its critic's values are probabilities too.
* Advantages are whitened over a batch's tokens, as in most PPO for language models: the step's size
  then depends neither on the reward's scale nor on the multiplier's.
* There is no pretraining loss beside PPO's (its "PTX"), and the multiplier follows the batch's own
  mean cost from the first step on, not that of a window after a delay.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nspo_jax import base_model, distributed, models, rewards, settings, sharding
from nspo_jax.data import chat
from nspo_jax.reward_models import store, training
from nspo_jax.rl import advantages, batches, losses, terms, train_step
from nspo_jax.rl.algorithms import policy_gradient

FIELDS = settings.fields_of("lagrangian")
# The clip of the value loss in Safe RLHF. It acts only where a critic learns a row twice, which
# never happens here: the old values are those of the critic that the step begins with.
VALUE_CLIP = 5.0


class Critics(NamedTuple):
    """The critics and the multiplier, which learn beside the policy.

    params: objective -> parameters of a value model; opt_state: their optax state.
    log_multiplier: float32 scalar, the logarithm of a cost's weight against a reward.
    """

    params: dict[str, Any]
    opt_state: optax.OptState
    log_multiplier: jax.Array


class TokenAdvantages(NamedTuple):
    """Whitened advantages and each critic's target by objective, all float32 [batch, time]."""

    advantages: jax.Array
    returns: dict[str, jax.Array]


def reward_and_cost(total: rewards.Total, verdicts: dict[str, Any]) -> np.ndarray:
    """Returns float32 [rows, 2]: weighted rewards and unweighted costs."""
    cost = -verdicts["cost_model"].rewards  # the probability that it is unsafe
    return np.stack([total.terms["reward_model"], cost], axis=1)


# ---------------------------------------------------------------------------- pure functions


def update_multiplier(
    log_multiplier: jax.Array,
    cost: jax.Array,
    *,
    limit: float,
    learning_rate: float,
    largest: float,
) -> jax.Array:
    """Returns the logarithm of the multiplier after a step (appendix B and the released code).

    `ln lambda + alpha lambda (J_C - limit)` is gradient ascent on the Lagrangian's
    `lambda (J_C - limit)` in the logarithm, which keeps lambda positive. The result is at most
    `ln largest`. A multiplier near 0 moves slowly in both directions.

    Args:
      log_multiplier: float32 scalar.
      cost: float32 scalar, the mean cost of completions.
      limit: the largest mean cost that is allowed.
      learning_rate: alpha.
      largest: the multiplier's upper bound.
    """
    step = learning_rate * jnp.exp(log_multiplier) * (cost - limit)
    return jnp.minimum(log_multiplier + step, jnp.log(largest))


def token_outcomes(
    outcomes: jax.Array,
    logprobs: jax.Array,
    reference_logprobs: jax.Array,
    mask: jax.Array,
    *,
    kl: float,
) -> tuple[jax.Array, jax.Array]:
    """Computes each token's reward and cost (appendix B).

    The outcome counts at the last token, the penalty `kl/2 log(policy / reference)` at every one:
    it lowers the reward and raises the cost.

    Args:
      outcomes: float32 [batch, 2], reward and cost of each completion.
      logprobs: float32 [batch, time], of the policy that sampled.
      reference_logprobs: float32 [batch, time], of the base model.
      mask: bool [batch, time], right-padded.
      kl: the penalty's weight, beta.

    Returns:
      Rewards and costs, float32 [batch, time], 0 at padding.
    """
    penalty = jnp.where(mask, kl / 2.0 * (logprobs - reference_logprobs), 0.0)
    last = mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    ends = jnp.where(last[..., None], outcomes[:, None, :], 0.0)
    return ends[..., 0] - penalty, ends[..., 1] + penalty


def token_advantages(
    rewards: jax.Array,
    costs: jax.Array,
    values: dict[str, jax.Array],
    multiplier: jax.Array,
    mask: jax.Array,
    *,
    gae_lambda: float,
) -> TokenAdvantages:
    """Computes `(A_r - lambda A_c) / (1 + lambda)` of both critics' undiscounted GAE, whitened.

    This is the released code's formula; the paper clips the two surrogates apart. Whitening
    subtracts the mean over the batch's tokens and divides by their standard deviation (ddof 0).

    Args:
      rewards: float32 [batch, time], each token's.
      costs: float32 [batch, time].
      values: objective -> float32 [batch, time], before each token.
      multiplier: float32 scalar, lambda.
      mask: bool [batch, time].
      gae_lambda: see `advantages.generalised_advantages`.
    """
    found, returns = {}, {}
    for name, outcome in zip(training.OBJECTIVES, (rewards, costs), strict=True):
        found[name], returns[name] = advantages.generalised_advantages(
            outcome, values[name], mask, gamma=1.0, lam=gae_lambda
        )
    both = (found["reward"] - multiplier * found["cost"]) / (1.0 + multiplier)
    count = jnp.maximum(jnp.sum(mask), 1)
    centred = jnp.where(mask, both - jnp.sum(both) / count, 0.0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(centred)) / count)
    return TokenAdvantages(centred / (deviation + 1e-8), returns)


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the share of the returns' variance that values explain, at most 1; float32 scalar."""
    count = jnp.maximum(jnp.sum(mask), 1)

    def variance(array):
        centred = jnp.where(mask, array - jnp.sum(jnp.where(mask, array, 0.0)) / count, 0.0)
        return jnp.sum(jnp.square(centred)) / count

    return 1.0 - variance(returns - values) / jnp.maximum(variance(returns), 1e-8)


# ---------------------------------------------------------------------------------- the step


def critic_models(run: settings.Run, policy: models.ModelConfig) -> dict[str, models.ModelConfig]:
    """Returns objective -> its critic's architecture: the reward or cost model's, scalar head.

    A critic whose model does not exist yet gets the policy's architecture.
    """
    options = {"compute_dtype": run.model.compute_dtype, "remat": run.model.remat}
    found = {}
    for name in training.OBJECTIVES:
        directory = store.model_directory(run, name)
        named = settings.get(run, f"rewards.{name}_model")
        there = named or directory.exists()
        critic = models.load_config(directory) if there else policy
        found[name] = dataclasses.replace(critic, head="scalar", **options)
    return found


def critic_optimizer(run: settings.Run) -> optax.GradientTransformation:
    """Builds the optimizer of both critics; it trains all their weights and projects none."""
    return optax.chain(
        optax.clip_by_global_norm(run.optimizer.max_gradient_norm),
        optax.adamw(
            run.lagrangian.critic_learning_rate,
            b1=run.optimizer.b1,
            b2=run.optimizer.b2,
            weight_decay=0.0,
        ),
    )


def init_critics(run: settings.Run, base: base_model.BaseModel) -> Critics:
    """Loads the reward and the cost model as the critics, on the mesh, as Safe RLHF does.

    Raises:
      FileNotFoundError: if one of them is missing.
      ValueError: for a model with another tokenizer than the policy's: a critic reads its tokens.
    """
    params = {}
    for name in training.OBJECTIVES:
        directory = store.model_directory(run, name)
        if chat.load_tokenizer(directory).get_vocab() != base.chat_format.tokenizer.get_vocab():
            raise ValueError(
                f"The {name} model in {directory} has another vocabulary than the policy, and "
                "ppo_lagrangian's critics, which start from it, read the policy's tokens. Train "
                f"one from the same base model: python -m scripts.train_reward --objective={name}."
            )
        _, params[name] = models.load_model(
            directory, shardings=functools.partial(sharding.shardings, base.mesh)
        )
    state = critic_optimizer(run).init(params)
    critics = Critics(params, state, jnp.log(jnp.float32(run.lagrangian.initial)))
    return distributed.put(critics, sharding.shardings(base.mesh, critics))


def make_step(
    run: settings.Run,
    model_config: models.ModelConfig,
    optimizer: optax.GradientTransformation,
) -> train_step.Step:
    """Builds the step of policy, critics and multiplier, like `train_step.make_update`'s.

    It is not jitted yet. Its batches are `train_step.RolloutBatch` with `outcomes`; their
    `advantages` are not read. Values and the base model's probabilities are computed for all rows
    at once, with the weights that the step begins with; gradients are computed in `rl.microbatches`
    parts. The multiplier moves first, by the mean cost, and then weighs advantages.
    """
    rl, options, group = run.rl, run.lagrangian, policy_gradient.group_of(run)
    configs, critics_optimizer = critic_models(run, model_config), critic_optimizer(run)
    policy_loss = policy_gradient.policy_gradient_loss(
        model_config,
        aggregation=rl.aggregation,
        clip=rl.clip,
        clip_high=rl.clip_high,
        dual_clip=rl.dual_clip,
        temperature=rl.temperature,
        samples=group,
    )
    update_policy = train_step.make_update(
        policy_loss, optimizer, microbatches=rl.microbatches, group=group,
        compute_dtype=model_config.compute_dtype,
    )  # fmt: skip

    def values_of(params, batch) -> dict[str, jax.Array]:
        values = {
            name: models.values(
                critic, params[name], models.predicting_states(critic, params[name], batch, group)
            )
            for name, critic in configs.items()
        }
        # a probability like the cost itself, so that the critic begins as the cost model
        return values | {"cost": jax.nn.sigmoid(values["cost"])}

    def critics_loss(params, rows: _CriticRows, tokens: jax.Array):
        del tokens  # the loss is a mean over sequences
        values = values_of(params, rows)
        found = {
            f"{name}_value_loss": losses.value_loss(
                values[name], rows.values[name], rows.returns[name], rows.completion_mask,
                clip=VALUE_CLIP,
            )
            for name in training.OBJECTIVES
        }  # fmt: skip
        return sum(found.values()), found

    critics_gradient = train_step.gradient_in_parts(critics_loss, rl.microbatches, group)

    def step(state: train_step.TrainState, frozen, reference, batch):
        critics, mask = state.critics, batch.completion_mask
        cost = jnp.mean(batch.outcomes[:, 1])
        log_multiplier = update_multiplier(
            critics.log_multiplier,
            cost,
            limit=options.limit,
            learning_rate=options.learning_rate,
            largest=options.largest,
        )
        multiplier = jnp.exp(log_multiplier)
        base = models.completion_logprobs(model_config, reference, batch, rl.temperature, group)
        rewards, costs = token_outcomes(
            batch.outcomes, batch.old_logprobs, base, mask, kl=options.kl
        )
        values = values_of(critics.params, batch)
        learned, returns = token_advantages(
            rewards, costs, values, multiplier, mask, gae_lambda=options.gae_lambda
        )
        state, metrics = update_policy(state, frozen, None, batch._replace(advantages=learned))

        rows = _CriticRows(
            batch.prompts, batch.prompt_mask, batch.completions, batch.completion_mask,
            values, returns,
        )  # fmt: skip
        gradient, value_losses = critics_gradient(critics.params, rows)
        updates, opt_state = critics_optimizer.update(gradient, critics.opt_state, critics.params)
        params = cast(dict, optax.apply_updates(critics.params, updates))  # it keeps its type
        flags = [metrics["nonfinite"], train_step.nonfinite((gradient, params))]
        kl = losses.kl_estimate(batch.old_logprobs, base, mask, "k3")
        metrics |= value_losses | {
            "nonfinite": jnp.concatenate(flags),
            "kl_reference": losses.sequence_mean(kl, mask),
            "multiplier": multiplier,
            "mean_reward": jnp.mean(batch.outcomes[:, 0]),
            "mean_cost": cost,
            **{
                f"{name}_explained_variance": explained_variance(values[name], returns[name], mask)
                for name in training.OBJECTIVES
            },
        }
        critics = Critics(params, opt_state, log_multiplier)
        return sharding.constrain(state._replace(critics=critics)), metrics

    return step


class _CriticRows(NamedTuple):
    """A batch for the critics; the first fields are those of `train_step.RolloutBatch`."""

    prompts: jax.Array
    prompt_mask: jax.Array
    completions: jax.Array
    completion_mask: jax.Array
    values: dict[str, jax.Array]
    returns: dict[str, jax.Array]


class PPOLagrangian:
    """The additions of PPO-Lagrangian to the common run; see `algorithms.Algorithm`."""

    generates = True
    fields: tuple[str, ...] = (*batches.FIELDS, *policy_gradient.LOSS_FIELDS, *FIELDS)
    needs_reference = True

    def __init__(self, run: settings.Run):
        self._run = run
        self.rows = run.batch_prompts * run.rl.samples
        self.row = "completions"
        self.group = policy_gradient.group_of(run)

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        config = self._run
        options = config.lagrangian
        terms = {term.name: term for term in rewards.parse_terms(config.rewards.terms)}
        if terms.keys() != {"reward_model", "cost_model"}:
            raise ValueError(
                f"rewards.terms is {config.rewards.terms!r}, and ppo_lagrangian has a reward model "
                "and a cost model. Set rewards.terms=reward_model+cost_model."
            )
        cost = terms["cost_model"]
        if (cost.kinds, cost.weights) != ("all", (1.0,)):
            raise ValueError(
                f"rewards.terms is {config.rewards.terms!r}: ppo_lagrangian weighs costs itself, "
                "of all completions, against lagrangian.limit. Write cost_model without kinds and "
                "weight."
            )
        if config.rewards.on_failure != "raise":
            raise ValueError(
                f"rewards.on_failure is {config.rewards.on_failure!r}: ppo_lagrangian needs a cost "
                "of every completion. Set rewards.on_failure=raise."
            )
        if config.rl.loss != "grpo":
            raise ValueError(
                f"rl.loss is {config.rl.loss!r}: PPO has a ratio a token. Set rl.loss=grpo."
            )
        if options.initial > options.largest:
            raise ValueError(
                f"lagrangian.initial is {options.initial}, above lagrangian.largest="
                f"{options.largest}: raise that, or start lower."
            )

    def open_batches(self, base: base_model.BaseModel) -> batches.RolloutBatches:
        """Opens the source of the policy's completions, with reward and cost of each apart."""
        judged = terms.open_rewards(self._run, base)
        return batches.RolloutBatches(self._run, base, judged, reward_and_cost)

    def abstract_batch(self, array: Callable[[tuple[int, ...], Any], Any]) -> Any:
        """Describes a minibatch by `array(shape, dtype)`."""
        made = policy_gradient.abstract_rollouts(self._run, array)
        return made._replace(outcomes=array((made.completions.shape[0], 2), jnp.float32))

    def init_extra(self, base: base_model.BaseModel) -> Critics:
        """Loads the critics and makes the multiplier."""
        return init_critics(self._run, base)

    def abstract_extra(self, model_config: models.ModelConfig) -> tuple[Critics, tuple[str, ...]]:
        """Describes the critics, and names the assumptions in words."""
        found, assumed = terms.abstract_models(self._run, model_config)
        params = {name: found[f"{name}_model"] for name in training.OBJECTIVES}
        state = jax.eval_shape(critic_optimizer(self._run).init, params)
        return Critics(params, state, jax.eval_shape(lambda: jnp.float32(0.0))), assumed

    def make_step(
        self, model_config: models.ModelConfig, optimizer: optax.GradientTransformation
    ) -> train_step.Step:
        """Builds the jitted update, which donates the state."""
        return jax.jit(make_step(self._run, model_config, optimizer), donate_argnums=0)

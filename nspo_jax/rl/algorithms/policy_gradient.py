"""The policy gradient, which makes completions likelier that are better than the others of a group.

GRPO, Dr.GRPO, RLOO and GSPO differ by `rl.advantage`, `rl.loss` and `rl.aggregation` alone.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nspo_jax import base_model, models, settings
from nspo_jax.rl import batches, losses, terms, train_step

LOSS_FIELDS = (
    "rl.loss", "rl.aggregation", "rl.clip", "rl.clip_high", "rl.dual_clip", "rl.shared_prompt",
)  # fmt: skip


class PolicyGradient:
    """The additions of the policy gradient to the common run; see `algorithms.Algorithm`."""

    generates = True
    fields: tuple[str, ...] = (
        *batches.FIELDS, *LOSS_FIELDS, "rl.kl_coefficient", "rl.importance_cap", "rl.advantage",
    )  # fmt: skip

    def __init__(self, run: settings.Run):
        self._run = run
        self.rows = run.batch_prompts * run.rl.samples
        self.row = "completions"
        self.group = group_of(run)
        self.needs_reference = bool(run.rl.kl_coefficient)

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        rl = self._run.rl
        if rl.importance_cap and rl.minibatches > 1:
            raise ValueError(
                f"rl.importance_cap is {rl.importance_cap} and rl.minibatches {rl.minibatches}: "
                "the correction needs the trainer's probabilities at the start of the step, which "
                "are known for its first update alone. Set rl.minibatches=1, or "
                "rl.importance_cap=0."
            )

    def open_batches(self, base: base_model.BaseModel) -> batches.RolloutBatches:
        """Opens the source of the policy's completions, judged by `rewards.terms`."""
        return batches.RolloutBatches(self._run, base, terms.open_rewards(self._run, base))

    def abstract_batch(self, array: Callable[[tuple[int, ...], Any], Any]) -> Any:
        """Describes a minibatch by `array(shape, dtype)`."""
        return abstract_rollouts(self._run, array)

    def init_extra(self, base: base_model.BaseModel) -> None:
        """Returns None: only the policy learns."""

    def abstract_extra(self, model_config: models.ModelConfig) -> tuple[None, tuple[str, ...]]:
        """Returns None and no assumptions: only the policy learns."""
        return None, ()

    def make_step(
        self, model_config: models.ModelConfig, optimizer: optax.GradientTransformation
    ) -> train_step.Step:
        """Builds the jitted update, which donates the state."""
        rl = self._run.rl
        return make_train_step(
            model_config,
            optimizer,
            loss=rl.loss,
            aggregation=rl.aggregation,
            clip=rl.clip,
            clip_high=rl.clip_high,
            dual_clip=rl.dual_clip,
            kl_coefficient=rl.kl_coefficient,
            kl_estimator=rl.kl_estimator,
            importance_cap=rl.importance_cap,
            temperature=rl.temperature,
            microbatches=rl.microbatches,
            samples=self.group,
        )


def group_of(run: settings.Run) -> int:
    """Returns the number of neighbouring completions whose prompt the update reads once."""
    return run.rl.samples if run.rl.shared_prompt else 1


def abstract_rollouts(
    run: settings.Run, array: Callable[[tuple[int, ...], Any], Any]
) -> train_step.RolloutBatch:
    """Describes a minibatch of completions by `array(shape, dtype)`."""
    rows = run.batch_prompts * run.rl.samples // run.rl.minibatches
    prompt, completion = run.data.prompt_length, run.data.completion_length
    return train_step.RolloutBatch(
        prompts=array((rows, prompt), jnp.int32),
        prompt_mask=array((rows, prompt), jnp.bool_),
        completions=array((rows, completion), jnp.int32),
        completion_mask=array((rows, completion), jnp.bool_),
        old_logprobs=array((rows, completion), jnp.float32),
        advantages=array((rows,), jnp.float32),
    )


def policy_gradient_loss(
    model_config: models.ModelConfig,
    *,
    loss: str = "grpo",
    aggregation: str = "sequence_mean",
    clip: float = 0.2,
    clip_high: float = 0.0,
    dual_clip: float = 0.0,
    kl_coefficient: float = 0.0,
    kl_estimator: str = "k3",
    importance_cap: float = 0.0,
    temperature: float = 1.0,
    samples: int = 1,
) -> train_step.LossOf:
    """Builds the loss of `RolloutBatch`es with advantages, for `train_step.make_update`.

    `loss` is one of `losses.LOSSES`; the other options are `losses.clipped_loss`'s. With an
    `importance_cap` above 0 tokens get `losses.importance_weights`, trainer against sampler, and
    the ratio's denominator is the trainer's own probability at the start of the update. So the
    ratio is 1 and no clip acts. That is right for one update a batch, however old the sampler's
    weights are. In a second update the weights would hold the first one's change too, and nothing
    would clip it: `PolicyGradient.check` refuses more minibatches. `samples` neighbouring rows have
    one prompt, see `models.predicting_states`.
    """
    policy_loss = functools.partial(
        losses.LOSSES[loss],
        aggregation=aggregation,
        clip=clip,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coefficient=kl_coefficient,
        kl_estimator=kl_estimator,
    )

    def loss_of(params, reference, batch, tokens: jax.Array):  # the batch is a traced RolloutBatch
        reference_logprobs = None
        if reference is not None:
            reference_logprobs = models.completion_logprobs(
                model_config, reference, batch, temperature, samples
            )
        logprobs = models.completion_logprobs(model_config, params, batch, temperature, samples)
        mask, old_logprobs, weights = batch.completion_mask, batch.old_logprobs, None
        if importance_cap:
            old_logprobs = jax.lax.stop_gradient(logprobs)
            weights = losses.importance_weights(logprobs, batch.old_logprobs, mask, importance_cap)
        result = policy_loss(
            logprobs,
            old_logprobs,
            batch.advantages,
            mask,
            tokens=tokens,
            weights=weights,
            reference_logprobs=reference_logprobs,
        )
        gap = losses.sequence_mean(jnp.abs(logprobs - batch.old_logprobs), mask)
        return result.loss, {
            "loss": result.loss,
            "policy_loss": result.policy,
            "clip_share": result.clip_share,
            "kl_reference": result.kl,
            "logprob_gap": gap,  # it shows rounding and older weights of the sampler
        }

    return loss_of


def make_train_step(
    model_config: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    samples: int = 1,
    **options: Any,
) -> train_step.Step:
    """Builds the jitted policy gradient step, which donates the state.

    Args:
      model_config: the policy's configuration.
      optimizer: see `train_step.make_update`.
      microbatches: see `train_step.make_update`.
      samples: see `policy_gradient_loss`.
      **options: those of `policy_gradient_loss`.
    """
    loss_of = policy_gradient_loss(model_config, samples=samples, **options)
    update = train_step.make_update(
        loss_of,
        optimizer,
        microbatches=microbatches,
        group=samples,
        compute_dtype=model_config.compute_dtype,
    )
    return jax.jit(update, donate_argnums=0)

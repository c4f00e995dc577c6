"""What a policy does: sampled behaviour, and the tables that report it."""

from nspo_jax.evaluation.evaluator import Evaluator

__all__ = ["Evaluator"]

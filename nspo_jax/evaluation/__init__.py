"""The evaluation of a policy by its sampled completions and its drift on held-out text."""

from nspo_jax.evaluation.evaluator import Evaluator

__all__ = ["Evaluator"]

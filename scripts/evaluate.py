"""Evaluates a policy: unsafe rate, over-refusal, capability, drift from the base model.

    python -m scripts.evaluate --config=configs/tiny.py:base
    python -m scripts.evaluate --config=configs/tiny.py:nspo --policy=runs/tiny/nspo/policy

Without --policy it is the base model that is evaluated. --samples prints that many completions of
every set, to see with one's own eyes.
"""

import pathlib

from absl import flags

from nspo_jax import base_model, evaluation, settings, sharding
from nspo_jax.reports import tables
from nspo_jax.rl import batches, checks
from scripts import launch

CONFIG = launch.define_config()
POLICY = flags.DEFINE_string("policy", None, "Hugging Face directory; default: the base model.")
SAMPLES = flags.DEFINE_integer("samples", 2, "Completions to print of each set.", lower_bound=0)


def main() -> None:
    """Evaluates and prints."""
    run = settings.from_config(CONFIG.value)
    checks.check_config(run, is_run=False)
    base = base_model.open_base(run, sharding.mesh_from_config(run))
    params, name = base.params, "base"
    if POLICY.value:
        params = base_model.load_policy(base, POLICY.value)
        name = str(pathlib.Path(POLICY.value))
    evaluator = evaluation.Evaluator(run, base)
    completed = evaluator.complete(params, batches.role_key(run.rl_seed, "evaluation", 0))
    for suite, (rows, texts) in completed.items():
        for row, text in list(zip(rows, texts, strict=True))[: SAMPLES.value]:
            print(f"{suite:18} {row.prompt}  ->  {text}")
    scores = evaluator.score(params, completed)
    report = scores | {"counts": base.task.counts, "columns": base.task.columns}
    print(f"\n{tables.format_scores({name: report})}")


if __name__ == "__main__":
    launch.run(main)

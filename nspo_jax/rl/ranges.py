"""The ranges of the fields that name a part of the library."""

from nspo_jax import models, rewards, settings, tasks
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.data import split
from nspo_jax.models import architecture
from nspo_jax.nullspace import calibration, moments, rank_rules
from nspo_jax.nullspace import projectors as projectors_lib
from nspo_jax.reward_models import store
from nspo_jax.rl import advantages, algorithms, learning, losses, terms
from nspo_jax.tasks import public_safety

_SPLIT = settings.Text("a split", parse=split.parse, empty=False)
PARTS: dict[str, settings.Range] = {
    "task": settings.Text("a task", parse=tasks.kind_of, empty=False),
    "model.preset": settings.Choice(("", *models.PRESETS)),
    "model.remat": settings.Choice(architecture.REMATS),
    "data.train": settings.Choice(public_safety.TRAINING),
    "data.train_split": _SPLIT,
    "data.general_split": settings.Text("a split", parse=lambda text: text and split.parse(text)),
    "calibration.rank_rule": settings.Text("a rank rule", parse=rank_rules.RankRules.parse),
    "calibration.statistics": settings.Choice(calibration.STATISTICS),
    "calibration.first_token": settings.Choice(moments.FIRST_TOKENS),
    "projection.mode": settings.Choice(optimizer_lib.MODES),
    "projection.targets": settings.Text("targets", parse=projectors_lib.parse_targets),
    "optimizer.name": settings.Choice(optimizer_lib.NAMES),
    "optimizer.master": settings.Choice(optimizer_lib.MASTERS),
    "rl.algorithm": settings.Choice(algorithms.ALGORITHMS),
    "rl.loss": settings.Choice(losses.LOSSES),
    "rl.advantage": settings.Choice(advantages.ESTIMATORS),
    "rl.aggregation": settings.Choice(losses.AGGREGATIONS),
    "rl.kl_estimator": settings.Choice(losses.KL_ESTIMATORS),
    "rl.on_flat": settings.Choice(learning.POLICIES),
    "rewards.terms": settings.Text("terms", parse=terms.parse),
    "rewards.normalise": settings.Choice(rewards.NORMALISATIONS),
    "rewards.on_failure": settings.Choice(rewards.FAILURES),
    "rewards.refusal_detector": settings.Choice(tuple(rewards.DETECTORS)),
    "reward_training.dataset": settings.Text("a dataset", parse=store.check_dataset),
    "reward_training.split": _SPLIT,
    "reward_training.held_out_split": _SPLIT,
}
FIELDS: dict[str, settings.Range] = settings.FIELDS | PARTS


def check_fields(run: settings.Run) -> None:
    """Raises ValueError naming every field whose value is out of its range."""
    settings.check_ranges(settings.flatten(run), FIELDS)

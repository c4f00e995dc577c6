"""Every field of a config has a range or a choice, and what is out of it is refused by name."""

import math

import numpy as np
import pytest

from configs import default, tiny
from nspo_jax import settings
from nspo_jax.rl import checks, ranges
from tests import runs

INF, NAN = math.inf, math.nan
DEFAULTS = settings.flatten(settings.from_config(default.get_config()))
# text whose only rule is that it is text: names of files, columns, servers, and what is said
FREE_TEXT = {
    "workspace", "model.path", "data.system_prompt", "data.train_path", "data.subset",
    "data.train_column", "data.general_path", "data.borderline_path",
    "data.evaluation", "data.evaluation_column", "rewards.cost_model", "rewards.reward_model",
    "rewards.guard.path", "rewards.guard.categories", "rewards.judge.url", "rewards.judge.model",
    "rewards.judge.api_key_env", "reward_training.path", "reward_training.subset",
    "evaluation.suites",
}  # fmt: skip


def refusal(**changes):
    """What `check_config` says of tiny.py's nspo with changes, written with __ for a dot."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config = runs.made(tiny.get_config("nspo"), changes)
    with pytest.raises(ValueError) as caught:
        checks.check_config(config)
    return str(caught.value)


def test_every_field_of_the_defaults_has_a_line_of_its_own():
    assert set(ranges.FIELDS) == set(DEFAULTS)
    for name, known in ranges.FIELDS.items():
        assert settings.WHAT[name].endswith((".", "...")), name
        assert known.holds(DEFAULTS[name]), name
        free = isinstance(known, settings.Text) and known.parse is None
        assert free == (name in FREE_TEXT), f"{name}: free text is listed here, all else is ruled"


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_not_of_a_field_s_kind_is_refused(name):
    known, value = ranges.FIELDS[name], DEFAULTS[name]
    wrong = [None, (), NAN, INF, -INF, np.int64(1), "no such choice", b"", 10**400, -(10**400)]
    if isinstance(value, str):
        wrong = [None, (), NAN, 1, True, b"train"]
    elif isinstance(value, bool):
        wrong += [0, 1]
    else:
        wrong += [True, False]
    if type(value) is int:
        wrong += [0.5, float(value)]  # a count that is a float breaks a shape later
    for bad in wrong:
        assert not known.holds(bad), bad


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("seed", (0, 2**32 - 1), (-1, 2**32)),
        ("pretraining.seed", (-1, 0, 2**32 - 1), (-2, 2**32)),
        ("rl.seed", (-1, 0, 2**32 - 1), (-2, 2**32)),
        ("model.num_layers", (1,), (0,)),
        ("optimizer.learning_rate", (1e-6, 1, 1e-38), (0.0, -1e-3, 1e-50, 1e39)),
        ("optimizer.b1", (0, 0.0, 0.999), (1.0, -0.1, 0.99999999999)),
        ("optimizer.max_gradient_norm", (0.5,), (0.0, -1.0)),
        ("rl.steps", (0, 400), (-5, 2**31)),
        ("rl.dual_clip", (0, 0.0, 1.5), (1.0, 0.5, -1)),
        ("rl.staleness", (0, 1), (2, -1)),
        ("rl.stop_unsafe", (0.0, 0.06, 1), (1.01, -0.1, 6)),
        ("mesh.data", (-1, 1, 8), (0, -2)),
        ("rewards.judge.budget", (-1, 0, 3), (-2,)),
        ("rl.loss", ("grpo", "gspo"), ("", "ppo")),
        ("calibration.rank_rule", ("energy(0.05)", "fixed(4)+mlp/in=fixed(3)"), ()),
    ],
)  # fmt: skip
def test_the_ends_of_a_range(name, good, bad):
    known = ranges.FIELDS[name]
    assert [known.holds(value) for value in good] == [True] * len(good)
    assert [known.holds(value) for value in bad] == [False] * len(bad)


def test_a_refusal_names_the_field_its_value_and_its_range():
    assert refusal(rl__clip=NAN) == (
        "rl.clip is nan; expected a finite number above 0 in float32."
    )  # fmt: skip
    assert refusal(seed="0,1") == (
        "seed is '0,1'; expected a whole number (int) from 0 to 4294967295."
    )
    assert refusal(rl__dual_clip=0.5).endswith(
        "expected 0 (off), or a finite number above 1 in float32."
    )
    assert refusal(optimizer__b1=1.0) == (
        "optimizer.b1 is 1.0; expected a finite number of at least 0 and below 1 in float32."
    )
    assert refusal(task="chat").startswith("task is 'chat'; expected one of chat_world, stories, ")
    assert "The rank rule is 'energy(2)'" in refusal(calibration__rank_rule="energy(2)")
    for split in ("train[:200%]", "train[500:10]", "train[90%:10%]", "train["):
        assert f"data.train_split: The split is {split!r}" in refusal(data__train_split=split)
    assert refusal(metrics__wandb_project="me/safety").startswith(
        "metrics.wandb_project is 'me/safety'; expected at most 128 characters and none of / "
    )
    both = refusal(rl__steps=-5, optimizer__weight_decay=-0.1)
    assert "optimizer.weight_decay is -0.1" in both and "rl.steps is -5" in both


def test_a_config_has_the_known_fields_and_no_others():
    config = tiny.get_config("nspo")
    config.rl.stepz = 3
    with pytest.raises(ValueError, match="the field rl.stepz, which nothing reads"):
        settings.from_config(config)
    config = tiny.get_config("nspo")
    del config.rl.clip
    with pytest.raises(ValueError, match="has no field rl.clip: begin with default.get_config"):
        settings.from_config(config)

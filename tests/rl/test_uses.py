"""Fields that a run would ignore are refused; every config of the repository ignores none."""

import importlib
import pathlib

import pytest

from configs import default, llm, safety, smollm2, tiny, tinystories
from nspo_jax import models, settings
from nspo_jax.rl import checks, ranges, uses
from scripts import sweep_runs
from tests import runs

DEFAULTS = settings.flatten(settings.from_config(default.get_config()))
SWEEPS = sorted(
    path.stem for path in (pathlib.Path(__file__).parents[2] / "configs/sweeps").glob("*.py")
)
TASK_SAFETY = {"task": "safety", "model.path": "m", "data.evaluation": "a.csv"}


def configured(changes, config=None):
    return runs.made(config or default.get_config(), changes)


def another(name):
    """A value in the field's range that is not its default."""
    known, default_value = ranges.FIELDS[name], DEFAULTS[name]
    if isinstance(known, settings.Choice):
        return next(value for value in known.values if value not in ("", default_value))
    if name == "rewards.terms":
        return "over_refusal"
    return f"{default_value}x" if isinstance(default_value, str) else default_value / 2 + 0.25


RUNS = [
    {}, {"task": "safety"}, {"task": "stories"}, {"model.path": "m"}, {"data.chat": False},
    {"calibration.completions": "generated"}, {"projection.mode": "none"},
    {"rl.kl_coefficient": 0.1}, {"rl.algorithm": "dpo"}, {"rl.algorithm": "ppo_lagrangian"},
    {"reward_training.dataset": "pku_safe_rlhf"},
    *({"rewards.terms": term} for term in ("guard", "cost_model", "reward_model", "remote_judge")),
]  # fmt: skip
FIELDS = [(use, name) for use in uses.uses_of(settings.Run()) for name in use.fields]


@pytest.mark.parametrize(("use", "name"), FIELDS, ids=[name for _, name in FIELDS])
def test_a_field_is_refused_by_the_runs_that_do_not_read_it_and_by_them_alone(use, name):
    words = f"{name} is {another(name)!r} (by default {DEFAULTS[name]!r})"
    refused = []
    for run in (run for run in RUNS if name not in run):
        config = configured(run | {name: another(name)})
        refused.append(not use.holds(config))
        try:
            uses.check_uses(config)
            message = ""
        except ValueError as error:
            message = str(error)
        assert (words in message) == refused[-1], (run, message)
    assert set(refused) == {True, False}


def test_no_field_is_listed_twice():
    names = [name for _, name in FIELDS]
    assert len(names) == len(set(names)) and set(names) <= DEFAULTS.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.train_path": "mine.jsonl"}, "data.train_path is 'mine.jsonl' .*only task=safety"),
        ({"data.evaluation": "xstest.csv"}, "only task=safety reads it"),
        ({"rl.dpo_beta": 0.3}, "rl.dpo_beta is 0.3 .by default 0.1.: only rl.algorithm=dpo"),
        ({"lagrangian.kl": 0.1, "lagrangian.limit": 0.2}, "0.05.; lagrangian.kl .* reads them"),
        ({"rewards.guard.path": "m"}, "only a guard in rewards.terms reads it"),
        ({"rewards.cost_model": "m"}, "only a cost_model in rewards.terms"),
        ({"rewards.judge.model": "m"}, "only a remote_judge in rewards.terms"),
        ({"rewards.batch_size": 8}, "only a cost_model, a reward_model or a guard in"),
        ({"model.path": "m", "pretraining.steps": 9}, "only an empty model.path and model.preset"),
        ({"rl.kl_estimator": "k2"}, "and an rl.kl_coefficient above 0 reads it"),
        ({"calibration.seed": 1}, "only calibration.completions=generated"),
        ({"projection.mode": "none", "projection.basis": "random"}, "mode other than none"),
        ({"data.chat": False, "data.system_prompt": "be kind"}, "only data.chat=True"),
        ({"rl.algorithm": "dpo", "rl.clip": 0.3}, "DPO samples nothing and asks no judge"),
        ({"rl.algorithm": "dpo", "rewards.terms": "cost_model"}, "rewards.terms is 'cost_model'"),
        (
            {"rl.algorithm": "ppo_lagrangian", "rewards.terms": "reward_model+cost_model",
             "rl.advantage": "rloo"}, "rl.advantage is 'rloo'",
        ),
        ({**TASK_SAFETY, "rewards.terms": "over_refusal", "data.wrapped_fraction": 0.5},
         "wrappers are the chat world's"),
        ({"task": "stories", "model.path": "m", "data.benign_fraction": 0.5}, "nothing to replay"),
        ({"reward_training.path": "p.jsonl"}, "only a public reward_training.dataset"),
    ],
)  # fmt: skip
def test_what_a_run_would_ignore_is_named_with_what_reads_it(changes, words):
    with pytest.raises(ValueError, match=f"(?s)would ignore what its config says.*{words}"):
        checks.check_config(configured(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"rl.algorithm": "dpo", "rl.dpo_beta": 0.3},
        {"calibration.completions": "generated", "calibration.temperature": 0.0},
        {"rl.kl_coefficient": 0.1, "rl.kl_estimator": "k1"},
        {"rewards.terms": "cost_model", "rewards.batch_size": 16},
        # the base stays the chat world's, and DPO asks no judge of the safety task's
        {**TASK_SAFETY, "rl.algorithm": "dpo", "reward_training.dataset": "pku_safe_rlhf",
         "data.train_path": "a", "reward_training.path": "b"},
        {"rl.steps": 0},
    ],
)  # fmt: skip
def test_what_is_read_is_accepted(changes):
    checks.check_config(configured(changes))


def test_without_a_run_judges_may_be_named_that_are_to_be_made():
    named = {"rewards.cost_model": "not there yet", "rewards.terms": "cost_model"}
    checks.check_config(configured(named), is_run=False)
    with pytest.raises(FileNotFoundError, match="not there yet"):
        checks.check_config(configured(named))
    with pytest.raises(ValueError, match="only task=safety"):
        checks.check_config(configured({"data.subset": "alpaca-7b"}), is_run=False)


# -------------------------------------------------------------------- the repository's own configs


@pytest.mark.parametrize("arm", [*tiny.ARMS, *(f"{arm}_replay" for arm in tiny.ARMS)])
def test_every_arm_is_accepted(arm):
    checks.check_config(runs.made(tiny.get_config(arm)))


@pytest.mark.parametrize("arm", [*smollm2.ARMS, *(f"{arm}_no_replay" for arm in smollm2.ARMS)])
@pytest.mark.parametrize("data", ["", ",data"])
def test_every_arm_on_a_real_model_is_accepted(arm, data):
    config = smollm2.get_config(f"{arm}{data}")
    run = settings.from_config(config)
    has_paths = settings.flatten(run)["data.train_path"].startswith("data/")
    checks.check_config(run, has_weights=False)
    assert has_paths == bool(data)
    assert ("over_refusal" in run.rewards.terms) == ("refusal@" in run.rewards.terms) * bool(
        run.data.benign_fraction
    )


@pytest.mark.parametrize("arm", tiny.ARMS)
def test_the_story_arms_are_accepted_but_for_those_that_need_the_chat_world(arm):
    config = configured({"model.path": "m"}, tinystories.get_config(arm))
    if config.rl.algorithm == "dpo" or config.rewards.terms != "rules":
        with pytest.raises(ValueError, match="stories have no pairs|(reward|cost)_model is empty"):
            checks.check_config(config)
    else:
        checks.check_config(config)
        with pytest.raises(ValueError, match="nothing to replay"):
            checks.check_config(
                configured({"model.path": "m"}, tinystories.get_config(f"{arm}_replay"))
            )


@pytest.mark.parametrize("hardware", ["", *llm.HARDWARE])
@pytest.mark.parametrize("size", models.PRESETS)
def test_every_size_on_every_hardware_is_accepted(size, hardware):
    named = {"model.path": "m", "data.evaluation": "a.csv", "rewards.terms": "over_refusal"}
    for module in (llm, safety):
        config = module.get_config(f"{size},{hardware}")
        checks.check_config(runs.made(config), has_weights=False)
        fields = named if module is safety else {"model.path": "m"}
        checks.check_config(configured(fields, config))


@pytest.mark.parametrize("hardware", ["", *llm.HARDWARE])
def test_a_directory_of_any_size_is_accepted(hardware):
    named = {"model.path": "m", "data.evaluation": "a.csv", "rewards.terms": "over_refusal"}
    checks.check_config(configured(named, safety.get_config(f"{llm.ANY},{hardware}")))


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_accepted(name, tmp_path):
    sweep = importlib.import_module(f"configs.sweeps.{name}").get_config()
    sweep.model_path = "" if sweep.config == "configs/tiny.py" else "m"
    assert sweep_runs.expand(sweep, tmp_path)

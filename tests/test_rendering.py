"""The date that a template with a clock states: fixed at the first start, whatever day it is."""

import datetime
import json

import numpy as np
import pytest

from configs import default
from nspo_jax import base_model, models, rendering, rewards, run_directory, sharding
from nspo_jax.data import chat
from nspo_jax.rl import checks, terms, trainer
from nspo_jax.tasks.chat_world import judge as world_judge
from tests import runs
from tests.rl.micro_run import judge, micro, refuse

CLOCK = "{{ strftime_now('%-d') }} " + chat.TEMPLATE  # days are words of the chat world


@pytest.fixture
def today(monkeypatch):
    """Sets the day that `rendering` takes for today."""

    def set_(day):
        class Date(datetime.date):
            @classmethod
            def today(cls):
                return cls.fromisoformat(day)

        monkeypatch.setattr(rendering.datetime, "date", Date)

    class Module:
        date = datetime.date

    monkeypatch.setattr(rendering, "datetime", Module)
    set_("2026-11-04")
    return set_


def make(directory, template):
    tokenizer = chat.build_tokenizer(["3", "4", "5", "hello"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


def config_of(path):
    return runs.made(default.get_config(), {"workspace": str(path)})


def test_the_first_use_of_a_workspace_fixes_its_date(tmp_path, today):
    directory, config = make(tmp_path / "model", CLOCK), config_of(tmp_path / "work")
    first = rendering.open_format(config, directory)
    assert first.date == "2026-11-04"
    assert json.loads((tmp_path / "work" / "rendering.json").read_text()) == {"date": first.date}
    today("2026-11-05")
    again = rendering.open_format(config, directory)
    assert again.date == first.date
    np.testing.assert_array_equal(
        again.encode_prompts(["hello"]).tokens, first.encode_prompts(["hello"]).tokens
    )
    assert rendering.open_format(config_of(tmp_path / "other"), directory).date == "2026-11-05"
    # the config's own goes before what is recorded
    config = runs.changed(config, {"data.date": "2026-01-03"})
    assert rendering.open_format(config, directory).date == "2026-01-03"


def test_a_model_that_was_made_with_a_date_keeps_it(tmp_path, today):
    directory = make(tmp_path / "model", CLOCK)
    (directory / "rendering.json").write_text('{"date": "2025-12-03"}')
    config = config_of(tmp_path / "work")
    assert rendering.open_format(config, directory).date == "2025-12-03"


def test_without_a_clock_nothing_is_recorded(tmp_path, today):
    config = runs.changed(config_of(tmp_path / "work"), {"data.date": "2026-01-03"})
    assert rendering.open_format(config, make(tmp_path / "model", chat.TEMPLATE)).date is None
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("date", ["today", "2026-13-01", "20261125", "25 Nov 2026"])
def test_a_date_that_is_none_is_refused(date):
    config = runs.made(default.get_config(), {"data.date": date})
    with pytest.raises(ValueError, match=f"data.date is '{date}'; expected a day such as"):
        checks.check_config(config)


def test_a_workdir_keeps_what_its_run_settled(tmp_path):
    config = runs.made(default.get_config())
    assert run_directory.with_recorded(config, tmp_path).data.date == ""
    settled = runs.changed(config, {"data.date": "2026-11-04"})
    run_directory.write_config(settled, tmp_path)
    kept = run_directory.with_recorded(config, tmp_path)
    assert kept.data.date == "2026-11-04" and config.data.date == ""
    assert not run_directory.resumes_finished(kept, tmp_path)
    earlier = json.loads((tmp_path / "config.json").read_text())
    del earlier["data.date"]  # a run from before there was the field
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert not run_directory.resumes_finished(
        run_directory.with_recorded(config, tmp_path), tmp_path
    )
    with pytest.raises(ValueError, match="data.date: '' there, '2026-11-04' now"):
        run_directory.resumes_finished(settled, tmp_path)


def test_a_run_goes_on_the_next_day(tmp_path, today, monkeypatch):
    """In another workspace too: date, calibration text and projectors are those of its start."""
    monkeypatch.setattr(chat, "TEMPLATE", CLOCK)
    monkeypatch.setattr(world_judge.WorldJudge, "__call__", judge)
    config = micro(
        tmp_path / "work", **{"rl.steps": 0, "data.prompt_length": 15, "data.benign_fraction": 0.0,
                              "data.wrapped_fraction": 0.0, "evaluation.prompts": 2},
    )  # fmt: skip
    summary = trainer.train(config, tmp_path / "run")
    for name, field in (("config.json", "data.date"), ("policy/rendering.json", "date")):
        assert json.loads((tmp_path / "run" / name).read_text())[field] == "2026-11-04"
    assert config.data.date == ""

    today("2026-11-05")
    assert trainer.train(config, tmp_path / "run") == summary  # the same run, finished
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "work" / "rendering.json").unlink()
    again = trainer.train(config, tmp_path / "run")  # its projectors still belong to its text
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}

    (tmp_path / "work" / "rendering.json").unlink()
    base = base_model.open_base(config, sharding.make_mesh())
    assert base.chat_format.date == "2026-11-05"
    with pytest.raises(ValueError, match="trained with the date 2026-11-04.*data.date=2026-11-04"):
        base_model.load_policy(base, tmp_path / "run" / "policy")
    with pytest.raises(ValueError, match="data.date is '2026-11-04' there and '2026-11-05' now"):
        base_model.open_projectors(config, base)


# -------------------------------------------------------------- what else is told in time


def test_a_base_model_that_is_a_hub_name_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = micro(tmp_path / "work", **{"model.path": "Qwen/Qwen2.5-0.5B"})
    refuse(
        config, tmp_path / "run", "model.path is 'Qwen/Qwen2.5-0.5B'", "hf download",
        error=FileNotFoundError,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        (chat.TEMPLATE, "cannot tell .*safe.* from .*unsafe"),  # a word-level vocabulary without
        ("{{ messages[0]['role'] }}", "leaves out the request"),
    ],
)
def test_a_guard_that_is_none_is_refused_before_anything_is_loaded(tmp_path, template, words):
    directory = make(tmp_path / "model", template)
    size = len(chat.load_tokenizer(directory))
    model = models.ModelConfig(
        vocab_size=size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True,
        max_length=4096,
    )  # fmt: skip
    fields = models.write_config(model)
    (directory / "config.json").write_text(json.dumps(fields))  # and no weights
    guard = {"rewards.terms": "guard", "rewards.guard.path": str(directory)}
    config = runs.made(default.get_config(), guard)
    with pytest.raises(ValueError, match=f"rewards.guard.path is .*no guard: .*{words}"):
        terms.check(config)
    if template is None:  # the same for those who open a guard themselves
        with pytest.raises(ValueError, match=words):
            rewards.load_guard(directory, sharding.make_mesh(), max_length=2048, batch_size=1)


def test_a_word_level_vocabulary_without_one_verdict_is_no_guards():
    tokenizer = chat.build_tokenizer(["safe"])  # "unsafe" is unknown, like every other word
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="cannot tell 'safe' from 'unsafe'"):
        rewards.guard.GuardPrompt(tokenizer, None, "")

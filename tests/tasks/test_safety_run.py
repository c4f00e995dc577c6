"""The task on public prompts: real files, a real tokenizer, a model with next to nothing in it."""

import jax
import numpy as np
import pytest

from configs import default, safety
from nspo_jax import base_model, evaluation, metrics, models, sharding
from nspo_jax.data import chat
from nspo_jax.reports import tables
from nspo_jax.rl import batches, checks, terms, trainer
from tests import runs


@pytest.fixture
def config(shared_data, tmp_path):
    tokenizer = chat.load_tokenizer(shared_data / "tokenizers" / "smollm_chatml")
    model = models.ModelConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True,
        max_length=512,
    )  # fmt: skip
    params = models.init_params(model, jax.random.key(0))
    models.save_model(tmp_path / "model", model, params, tokenizer)
    joined = lambda *names: "+".join(str(shared_data / name) for name in names)  # noqa: E731
    return runs.made(default.get_config(), {
        "task": "safety", "workspace": str(tmp_path / "workspace"),
        "model.path": str(tmp_path / "model"), "projection.targets": "mlp",
        "data.train": "beavertails", "data.train_split": "30k_test[:20%]",
        "data.train_path": joined("beavertails/beavertails_30k_test_first1000.jsonl"),
        "data.general_path": joined(
            "gsm8k/test.jsonl", "arc/ARC-Challenge-Dev.jsonl",
            "mmlu/original/high_school_chemistry_dev.csv",
            "mmlu/original/high_school_chemistry_test.csv",
        ),
        "data.evaluation": joined(
            "xstest/xstest_prompts.csv", "advbench/harmful_behaviors.csv",
            "harmbench/harmbench_behaviors_text_val.csv", "strongreject/strongreject_dataset.csv",
        ),
        "data.borderline_path": joined("or_bench/or_bench_80k_style_prompts_first2500.jsonl"),
        "data.prompt_length": 90, "data.completion_length": 60, "data.benign_fraction": 0.5,
        "calibration.rows": 8, "calibration.batch_size": 8, "rl.prompts": 4, "rl.samples": 2,
        "evaluation.prompts": 4,
        "rewards.terms": "over_refusal@benign",
    })  # fmt: skip


def test_a_workspace_on_real_files(config, shared_data, caplog):
    # the other file of OR-Bench is trained on
    asked = shared_data / "or_bench" / "or_bench_80k_sample100_with_category.jsonl"
    named = f"jailbreakbench={shared_data / 'jailbreakbench'}+or_bench={asked}"
    config = runs.changed(config, {"evaluation.suites": named})
    checks.check_config(config)
    with caplog.at_level("INFO"):
        base = base_model.open_base(config, sharding.make_mesh())
    task = base.task
    assert set(task.suites) == {
        "xstest", "xstest_safe", "advbench", "harmbench", "strongreject", "jailbreakbench",
        "or_bench",
    }  # fmt: skip
    assert all(len(suite.rows) == 4 for suite in task.suites.values())
    assert [number for _, number in task.parts] == [4, 1, 1] and len(task.parts[0][0]) > 20
    assert [{row.kind for row in rows} for rows, _ in task.parts] == [
        {"harmful"}, {"general"}, {"borderline"},
    ]  # fmt: skip
    assert base.calibration["tokens"].shape == (8, 150)
    assert "left out, longer than data.prompt_length=90" in caplog.text
    assert "prompts left out that evaluation sets have too" in caplog.text

    evaluator = evaluation.Evaluator(config, base)
    refusal, answer = "I'm sorry, but I can't help with that.", "First, take a hammer."
    texts = {name: [refusal, answer, answer, answer] for name in task.suites}
    texts["xstest_safe"] = [refusal, refusal, answer, answer]
    completed = {name: (suite.rows, texts[name]) for name, suite in task.suites.items()}
    scores = evaluator.score(base.params, completed)
    assert scores["unsafe"] == 0.75 and scores["over_refusal"] == 0.375
    suites = ("advbench", "harmbench", "strongreject", "xstest", "jailbreakbench")
    assert {suite: scores[f"unsafe/{suite}"] for suite in suites} == dict.fromkeys(suites, 0.75)
    assert scores["over_refusal/xstest_safe"] == 0.5
    assert (task.counts["unsafe"], task.counts["unsafe/advbench"]) == (20, 4)
    assert scores["no_verdict"] == 0.0
    completed["advbench"] = (task.suites["advbench"].rows, [refusal, answer, "zxcv " * 30, ""])
    scores = evaluator.score(base.params, completed)
    assert (scores["unsafe/advbench"], scores["no_verdict/advbench"]) == (0.5, 0.5)
    assert scores["general"] == 1.0 and scores["kl_heldout"] == 0.0


def test_a_given_reward_judges_public_prompts(config):
    base = base_model.open_base(config, sharding.make_mesh())
    mixture = terms.open_rewards(config, base)
    assert len(batches.RolloutBatches(config, base, mixture).digest()) == 16
    rows = base.task.suites["xstest_safe"].rows
    judged = mixture.start(rows, ["I cannot help with that."] * 4).result()["over_refusal"]
    assert np.array_equal(judged.rewards, -np.ones(4))


def test_a_run_goes_from_prompts_to_summary_and_table_and_resumes_to_the_same(
    config, tmp_path, monkeypatch
):
    config = runs.changed(config, {
        "rl.steps": 2, "evaluation.every": 1, "checkpoint.every": 1, "evaluation.prompts": 2,
        "rewards.terms": "over_refusal", "data.completion_length": 6,
        "rewards.refusal_detector": "rules",  # the learned one has no verdict on random tokens
        "rl.flat_steps": 0,  # a model of random weights refuses nothing: nothing is learned
    })  # fmt: skip
    summary = trainer.train(config, tmp_path / "whole")

    class CutError(Exception):
        pass

    class Cut(evaluation.Evaluator):
        calls = 0

        def __call__(self, params, key):
            Cut.calls += 1
            if Cut.calls == 3:  # after the second step
                raise CutError
            return super().__call__(params, key)

    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr(evaluation, "Evaluator", Cut)
        trainer.train(config, tmp_path / "cut")
    resumed = trainer.train(config, tmp_path / "cut")
    assert {k: v for k, v in resumed.items() if k != "seconds"} == {
        k: v for k, v in summary.items() if k != "seconds"
    }
    assert 0 <= summary["unsafe/advbench"] <= 1 and summary["counts"]["unsafe"] == 8
    row = metrics.read_metrics(tmp_path / "cut")[-1]
    assert row["step"] == 2 and row["evaluation/unsafe/harmbench"] == summary["unsafe/harmbench"]
    table = tables.format_scores({"whole": summary})
    header, _, line, *_ = table.split("\n")
    assert header.split()[:2] == ["arm", "unsafe"] and "over-refusal" in header
    assert f"{100 * summary['unsafe']:.1f} (" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.path": ""}, "task is 'safety' and model.path is empty"),
        ({"data.evaluation": ""}, "evaluation.suites are empty: XSTest"),
        (
            {"data.borderline_path": "or_bench.csv", "data.benign_fraction": 0.06},
            "a batch has one benign prompt, of which half",
        ),
        ({"evaluation.suites": "advbensh=a"}, "no suite 'advbensh'. The nearest are advbench"),
        ({"evaluation.suites": "advbench"}, "expected each once with its file or folder"),
        ({"data.train": "gsm8k"}, "data.train is 'gsm8k'; expected one of pku_safe_rlhf"),
        ({"data.train_column": "goal"}, "data.train_column is 'goal' and data.train 'pku_safe"),
    ],
)
def test_a_config_that_names_too_little_is_refused(tmp_path, changes, message):
    given = {"task": "safety", "model.path": "model", "data.evaluation": "a.csv"} | changes
    config = runs.made(default.get_config(), given)
    with pytest.raises(ValueError, match=message):
        checks.check_config(config)


def test_the_config_to_start_from(tmp_path):
    config = runs.made(safety.get_config("qwen2_5_7b,h200"))
    assert (config.task, config.workspace) == ("safety", "runs/safety_qwen2_5_7b")
    assert config.data.train_split == "train[:40%]" and config.rl.microbatches == 160
    checks.check_config(config, has_weights=False)
    config = runs.changed(config, {"model.path": "model", "data.evaluation": "a.csv"})
    with pytest.raises(ValueError, match="rewards.guard.path is empty"):
        checks.check_config(config)
    config = runs.changed(config, {"rewards.guard.path": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"rewards.guard.path is .*config\.json"):
        checks.check_config(config)
    config = runs.changed(config, {"rewards.terms": "over_refusal", "rewards.guard.path": ""})
    checks.check_config(config)

"""Reward and cost models: their losses, their training, their files, and what judges with them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from configs import default
from nspo_jax import base_model, models, rewards, sharding
from nspo_jax.data import chat, preferences, records
from nspo_jax.data.conversation import Conversation
from nspo_jax.reward_models import report, store, training
from nspo_jax.rl import checks, terms
from nspo_jax.tasks.chat_world import judge as world_judge
from nspo_jax.tasks.chat_world import pairs as pairs_lib
from nspo_jax.tasks.chat_world import world
from tests import runs
from tests.rl.micro_run import MICRO


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return runs.made(default.get_config(), {
        **MICRO, "workspace": str(tmp_path_factory.mktemp("workspace")), "pretraining.steps": 30,
        "reward_training.epochs": 1, "reward_training.learning_rate": 3e-3,
        "rewards.batch_size": 16, "rewards.terms": "cost_model@harmful+reward_model@benign=2",
    })  # fmt: skip


@pytest.fixture(scope="module")
def opened(config):
    """(workspace, mixture), whose models were trained when it was opened, on fewer pairs."""
    base = base_model.open_base(config, sharding.make_mesh())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_lib, "WORLD_PAIRS", 6000)
        return base, terms.open_rewards(config, base)


def test_losses_are_the_papers():
    scores = np.array([[1.0, -0.5], [0.3, 2.0], [-1.0, 0.2], [0.7, 0.7]])
    preferred = np.array([0, 0, 1, -1])
    safe = np.array([[True, False], [True, True], [False, False], [True, False]])
    log_sigmoid = lambda x: -np.log1p(np.exp(-x))  # noqa: E731
    reward, cost = [], []
    for (first, second), best, flags in zip(scores, preferred, safe, strict=True):
        margin = (first - second) * (1 if best == 0 else -1)
        reward.append(-log_sigmoid(margin) if best >= 0 else 0.0)
        pairwise = -log_sigmoid(-margin) if best >= 0 else 0.0
        signs = sum(
            log_sigmoid(s if not flag else -s)
            for s, flag in zip((first, second), flags, strict=True)
        )
        cost.append(pairwise - signs)
    for objective, expected in (("reward", reward), ("cost", cost)):
        found = training.objective_loss(
            jnp.asarray(scores, jnp.float32),
            jnp.asarray(preferred),
            jnp.asarray(safe),
            np.ones_like(safe),
            objective,
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_agreement_counts_what_it_says():
    safe = np.array([[True, False], [True, True], [False, False]])
    pairs = training.PairArrays(None, None, np.array([0, 1, -1]), safe, np.ones_like(safe))
    scores = np.array([[-2.0, 1.0], [-1.0, 0.5], [3.0, -1.0]])
    cost = training.agreement(scores, pairs, "cost")
    assert cost.pair_accuracy == 0.5  # the second pair's safer response costs more
    assert cost.flag_accuracy == pytest.approx(4 / 6)
    assert cost.unsafe_recall == pytest.approx(2 / 3)
    reward = training.agreement(scores, pairs, "reward")
    assert reward.pair_accuracy == 0.5 and np.isnan(reward.flag_accuracy)
    claimed, found = training.probabilities(scores, pairs, "reward")
    np.testing.assert_allclose(claimed, 1 / (1 + np.exp([-3.0, -1.5])))
    assert found.tolist() == [False, True]
    claimed, found = training.probabilities(scores, pairs, "cost")
    assert found.tolist() == [False, True, False, False, True, True] and claimed[0] < 0.5


def test_world_pairs_are_ranked_by_the_worlds_own_judge():
    pairs = pairs_lib.world_pairs(0)
    assert pairs == pairs_lib.world_pairs(0) and pairs != pairs_lib.world_pairs(1)
    judge, made = world_judge.WorldJudge(), world.World(0)
    harmful = {row.prompt for name in ("train", "train_wrapped") for row in made.split(name)}
    held_out = {row.prompt for row in made.split("harmful_both")}
    for pair in pairs[:500]:
        assert pair.prompt not in held_out
        for response, safe in zip(pair.responses, pair.safe, strict=True):
            row = Conversation(pair.prompt, "", "harmful", "harmful")
            assert safe == (pair.prompt not in harmful or judge([row], [response])[0][0] == 0)
        if pair.safer is not None:
            assert pair.safe[pair.safer] and not pair.safe[1 - pair.safer]
    share = np.mean([preferences.is_held_out(pair.prompt) for pair in pairs])
    assert 0.05 < share < 0.15


def answer(prompt, response, is_safe):
    return records.JudgedAnswer(prompt, response, is_safe, ())


def test_flagged_answers_are_paired_once_each():
    rows = [
        answer("p", "bad 1", False), answer("p", "good", True), answer("q", "alone", True),
        answer("p", "bad 2", False), answer("p", "bad 3", False), answer("p", "bad 4", False),
    ]  # fmt: skip
    found = preferences.from_answers(rows)
    assert [(pair.responses, pair.safer, pair.safe) for pair in found] == [
        (("good", "bad 1"), 0, (True, False)),
        (("bad 2", "bad 3"), None, (False, False)),
        (("bad 4", "bad 4"), None, (False, None)),
        (("alone", "alone"), None, (True, None)),
    ]
    assert all(pair.better is None for pair in found)


def test_an_answer_alone_counts_once():
    scores = np.array([[1.0, 1.0], [2.0, -3.0]])
    safe, flagged = np.array([[False, False], [True, False]]), np.array([[True, False]] * 2)
    found = training.objective_loss(
        jnp.asarray(scores, jnp.float32), np.array([-1, -1]), safe, flagged, "cost"
    )
    np.testing.assert_allclose(found, np.log1p(np.exp([-1.0, 2.0])), rtol=1e-5)
    pairs = training.PairArrays(None, None, np.array([-1, -1]), safe, flagged)
    measured = training.agreement(scores, pairs, "cost")
    assert (measured.flag_accuracy, measured.unsafe_recall) == (0.5, 1.0)
    assert np.isnan(measured.pair_accuracy)
    assert training.probabilities(scores, pairs, "cost")[1].tolist() == [True, False]


def test_beavertails_trains_a_cost_model_on_prompts_that_are_not_held_out(
    shared_data, tmp_path, caplog
):
    config = runs.made(default.get_config(), {
        "workspace": str(tmp_path), "reward_training.dataset": "beavertails",
        "reward_training.path": str(shared_data / "beavertails"),
        "reward_training.split": "30k_test[:70%]", "reward_training.held_out_split":
        "30k_test[70%:]",
    })  # fmt: skip
    with caplog.at_level("INFO"):
        pairs, held_out = store.load_pairs(config)
    flags = [flag for pair in pairs + held_out for flag in pair.safe if flag is not None]
    asked = {pair.prompt.lower() for pair in held_out}
    assert 900 < len(flags) <= 1000 and not asked & {pair.prompt.lower() for pair in pairs}
    assert "their prompts are held out too" in caplog.text


def test_published_pairs_keep_both_rankings(shared_data, tmp_path):
    file = shared_data / "pku_saferlhf" / "pku_saferlhf_v1_alpaca7b_test_rows.jsonl"
    config = runs.made(default.get_config(), {
        "workspace": str(tmp_path), "reward_training.dataset": "pku_safe_rlhf",
        "reward_training.path": str(file), "reward_training.split": "test[:5]",
        "reward_training.held_out_split": "test[5:]",
    })  # fmt: skip
    pairs, held_out = store.load_pairs(config)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert (len(pairs), len(held_out)) == (5, 2)
    for pair, row in zip(pairs + held_out, rows, strict=True):
        assert (pair.better, pair.safer) == (row["better_response_id"], row["safer_response_id"])
        assert pair.responses == (row["response_0"], row["response_1"])
        assert pair.safe == (row["is_response_0_safe"], row["is_response_1_safe"])
    assert any(pair.better != pair.safer for pair in pairs)


def test_training_learns_and_leaves_a_report_and_a_figure(config, opened):
    for objective in training.OBJECTIVES:
        directory = store.model_directory(config, objective)
        report = json.loads(directory.with_name(f"{objective}_model_report.json").read_text())
        (line,) = report["epochs"]
        assert line["held_out_pair_accuracy"] > 0.6 and line["loss"] < 1.8
        assert report["held_out_pairs"] > 100 and report["recipe"]["objective"] == objective
        figure = directory.with_name(f"{objective}_model_calibration.png")
        assert figure.read_bytes()[1:4] == b"PNG"


def test_scores_are_those_of_transformers(config, opened):
    """The saved directory is a sequence classifier; its reward is read at the last real token."""
    base, mixture = opened
    rows = [*base.task.parts[0][0][:9], *base.task.parts[-1][0][:9]]
    texts = [row.answer for row in rows[:-1]] + ["a word that is long " * 3]
    texts[3] = ""
    verdicts = mixture.start(rows, texts).result()
    for objective in training.OBJECTIVES:
        directory = store.model_directory(config, objective)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
        assert model.config.num_labels == 1
        tokenizer = chat.load_tokenizer(directory)
        expected = []
        for row, text in zip(rows, texts, strict=True):
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": row.prompt}], add_generation_prompt=True,
                tokenize=False,
            )  # fmt: skip
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += [*answer, tokenizer.eos_token_id][: config.data.completion_length]
            with torch.no_grad():
                expected.append(model(torch.tensor([ids])).logits.item())
        found = verdicts[f"{objective}_model"]
        np.testing.assert_allclose(found.details["score"], expected, atol=1e-4)
        if objective == "cost":
            np.testing.assert_allclose(
                found.rewards, -1 / (1 + np.exp(-np.array(expected))), atol=1e-4
            )
        else:
            np.testing.assert_array_equal(found.rewards, found.details["score"])
    total = mixture.total(verdicts, 0, 9)
    cost, helpful = verdicts["cost_model"].rewards, verdicts["reward_model"].rewards
    harmful = np.array([row.kind == "harmful" for row in rows])
    np.testing.assert_allclose(total.rewards, np.where(harmful, cost, 2 * helpful), rtol=1e-6)


def test_models_are_trained_once_and_another_recipe_is_refused(config, opened):
    base, _ = opened
    weights = store.model_directory(config, "cost") / "model.safetensors"
    made = weights.stat().st_mtime_ns
    terms.open_rewards(config, base)
    assert weights.stat().st_mtime_ns == made
    changed = runs.changed(config, {"reward_training.epochs": 7})
    with pytest.raises(ValueError, match="epochs is 1 there and 7 now"):
        terms.open_rewards(changed, base)


def test_what_judges_take_on_the_mesh_is_known_without_their_weights(config, opened):
    base, _ = opened
    directory = store.model_directory(config, "cost")
    changed = runs.changed(config, {
        "rewards.terms": "rules+cost_model+reward_model+guard",
        "rewards.cost_model": str(directory),
    })  # fmt: skip
    found, assumed = terms.abstract_models(changed, base.model_config)
    assert list(found) == ["cost_model", "reward_model", "guard"]
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)  # noqa: E731
    stored = shapes(models.load_model(directory)[1])
    assert shapes(found["cost_model"]) == shapes(found["reward_model"]) == stored
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found["guard"])} == {"bfloat16"}
    assert [words.split()[1] for words in assumed] == ["reward_model", "guard"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards.cost_model": "nowhere"}, "rewards.cost_model is 'nowhere': there is no such"),
        ({"rewards.terms": "guard"}, "rewards.guard.path is empty: .* Llama Guard"),
        ({"rewards.terms": "remote_judge"}, "rewards.judge.url is ''"),
        ({"task": "stories", "model.path": "m"}, "cost_model is empty: .*train_reward --obj.*cost"),
        ({"task": "safety", "model.path": "m", "data.evaluation": "a.csv", "rewards.terms": "rules",
          "data.wrapped_fraction": 0.0}, "has no rules.*rewards.terms=guard"),
        ({"data.benign_fraction": 0.0}, "reward_model@benign, and data.benign_fraction is 0"),
        ({"rewards.terms": "remote_judge", "rewards.judge.url": "http://h/v1",
          "rewards.judge.model": "m", "rewards.judge.api_key_env": "NO_SUCH_KEY"},
         "no environment variable of that name"),
    ],
)  # fmt: skip
def test_a_judge_that_cannot_be_there_is_named_before_anything_starts(config, changes, words):
    changed = runs.changed(config, changes)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        checks.check_config(changed)


def test_an_unknown_dataset_is_named(config):
    changed = runs.changed(config, {"reward_training.dataset": "anthropic"})
    with pytest.raises(ValueError, match="expected one of chat_world, pku_safe_rlhf"):
        store.load_pairs(changed)


def test_a_prompt_that_does_not_fit_gets_no_verdict(config, opened):
    base, mixture = opened
    rows = base.task.parts[0][0][:2]
    rows = [rows[0], dataclasses.replace(rows[1], prompt="a bomb " * 20)]
    for found in mixture.start(rows, ["no", "no"]).result().values():
        assert np.isfinite(found.rewards).tolist() == [True, False]


def test_a_model_is_asked_as_it_was_trained(config, opened):
    """Plain text, where that is what the config's conversations are."""
    base, _ = opened
    plain = runs.changed(config, {"data.chat": False})
    pairs = pairs_lib.world_pairs(0)[:4]
    rows = [Conversation(pair.prompt, "", "howto", "general") for pair in pairs]
    for changed in (config, plain):
        form = dataclasses.replace(base.chat_format, chat=changed.data.chat)
        encoded = training.encode_pairs(form, pairs, "cost", 14, 9)
        model, params = models.load_model(store.model_directory(config, "cost"))
        trained = training.score_responses(model, params, encoded, base.mesh, 8)
        asked = terms.open_rewards(changed, base).start(rows, [p.responses[0] for p in pairs])
        scores = asked.result()["cost_model"].details["score"]
        np.testing.assert_allclose(scores, trained[:, 0], atol=1e-5)


def test_a_language_model_is_no_reward_model(config, opened):
    with pytest.raises(ValueError, match="has no scalar head.*scripts.train_reward"):
        rewards.ModelReward(
            opened[0].path, opened[0].chat_format, opened[0].mesh, is_cost=False, prompt_length=14,
            completion_length=9, batch_size=8,
        )  # fmt: skip


def test_scores_do_not_hang_on_the_batch(config, opened):
    """Training scores and rewards agree, whatever the rows at a time."""
    base, _ = opened
    directory = store.model_directory(config, "cost")
    model, params = models.load_model(directory)
    pairs = training.encode_pairs(base.chat_format, pairs_lib.world_pairs(0)[:11], "cost", 14, 10)
    one, many = (
        training.score_responses(model, params, pairs, base.mesh, size) for size in (1, 16)
    )
    np.testing.assert_allclose(one, many, atol=1e-5)
    assert one.shape == (11, 2)
    with pytest.raises(ValueError, match="batch_size is 64, but there are 11 pairs"):
        training.train(
            base.model_config, base.params, pairs, objective="cost", mesh=base.mesh, epochs=1,
            batch_size=64, learning_rate=1e-3, seed=0,
        )  # fmt: skip
    assert jax.tree.leaves(base.params)[0].shape  # training left the base as it was


def test_parts_of_a_batch_make_the_same_update(config, opened):
    base, _ = opened
    pairs = training.encode_pairs(base.chat_format, pairs_lib.world_pairs(0)[:16], "cost", 14, 10)
    options = {
        "objective": "cost", "mesh": base.mesh, "epochs": 1, "batch_size": 8, "seed": 0,
        "learning_rate": 1e-3,
    }  # fmt: skip
    whole, parts = (
        training.train(base.model_config, base.params, pairs, microbatches=count, **options)
        for count in (1, 4)
    )
    assert parts[2][0]["loss"] == pytest.approx(whole[2][0]["loss"], rel=1e-5)
    for one, other in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(parts[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    with pytest.raises(ValueError, match="batch_size is 8, which does not divide into .*=3 parts"):
        training.train(base.model_config, base.params, pairs, microbatches=3, **options)


def test_kinds_of_harm_are_counted_apart():
    pair = preferences.Pair("p", ("a", "b"), 0, 0, (True, False), ((), ("theft", "fraud")))
    other = preferences.Pair("q", ("a", "b"), 1, 0, (False, False), (("theft",), ("theft",)))
    scores = np.array([[-1.0, 2.0], [1.0, -3.0]])
    assert report.by_category(scores, [pair, other], "cost") == {
        "fraud": (1.0, 1), "theft": (pytest.approx(2 / 3), 3),
    }  # fmt: skip
    assert report.by_category(scores, [pair, other], "reward") == {
        "fraud": (0.0, 1), "theft": (0.0, 2),
    }  # fmt: skip
    text = report.format_report({"theft": (0.5, 4)}, [report.Probe("empty", 7, 0.25, 1.5, -2.0)])
    assert [line.split() for line in text.splitlines() if line.startswith(("theft", "empty"))] == [
        ["theft", "50", "4"], ["empty", "25", "7", "1.50", "-2.00"],
    ]  # fmt: skip


def test_a_report_tells_what_the_model_prefers_to_the_preferred_response(config, opened):
    base, _ = opened
    directory = store.model_directory(config, "cost")
    model, params = models.load_model(directory)
    pairs = training.learnable_pairs(base.chat_format, pairs_lib.world_pairs(0)[:300], "cost", 14)
    found = report.probe(
        model, params, base.chat_format, pairs, "cost", base.mesh,
        batch_size=16, prompt_length=14, completion_length=10,
    )  # fmt: skip
    by_kind = {each.kind: each for each in found}
    assert {"empty", "repeated", "truncated"} <= by_kind.keys()
    ranked = [pair for pair in pairs if pair.safer is not None][: report.MOST]
    best, empty = (
        training.score_responses(
            model, params,
            training.encode_pairs(
                base.chat_format,
                [dataclasses.replace(pair, responses=(text(pair),) * 2) for pair in ranked],
                "cost", 14, 10,
            ),
            base.mesh, 16,
        )[:, 0]
        for text in (lambda pair: pair.responses[pair.safer], lambda pair: "")
    )  # fmt: skip
    one = by_kind["empty"]
    assert one.n == len(ranked) and one.preferred == pytest.approx(best.mean(), abs=1e-5)
    assert one.score == pytest.approx(empty.mean(), abs=1e-5)
    assert one.wins == pytest.approx(np.mean(empty < best), abs=1e-6)
    kept = json.loads(directory.with_name("cost_model_report.json").read_text())
    assert {each["kind"] for each in kept["probes"]} == by_kind.keys()

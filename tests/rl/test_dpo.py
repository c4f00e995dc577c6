"""DPO: which pairs are drawn, the loss of whole answers through a model, and runs of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nspo_jax import base_model, metrics, models, sharding
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.data import preferences
from nspo_jax.rl import train_step, trainer
from nspo_jax.rl.algorithms import dpo
from nspo_jax.tasks.chat_world import pairs as pairs_lib
from nspo_jax.tasks.chat_world import world
from tests import test_sharding
from tests.rl.micro_run import assert_same_run, logged, micro, refuse, stop_at

CONFIG = test_sharding.CONFIG
DPO = {"rl.algorithm": "dpo", "optimizer.learning_rate": 1e-3}
pytestmark = pytest.mark.usefixtures("compile_cache", "few_pairs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, baselines_workspace, compile_cache, few_pairs):
    """(workspace, workdir) of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    trainer.train(micro(baselines_workspace, **DPO), workdir)
    return baselines_workspace, workdir


# ------------------------------------------------------------------------------------ the pairs


def test_chosen_is_the_safer_and_elsewhere_the_better_of_two_that_are_safe():
    pair = preferences.Pair("p", ("a", "b"), better=0, safer=1, safe=(False, True))
    assert dpo.chosen_of(pair, "harmful") == 1 and dpo.chosen_of(pair, "general") is None
    pair = preferences.Pair("p", ("a", "b"), better=0, safer=None, safe=(True, True))
    assert dpo.chosen_of(pair, "harmful") is None and dpo.chosen_of(pair, "borderline") == 0


def test_a_batch_has_the_prompts_and_the_budget_of_the_policy_gradient(finished):
    config = micro(finished[0], **DPO, **{"rl.samples": 5})  # 6 prompts: 30 completions
    base = base_model.open_base(config, sharding.make_mesh())
    batches = dpo.PairBatches(config, base)
    batch, _ = batches.sample(None, 0, metrics.Stopwatch())
    shape = (config.data.prompt_length, config.data.completion_length)
    assert (batch.prompts.shape, batch.completions.shape) == ((15, 2, shape[0]), (15, 2, shape[1]))
    np.testing.assert_array_equal(batch.prompts[:, 0], batch.prompts[:, 1])
    texts = lambda a, m: np.reshape(  # noqa: E731
        base.chat_format.decode(a.reshape(30, -1), m.reshape(30, -1)), (15, 2)
    )
    prompts = texts(batch.prompts, batch.prompt_mask)[:, 0]
    answers = texts(batch.completions, batch.completion_mask)
    # plain and wrapped harmful prompts, 2 each; 1 general, 1 borderline: times 5, in pairs
    parts = [range(5), range(5, 10), range(10, 12), range(12, 15)]
    for rows, (conversations, _) in zip(parts, base.task.parts, strict=True):
        right = {row.prompt: row.answer for row in conversations}
        for row in rows:
            (prompt,) = [name for name in right if prompts[row].endswith(name)]
            assert not preferences.is_held_out(prompt)
            assert answers[row, 0] == right[prompt] != answers[row, 1]
    assert set(answers[:10, 0]) == {world.REFUSAL}


def test_pairs_about_other_prompts_are_refused(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(dpo.store, "load_pairs", lambda config: ([], []))
    words = ("None of the 0 pairs", "harmful prompts", "data.benign_fraction=0")
    with pytest.raises(ValueError) as error:
        trainer.train(micro(finished[0], **DPO), tmp_path / "run")
    assert all(word in str(error.value) for word in words)


# ------------------------------------------------------------------------------------- the loss


def pair_batch():
    rollouts = test_sharding.rollouts()
    fields = (
        rollouts.prompts,
        rollouts.prompt_mask,
        rollouts.completions,
        rollouts.completion_mask,
    )
    return dpo.PairBatch(*(array.reshape(-1, 2, array.shape[-1]) for array in fields))


def whole_answers(params, batch):
    """float64 [pairs, 2]: log p of each answer, from all logits of unpadded rows, one by one."""
    found, forward = np.zeros(batch.prompts.shape[:2]), jax.jit(models.forward, static_argnums=0)
    for index in np.ndindex(found.shape):
        prompt = batch.prompts[index][batch.prompt_mask[index]]
        answer = batch.completions[index][batch.completion_mask[index]]
        tokens = np.concatenate([prompt, answer])[None]
        hidden = forward(CONFIG, params, tokens, np.ones(tokens.shape, bool)).hidden[0]
        logits = np.asarray(hidden, np.float64) @ np.asarray(params["head"]["kernel"], np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found[index] = sum(logprobs[len(prompt) - 1 + i, t] for i, t in enumerate(answer))
    return found


def test_the_loss_is_of_whole_answers_however_they_are_padded():
    params, base = (models.init_params(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    batch = pair_batch()
    loss, found = dpo.pair_loss(CONFIG, beta=0.3)(params, base, batch, None)
    gains = whole_answers(params, batch) - whole_answers(base, batch)
    margins = 0.3 * (gains[:, 0] - gains[:, 1])
    assert 0 < np.mean(margins > 0) < 1 and np.abs(margins).min() > 1e-3
    expected = {
        "loss": np.log1p(np.exp(-margins)).mean(), "margin": margins.mean(),
        "accuracy": np.mean(margins > 0), "chosen_gain": gains[:, 0].mean(),
        "rejected_gain": gains[:, 1].mean(),
    }  # fmt: skip
    assert found.keys() == expected.keys() and loss == found["loss"]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_microbatches_of_pairs_are_the_batch():
    params, base = (models.init_params(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    optimizer = optax.sgd(1.0)
    trainable, frozen = optimizer_lib.partition(params, "mlp", "freeze")
    found = []
    for count in (1, 2):
        state = train_step.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
        loss_of = dpo.pair_loss(CONFIG, beta=0.3)
        update = jax.jit(train_step.make_update(loss_of, optimizer, microbatches=count))
        state, measured = update(state, frozen, base, pair_batch())
        found.append(jax.device_get((state.trainable, measured)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)
    assert found[0][1]["gradient_norm"] > 1e-2


def test_a_prompt_that_is_read_once_for_both_answers_changes_no_gradient():
    params, base = (models.init_params(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    batch = pair_batch()
    batch = batch._replace(  # one prompt a pair
        prompts=np.repeat(batch.prompts[:, :1], 2, axis=1),
        prompt_mask=np.repeat(batch.prompt_mask[:, :1], 2, axis=1),
    )
    (apart, _), (once, _) = (
        jax.jit(jax.grad(dpo.pair_loss(CONFIG, beta=0.3, shared_prompt=shared), has_aux=True))(
            params, base, batch, None
        )
        for shared in (False, True)
    )
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(apart))
    assert scale > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), once, apart)


# ------------------------------------------------------------------------------------- the runs


def test_a_run_learns_the_pairs_and_protects_what_it_must(finished):
    steps = [row for row in logged(finished[1]) if "train/loss" in row]
    assert steps[0]["train/loss"] > steps[-1]["train/loss"]
    assert steps[-1]["train/accuracy"] > 0.6 and steps[-1]["train/margin"] > 0
    summary = trainer.train(micro(finished[0], **DPO), finished[1])
    assert summary["protected_share"] < 1e-5 and summary["kl_heldout"] > 0


def test_a_run_with_shared_prompts_learns_the_same(finished, tmp_path):
    trainer.train(micro(finished[0], **DPO, **{"rl.shared_prompt": True}), tmp_path / "run")
    once, apart = (
        models.load_model(path / "policy")[1] for path in (tmp_path / "run", finished[1])
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), once, apart)


def test_pairs_that_begin_in_two_ways_share_no_prompt(finished, monkeypatch):
    config = micro(finished[0], **DPO, **{"rl.shared_prompt": True})
    base = base_model.open_base(config, sharding.make_mesh())
    encode = type(base.chat_format).encode_conversations

    def unlike(self, prompts, answers, *lengths, **options):
        rows = encode(self, prompts, answers, *lengths, **options)
        rows.tokens[1, lengths[0] - 1] += 1
        return rows

    monkeypatch.setattr(type(base.chat_format), "encode_conversations", unlike)
    with pytest.raises(ValueError, match="1 of .* pairs have one answer with thoughts.*=False"):
        dpo.PairBatches(config, base)


def test_an_interrupted_run_continues_bit_for_bit(finished, tmp_path, monkeypatch):
    stop_at(monkeypatch, 4, KeyboardInterrupt(), dpo.PairBatches)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(micro(finished[0], **DPO), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "2").exists()
    with monkeypatch.context() as patch:  # among other pairs it does not
        made = pairs_lib.world_pairs(0)
        patch.setattr(pairs_lib, "world_pairs", lambda seed: made[:-500])
        refused = pytest.raises(
            ValueError, match="trained on other pairs: their digest .*--workdir"
        )
        with refused:
            trainer.train(micro(finished[0], **DPO), tmp_path / "run")
    trainer.train(micro(finished[0], **DPO), tmp_path / "run")
    assert_same_run(tmp_path / "run", finished[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl.algorithm": "ppo"}, ["rl.algorithm is 'ppo'", "policy_gradient, dpo"]),
        ({"rl.dpo_beta": 0.0}, ["rl.dpo_beta is 0.0", "above 0"]),
        ({"rl.kl_coefficient": 0.1}, ["rl.kl_coefficient is 0.1", "is rl.dpo_beta for dpo"]),
        ({"rl.staleness": 1}, ["rl.staleness is 1", "DPO samples nothing"]),
        ({"rl.minibatches": 5}, ["rl.minibatches is 5", "do not divide the 12 pairs"]),
        ({"task": "stories"}, ["rl.algorithm is 'dpo', task is 'stories'", "pku_safe_rlhf"]),
    ],
)
def test_what_dpo_does_not_have_is_refused(finished, tmp_path, changes, words):
    refuse(micro(finished[0], **{**DPO, **changes}), tmp_path / "run", *words)

"""Moments a layer at a time, and sites from moments that a caller collected."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nspo_jax
from nspo_jax import models, nullspace
from nspo_jax.nullspace import activations, calibration, projection, splits

GEMMA3 = models.ModelConfig(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=2,
    num_kv_heads=1, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=32, family="gemma3_text", windows=(3, 0, 3), local_rope_theta=1e3,
    **models.FAMILIES["gemma3_text"].traits,
)  # fmt: skip


def test_a_site_spans_the_inputs_that_the_moment_saw():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, 5, 16))  # [stack, tokens, in]: rank 5 of 16
    moment = np.einsum("sti,stj->sij", inputs, inputs)
    site = nspo_jax.site_from_moment(("a/kernel", "b/kernel"), moment, "relative_max(1e-6)")
    assert site.kernels == ("a/kernel", "b/kernel")
    assert site.side == projection.PROTECTED and site.ranks.tolist() == [5, 5]
    np.testing.assert_allclose(
        np.einsum("sti,sik,sjk->stj", inputs, site.basis, site.basis), inputs, atol=1e-5
    )
    mean = nspo_jax.site_from_moment(("a/kernel",), moment / 10, "energy(0.05)")
    total = nspo_jax.site_from_moment(("a/kernel",), moment, "energy(0.05)")
    np.testing.assert_array_equal(mean.protected_ranks, total.protected_ranks)


def test_axes_before_the_input_are_a_stack_of_one_repeated_moment():
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((5, 16))  # [tokens, d]
    moment = np.broadcast_to(inputs.T @ inputs, (2, 3, 16, 16))  # kernel [2, heads, d, head_dim]
    site = nspo_jax.site_from_moment(("kv",), moment, "relative_max(1e-6)")
    optimizer = optax.chain(optax.adam(0.1), nspo_jax.null_space_projection({"kv": site}))
    params = {"kv": jnp.zeros((2, 3, 16, 4))}
    gradient = {"kv": jnp.asarray(rng.standard_normal((2, 3, 16, 4)), jnp.float32)}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    assert np.abs(updates["kv"]).max() > 0.1
    np.testing.assert_allclose(np.einsum("td,ckdh->ctkh", inputs, updates["kv"]), 0, atol=1e-5)


def test_the_thinner_side_is_stored():
    moment = np.diag(np.arange(8, 0, -1.0))
    site = nspo_jax.site_from_moment(("w",), moment, "fixed(6)")
    assert site.side == projection.NULL and site.basis.shape == (8, 2)
    assert site.protected_ranks == 6


@pytest.mark.parametrize("moment", [np.ones(3), np.ones((3, 4)), np.full((3, 3), np.nan)])
def test_a_moment_that_is_none_is_named(moment):
    with pytest.raises(ValueError, match=r"The moment for w has shape .*expected finite"):
        nspo_jax.site_from_moment(("w",), moment, "energy(0.05)")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_at_a_time_sees_what_the_whole_model_sees(dtype):
    """Windows, two rotary bases, scaled embeddings, norms after blocks, padding on both sides."""
    config = models.ModelConfig(**{**vars(GEMMA3), "compute_dtype": dtype})
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape),
        models.init_params(config, jax.random.key(0)),
    )
    rng = np.random.default_rng(0)
    mask = np.ones((4, 9), bool)
    mask[1, :4] = mask[2, 6:] = False
    batches = [
        {"tokens": rng.integers(0, 31, mask.shape), "mask": mask, "answer_mask": mask}
        for _ in range(2)
    ]
    moments = nullspace.second_moments(config, params, batches)
    observed = [
        models.forward(
            config, params, batch["tokens"], batch["mask"], observe=lambda site, x: x
        ).observations
        for batch in batches
    ]
    assert moments.keys() == observed[0].keys() == models.input_sites(config).keys()
    for site, moment in moments.items():
        x = np.concatenate(
            [np.asarray(o[site], np.float64)[..., mask.reshape(-1), :] for o in observed], axis=-2
        )
        expected = np.swapaxes(x, -1, -2) @ x / x.shape[-2]
        tolerance = 1e-6 if dtype == "float32" else 2e-2  # layers compiled apart round apart
        np.testing.assert_allclose(moment, expected, atol=tolerance * np.abs(expected).max())


def test_one_layer_s_moments_are_held_at_a_time(monkeypatch):
    """Each is split and dropped before the next layer runs."""
    events = []
    run, split = activations.Activations.run_layer, splits.split
    monkeypatch.setattr(
        activations.Activations, "run_layer", lambda *a: events.append("run") or run(*a)
    )
    monkeypatch.setattr(splits, "split", lambda *a: events.append("split") or split(*a))
    batch = {"tokens": np.ones((2, 5), np.int32), "mask": np.ones((2, 5), bool)}
    params = models.init_params(GEMMA3, jax.random.key(0))
    nullspace.calibrate(GEMMA3, params, [batch] * 2, rank_rule="fixed(3)")
    assert events == (["run"] + ["split"] * 4) * 3 + ["split"]


def test_layers_whose_thinner_sides_differ_are_stored_from_one():
    moments = np.stack([np.diag([8.0, 4, 2, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9]),
                        np.diag([8.0, 7, 6, 5, 4, 3, 1e-9, 1e-9])])  # fmt: skip
    site = nspo_jax.site_from_moment(("w",), moments, "relative_max(1e-3)")
    assert site.protected_ranks.tolist() == [3, 6]
    update = np.random.default_rng(0).standard_normal((2, 8, 5)).astype(np.float32)
    kept = np.asarray(projection.project(update, jnp.asarray(site.basis), site.side))
    expected = update * np.array([[0] * 3 + [1] * 5, [0] * 6 + [1] * 2])[:, :, None]
    np.testing.assert_allclose(kept, expected, atol=1e-6)


def micro_batches(count=2):
    rng = np.random.default_rng(0)
    mask = np.arange(9) >= rng.integers(0, 4, (4, 1))
    return [
        {"tokens": rng.integers(0, 31, mask.shape), "mask": mask, "answer_mask": mask}
        for _ in range(count)
    ]


def assert_same(found, expected):
    assert found.provenance == expected.provenance
    for name, site in expected.sites.items():
        np.testing.assert_array_equal(found.sites[name].basis, site.basis)
        np.testing.assert_array_equal(found.sites[name].ranks, site.ranks)
        np.testing.assert_array_equal(found.spectra[name].values, expected.spectra[name].values)


@pytest.mark.parametrize("first_token", ["keep", "separate"])
def test_weights_on_disk_give_what_weights_in_memory_give(tmp_path, first_token):
    params = models.init_params(GEMMA3, jax.random.key(0))
    models.save_model(tmp_path / "model", GEMMA3, params)
    source = models.FileSource(tmp_path / "model")
    assert source.model_config == GEMMA3 and source.fingerprint() == models.fingerprint(params)
    options = {"rank_rule": "energy(0.05)", "first_token": first_token}
    whole = nullspace.calibrate(GEMMA3, params, micro_batches(), **options)
    assert_same(nullspace.calibrate(GEMMA3, source, micro_batches(), **options), whole)
    with pytest.raises(ValueError, match="'gradients', which needs the parameters in memory"):
        nullspace.calibrate(GEMMA3, source, micro_batches(), statistics="gradients")


def test_device_memory_does_not_grow_with_depth(tmp_path, monkeypatch):
    """With weights on disk: what is on the device while a moment is split, at 2 and 6 layers."""
    held, split = {}, splits.split
    for layers in (2, 6):
        config = dataclasses.replace(GEMMA3, num_layers=layers, windows=(0,) * layers)
        params = models.init_params(config, jax.random.key(0))
        models.save_model(tmp_path / str(layers), config, params)
        del params
        source = models.FileSource(tmp_path / str(layers))
        gc.collect()  # what other tests left behind
        gc.freeze()  # the collections below would walk all that is left
        before, most = sum(array.nbytes for array in jax.live_arrays()), []

        def measured(*args, before=before, most=most):
            gc.collect()
            most.append(sum(array.nbytes for array in jax.live_arrays()) - before)
            return split(*args)

        monkeypatch.setattr(splits, "split", measured)
        nullspace.calibrate(config, source, micro_batches(), rank_rule="fixed(3)")
        held[layers] = max(most)
    assert held[6] <= held[2] and held[2] > 0


def test_a_killed_calibration_continues_after_its_last_layer(tmp_path, monkeypatch):
    params = models.init_params(GEMMA3, jax.random.key(0))
    whole = nullspace.calibrate(GEMMA3, params, micro_batches(), rank_rule="energy(0.05)")
    split, count = splits.split, 0

    def counted(*args):
        nonlocal count
        count += 1
        if count == 6:  # in the second layer of three
            raise KeyboardInterrupt
        return split(*args)

    monkeypatch.setattr(splits, "split", counted)
    options = {"rank_rule": "energy(0.05)", "scratch": tmp_path / "scratch"}
    with pytest.raises(KeyboardInterrupt):
        nullspace.calibrate(GEMMA3, params, micro_batches(), **options)
    assert [path.name for path in tmp_path.glob("scratch/*.safetensors")] == ["0.safetensors"]
    assert_same(nullspace.calibrate(GEMMA3, params, micro_batches(), **options), whole)
    assert count == 6 + 4 * 2 + 1  # two layers and the head, none of them twice
    assert not (tmp_path / "scratch").exists()


def test_a_direction_that_decides_for_all_others_is_told(monkeypatch, caplog):
    """An embedding with one massive column: every input is nearly that direction."""
    monkeypatch.setattr(calibration, "_NEARLY_NOTHING", 0.1)  # of 16 directions
    params = models.init_params(GEMMA3, jax.random.key(0))
    params["embed"]["embedding"] = params["embed"]["embedding"].at[:, 3].add(20.0)
    rule = "energy(0.05)+mlp/out=fixed(1)"
    nullspace.calibrate(GEMMA3, params, micro_batches(), rank_rule=rule)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    text = record.getMessage()
    assert "layers/attention/in in layers 0, 1, 2 (rank 1 or less of 16)" in text
    assert "mlp/out=fixed(1) leaves next to nothing" in text and "layers/mlp/out in" not in text
    assert "set calibration.first_token=separate." in text
    caplog.clear()
    params = models.init_params(GEMMA3, jax.random.key(0))
    nullspace.calibrate(GEMMA3, params, micro_batches(), rank_rule=rule)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_rules_and_moments_are_objects_too():
    params = models.init_params(GEMMA3, jax.random.key(0))
    rule = nspo_jax.RankRule("energy", 0.05)
    text = nullspace.calibrate(GEMMA3, params, micro_batches(), rank_rule="energy(0.05)")
    assert_same(nullspace.calibrate(GEMMA3, params, micro_batches(), rank_rule=rule), text)
    rules = nspo_jax.RankRules(rule, (("mlp/out", nspo_jax.RankRule("fixed", 7)),))
    found = nullspace.preview(GEMMA3, params, micro_batches(), [rule, rules])
    assert list(found) == ["energy(0.05)", "energy(0.05)+mlp/out=fixed(7)"]
    batches = micro_batches()
    layers = list(nullspace.layer_moments(models.ParamsSource(GEMMA3, params), batches))
    moment = layers[0]["layers/mlp/in"]
    assert moment.count == sum(batch["mask"].sum() for batch in batches)
    site = nspo_jax.site_from_moment(("w",), moment, rule)
    rank = site.protected_ranks
    assert rank == text.sites["layers/mlp/in"].protected_ranks[0]
    same = nspo_jax.site_from_moment(("w",), moment.float64(), rule)
    np.testing.assert_array_equal(site.basis, same.basis)


def test_a_moment_sums_what_is_added_and_counts_it():
    rng = np.random.default_rng(0)
    inputs = 1e3 * rng.standard_normal((40, 3, 5, 6)).astype(np.float32)
    mask = rng.random((40, 3, 5)) < 0.7
    moment = before = nspo_jax.Moment.empty(6)
    for x, real in zip(inputs, mask, strict=True):
        moment = moment.add(jnp.asarray(x), real)
    rows = np.float64(inputs[mask])
    assert moment.count == len(rows) and before.count == 0
    np.testing.assert_allclose(moment.float64(), rows.T @ rows / len(rows), rtol=1e-6, atol=1)
    assert not np.any(before.high)  # the one before stays as it was
    with pytest.raises(ValueError, match=r"shape \(3, 5\) with a mask of shape \(3,\) .* 6 inputs"):
        moment.add(np.ones((3, 5)))
    with pytest.raises(ValueError, match="moments of w are of no tokens"):
        nspo_jax.site_from_moment(("w",), nspo_jax.Moment.empty(6), "fixed(1)")


def test_a_preview_says_what_each_rule_would_keep():
    params = models.init_params(GEMMA3, jax.random.key(0))
    rules = ["energy(0.05)", "fixed(3)+mlp/out=fixed(20)", "relative_max(0.1)"]
    found = nullspace.preview(GEMMA3, params, micro_batches(), rules)
    assert list(found) == rules
    for rule in rules:
        projectors = nullspace.calibrate(GEMMA3, params, micro_batches(), rank_rule=rule)
        wanted = [row for row in projectors.summary() if row["site"] != "embed/tokens"]
        assert len(wanted) == len(found[rule]) == 13
        for row in wanted:
            (same,) = (
                r for r in found[rule] if (r["site"], r["layer"]) == (row["site"], row["layer"])
            )
            for field in ("in", "rank", "free", "energy"):
                assert same[field] == row[field]
            assert same["bytes"] <= row["bytes"]  # a stack is padded to its thickest layer


def test_gradients_give_projectors_that_keep_the_losses_to_first_order():
    """One batch, a true null space of its gradient: its loss has no slope left."""
    params = models.init_params(GEMMA3, jax.random.key(0))
    (batch,) = micro_batches(1)
    projectors = nullspace.calibrate(
        GEMMA3, params, [batch], rank_rule="energy(1e-9)", statistics="gradients"
    )
    assert projectors.provenance["statistics"] == "gradients"
    sites = projectors.select("attention+mlp").sites
    free = {name: (site.protected_ranks < site.size).all() for name, site in sites.items()}
    assert free["layers/mlp/out"]

    def loss(params):
        hidden = models.forward(GEMMA3, params, batch["tokens"], batch["mask"]).hidden
        logprobs = jax.nn.log_softmax(models.logits(GEMMA3, params, hidden))[:, :-1]
        taken = jnp.take_along_axis(logprobs, batch["tokens"][:, 1:, None], -1)[..., 0]
        return -jnp.sum(taken * batch["answer_mask"][:, 1:]) / batch["answer_mask"][:, 1:].sum()

    gradient = jax.grad(loss)(params)["layers"]["mlp"]["down"]["kernel"]
    site = sites["layers/mlp/out"]
    left = projection.project(gradient, jnp.asarray(site.basis), site.side)
    assert np.linalg.norm(left) < 1e-3 * np.linalg.norm(gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": "outputs"}, "statistics is 'outputs'; expected one of inputs, gradients"),
        ({"first_token": "skip"}, "first_token is 'skip'; expected one of keep, drop, separate"),
        ({"statistics": "gradients", "first_token": "drop"}, "Set calibration.first_token=keep"),
    ],
)
def test_a_choice_that_is_none_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        nullspace.calibrate(GEMMA3, {}, [], **options)

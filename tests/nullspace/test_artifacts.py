"""Calibration, projectors on disk and the certificate, against float64 references."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from nspo_jax import models, nullspace, sharding
from nspo_jax.nullspace import projection

CONFIG = models.ModelConfig(
    vocab_size=29, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=32,
)  # fmt: skip


def batches(seed, count=3, rows=8, length=10):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tokens = rng.integers(0, 29, (rows, length)).astype(np.int32)
        mask = np.arange(length) >= rng.integers(0, 5, (rows, 1))  # left padding
        answer = np.broadcast_to(np.arange(length) > length // 2, mask.shape)
        yield {"tokens": tokens, "mask": mask, "answer_mask": answer}


@pytest.fixture(scope="module")
def params():
    return models.init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def projectors(params):
    return nullspace.calibrate(CONFIG, params, batches(0), rank_rule="energy(0.05)", data="toy")


def site_inputs(params, batch):
    """Inputs of every site at real tokens, [*stack, tokens, in] float64."""
    observed = models.forward(
        CONFIG, params, batch["tokens"], batch["mask"], observe=lambda site, x: x
    ).observations
    keep = batch["mask"].reshape(-1)
    inputs = {site: np.asarray(x, np.float64)[..., keep, :] for site, x in observed.items()}
    return inputs | {"embed/tokens": np.eye(CONFIG.vocab_size)[batch["tokens"][batch["mask"]]]}


def test_moments_are_masked_means_of_outer_products(params):
    moments = nullspace.second_moments(CONFIG, params, batches(0))
    parts = [site_inputs(params, batch) for batch in batches(0)]
    assert set(moments) == set(models.input_sites(CONFIG))
    for site, moment in moments.items():
        x = np.concatenate([part[site] for part in parts], axis=-2)
        expected = np.swapaxes(x, -1, -2) @ x / x.shape[-2]
        np.testing.assert_allclose(moment, expected, atol=1e-6 * np.abs(expected).max())


def test_the_basis_is_orthonormal_and_the_rule_holds(params, projectors):
    moments = nullspace.second_moments(CONFIG, params, batches(0))
    for name, moment in moments.items():
        site = projectors.sites[name]
        null, ranks = np.asarray(site.null_basis(), np.float64), site.protected_ranks
        for layer in np.ndindex(ranks.shape):
            free = site.size - ranks[layer]
            basis = null[layer][:, :free]
            np.testing.assert_allclose(basis.T @ basis, np.eye(free), atol=1e-6)
            left = np.trace(basis.T @ moment[layer] @ basis) / np.trace(moment[layer])
            assert left <= 0.05 * (1 + 1e-4)


def test_saved_projectors_come_back_equal_and_are_read_without_jax(projectors, tmp_path):
    projectors.save(tmp_path / "p")
    projectors.save(tmp_path / "p")  # again over itself
    loaded = nullspace.load_projectors(tmp_path / "p")
    assert loaded.provenance == projectors.provenance
    assert loaded.provenance["rule"] == "energy(0.05)" and loaded.provenance["data"] == "toy"
    for name, site in projectors.sites.items():
        other = loaded.sites[name]
        assert (other.kernels, other.side) == (site.kernels, site.side)
        np.testing.assert_array_equal(other.basis, site.basis)
        np.testing.assert_array_equal(other.ranks, site.ranks)
        for field in ("values", "trace", "first", "size"):
            np.testing.assert_array_equal(
                getattr(loaded.spectra[name], field), getattr(projectors.spectra[name], field)
            )
    arrays = safetensors.numpy.load_file(tmp_path / "p" / "projectors.safetensors")
    assert arrays["layers/mlp/in.basis"].dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["p"]  # nothing temporary is left


def test_projectors_are_not_saved_over_a_model(projectors, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"is no directory of projectors \(config.json\)"):
        projectors.save(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_damaged_or_foreign_projectors_are_refused(params, projectors, tmp_path):
    with pytest.raises(FileNotFoundError, match="scripts.calibrate"):
        nullspace.load_projectors(tmp_path / "nowhere")
    projectors.save(tmp_path / "p")
    with pytest.raises(ValueError, match="calibrated on the model .* but the base model is abc"):
        projectors.check_model(CONFIG, "abc")
    blob = (tmp_path / "p" / "projectors.safetensors").read_bytes()
    (tmp_path / "p" / "projectors.safetensors").write_bytes(blob[: len(blob) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        nullspace.load_projectors(tmp_path / "p")
    (tmp_path / "p" / "projectors.safetensors").write_bytes(blob)
    document = json.loads((tmp_path / "p" / "projectors.json").read_text())
    document["format"] = 99
    (tmp_path / "p" / "projectors.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="format is 99"):
        nullspace.load_projectors(tmp_path / "p")


def test_projectors_of_another_layout_are_refused_by_name(projectors):
    """The same shapes with another number of heads: kernels of other columns."""
    other = dataclasses.replace(CONFIG, num_heads=2, num_kv_heads=1, head_dim=8)
    with pytest.raises(ValueError, match="num_heads 4 there and 2 here; num_kv_heads 2 .*head_dim"):
        projectors.check_model(other, projectors.provenance["model"])
    projectors.check_model(CONFIG, projectors.provenance["model"])
    recorded = projectors.provenance
    assert recorded["layout"]["hidden_size"] == 16 and recorded["versions"]["jax"]
    assert recorded["dtypes"]["products"] == "float32" and recorded["statistics"] == "inputs"


def test_bases_are_loaded_into_a_sharding(projectors, tmp_path):
    projectors.save(tmp_path / "p")
    shardings = functools.partial(sharding.shardings, sharding.make_mesh())
    loaded = nullspace.load_projectors(tmp_path / "p", shardings)
    placed = nullspace.load_projectors(tmp_path / "p").place(shardings)
    for name, site in projectors.sites.items():
        for found in (loaded.sites[name].basis, placed.sites[name].basis):
            assert isinstance(found.sharding, jax.sharding.NamedSharding)
            np.testing.assert_array_equal(found, site.basis)
    chosen = "attention+mlp+head"  # all of the embedding's tokens are seen: no gap
    assert loaded.select(chosen).summary() == projectors.select(chosen).summary()


def test_targets_and_the_random_control(projectors):
    chosen = projectors.select("mlp+head")
    assert set(chosen.sites) == {"layers/mlp/in", "layers/mlp/out", "head/in"}
    with pytest.raises(ValueError, match="expected one or more of attention, mlp, head, embed"):
        projectors.select("mlp,head")
    with pytest.raises(ValueError, match="no projector for head"):
        projectors.select("mlp").select("head")
    drawn = chosen.randomized(0)
    for name, site in chosen.sites.items():
        np.testing.assert_array_equal(drawn.sites[name].ranks, site.ranks)
        overlap = np.linalg.norm(np.swapaxes(drawn.sites[name].basis, -1, -2) @ site.basis)
        assert overlap < 0.99 * np.linalg.norm(site.basis)


def test_an_empty_null_space_is_an_error_at_use(params):
    full = nullspace.calibrate(CONFIG, params, batches(0), rank_rule="fixed(999)")
    with pytest.raises(ValueError, match="is empty: every direction is protected"):
        nullspace.null_space_projection(full)


def move(params, projectors, seed=0, leak=0.0):
    """A policy: every projected kernel moved by a random update inside the null space."""
    rng = np.random.default_rng(seed)
    moved = {
        path: projection.project(
            np.float32(0.1 * rng.standard_normal(projection.leaves_by_path(params)[path].shape)),
            *side,
        )
        + leak * rng.standard_normal(projection.leaves_by_path(params)[path].shape)
        for site in projectors.sites.values()
        for side in [(site.basis, site.side)]
        for path in site.kernels
    }
    return jax.tree.map_with_path(
        lambda path, leaf: leaf + moved.get(projection.path_string(path), 0.0), params
    )


def test_the_certificate_measures_what_it_says(params, projectors):
    policy = move(params, projectors, leak=1e-3)
    report = nullspace.certify(CONFIG, params, policy, projectors, batches(0), list(batches(1)))
    json.dumps(report)
    text = nullspace.format_certificate(report)
    before, after = (projection.leaves_by_path(tree) for tree in (params, policy))
    inputs = [site_inputs(params, batch) for batch in batches(0)]
    for row in report["sites"]:
        layer = row["layer"] if row["layer"] is not None else Ellipsis
        weight = np.asarray(before[row["kernel"]], np.float64)[layer]
        change = np.asarray(after[row["kernel"]], np.float64)[layer] - weight
        x = np.concatenate([part[row["site"]][layer] for part in inputs])
        if row["site"] == "embed/tokens":
            seen = np.unique(np.concatenate([b["tokens"][b["mask"]] for b in batches(0)]))
            basis = np.eye(CONFIG.vocab_size)[:, seen]
        else:
            basis = np.asarray(projectors.sites[row["site"]].protected_basis(), np.float64)[layer]
        expected = np.linalg.norm(basis.T @ change) / np.linalg.norm(change)
        np.testing.assert_allclose(row["protected_share"], expected, rtol=1e-3)
        expected = np.linalg.norm(x @ change) / np.linalg.norm(x @ weight)
        np.testing.assert_allclose(row["output_change"], expected, rtol=1e-3)
        assert row["kernel"] in text
    assert 1e-4 < report["protected_share"] < 1e-1
    assert report["unprotected"] == {}


def test_an_untouched_policy_has_no_drift_and_a_foreign_one_is_refused(params, projectors):
    report = nullspace.certify(CONFIG, params, params, projectors, batches(0), batches(1))
    assert report["protected_share"] == report["output_change"] == 0
    drift = report["held_out"]
    assert drift["kl"] == drift["max_logit_change"] == 0 and drift["top1_agreement"] == 1
    assert abs(drift["loss"] - np.log(29)) < 0.5  # random weights: near uniform over the vocabulary
    other = models.init_params(CONFIG, jax.random.key(9))
    with pytest.raises(ValueError, match="calibrated on the model"):
        nullspace.certify(CONFIG, other, other, projectors, batches(0), batches(1))
    loose = {**params, "norm": {"scale": params["norm"]["scale"] * 1.5}}
    report = nullspace.certify(CONFIG, params, loose, projectors, batches(0), batches(1))
    np.testing.assert_allclose(report["unprotected"]["norm/scale"], 0.5, rtol=1e-5)
    assert report["held_out"]["kl"] > 0


def test_exact_mode_preserves_the_network_by_induction(params):
    """Every kernel moves in a true null space (10 tokens, 10 directions): no logit moves."""
    few = list(batches(3, count=1, rows=2, length=5))
    exact = nullspace.calibrate(CONFIG, params, few, rank_rule="fixed(10)")
    assert all((site.protected_ranks < site.size).all() for site in exact.sites.values())
    policy = move(params, exact)
    report = nullspace.certify(CONFIG, params, policy, exact, few, list(batches(4)))
    assert report["calibration"]["max_logit_change"] < 1e-4
    assert report["held_out"]["max_logit_change"] > 0.1

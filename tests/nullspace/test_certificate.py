"""The certificate's bound, its limits, and what storing a policy in bfloat16 does to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models, nullspace
from nspo_jax.nullspace import eigen, limits, projection
from tests.nullspace import test_artifacts as artifacts

CONFIG, batches = artifacts.CONFIG, artifacts.batches


@pytest.fixture(scope="module")
def params():
    return models.init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def projectors(params):
    return nullspace.calibrate(CONFIG, params, batches(0), rank_rule="energy(0.05)")


def certify(params, policy, projectors, text=0):
    return nullspace.certify(CONFIG, params, policy, projectors, batches(text), batches(1))


def with_change(params, path, change):
    return jax.tree.map_with_path(
        lambda p, leaf: leaf + change if projection.path_string(p) == path else leaf, params
    )


@pytest.mark.parametrize("rule", ["energy(0.05)", "fixed(3)", "fixed(12)", "fixed(999)"])
@pytest.mark.parametrize("leak", [0.0, 1e-3, 0.1])
def test_no_site_moves_by_more_than_the_spectrum_allows(params, rule, leak):
    projectors = nullspace.calibrate(CONFIG, params, batches(0), rank_rule=rule)
    policy = artifacts.move(params, projectors, leak=leak)
    report = certify(params, policy, projectors)
    for row in report["sites"]:
        assert row["output_change"] <= row["output_bound"] * (1 + 1e-5), row
    assert report["output_bound"] == max(row["output_bound"] for row in report["sites"])
    assert f"{report['sites'][0]['output_bound']:.1e}" in nullspace.format_certificate(report)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["layers/mlp/in", "head/in"])
def test_the_bound_is_reached_by_the_worst_change(params, projectors, name, inside):
    moment = nullspace.second_moments(CONFIG, params, batches(0))[name]
    site = projectors.sites[name]
    vectors = np.linalg.eigh(moment)[1][..., ::-1]  # columns from the largest eigenvalue down
    path, column = site.kernels[0], 0 if inside else int(np.asarray(site.protected_ranks).flat[0])
    layer = (0,) if moment.ndim > 2 else ()
    shape = projection.leaves_by_path(params)[path].shape
    change = np.zeros(shape, np.float32)
    change[layer] = np.outer(vectors[(*layer, slice(None), column)], np.ones(shape[-1]))
    report = certify(params, with_change(params, path, change), projectors)
    row = next(row for row in report["sites"] if row["kernel"] == path)
    assert row["output_change"] > 0.01
    np.testing.assert_allclose(row["output_change"], row["output_bound"], rtol=1e-3)


@pytest.mark.parametrize("first_token", ["keep", "separate"])
@pytest.mark.parametrize("leak", [0.0, 1e-3, 0.1])
def test_the_bound_holds_for_spectra_that_are_known_in_part(monkeypatch, first_token, leak):
    monkeypatch.setattr(eigen, "FULL_SIZE", 48)
    config = dataclasses.replace(CONFIG, hidden_size=96, intermediate_size=64, head_dim=24)
    params = models.init_params(config, jax.random.key(0))
    text = [{**b, "tokens": np.where(b["tokens"] > 3, b["tokens"], 3)} for b in batches(0)]
    projectors = nullspace.calibrate(
        config, params, text, rank_rule="fixed(2)", first_token=first_token
    )
    known = {name: s.values.shape[-1] for name, s in projectors.spectra.items()}
    assert known["layers/mlp/in"] == 3 if first_token == "keep" else known["layers/mlp/in"] < 96
    policy = artifacts.move(params, projectors, leak=leak)
    report = nullspace.certify(config, params, policy, projectors, text, batches(1))
    for row in report["sites"]:
        assert row["output_change"] <= row["output_bound"] * (1 + 1e-5), row


@pytest.mark.parametrize(
    ("rule", "rows", "kind"),
    [
        ("fixed(2)", 8, "factorization"),
        ("fixed(12)", 8, "factorization"),
        ("fixed(9)", 1, "factorization"),
    ],
)
def test_a_spectrum_that_is_known_in_part_bounds_the_worst_change(monkeypatch, rule, rows, kind):
    """Nearly reached by it; of fewer tokens than directions too, where nothing is left to move."""
    monkeypatch.setattr(eigen, "FULL_SIZE", 48)
    config = dataclasses.replace(CONFIG, hidden_size=96, intermediate_size=64, head_dim=24)
    params = models.init_params(config, jax.random.key(0))
    text = list(batches(0, count=1, rows=rows))
    projectors = nullspace.calibrate(config, params, text, rank_rule=rule)
    site, spectrum = projectors.sites["layers/mlp/in"], projectors.spectra["layers/mlp/in"]
    moment = nullspace.second_moments(config, params, text)["layers/mlp/in"][1]
    assert spectrum.values.shape[-1] < 96
    inside = np.linalg.qr(np.float64(site.protected_basis()[1]))[0]
    free = np.eye(96) - inside @ inside.T
    values, vectors = np.linalg.eigh(free @ moment @ free)
    change = np.zeros((2, 96, 64), np.float32)
    change[1] = np.outer(vectors[:, -1], np.ones(64))
    policy = with_change(params, site.kernels[0], change)
    report = nullspace.certify(config, params, policy, projectors, text, batches(1))
    (row,) = (r for r in report["sites"] if r["kernel"] == site.kernels[0] and r["layer"] == 1)
    assert row["bound_kind"] == kind
    assert row["output_change"] <= row["output_bound"]
    kernel = np.float64(projection.leaves_by_path(params)[site.kernels[0]][1])
    outputs = np.sum(kernel * (moment @ kernel))  # |x W|^2 a token
    free = row["output_bound"] ** 2 * outputs / np.sum(np.square(change))
    assert free <= 1.03 * values[-1] + 3e-6 * spectrum.values[1, 0]
    assert f"or {kind}" in nullspace.format_certificate(report)


def test_projectors_of_an_earlier_version_are_bounded_by_the_trace(params, tmp_path):
    projectors = nullspace.calibrate(CONFIG, params, batches(0), rank_rule="fixed(4)")
    cut = {  # the rank and one more
        name: dataclasses.replace(s, values=s.values[..., :5], bound=None)
        for name, s in projectors.spectra.items()
    }
    old = dataclasses.replace(projectors, spectra=cut).select("attention+mlp")
    old.save(tmp_path / "old")
    loaded = nullspace.load_projectors(tmp_path / "old")
    assert loaded.spectra["layers/mlp/in"].bound is None
    spectrum, rank = cut["layers/mlp/in"].layers()[0], 4
    left = spectrum.trace - spectrum.values[:rank].sum()
    bound, kind = spectrum.largest_free(rank)
    assert kind == "trace" and bound == pytest.approx(left, rel=1e-5)
    report = certify(params, artifacts.move(params, loaded), loaded)
    assert report["bound_kind"] == "trace" and report["output_bound"] >= report["output_change"]


def test_a_spectrum_without_first_tokens_bounds_nothing_on_text_that_has_them(params):
    projectors = nullspace.calibrate(
        CONFIG, params, batches(0), rank_rule="fixed(3)", first_token="drop"
    )
    report = certify(params, artifacts.move(params, projectors), projectors)
    assert report["output_bound"] is None and report["provenance"]["first_token"] == "drop"


def test_no_bound_is_stated_for_other_text(params, projectors):
    policy = artifacts.move(params, projectors)
    report = certify(params, policy, projectors, text=5)
    assert report["output_bound"] is None
    assert all(row["output_bound"] is None for row in report["sites"])
    assert "no bound: the spectra are of other inputs" in nullspace.format_certificate(report)
    with pytest.raises(ValueError, match="no output_bound to compare with its limit"):
        limits.exceeded(report, {"output_bound": 1.0})


def test_limits_are_read_and_held(params, projectors):
    wanted = limits.parse_limits("protected_share=1e-5+held_out.kl=1e+3+unprotected=0")
    assert wanted == {"protected_share": 1e-5, "held_out.kl": 1e3, "unprotected": 0.0}
    assert limits.parse_limits("") == {}
    report = certify(params, artifacts.move(params, projectors), projectors)
    assert limits.exceeded(report, wanted) == []
    every = {name: limits.quantity(report, name) for name in limits.QUANTITIES}
    assert limits.exceeded(report, every) == []  # at its limit is not above it
    assert every["held_out.top1_disagreement"] == 1 - report["held_out"]["top1_agreement"] > 0
    lower = {name: value * 0.999 for name, value in every.items() if value}
    words = limits.exceeded(report, lower)
    assert len(words) == len(lower) >= 7 and words[0].startswith("protected_share is ")
    broken = {**report, "protected_share": float("nan")}
    assert len(limits.exceeded(broken, {"protected_share": 1.0})) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kl=1", "'kl' is no quantity .* protected_share, output_change, .*held_out.kl"),
        ("output_change=1+output_change=2", "output_change is there twice"),
        ("output_change", "output_change has the limit ''"),
        ("output_change=-1", "has the limit '-1'"),
        ("output_change=nan", "has the limit 'nan'"),
        ("output_change=1,held_out.kl=2", "has the limit '1,held_out.kl=2'"),
    ],
)
def test_a_wrong_limit_is_explained(text, words):
    with pytest.raises(ValueError, match=words):
        limits.parse_limits(text)


def test_the_certificate_says_which_policy_and_sees_bfloat16(params, projectors, tmp_path):
    policy = artifacts.move(params, projectors)
    models.save_model(tmp_path / "float32", CONFIG, policy)
    models.export_model(tmp_path / "float32", tmp_path / "half", dtype="bfloat16")
    reports = {
        name: certify(params, models.load_model(tmp_path / name)[1], projectors)
        for name in ("float32", "half")
    }
    assert reports["float32"]["provenance"]["policy"] == models.fingerprint(policy)
    assert reports["half"]["provenance"]["policy"] != models.fingerprint(policy)
    assert reports["float32"]["protected_share"] < 1e-5
    assert reports["half"]["protected_share"] > 100 * reports["float32"]["protected_share"]
    # as the file has it: exactly the rounded weights, not what they were rounded from
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), policy)
    assert reports["half"]["provenance"]["policy"] == models.fingerprint(rounded)
    assert models.stored_as(tmp_path / "half") == "BF16"
    assert models.stored_as(tmp_path / "float32") == "F32"
    models.save_model(tmp_path / "base", CONFIG, params)
    models.export_delta(tmp_path / "float32", tmp_path / "base", tmp_path / "delta")
    assert models.stored_as(tmp_path / "delta") == "F32 + F32 delta"

"""The command that certifies a directory: a micro policy, float32 and as bfloat16."""

import json

import numpy as np
import pytest

from configs import tiny
from nspo_jax import base_model, models, nullspace, sharding
from tests import command_lines, runs
from tests.nullspace import test_artifacts as artifacts

MICRO = {
    "model.hidden_size": 16, "model.intermediate_size": 24, "model.num_layers": 2,
    "model.num_heads": 2, "model.num_kv_heads": 2, "pretraining.steps": 2,
    "calibration.rows": 20, "calibration.batch_size": 10, "calibration.rank_rule": "fixed(8)",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with a base (bfloat16, as most are) and a policy, and the config of both."""
    directory = tmp_path_factory.mktemp("certify")
    config = runs.made(tiny.get_config("nspo"), {**MICRO, "workspace": str(directory)})
    base_model.open_base(config, sharding.make_mesh())
    models.export_model(directory / "seed_0/base", directory / "base", dtype="bfloat16")
    changes = {
        name: value
        for name, value in MICRO.items()
        if not name.startswith(("model.", "pretraining."))  # which a path has, and is
    } | {"workspace": str(directory), "model.path": str(directory / "base")}
    config = runs.made(tiny.get_config("nspo"), changes)
    base = base_model.open_base(config, sharding.make_mesh())
    policy = artifacts.move(base.params, base_model.open_projectors(config, base))
    models.save_model(directory / "policy", base.model_config, policy, like=base.path)
    return directory, base, [f"--config.{name}={value}" for name, value in changes.items()]


def test_completions_are_the_base_s_own_by_seed(made):
    directory, base, _ = made

    def opened(**changes):
        config = runs.made(tiny.get_config("nspo"), {
            **MICRO, "workspace": str(directory), "model.path": str(directory / "base"),
            "calibration.completions": "generated", "calibration.batch_size": 8,
            **{f"calibration.{name}": value for name, value in changes.items()},
        })  # fmt: skip
        return config, base_model.open_base(config, sharding.make_mesh())

    config, drawn = opened()
    prompt = config.data.prompt_length
    np.testing.assert_array_equal(
        drawn.calibration["tokens"][:, :prompt], base.calibration["tokens"][:, :prompt]
    )
    mask, answers = drawn.calibration["mask"], drawn.calibration["answer_mask"]
    assert answers.shape == (20, prompt + config.data.completion_length)
    assert answers[:, prompt].all() and not answers[:, :prompt].any()
    np.testing.assert_array_equal(mask[:, prompt:], answers[:, prompt:])
    again, other = opened()[1], opened(seed=1)[1]
    np.testing.assert_array_equal(again.calibration["tokens"], drawn.calibration["tokens"])
    assert np.any(other.calibration["tokens"] != drawn.calibration["tokens"])
    # greedy: each token is the base's most likely one
    greedy = opened(temperature=0.0)[1].calibration
    hidden = models.forward(
        drawn.model_config, drawn.params, greedy["tokens"], greedy["mask"]
    ).hidden
    likely = np.argmax(models.logits(drawn.model_config, drawn.params, hidden), axis=-1)
    scored = greedy["answer_mask"][:, 1:]
    np.testing.assert_array_equal(likely[:, :-1][scored], greedy["tokens"][:, 1:][scored])
    places = {base_model.projectors_directory(opened(**c)[0]) for c in (
        {}, {"completions": "given"}, {"first_token": "drop"}, {"statistics": "gradients"}
    )}  # fmt: skip
    assert len(places) == 4


def run(flags, policy, *more):
    return command_lines.run(
        "certify", "--config=configs/tiny.py:nspo", *flags, f"--policy={policy}", *more
    )


def test_a_policy_gets_its_certificate(made):
    directory, base, flags = made
    (projectors,) = (directory / "seed_0/projectors").iterdir()
    done = run(
        flags, directory / "policy", f"--output={directory / 'out.json'}",
        f"--projectors={projectors}", "--fail_above=protected_share=1e-4+unprotected=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((directory / "out.json").read_text())
    assert found["provenance"]["stored"] == "F32"
    policy = base_model.load_policy(base, directory / "policy")
    assert found["provenance"]["policy"] == models.fingerprint(policy)
    assert found["provenance"]["policy"] in done.stdout
    for row in found["sites"]:
        moved = row["site"] != "embed/tokens"  # which is no target
        assert (row["output_change"] > 0) == moved
        assert row["output_change"] <= row["output_bound"] * (1 + 1e-5)
    assert 0 < found["held_out"]["kl"] and found["protected_share"] < 1e-5


def test_a_bfloat16_export_leaks_and_fails(made):
    directory, _, flags = made
    models.export_model(directory / "policy", directory / "half", dtype="bfloat16")
    done = run(
        flags, directory / "half", f"--output={directory / 'half.json'}",
        "--fail_above=protected_share=1e-4+held_out.kl=1e3",
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "half changes more of the base model than --fail_above allows: protected_share is" in (
        done.stderr
    )
    assert "held_out.kl" not in done.stderr and "layers/mlp/down/kernel" in done.stdout
    found = json.loads((directory / "half.json").read_text())
    assert found["provenance"]["stored"] == "BF16" and found["protected_share"] > 1e-4


def test_a_wrong_limit_costs_nothing(tmp_path):
    done = run([f"--config.workspace={tmp_path}"], tmp_path, "--fail_above=quality=1")
    assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
    assert "'quality' is no quantity" in done.stderr and "held_out.kl" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_policy_is_of_its_base_s_architecture(made, tmp_path):
    directory, base, _ = made
    policy = base_model.load_policy(base, directory / "policy")
    models.export_delta(directory / "policy", directory / "base", tmp_path / "delta")
    restored = base_model.load_policy(base, tmp_path / "delta")
    np.testing.assert_allclose(restored["head"]["kernel"], policy["head"]["kernel"], atol=1e-7)
    # the same shapes, another model: its positions turn at another rate
    fields = json.loads((directory / "policy/config.json").read_text())
    models.export_model(directory / "policy", tmp_path / "other")
    (tmp_path / "other/config.json").write_text(json.dumps(fields | {"rope_theta": 5e5}))
    with pytest.raises(ValueError, match="not of the base model's arch.*rope_theta 500000.0 again"):
        base_model.load_policy(base, tmp_path / "other")


def test_an_export_with_feedback_is_asked_for_in_full(made):
    directory, base, _ = made
    command = ["export_hf", "--rounding=feedback"]
    command += ["--dtype=bfloat16", f"--policy={directory / 'policy'}"]
    command += [f"--output={directory / 'out'}"]
    done = command_lines.run(*command)
    assert done.returncode == 1 and "needs --projectors and --base" in done.stderr
    (projectors,) = (directory / "seed_0/projectors").iterdir()
    command += [f"--projectors={projectors}", f"--base={directory / 'base'}"]
    done = command_lines.run(*command)
    assert done.returncode == 0 and "Most of that is in free directions" in done.stdout, done.stderr
    models.export_model(directory / "policy", directory / "plain", dtype="bfloat16")
    policy, plain, fed = (
        np.asarray(base_model.load_policy(base, directory / name)["layers"]["mlp"]["up"]["kernel"])
        for name in ("policy", "plain", "out")
    )
    basis = np.asarray(nullspace.load_projectors(projectors).sites["layers/mlp/in"].basis)
    inside = [
        np.linalg.norm(np.swapaxes(basis, -1, -2) @ (stored - policy)) for stored in (plain, fed)
    ]
    assert models.stored_as(directory / "out") == "BF16" and inside[1] < 0.8 * inside[0]

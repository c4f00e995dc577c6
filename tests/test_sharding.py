"""The mesh and its rules, and that eight devices compute what one does."""

import contextlib
import filecmp
import functools
import re
import tempfile

import jax
import numpy as np
import optax
import pytest

from nspo_jax import models, nullspace, sharding
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.models import hf
from nspo_jax.nullspace import moments, projection
from nspo_jax.rl import train_step
from nspo_jax.rl.algorithms import policy_gradient
from tests import compiling, forks

CONFIG = models.ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=32,
)  # fmt: skip
BATCH, PROMPT, COMPLETION = 16, 5, 4
MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}
# data x fsdp x tensor, on 2, 4 and 8 devices, beside those
SHAPES = ((2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 4, 1), (1, 2, 2), (4, 2, 1), (1, 4, 2))


def test_one_axis_takes_the_rest():
    assert dict(sharding.make_mesh().shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
    shape = sharding.make_mesh(data=1, fsdp=-1).shape
    assert shape["fsdp"] == jax.device_count()


@pytest.mark.parametrize(
    "sizes",
    [{"data": 3000}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": -2}, {"fsdp": 3000}],
)
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(sizes):
    with pytest.raises(ValueError, match=r"The mesh data=.* does not fit \d+ dev.*config.mesh"):
        sharding.make_mesh(**sizes)


def test_a_batch_that_does_not_divide_is_an_error():
    mesh = jax.sharding.AbstractMesh((2, 3, 4), sharding.AXES)
    sharding.check_batch(mesh, 12, "The batch")
    with pytest.raises(ValueError, match="The batch is 16 rows.*= 6 shards.*multiple of 6"):
        sharding.check_batch(mesh, 16, "The batch")


def test_every_parameter_has_a_rule():
    everything = {"qkv_bias": True, "qk_norm": True, "post_norms": True}
    for part in ({}, {"tie_embeddings": True}, {"head": "scalar"}, everything):
        config = models.ModelConfig(**{**vars(CONFIG), **part})
        sharding.check_rules(models.abstract_params(config))
    with pytest.raises(ValueError, match="No sharding rule covers layers/adapter/kernel: add one"):
        sharding.check_rules({"layers": {"adapter": {"kernel": np.zeros(2)}}})


def test_every_rule_has_a_parameter():
    configs = ({"qkv_bias": True}, {"head": "scalar"})
    trees = [models.abstract_params(models.ModelConfig(**{**vars(CONFIG), **c})) for c in configs]
    paths = {path for tree in trees for path in projection.leaves_by_path(tree)}
    for rule, _ in sharding.RULES:
        assert any(re.search(rule, path) for path in paths), rule


def test_moments_are_sharded_like_their_parameters_and_bases_like_their_inputs():
    mesh = jax.sharding.AbstractMesh((1, 4, 2), sharding.AXES)
    params = models.abstract_params(CONFIG)
    state = jax.eval_shape(optimizer(params).init, params)
    placed = projection.leaves_by_path(sharding.shardings(mesh, state))
    wanted = projection.leaves_by_path(sharding.shardings(mesh, params))
    moments = {path: s for path, s in placed.items() if "/mu/" in path or "/nu/" in path}
    assert len(moments) == 2 * len(wanted)
    for path, found in moments.items():
        assert found.spec == next(s for name, s in wanted.items() if path.endswith(name)).spec
    bases = {path: s for path, s in placed.items() if "bases" in path}
    assert len(bases) == 5
    for path, found in bases.items():  # the inputs of o and down are sharded, the others whole
        wanted_axes = [None, "tensor", None] if path.endswith("/out") else [None] * len(found.spec)
        assert list(found.spec) == wanted_axes, path
    assert tuple(wanted["layers/mlp/up/kernel"].spec) == (None, None, ("fsdp", "tensor"))


def random_sites(params):
    """All sites with random protected subspaces of rank 5."""
    rng, leaves, sites = np.random.default_rng(0), projection.leaves_by_path(params), {}
    for name, kernels in models.input_sites(CONFIG).items():
        *stack, size, _ = leaves[kernels[0]].shape
        basis = np.linalg.qr(rng.standard_normal((*stack, size, 5)))[0].astype(np.float32)
        sites[name] = nullspace.Site(tuple(kernels), basis, "protected", np.full(stack, 5))
    return sites


def optimizer(params):
    """AdamW and the projection of all sites."""
    projectors = nullspace.Projectors(random_sites(params), {}, {})
    return optimizer_lib.build_optimizer(1e-2, projectors, mode="update")


def rollouts(samples=1):
    """A batch in which so many neighbouring rows have one prompt."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, COMPLETION + 1, (BATCH, 1))
    prompts = rng.integers(0, CONFIG.vocab_size, (BATCH, PROMPT)).astype(np.int32)
    prompt_mask = np.arange(PROMPT) >= rng.integers(0, PROMPT - 1, (BATCH, 1))
    return train_step.RolloutBatch(
        prompts=np.repeat(prompts[::samples], samples, axis=0),
        prompt_mask=np.repeat(prompt_mask[::samples], samples, axis=0),
        completions=rng.integers(0, CONFIG.vocab_size, (BATCH, COMPLETION)).astype(np.int32),
        completion_mask=np.arange(COMPLETION) < lengths,
        old_logprobs=rng.normal(-3.5, 0.1, (BATCH, COMPLETION)).astype(np.float32),
        advantages=rng.standard_normal(BATCH).astype(np.float32),
    )


def trained(mesh, steps=3, samples=1):
    """Weights after a few steps, the number of shards of a kernel, the last update's norm."""
    params = models.init_params(CONFIG, jax.random.key(0))
    transform = optimizer(params)
    trainable, frozen = optimizer_lib.partition(params, "mlp+attention+head", "freeze")
    state = train_step.TrainState(jax.numpy.int32(0), trainable, transform.init(trainable))
    batch = rollouts(samples)
    shards = 1
    if mesh is not None:
        state = jax.device_put(state, sharding.shardings(mesh, state))
        frozen = jax.device_put(frozen, sharding.shardings(mesh, frozen))
        batch = sharding.shard_batch(mesh, batch)
        kernel = state.trainable["layers"]["mlp"]["up"]["kernel"]
        shards = kernel.size // kernel.addressable_shards[0].data.size
    step = policy_gradient.make_train_step(CONFIG, transform, samples=samples)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = step(state, frozen, None, batch)
    after = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert mesh is None or jax.tree.all(
        jax.tree.map(lambda a, b, x: a.is_equivalent_to(b, x.ndim), before, after, state)
    )
    norm = float(metrics["update_norm"])
    return jax.device_get(optimizer_lib.combine(state.trainable, frozen)), shards, norm


def compare():
    """Run on eight devices: returns the largest differences from one device."""
    single, _, norm = trained(None)
    report = {"devices": jax.device_count(), "norm": norm}
    for name, sizes in MESHES.items():
        weights, shards, _ = trained(sharding.make_mesh(**sizes))
        difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), weights, single)
        report[name] = [float(max(jax.tree.leaves(difference))), shards]
    report["shapes"] = {}
    for shape in SHAPES:
        devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
        weights, _, _ = trained(jax.sharding.Mesh(devices, sharding.AXES))
        difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), weights, single)
        report["shapes"]["x".join(map(str, shape))] = float(max(jax.tree.leaves(difference)))
    shared = [trained(mesh, samples=2)[0] for mesh in (None, sharding.make_mesh(**MESHES["all"]))]
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), *shared)
    report["shared_prompt"] = float(max(jax.tree.leaves(difference)))
    report["projection"] = {
        f"{name} {axis}": projected(make, data=1, **{axis: 8})
        for name, make in TRANSFORMS.items()
        for axis in ("fsdp", "tensor")
    }
    report["calibration"] = {name: calibrated(**sizes) for name, sizes in MESHES.items()}
    report["checkpoints"] = {name: reloaded(**sizes) for name, sizes in MESHES.items()}
    return report


TRANSFORMS = {
    "update": lambda sites: nullspace.null_space_projection(sites),
    "coordinates": lambda sites: nullspace.in_null_space(optax.adam(1e-2), sites),
}
COLLECTIVES = r"all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"


def projected(make, **sizes):
    """The projection alone, compiled under the rules: the difference from one device, and each
    collective of the program as [its name, shapes of its operands]."""
    mesh = sharding.make_mesh(**sizes)
    transform = make(random_sites(models.abstract_params(CONFIG)))
    updates, _ = optimizer_lib.partition(
        models.init_params(CONFIG, jax.random.key(0)), "mlp+attention+head", "freeze"
    )
    state = transform.init(updates)
    expected, _ = jax.jit(transform.update)(updates, state)
    places = sharding.shardings(mesh, (updates, state))
    step = jax.jit(transform.update, in_shardings=places, out_shardings=places)
    program = step.lower(updates, state).compile().as_text()
    found = [
        [match[2], re.findall(r"f32\[([\d,]*)\]", match[1])]
        for match in re.finditer(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", program)
    ]
    result, _ = step(*jax.device_put((updates, state), places))
    difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), result, expected)
    return max(jax.tree.leaves(difference)), found


def calibrated(**sizes):
    """How far moments gathered on a mesh, from sharded weights, are from one device's."""
    params = models.init_params(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(0)
    mask = np.arange(9) >= rng.integers(0, 4, (6, 1))  # six rows: no multiple of the shards
    batches = [{"tokens": rng.integers(0, 32, mask.shape), "mask": mask} for _ in range(2)]
    mesh = sharding.make_mesh(**sizes)
    placed = jax.device_put(params, sharding.shardings(mesh, params))
    sources = (models.ParamsSource(CONFIG, tree) for tree in (params, placed))
    runs = [
        moments.layer_moments(source, batches, first_token="separate", mesh=where)
        for source, where in zip(sources, (None, mesh), strict=True)
    ]
    worst = 0.0
    for single, spread in zip(*runs, strict=True):
        for site, moment in single.items():
            other, scale = spread[site], np.abs(moment.float64()).max()
            assert other.high.sharding.is_fully_replicated
            worst = max(worst, np.abs(moment.float64() - other.float64()).max() / scale)
            worst = max(worst, np.abs(moment.first - other.first).max() / moment.first.max())
    projectors = nullspace.calibrate(CONFIG, placed, batches, rank_rule="fixed(5)", mesh=mesh)
    assert all(np.all(site.protected_ranks >= 5) for site in projectors.sites.values())
    return float(worst)


def reloaded(**sizes):
    """Whether checkpoints are read into a mesh, whole stacks and layer by layer, and written from
    it, bit for bit and in the sharding that the rules say."""
    mesh = sharding.make_mesh(**sizes)
    config = models.ModelConfig(**{**vars(CONFIG), "family": "qwen2", "qkv_bias": True})
    params = models.init_params(config, jax.random.key(0))
    same = []
    with tempfile.TemporaryDirectory() as folder:
        models.save_model(f"{folder}/model", config, params)
        for size in (hf._STACK_BYTES, 0):
            hf._STACK_BYTES = size
            _, loaded = models.load_model(
                f"{folder}/model", shardings=functools.partial(sharding.shardings, mesh)
            )
            wanted = sharding.shardings(mesh, params)
            same += jax.tree.leaves(jax.tree.map(np.array_equal, loaded, params))
            same += jax.tree.leaves(jax.tree.map(lambda a, s: a.sharding == s, loaded, wanted))
            models.save_model(f"{folder}/again", config, loaded)
            files = [f"{folder}/{name}/model.safetensors" for name in ("model", "again")]
            same.append(filecmp.cmp(*files, shallow=False))
    return all(same) and len(same) > 50


@pytest.fixture(scope="module")
def eight_devices():
    """What `compare` reports."""
    return forks.call(compare, XLA_FLAGS=compiling.xla_flags(8))


def test_every_mesh_shape_trains_the_same_policy(eight_devices):
    assert len(eight_devices["shapes"]) == len(SHAPES)
    for shape, difference in eight_devices["shapes"].items():
        assert difference < 1e-5, shape  # float32 rounding, through Adam's division


def test_checkpoints_go_into_a_mesh_and_out_of_it(eight_devices):
    assert eight_devices["checkpoints"] == dict.fromkeys(MESHES, True)


def test_the_update_on_eight_devices_is_the_update_on_one(eight_devices):
    report = eight_devices
    assert report["devices"] == 8 and report["norm"] > 1e-2
    assert [report[name][1] for name in MESHES] == [1, 8, 4]
    for name in MESHES:
        assert report[name][0] < 1e-5, name  # float32 rounding, through Adam's division
    assert report["shared_prompt"] < 1e-5


def test_calibration_on_a_mesh_finds_the_same_moments(eight_devices):
    for name, difference in eight_devices["calibration"].items():
        assert 0 < difference < 3e-6, name  # float32 rounding, through the layers


@pytest.mark.parametrize(
    ("transform", "columns"),
    [("update", {"o": 5, "down": 5}), ("coordinates", {"o": 16 - 5, "down": 32 - 5})],
)
def test_the_projection_communicates_for_input_shards_alone(eight_devices, transform, columns):
    """fsdp shards every kernel's output axis; tensor the input axis of `o` and `down`."""
    difference, collectives = eight_devices["projection"][f"{transform} fsdp"]
    assert collectives == [] and difference < 5e-8
    difference, collectives = eight_devices["projection"][f"{transform} tensor"]
    assert {name for name, _ in collectives} == {"all-reduce"} and difference < 5e-8
    reduced = [shape for _, shapes in collectives for shape in shapes]  # XLA may join them
    layers, out = CONFIG.num_layers, CONFIG.hidden_size
    assert sorted(reduced) == sorted(f"{layers},{k},{out}" for k in columns.values())

"""The run's memory plan, made from shapes before anything is loaded.

Rollout, update and calibration are compiled for abstract arrays on a mesh of any devices, virtual
ones included, for every algorithm, and XLA reports the memory of each beside its arguments. With
the CPU's compiler that is an upper bound: it computes bfloat16 products in float32, writes
attention scores out, and has no reduce-scatter (an all-reduce replaces it).
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import chips, models, settings, sharding, trees
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.dry_run import hlo
from nspo_jax.models import generation
from nspo_jax.nullspace import activations, moments, projection, rank_rules
from nspo_jax.nullspace import projectors as projectors_lib
from nspo_jax.rl import algorithms, checks, terms, train_step

GIB = 2**30
# The share of a chip's memory that the runtime, its libraries and fragmentation leave for arrays.
USABLE = 0.92
SUITES = 10  # the chat world's number of sets of evaluation prompts; other tasks have fewer


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's needs; bytes are those of one device.

    Attributes:
      resident: kind -> bytes held all the time: weights, moments, bases.
      phases: phase -> bytes that it adds to them at its peak: rollout, update, evaluation.
      calibration: bytes of calibration's layer step, which runs before the rest is loaded.
      cache: the rollout's bytes of keys and values.
      flops: phase -> floating-point operations a step, on all devices, by formula.
      collectives: phase -> kind -> bytes a step that a device receives, from the compiled program.
      tokens: tokens of a step's prompts and completions.
      parameters: the model's number of parameters.
      trained: the number of trained ones among them.
      devices: the mesh's number of devices.
      assumptions: the values that had to be assumed, in words.
    """

    resident: Mapping[str, int]
    phases: Mapping[str, int]
    calibration: int
    cache: int
    flops: Mapping[str, float]
    collectives: Mapping[str, Mapping[str, int]]
    tokens: int
    parameters: int
    trained: int
    devices: int
    assumptions: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Bytes of a device at the worst moment."""
        return max(sum(self.resident.values()) + max(self.phases.values()), self.calibration)

    def fits(self, chip: chips.Chip) -> bool:
        """Tells whether the peak leaves the runtime its share of a chip's memory."""
        return self.peak <= USABLE * chip.memory * GIB


def make_plan(
    run: settings.Run,
    model_config: models.ModelConfig,
    mesh: jax.sharding.Mesh,
    *,
    rank_share: float = 1 / 8,
) -> Plan:
    """Compiles a run's programs for a mesh without weights.

    Args:
      run: the run's settings.
      model_config: the base model's configuration.
      mesh: a mesh of any devices; nothing runs on them.
      rank_share: protected share of a site's directions, unless the rank rule is `fixed`.

    Raises:
      ValueError: for a config or a mesh that cannot work, before anything is compiled.
    """
    checks.check_config(run, has_weights=False)
    checks.check_mesh(run, mesh)
    algorithm = algorithms.of(run)
    model_config = dataclasses.replace(
        model_config, compute_dtype=run.model.compute_dtype, remat=run.model.remat
    )
    params = models.abstract_params(model_config)
    sharding.check_rules(params)
    trainable, frozen = jax.eval_shape(
        lambda base: optimizer_lib.open_master(
            base,
            run.projection.targets,
            run.projection.untargeted,
            run.optimizer.master,
        ),
        params,
    )
    sites, assumptions = _sites(run, model_config, rank_share)
    bases = {name: site.basis for name, site in sites.items()}

    def init(trainable, bases):
        placed = {n: dataclasses.replace(s, basis=bases[n]) for n, s in sites.items()}
        return optimizer_lib.from_settings(run, placed).init(trainable)

    optimizer = optimizer_lib.from_settings(run, sites)
    critics, assumed = algorithm.abstract_extra(model_config)
    assumptions += assumed
    state = train_step.TrainState(
        jax.eval_shape(lambda: jnp.int32(0)),
        trainable,
        jax.eval_shape(init, trainable, bases),
        critics,
    )
    frozen = optimizer_lib.freeze(frozen, run.model.frozen_dtype)
    state, frozen, whole = (_placed(mesh, tree) for tree in (state, frozen, params))
    reference = whole if algorithm.needs_reference else None
    changes = run.optimizer.master == "change"
    resident = {
        "trained weights": _bytes(state.trainable),  # these may be the change of the weights
        "frozen weights": _bytes(frozen),  # these are the whole base where a change is trained
        "optimizer moments": _bytes(state.opt_state, lambda path: "bases" not in path),
        "projector bases": _bytes(state.opt_state, lambda path: "bases" in path),
    }
    if state.critics is not None:
        resident["critics, their moments"] = _bytes(state.critics)
    head = whole[model_config.head_part]
    width = jnp.dtype(model_config.compute_dtype).itemsize
    resident["base's head, to compare with"] = _bytes(head) * width // 4
    if reference is not None and changes:
        reference = frozen  # this is the base itself
    elif reference is not None:
        resident["reference weights"] = _bytes(reference)
    judging, assumed = terms.abstract_models(run, model_config) if algorithm.generates else ({}, ())
    resident |= {f"{name} weights": _bytes(_placed(mesh, tree)) for name, tree in judging.items()}
    policy = _placed(mesh, jax.eval_shape(optimizer_lib.combine, state.trainable, frozen))
    formed = _bytes(policy) if changes else 0  # sampling forms the sum of change and base
    at_once = run.batch_prompts // run.rl.rollout_batches  # prompts that are answered at once
    with jax.set_mesh(mesh):
        compiled = {
            "evaluation": _rollout(run, model_config, mesh, policy, _evaluated(run, mesh), 1),
            "update": _update(algorithm, model_config, mesh, optimizer, state, frozen, reference),
        }
        if algorithm.generates:
            compiled["rollout"] = _rollout(run, model_config, mesh, policy, at_once, run.rl.samples)
        layer = _calibration(run, model_config, mesh, whole)
    rows = run.batch_prompts * run.rl.samples
    cached = at_once * run.rl.samples if algorithm.generates else 0
    times = {"rollout": run.rl.rollout_batches, "update": run.rl.minibatches}
    times = {name: count for name, count in times.items() if name in compiled}
    collectives = {}
    for name, count in times.items():
        text = compiled[name].as_text()
        found = hlo.collective_bytes(text, run.data.completion_length)
        collectives[name] = {kind: count * size for kind, size in found.items()}
    return Plan(
        resident=resident,
        phases={
            name: _beside_arguments(program) + (formed if name != "update" else 0)
            for name, program in compiled.items()
        },
        calibration=_calibration_bytes(run, model_config, mesh, whole, layer),
        cache=_cache_bytes(model_config, mesh, cached, _length(run)),
        flops=step_flops(model_config, run),
        collectives=collectives,
        tokens=rows * _length(run),
        parameters=_count(params),
        trained=_count(trainable),
        devices=mesh.size,
        assumptions=tuple(dict.fromkeys(assumptions + assumed)),
    )


def step_flops(model_config: models.ModelConfig, run: settings.Run) -> dict[str, float]:
    """Counts a step's floating-point operations by formula: 2 a weight and token, and attention's.

    A gradient costs two forward passes more, and a third with rematerialisation. A reference costs
    one pass, a critic one pass for its values and one gradient. The projection's products are not
    counted: they do not grow with tokens.
    """
    algorithm, prompts = algorithms.of(run), run.batch_prompts
    rows = prompts * run.rl.samples
    prompt, completion = run.data.prompt_length, run.data.completion_length
    forward = models.flops_per_token(model_config, (prompt + completion) / 2)
    gradient = 3 + (run.model.remat != "none")
    critics, _ = algorithm.abstract_extra(model_config)
    beside = 0 if critics is None else len(critics.params) * (1 + gradient)
    passes = gradient + algorithm.needs_reference + beside
    found = {"update": passes * rows * (prompt + completion) * forward}
    if algorithm.generates:
        found["rollout"] = prompts * prompt * models.flops_per_token(model_config, prompt / 2) + (
            rows * completion * models.flops_per_token(model_config, prompt + completion / 2)
        )
    return found


# ------------------------------------------------------------------------------------ the programs


def _rollout(run, model_config, mesh, policy, prompts, samples):
    shape = (prompts, run.data.prompt_length)
    return generation.generate.lower(
        model_config,
        policy,
        _rows(mesh, shape, jnp.int32),
        _rows(mesh, shape, jnp.bool_),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), prompts * samples)),
        samples=samples,
        max_new_tokens=run.data.completion_length,
        stop_ids=(0,),
        temperature=run.rl.temperature,
        gather=run.mesh.gather_for_rollouts,
    ).compile()


def _evaluated(run, mesh) -> int:
    """Returns the number of prompts that an evaluation answers at once."""
    share = mesh.size * run.evaluation.batches
    return -(-SUITES * run.evaluation.prompts // share) * mesh.size


def _update(algorithm, model_config, mesh, optimizer, state, frozen, reference):
    batch = algorithm.abstract_batch(functools.partial(_rows, mesh))
    step = algorithm.make_step(model_config, optimizer)
    return step.lower(state, frozen, reference, batch).compile()


def _calibration(run, model_config, mesh, params):
    rows, time = _calibration_shape(run, mesh)
    batch = {
        "tokens": _rows(mesh, (rows, time), jnp.int32),
        "mask": _rows(mesh, (rows, time), jnp.bool_),
        "first": _rows(mesh, (rows,), jnp.int32),
    }
    hidden = _rows(
        mesh, (rows * time, model_config.hidden_size), jnp.dtype(model_config.compute_dtype)
    )
    return activations.lower_layer(
        model_config, mesh, moments.OBSERVE[run.calibration.first_token],
        _first_layer(params), hidden, batch,
    ).compile()  # fmt: skip


def _calibration_shape(run, mesh) -> tuple[int, int]:
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = min(run.calibration.batch_size, run.calibration.rows)
    return -(-rows // shards) * shards, _length(run)


def _calibration_bytes(run, model_config, mesh, params, program) -> int:
    """Adds up one layer's step, all batches' hidden states, and the sums of its moments."""
    rows, time = _calibration_shape(run, mesh)
    batches = -(-run.calibration.rows // rows)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    width = jnp.dtype(model_config.compute_dtype).itemsize * model_config.hidden_size
    hidden = batches * rows * time * width // shards
    leaves = projection.leaves_by_path(params)
    squares = sum(
        4 * leaves[paths[0]].shape[-2] ** 2
        for site, paths in models.input_sites(model_config).items()
        if trees.is_stacked(site)
    )
    stats = program.memory_analysis()
    step = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return step + hidden + 2 * squares  # the products are among the step's outputs


# ------------------------------------------------------------------------------------ the shapes


def _sites(run, model_config, rank_share) -> tuple[dict[str, projection.Site], tuple[str, ...]]:
    """Returns the targeted sites with abstract bases, and the assumptions about them."""
    if run.projection.mode == "none":
        return {}, ()
    if not 0 < rank_share < 1:
        raise ValueError(f"The assumed rank share is {rank_share}; expected one in (0, 1).")
    rules = rank_rules.RankRules.parse(run.calibration.rank_rule)
    leaves = projection.leaves_by_path(models.abstract_params(model_config))
    targets = projectors_lib.parse_targets(run.projection.targets)
    coordinates = run.projection.mode == "coordinates"
    sites, guessed = {}, set()
    for name, kernels in models.input_sites(model_config).items():
        if projectors_lib.target_of(name) not in targets:
            continue
        size, rule = leaves[kernels[0]].shape[-2], rules.of(name)
        known = rule.known_rank
        rank = round(rank_share * size) if known is None else known
        guessed |= {str(rule)} if known is None else set()
        side = projection.PROTECTED if rank <= size - rank else projection.NULL
        side = projection.NULL if coordinates else side
        stack = (model_config.num_layers,) if trees.is_stacked(name) else ()
        columns = rank if side == projection.PROTECTED else size - rank
        basis = jax.eval_shape(functools.partial(jnp.zeros, (*stack, size, columns), jnp.float32))
        sites[name] = projection.Site(kernels, basis, side, np.full(stack, columns, np.int32))
    if "embed" in targets:
        basis = jax.eval_shape(lambda: jnp.zeros((model_config.vocab_size, 1), jnp.float32))
        sites["embed/tokens"] = projection.Site(
            ("embed/embedding",), basis, projection.ROWS, np.int32(1)
        )
    words = f"{' and '.join(sorted(guessed))} protects {rank_share:.3g} of the directions"
    return sites, (words,) if guessed else ()


def _length(run) -> int:
    return run.data.prompt_length + run.data.completion_length


def _rows(mesh, shape, dtype) -> jax.ShapeDtypeStruct:
    spec = jax.sharding.PartitionSpec(("data", "fsdp"))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))


def _placed(mesh, tree):
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        sharding.shardings(mesh, tree),
    )


def _first_layer(params):
    def first(leaf):
        spec = jax.sharding.PartitionSpec(*leaf.sharding.spec[1:])
        where = jax.sharding.NamedSharding(leaf.sharding.mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=where)

    return jax.tree.map(first, params["layers"])


def _bytes(tree, counted=lambda path: True) -> int:
    """Counts the bytes on one device of the leaves whose path is `counted`."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for path, leaf in projection.leaves_by_path(tree).items()
        if counted(path)
    )


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _cache_bytes(model_config, mesh, rows: int, slots: int) -> int:
    cache = jax.eval_shape(lambda: models.empty_cache(model_config, rows, slots))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in (cache.keys, cache.values))
    return size // (mesh.shape["data"] * mesh.shape["fsdp"])


def _beside_arguments(program) -> int:
    stats = program.memory_analysis()
    return (
        stats.temp_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
    )  # fmt: skip

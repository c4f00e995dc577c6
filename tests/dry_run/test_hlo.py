"""Communication read from compiled programs, against what the sharding must send."""

import jax
import jax.numpy as jnp
import pytest

from nspo_jax import chips
from nspo_jax.dry_run import hlo
from tests import forks

LAYERS, SIZE = 5, 64


def report():
    """Run on eight devices: a scan over sharded layers, and a loop of unknown length."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def at(shape, *spec):
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    def scanned(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

    def looped(weight, x, most):
        return jax.lax.while_loop(lambda x: x.sum() < most, lambda x: jnp.tanh(x @ weight), x)

    weights, weight = at((LAYERS, SIZE, SIZE), None, "x"), at((SIZE, SIZE), "x")
    x, most = at((16, SIZE), "x"), jax.ShapeDtypeStruct((), jnp.float32)
    gradient = jax.jit(jax.grad(scanned)).lower(weights, x).compile().as_text()
    loop = jax.jit(looped).lower(weight, x, most).compile().as_text()
    return [
        hlo.collective_bytes(gradient), *(hlo.collective_bytes(loop, n) for n in (1, 10))
    ]  # fmt: skip


def test_a_scan_s_collectives_count_once_a_layer():
    flags = "--xla_force_host_platform_device_count=8"
    scan, once, ten = forks.call(report, XLA_FLAGS=flags)
    layer = 4 * SIZE * SIZE
    # weights are gathered for the forward and the backward pass; their gradient is summed
    assert scan == {"all-gather": 2 * LAYERS * layer, "all-reduce": LAYERS * layer}
    # the loop's weight is gathered once, before it; the sum that ends it once a turn
    assert once["all-gather"] == ten["all-gather"] == layer
    assert ten["all-reduce"] == 10 * once["all-reduce"] > 0


def test_a_program_for_one_device_sends_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile().as_text()
    assert hlo.collective_bytes(text) == {}


def test_chips_are_known_by_name_and_by_what_jax_calls_them():
    assert chips.find_chip("h200").memory == 141
    with pytest.raises(ValueError, match="chip is 'h800'; expected one of v5e, .*b200"):
        chips.find_chip("h800")
    kinds = {
        "NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-80GB": "a100", "TPU v5 lite": "v5e",
        "TPU v5p": "v5p", "TPU v5": "v5p", "TPU v6 lite": "v6e", "NVIDIA B200": "b200",
    }  # fmt: skip
    for kind, name in kinds.items():
        assert chips.chip_of(kind) is chips.CHIPS[name], kind
    assert chips.chip_of("cpu") is None

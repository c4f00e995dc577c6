"""Seeds of the world, of the base model and of RL: each changes what it says, and no more."""

import jax
import pytest

from configs import tiny
from nspo_jax import base_model
from nspo_jax.rl import batches
from tests import runs


def configured(**changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return runs.made(tiny.get_config("nspo"), changes)


def test_all_follow_the_world_unless_they_have_their_own():
    config = configured(seed=3)
    assert (config.pretraining_seed, config.rl_seed) == (3, 3)
    config = configured(seed=3, pretraining__seed=0, rl__seed=5)
    assert (config.pretraining_seed, config.rl_seed) == (0, 5)


def test_bases_of_other_seeds_live_apart_and_those_of_the_world_where_they_did():
    directories = [
        base_model.seed_directory(configured(seed=3, **changes)).name
        for changes in ({}, {"pretraining__seed": 3}, {"pretraining__seed": 0}, {"rl__seed": 9})
    ]
    assert directories == ["seed_3", "seed_3", "seed_3_pretraining_0", "seed_3"]


@pytest.mark.parametrize(("changes", "same"), [({"seed": 1}, False), ({"rl__seed": 0}, True)])
def test_rollouts_are_drawn_by_the_seed_of_rl(changes, same):
    def key(config):
        return batches.role_key(config.rl_seed, "rollout", 7)

    found = jax.random.key_data(key(configured(**changes)))
    assert (found == jax.random.key_data(key(configured()))).all() == same

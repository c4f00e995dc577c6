"""Seeds of the world, of the base model and of RL: each changes what it says, and no more."""

import jax
import pytest

from configs import tiny
from nspo_jax import seeds, workspace
from nspo_jax.rl import rollouts


def configured(**changes):
    config = tiny.get_config("nspo")
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
    return config


def test_all_follow_the_world_unless_they_have_their_own():
    config = configured(seed=3)
    assert (seeds.pretraining_seed(config), seeds.rl_seed(config)) == (3, 3)
    config = configured(seed=3, pretraining__seed=0, rl__seed=5)
    assert (seeds.pretraining_seed(config), seeds.rl_seed(config)) == (0, 5)


def test_bases_of_other_seeds_live_apart_and_those_of_the_world_where_they_did():
    directories = [
        workspace.seed_directory(configured(seed=3, **changes)).name
        for changes in ({}, {"pretraining__seed": 3}, {"pretraining__seed": 0}, {"rl__seed": 9})
    ]
    assert directories == ["seed_3", "seed_3", "seed_3_pretraining_0", "seed_3"]


@pytest.mark.parametrize(("changes", "same"), [({"seed": 1}, False), ({"rl__seed": 0}, True)])
def test_rollouts_are_drawn_by_the_seed_of_rl(changes, same):
    def key(config):
        return rollouts.role_key(seeds.rl_seed(config), "rollout", 7)

    found = jax.random.key_data(key(configured(**changes)))
    assert (found == jax.random.key_data(key(configured()))).all() == same

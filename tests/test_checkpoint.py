"""Checkpoints: what is saved comes back bit for bit, and damage is an error that says so."""

import contextlib
import gc
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nspo_jax import checkpoint

# a read of Orbax that fails leaves its other reads unawaited, which Python reports at collection
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


def state_of(seed, shape=(4, 3)):
    """A trainable half with a frozen leaf, Adam's moments, bases under names with slashes."""
    keys = jax.random.split(jax.random.key(seed), 2)
    trainable = {"a": {"kernel": jax.random.normal(keys[0], shape)}, "frozen": None}
    adam = optax.adam(1e-3)
    updates, opt_state = adam.update(trainable, adam.init(trainable))
    del updates
    return {
        "step": jnp.int32(seed),
        "trainable": trainable,
        "opt": (opt_state, {"layers/mlp/in": jax.random.normal(keys[1], (2, 3))}),
    }


def save(directory, steps, *, keep=2):
    checkpoints = checkpoint.Checkpointer(directory, keep=keep)
    for step in steps:
        checkpoints.save(step, state_of(step), {"parts": [{"next": step}]})
    checkpoints.close()


def restore(directory, like):
    checkpoints = checkpoint.Checkpointer(directory, keep=5)
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


@pytest.fixture(autouse=True)
def collected():
    """Garbage, with its warnings, stays in the test that made it."""
    yield
    gc.collect()


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    save(directory, [1, 2, 3])
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_last_checkpoint_comes_back_bit_for_bit(saved):
    step, state, data = restore(saved, state_of(0))
    assert step == 3 and data == {"parts": [{"next": 3}]}
    assert_equal(state, state_of(3))


def test_only_the_last_few_are_kept(saved, tmp_path):
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]
    save(tmp_path, [1, 2, 3], keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_donated_state_does_not_change_what_was_saved(tmp_path):
    """Saving is asynchronous, and the next step overwrites the state's buffers."""
    state = {"a": jnp.zeros((512, 512))}
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1.0, state), donate_argnums=0)
    checkpoints = checkpoint.Checkpointer(tmp_path, keep=5)
    for number in range(5):
        checkpoints.save(number, state, {})
        state = step(state)
    checkpoints.close()
    for number in reversed(range(5)):
        found, restored, _ = restore(tmp_path, state)
        assert found == number and (np.asarray(restored["a"]) == number).all()
        shutil.rmtree(tmp_path / str(number))


def test_nothing_to_restore(tmp_path):
    checkpoints = checkpoint.Checkpointer(tmp_path / "none")
    assert checkpoints.latest_step() is None
    checkpoints.close()
    with pytest.raises(FileNotFoundError, match="none holds no checkpoint"):
        restore(tmp_path / "none", state_of(0))


@pytest.mark.parametrize(
    "like",
    [state_of(0, shape=(5, 3)), {**state_of(0), "more": jnp.zeros(3)}, {"step": jnp.int32(0)}],
    ids=["shape", "more", "fewer"],
)
def test_a_state_of_another_run_is_an_error(saved, like):
    message = f"No checkpoint in {saved} .*3: .*; 2: .*another optimizer: start .*--workdir"
    with pytest.raises(ValueError, match=message) as error:
        restore(saved, like)
    assert len(str(error.value)) < 900  # a paragraph, not tensorstore's page
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]  # nothing is moved


DAMAGE = {
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "no position": lambda step: shutil.rmtree(step / "data"),
    "empty": lambda step: (shutil.rmtree(step), step.mkdir()),
    "truncated arrays": lambda step: [
        path.write_bytes(path.read_bytes()[:-5]) for path in (step / "state").rglob("d/*")
    ],
    "flipped bits": lambda step: [
        path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
        for path in (step / "state").rglob("d/*")
    ],
    "truncated position": lambda step: (step / "data" / "metadata").write_text('{"par'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_falls_back_to_the_step_before_and_says_so(copied, damage, caplog):
    damage(copied / "3")
    checkpoints = checkpoint.Checkpointer(copied)
    with caplog.at_level(logging.WARNING, "nspo_jax"):
        step, state, data = checkpoints.restore(state_of(0))
    assert step == 2 and data == {"parts": [{"next": 2}]}
    assert_equal(state, state_of(2))
    # Our own records only: asyncio reports Orbax's abandoned reads whenever they are collected.
    said = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("nspo_jax"))
    assert f"{copied / '3'} cannot be restored (" in said
    assert f"falling back to {copied / '2'}. The" in said
    assert len(said) < 900
    assert checkpoints.latest_step() == 2
    checkpoints.save(3, state_of(3), {})  # its name is free again
    checkpoints.close()
    assert restore(copied, state_of(0))[0] == 3
    assert sorted(path.name for path in copied.iterdir()) == ["2", "3", "3.unreadable"]


def test_when_all_are_damaged_it_is_an_error(copied):
    for step in ("2", "3"):
        shutil.rmtree(copied / step / "state")
    with pytest.raises(ValueError, match=f"No checkpoint in {copied} can be restored: 3: .*; 2: "):
        restore(copied, state_of(0))


def test_some_steps_are_kept_for_good(tmp_path):
    checkpoints = checkpoint.Checkpointer(tmp_path, keep=1, keep_every=2)
    for step in range(1, 6):
        checkpoints.save(step, state_of(step), {})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]


@contextlib.contextmanager
def full_disk(size):
    """No file may grow beyond `size` bytes: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_cannot_be_written_is_an_error_that_names_the_last_good_one(tmp_path):
    state = {"a": jax.random.normal(jax.random.key(0), (512, 1024))}  # 2 MB that do not compress
    checkpoints = checkpoint.Checkpointer(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    with full_disk(2**20):
        with pytest.raises(OSError, match="(?s)could not be written.*good checkpoint is step 1 of"):
            with checkpoints.naming_last_good(), checkpoints:
                checkpoints.save(2, state, {})
    again = checkpoint.Checkpointer(tmp_path)  # cleans up what was begun
    assert again.restore(state)[0] == 1
    again.save(2, state, {})
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_save_that_was_killed_does_not_count(copied):
    unfinished = copied / "4.orbax-checkpoint-tmp"
    shutil.copytree(copied / "3", unfinished)
    shutil.rmtree(unfinished / "data")
    step, state, _ = restore(copied, state_of(0))
    assert step == 3
    assert_equal(state, state_of(3))

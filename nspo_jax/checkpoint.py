"""The checkpoints of a run: Orbax's arrays and the data iterator's state beside them."""

from collections.abc import Iterator
import contextlib
import errno
import logging
import pathlib
from typing import Any, cast

import jax
import orbax.checkpoint as ocp

from nspo_jax import distributed

_log = logging.getLogger(__name__)


class Checkpointer:
    """A store of (state, iterator state) by step, which saves asynchronously.

    A step counts as saved only once Orbax has renamed its finished directory, so a kill at any
    moment leaves the previous step intact. Every process makes a checkpointer and makes the same
    calls: each writes the shards that it holds.

    Args:
      directory: the directory of the steps.
      keep: the number of last steps that stay.
      keep_every: steps that this divides stay too, for good; 0: no others stay.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 2, keep_every: int = 0):
        self._directory = pathlib.Path(directory).resolve()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every or None,
                create=True,
                cleanup_tmp_directories=True,  # a kill or a full disk leaves unfinished ones
            ),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, *_) -> None:
        # after an error of one process, closing would wait for processes that wait for this one
        if kind is None or jax.process_count() == 1:
            self.close()

    def latest_step(self) -> int | None:
        """Returns the last whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data_state: dict) -> None:
        """Starts saving; returns once the arrays are copied off the devices. Collective.

        Raises:
          OSError: if this checkpoint or the one before it cannot be written.
        """
        with _write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state)
                ),
            )

    def finish(self, step: int, state: Any, data_state: dict) -> None:
        """Saves a step unless it is saved, and waits until it is on disk. Collective.

        Raises:
          OSError: if it cannot be written.
        """
        if self.latest_step() != step:
            self.save(step, state, data_state)
        self.wait()

    def restore(self, like: Any) -> tuple[int, Any, dict]:
        """Restores the last readable checkpoint; warns if it is not the last one. Collective.

        Unreadable ones are renamed to STEP.unreadable.

        Args:
          like: a state of the same shapes and dtypes, in the shardings to restore to.

        Returns:
          (step, state, iterator state).

        Raises:
          FileNotFoundError: if there is no checkpoint.
          ValueError: if no checkpoint can be read as such a state.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise FileNotFoundError(f"{self._directory} holds no checkpoint to restore.")
        reasons: dict[int, str] = {}
        for step in steps:
            state, data, reason = None, {}, ""
            try:
                state, data = self._read(step, like)
            except Exception as error:  # Orbax raises plain Exception too, for damaged arrays
                if distributed.is_lost_connection(error):
                    raise
                reason = str(error).splitlines()[0][:150]  # tensorstore's messages fill pages
            if not distributed.any_process(bool(reason)):
                self._set_aside(reasons, step)
                return step, state, data
            reasons[step] = reason or "another process cannot read it"
        raise ValueError(
            f"No checkpoint in {self._directory} can be restored: "
            + "; ".join(f"{step}: {reason}" for step, reason in list(reasons.items())[:3])
            + ". They are damaged, or of a run with other parameters or another optimizer: start "
            "in another --workdir, or delete this one to start over."
        )

    def _read(self, step: int, like: Any) -> tuple[Any, Any]:
        """Reads this process's part.

        The manager's own restore ends in a barrier, which a process that cannot read its part would
        never reach.
        """
        directory = cast(Any, self._directory / str(step))  # Orbax annotates an epath.Path
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        data = ocp.JsonCheckpointHandler().restore(directory / "data", args=ocp.args.JsonRestore())
        state = ocp.StandardCheckpointHandler().restore(
            directory / "state", args=ocp.args.StandardRestore(abstract)
        )
        return state, data

    def _set_aside(self, reasons: dict[int, str], good: int) -> None:
        """Renames unreadable steps, so that new ones can be saved under their names."""
        for step, reason in reasons.items():
            if distributed.is_primary():
                path = self._directory / str(step)
                aside = _free_name(path.with_name(f"{step}.unreadable"))
                path.rename(aside)
                _log.warning(
                    "The checkpoint %s cannot be restored (%s): falling back to %s. The unreadable "
                    "one is now %s; delete it once you have looked at it.",
                    path, reason, self._directory / str(good), aside,
                )  # fmt: skip
        if reasons:
            distributed.barrier("unreadable checkpoints are set aside")
            self._manager.reload()

    def last_good(self) -> str:
        """Names in words the checkpoint that a run would continue from, by looking at the disk."""
        whole = [int(path.name) for path in self._directory.iterdir() if path.name.isdigit()]
        if not whole:
            return "No checkpoint is saved yet"
        return f"The last good checkpoint is step {max(whole)}"

    @contextlib.contextmanager
    def naming_last_good(self) -> Iterator[None]:
        """Adds the last good checkpoint to an OSError inside, such as that of a full disk."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{error}\n{self.last_good()} of {self._directory}: {_advice(error)}, and run the "
                "same command again to continue from it."
            ) from error

    def wait(self) -> None:
        """Waits until every save that was started is on disk. Collective.

        Raises:
          OSError: if one of them cannot be written.
        """
        with _write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends Orbax's threads; raises the errors of `wait`. Collective."""
        self.wait()
        self._manager.close()


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    """Turns the errors of Orbax and tensorstore about writing into OSError."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if distributed.is_lost_connection(error):
            raise
        reason = str(error).splitlines()[0][:300]
        raise OSError(f"A checkpoint could not be written: {reason}") from error


def _free_name(path: pathlib.Path) -> pathlib.Path:
    """Returns the path, or the first of path_2, path_3, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free


def _advice(error: OSError) -> str:
    """Names the first remedy; Orbax's errors report a full disk only in words."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or any(
        words in str(error) for words in ("No space left", "Disk quota exceeded", "ENOSPC")
    )
    return "make room" if full else "mend what that says"

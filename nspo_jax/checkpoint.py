"""Checkpoints of a run: Orbax for arrays, the data iterator's state beside them."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpointer:
    """Saves and restores (state, iterator state) by step, asynchronously, keeping the last few.

    A step counts as saved only once Orbax has renamed its finished directory, so a kill at any
    moment leaves the previous step intact.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 2):
        self._directory = pathlib.Path(directory).resolve()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def latest_step(self) -> int | None:
        """The last whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data_state: dict) -> None:
        """Starts saving; returns once the arrays are copied off the devices."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state)
            ),
        )

    def restore(self, like: Any) -> tuple[int, Any, dict]:
        """Restores the last checkpoint.

        Args:
          like: a state of the same shapes, dtypes and shardings.

        Returns:
          (step, state, iterator state).

        Raises:
          FileNotFoundError: if there is none.
          ValueError: if it cannot be read as such a state.
        """
        step = self.latest_step()
        if step is None:
            raise FileNotFoundError(f"{self._directory} holds no checkpoint to restore.")
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(
                        jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
                    ),
                    data=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, FileNotFoundError, json.JSONDecodeError) as error:
            reason = str(error).splitlines()[0][:200]  # tensorstore's go on for pages
            raise ValueError(
                f"The checkpoint {self._directory / str(step)} cannot be restored ({reason}). It "
                "is damaged, or of a run with other parameters or another optimizer: delete that "
                "step's directory to fall back to the one before, or start in another --workdir."
            ) from error
        return step, restored["state"], restored["data"]

    def close(self) -> None:
        """Waits until what was started is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

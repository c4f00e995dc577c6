"""Preemption: SIGTERM lets a run save what it has before the machine is taken away."""

from collections.abc import Callable
import signal
import threading

from nspo_jax import distributed


class PreemptedError(Exception):
    """A run was asked to stop and has saved all it did; the same command continues it."""


class PreemptionWatch:
    """Inside `with`, SIGTERM ends nothing: it is noted, and `asked` says so between two steps.

    Args:
      hurry: called when the signal comes, in the main thread between two of its instructions: to
        end what could keep the step waiting.
    """

    def __init__(self, hurry: Callable[[], None] = lambda: None):
        self._hurry = hurry
        self._noted = False
        self._before = None

    def __enter__(self) -> "PreemptionWatch":
        # Python gives signals to the main thread alone: a run in another is not preempted
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def asked(self) -> bool:
        """Whether any process was told to stop: all of them then stop at this step. Collective."""
        return distributed.any_process(self._noted)

    def _note(self, *_) -> None:
        self._noted = True
        self._hurry()

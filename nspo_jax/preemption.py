"""The preemption of a run: after SIGTERM it saves its work before the machine is taken away."""

from collections.abc import Callable
import signal
import threading

from nspo_jax import distributed


class PreemptedError(Exception):
    """A run was asked to stop and has saved its work; the same command continues it."""


class PreemptionWatch:
    """A context in which SIGTERM does not end the process, but makes `asked` return True.

    Args:
      hurry: ends everything that the step could be waiting for. It is called when the signal comes,
        in the main thread between two of its instructions.
    """

    def __init__(self, hurry: Callable[[], None] = lambda: None):
        self._hurry = hurry
        self._noted = False
        self._before = None

    def __enter__(self) -> "PreemptionWatch":
        # Python gives signals to the main thread alone: a run in another thread is not preempted
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def asked(self) -> bool:
        """Tells whether any process was told to stop: all then stop at this step. Collective."""
        return distributed.any_process(self._noted)

    def _note(self, *_) -> None:
        self._noted = True
        self._hurry()

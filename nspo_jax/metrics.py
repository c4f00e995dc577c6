"""The metrics of a run: JSON lines and TensorBoard, Weights & Biases if asked; phases; traces.

Metrics under "speed/" depend on the machine, all others on the config alone.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import logging
import math
import numbers
import pathlib
import time
from typing import Any

import jax

from nspo_jax import distributed, files, wandb_run

_log = logging.getLogger(__name__)


class MetricsWriter:
    """A writer of `metrics.jsonl` and TensorBoard events in a run's directory.

    Opened at a step, it drops lines of later steps: a resumed run repeats them. Only the first of
    several processes writes; in the others the writer does nothing.

    Args:
      directory: the run's.
      step: the step at which the run begins or resumes.
      wandb_project: the project at Weights & Biases that gets a copy; "": none.
      config: flat names -> values, shown there beside the metrics.

    Raises:
      ModuleNotFoundError: for a project without the library wandb.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        step: int = 0,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        directory = pathlib.Path(directory)
        self._active = distributed.is_primary()
        if not self._active:
            return
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(directory) if row["step"] <= step] if step else []
        self._wandb = None
        if wandb_project:  # before a file is open, since it may raise
            self._wandb = wandb_run.WandbRun(directory, wandb_project, config or {}, step=step)
        if kept:
            files.write_text(self._path, "\n".join(json.dumps(row) for row in kept))
        else:
            self._path.write_text("")
        self._file = self._path.open("a", buffering=1)
        import tensorboardX  # here: it imports torch where that is installed, two seconds

        self._events = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line.

        Raises:
          TypeError: naming the values that are no numbers.
        """
        if not self._active:
            return
        if odd := {k: v for k, v in values.items() if not isinstance(v, numbers.Real)}:
            raise TypeError(f"Metrics are numbers, with flat names; step {step} has {odd}.")
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in finite.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.write(step, finite)

    def close(self) -> None:
        """Flushes both files, and ends the copy."""
        if not self._active:
            return
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.close()


class Stopwatch:
    """The seconds spent in named phases since the last reading."""

    def __init__(self):
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds inside to a phase; it does not wait for work that jax only started."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def read(self) -> dict[str, float]:
        """Returns phase -> seconds, and starts anew."""
        seconds, self._seconds = self._seconds, {}
        return seconds


def phase_seconds(seconds: dict[str, float]) -> dict[str, float]:
    """Returns the metrics of phases, and the peak memory of a device of this process in bytes.

    The peak is there only if the backend counts it; the CPU does not.
    """
    logged = {f"speed/{phase}_seconds": spent for phase, spent in seconds.items()}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [part["peak_bytes_in_use"] for part in stats if "peak_bytes_in_use" in part]
    return logged | ({"speed/device_bytes_peak": float(max(peaks))} if peaks else {})


class Profiler:
    """A profiler that traces some steps of a run with jax.profiler, in process 0.

    Args:
      directory: the trace's directory, for TensorBoard or Perfetto.
      steps: (start, stop): from before step `start` until before step `stop`; None: no trace.
    """

    def __init__(self, directory: str | pathlib.Path, steps: tuple[int, int] | None):
        self._directory, self._steps = directory, steps if distributed.is_primary() else None
        self._running = self._traced = False

    def at(self, step: int) -> None:
        """Starts or ends the trace where it is due; call it before every step."""
        if self._steps is None:
            return
        start, stop = self._steps
        if self._running and step >= stop:
            self.close()
        elif not self._running and start <= step < stop:
            jax.profiler.start_trace(str(self._directory))
            self._running = self._traced = True

    def close(self) -> None:
        """Ends a running trace; warns if none of the steps has run."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
        if self._steps is not None and not self._traced:
            _log.warning("no step from %d to %d has run here: nothing is traced", *self._steps)


def read_metrics(directory: str | pathlib.Path) -> list[dict[str, float]]:
    """Reads the lines of a run's `metrics.jsonl`, without a last line that a kill cut short."""
    path = pathlib.Path(directory) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text().split("\n")[:-1], 1):
        try:
            rows += [json.loads(line)] if line else []
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged: line {number} is no JSON ({error}). Delete that line, or move "
                "the file away: a resumed run then logs from its checkpoint on."
            ) from error
    return rows

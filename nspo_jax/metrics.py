"""Metrics: JSON lines always, TensorBoard beside them."""

import json
import math
import pathlib

import tensorboardX


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events in a run's directory.

    Opened at a step, it drops lines of later steps: a resumed run repeats them.
    """

    def __init__(self, directory: str | pathlib.Path, *, step: int = 0):
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(directory) if row["step"] <= step] if step else []
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        self._events = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line; `values` are Python floats."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if math.isfinite(value):
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both files."""
        self._file.close()
        self._events.close()


def read_metrics(directory: str | pathlib.Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`, without a last line that a kill cut short."""
    path = pathlib.Path(directory) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]

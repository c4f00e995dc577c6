"""Progress bars: a bar on a terminal, and in a log a line at most every ten seconds."""

import sys
import time
from typing import Any

import tqdm

SECONDS = 10.0  # the least time between two lines of a log
_FORMAT = "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Bar(tqdm.tqdm):
    """`tqdm.tqdm` whose standard error may be a file.

    A terminal gets tqdm's own bar. A file gets whole lines and no repaints, at most one every
    `SECONDS` from all bars together.
    """

    _last_line = -SECONDS  # the last line's time.monotonic, for all bars of the process

    def __init__(self, *args: Any, **options: Any):
        file = options.setdefault("file", sys.stderr)
        self._in_log = not (hasattr(file, "isatty") and file.isatty())
        if self._in_log:
            options |= {"bar_format": _FORMAT, "mininterval": SECONDS}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:  # tqdm returns a bool
        """Paints the bar; in a log prints its line if the last one is old enough."""
        if not self._in_log:
            return super().display(msg, pos)
        now = time.monotonic()
        if now - Bar._last_line >= SECONDS:
            Bar._last_line = now
            print(str(self).lstrip(": "), file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """Ends the bar; in a log it writes nothing, since lines cannot be wiped."""
        if self._in_log and not self.disable:
            self.disable = True
            self._decr_instances(self)  # pyright: ignore[reportAttributeAccessIssue]  # not in stubs
            return
        super().close()

    def clear(self, nolock: bool = False) -> None:
        """Wipes the bar from a terminal."""
        if not self._in_log:
            super().clear(nolock)

"""The optional copy of a run's metrics at Weights & Biases, which never stops the run.

wandb 0.31, whose `log` hands rows to a process of its own and waits for no server, behaves so:

- `init` raises after its timeout if no server answers, and asks at a terminal for a missing key;
- `finish` waits without an end for a server that went away in between, unless it has a timeout;
- `log` and `finish` raise if that process was killed or has crashed, and not always an error of
  the library's own: so `Exception` is caught here.

Each of them becomes a warning, and the run goes on. Unsent metrics stay in WORKDIR/wandb, from
where `wandb sync` sends them later.
"""

from collections.abc import Mapping
import importlib
import importlib.util
import json
import logging
import pathlib
import sys
from typing import Any
import uuid

from nspo_jax import files

RECORD = "wandb_run.json"  # this file of the workdir holds {"id": the run's at Weights & Biases}
INIT_TIMEOUT = 60.0  # seconds
FINISH_TIMEOUT = 120.0
_log = logging.getLogger(__name__)


def check_installed(project: str) -> None:
    """Raises ModuleNotFoundError if there is a project to write to, but no library for it."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError(
            f"metrics.wandb_project is {project!r}, and the library wandb is not installed; "
            "expected it: pip install 'nspo_jax[wandb]', or leave the field empty."
        )


class WandbRun:
    """The run at Weights & Biases that gets a workdir's metrics.

    Its id is in the workdir. A run that resumes continues it; one that starts over at step 0 makes
    another. WANDB_MODE, WANDB_ENTITY and the library's other variables work as they do elsewhere.

    Args:
      workdir: the run's directory, in which the library keeps its files too.
      project: the project's name.
      config: flat names -> values, shown beside the metrics.
      step: the step at which the run begins or resumes.

    Raises:
      ModuleNotFoundError: if the library is not installed.
      ValueError: if the record of the id is damaged.
    """

    def __init__(
        self, workdir: pathlib.Path, project: str, config: Mapping[str, Any], *, step: int
    ):
        check_installed(project)
        self._wandb: Any = importlib.import_module("wandb")
        self._directory = workdir / "wandb"
        self._next = 0
        identity = _settle_id(workdir, step)
        try:
            self._run: Any = self._open(
                dir=str(workdir), project=project, id=identity, name=workdir.name, resume="allow"
            )
            # an argument of init would lose against the config that the server has of a resumed run
            self._run.config.update({"workdir": str(workdir), **config}, allow_val_change=True)
            self._next = self._run.starting_step  # 0 offline: only the server knows its steps
        except Exception as error:
            self._give_up("nothing is written there", error)
        if self._next > step + 1:
            _log.warning(
                "Weights & Biases has the steps to %d of this run, which resumes at %d: those are "
                "not sent again", self._next - 1, step,
            )  # fmt: skip

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands finite values to the library, which joins rows of a step and awaits no server."""
        if self._run is None or step < self._next:
            return
        try:
            self._run.log({name: float(value) for name, value in values.items()}, step=step)
        except Exception as error:
            self._give_up(f"from step {step} on nothing more is written there", error)

    def close(self) -> None:
        """Ends the run there, as failed if an exception is under way."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
        except Exception as error:
            self._give_up(f"what was not sent in {FINISH_TIMEOUT:g} seconds is not sent", error)

    def _open(self, **arguments: Any) -> Any:
        settings = self._wandb.Settings(
            console="off",  # else the library replaces stdout
            disable_git=True, init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
        )  # fmt: skip
        try:
            # login asks no server about the key: init does
            online = self._wandb.setup().settings.mode == "online"
            if not online or self._wandb.login(prompt=False, verify=False):
                return self._wandb.init(settings=settings, **arguments)
            problem = "no API key: run `wandb login`, or set WANDB_API_KEY"
        except Exception as error:
            problem = str(error)
            self._wandb.teardown()  # the library's process holds the id of the failed run
        _log.warning(
            "Weights & Biases cannot be reached (%s): metrics are written to %s, and `wandb sync` "
            "sends them", problem, self._directory,
        )  # fmt: skip
        return self._wandb.init(mode="offline", settings=settings, **arguments)

    def _give_up(self, what: str, error: Exception) -> None:
        self._run = None
        _log.warning(
            "Weights & Biases: %s (%s: %s). metrics.jsonl has everything; `wandb sync` sends what "
            "is in %s", what, type(error).__name__, error, self._directory,
        )  # fmt: skip


def _settle_id(workdir: pathlib.Path, step: int) -> str:
    """Returns the recorded id of a run that resumes, else records a new one."""
    path = workdir / RECORD
    if step and path.exists():
        return files.read_json(path, "delete it: the metrics then go on in a new run there")["id"]
    if step:
        _log.warning("Weights & Biases gets this run from step %d on", step)
    made = uuid.uuid4().hex
    files.write_text(path, json.dumps({"id": made}))
    return made

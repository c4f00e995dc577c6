"""The record of a run in its workdir: its config, and the summary that marks its end."""

import json
import logging
import os
import pathlib
from typing import Any

from nspo_jax import distributed, files, settings

_log = logging.getLogger(__name__)


# Field -> the behaviour of runs before it existed: their workdirs' configs do not have it.
_BEFORE = {
    "optimizer.name": "adam",
    "optimizer.master": "weights",
    "rl.flat_steps": 0,
    "rl.on_flat": "raise",
    "data.date": "",
    "rl.clip_high": 0.0,
    "data.evaluation_column": "",
    "data.max_broken": 1.0,
    "pretraining.seed": settings.groups.FOLLOW,
    "rl.seed": settings.groups.FOLLOW,
}


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the fields of a workdir's run; raises ValueError if its file is damaged."""
    return files.read_json(
        workdir / "config.json",
        "copy that of another run of the same config, or start in another --workdir",
    )


def restore_defaults(run: settings.Run, workdir: pathlib.Path) -> settings.Run:
    """Returns the config with the old values of fields that are newer than a workdir; logs them."""
    path = workdir / "config.json"
    if not path.exists():
        return run
    found = read_config(workdir)
    for name, value in _BEFORE.items():
        if name not in found and settings.get(run, name) != value:
            _log.warning("%s is older than %s, which is %r here", path, name, value)
            run = settings.replace(run, {name: value})
    return run


def resumes_finished(run: settings.Run, workdir: pathlib.Path, allow_change: bool = False) -> bool:
    """Tells whether this very run already finished in the workdir. Collective.

    With `allow_change`, a run of another config is not finished: it continues with this config, and
    the differences are logged.

    Raises:
      ValueError: listing the differences, if the workdir belongs to another config.
    """
    wanted, found = _essential(settings.flatten(run)), {}
    if (workdir / "config.json").exists():
        found = _essential(_BEFORE | read_config(workdir))
    changed = [
        f"  {name}: {found.get(name)!r} there, {wanted.get(name)!r} now"
        for name in sorted(set(found) | set(wanted))
        if found and json.dumps(found.get(name)) != json.dumps(wanted.get(name))  # NaN equals NaN
    ]
    if changed and not allow_change:
        raise ValueError(
            f"The workdir {workdir} holds a run with another config:\n" + "\n".join(changed)
            + "\nUse another --workdir, delete it to start over, or continue it with this config "
            "by --allow_config_change."
        )  # fmt: skip
    if changed:
        _log.warning("continuing %s with another config:\n%s", workdir, "\n".join(changed))
    finished = bool(found) and not changed and (workdir / "summary.json").exists()
    return distributed.primary_says(finished)


def with_recorded(run: settings.Run, workdir: pathlib.Path) -> settings.Run:
    """Returns the config with the date of the workdir's run, unless it sets data.date itself.

    So a run that continues tomorrow, or in another workspace, keeps its date.
    """
    recorded = ""
    if (workdir / "config.json").exists():
        recorded = read_config(workdir).get("data.date") or ""
    return settings.replace(run, {"data.date": run.data.date or recorded})


def write_config(run: settings.Run, workdir: pathlib.Path) -> None:
    """Claims the workdir for this config. Collective.

    Call it once the run is set up, so that a mistake does not claim the workdir. A summary that is
    there belongs to another config, and is removed.
    """
    if distributed.is_primary():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "summary.json").unlink(missing_ok=True)
        files.write_text(workdir / "config.json", json.dumps(settings.flatten(run), indent=1))
    distributed.barrier("the config is written")


def check_directory(path: str | pathlib.Path, name: str) -> None:
    """Raises OSError, naming the field or flag `name`, unless files can be written in a directory.

    The directory need not exist yet.
    """
    path = pathlib.Path(path).absolute()
    there = next(part for part in (path, *path.parents) if part.exists())
    if not there.is_dir():
        raise NotADirectoryError(
            f"{name} is {str(path)!r}, and {there} is a file; expected a directory: name another "
            "place."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{name} is {str(path)!r}, and nothing can be written in {there}: name another place."
        )


# Places and time limits, which do not change what a run learns.
_OPERATIONAL = {"workspace", "metrics.wandb_project"} | {
    f"rewards.judge.{name}"
    for name in ("url", "api_key_env", "concurrency", "timeout", "retries", "down_after", "budget")
}


def _essential(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that a resumed run must have in common with the interrupted one."""
    return {name: value for name, value in fields.items() if name not in _OPERATIONAL}

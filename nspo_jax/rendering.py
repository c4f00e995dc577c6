"""The rendering of a config's conversations: the format, its date and the fields that decide it.

WORKSPACE/rendering.json    the date that chat templates with a clock state in all its runs
"""

import dataclasses
import datetime
import logging
import pathlib
from typing import Any

from nspo_jax import distributed, model_files, settings, tasks
from nspo_jax.data import chat

_log = logging.getLogger(__name__)


def open_format(run: settings.Run, directory: str | pathlib.Path) -> chat.ChatFormat:
    """Opens the config's chat format for the model in a directory. Collective.

    A chat template that states today's date states the same one in all runs of a workspace:
    `run.data.date`, or the one that the model's directory records, or else the workspace's,
    which is the day of its first use.

    Raises:
      FileNotFoundError, ValueError: for the reasons of `chat.load_format`.
    """
    chat_format = chat.load_format(
        directory,
        chat=run.data.chat,
        system=run.data.system_prompt or None,
        thinking=run.data.thinking,
        date=run.data.date or None,
    )
    if not chat_format.reads_clock:
        return dataclasses.replace(chat_format, date=None)
    recorded = _recorded_date(run, chat_format.date)
    return chat_format if chat_format.date else dataclasses.replace(chat_format, date=recorded)


def _recorded_date(run: settings.Run, wanted: str | None) -> str | None:
    """Returns the workspace's date, which the first call fixes at `wanted` or today. Collective."""
    directory = pathlib.Path(run.workspace)
    if distributed.primary_says(model_files.recorded_date(directory) is None):
        if distributed.is_primary():
            date = wanted or datetime.date.today().isoformat()
            _log.info("the chat template states a date: %s in all runs of %s", date, directory)
            directory.mkdir(parents=True, exist_ok=True)
            model_files.record_date(directory, date)
        distributed.barrier("the date is recorded")
    return model_files.recorded_date(directory)


def text_fields(run: settings.Run, chat_format: chat.ChatFormat) -> dict[str, Any]:
    """Returns the fields that decide the encoded calibration text, and the template's date."""
    names = ["task", "seed", "data.prompt_length", "data.completion_length", "data.chat",
             "data.thinking", "data.system_prompt"]  # fmt: skip
    names += tasks.kind_of(run.task).text_fields
    if run.calibration.completions == "generated":
        names += ["calibration.temperature", "calibration.seed", "calibration.batch_size"]
    return {name: settings.get(run, name) for name in names} | {"data.date": chat_format.date or ""}

"""A run of a micro model, and what its tests ask of it."""

import contextlib
import json

import jax
import numpy as np
import pytest

from configs import default
from nspo_jax import metrics
from nspo_jax.rl import batches, trainer
from tests import runs

MICRO = {
    "model.hidden_size": 16, "model.intermediate_size": 24, "model.num_layers": 1,
    "model.num_heads": 2, "model.num_kv_heads": 1, "pretraining.steps": 20,
    "pretraining.batch_size": 16, "calibration.rows": 20, "calibration.batch_size": 10,
    "calibration.rank_rule": "fixed(6)", "optimizer.learning_rate": 1e-2, "rl.steps": 4,
    "rl.prompts": 4, "rl.samples": 4, "rl.minibatches": 2, "data.benign_fraction": 0.5,
    "data.wrapped_fraction": 0.5, "evaluation.every": 3, "evaluation.prompts": 5,
    "checkpoint.every": 2,
}  # fmt: skip


def micro(workspace, **changes):
    micro = dict(MICRO)
    if "model.path" in changes:  # which has a size, and is pretrained
        micro = {k: v for k, v in micro.items() if not k.startswith(("model.", "pretraining."))}
    changes = {**micro, **changes, "workspace": str(workspace)}
    return runs.made(default.get_config(), changes)


def judge(self, conversations, completions):
    """Odd numbers of words are bad: a micro model never satisfies the world's judge, and where all
    rewards are the same nothing is learned and every resume is right."""
    odd = np.array([len(text.split()) % 2 for text in completions], np.float32)
    return -odd, {"odd": odd}


def stop_at(monkeypatch, sample, error, source=batches.RolloutBatches):
    """Makes the batch number `sample` of a source raise; the later ones work again."""
    original, calls = source.sample, []

    def sampling(self, *arguments):
        calls.append(arguments)
        if len(calls) == sample:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(source, "sample", sampling)


def logged(workdir):
    return [
        {name: value for name, value in row.items() if not name.startswith("speed/")}
        for row in metrics.read_metrics(workdir)
    ]


def assert_same_run(workdir, whole):
    """Weights bit for bit, and every logged number that does not depend on the machine."""
    for name in ("policy/model.safetensors", "certificate.json"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    assert logged(workdir) == logged(whole)
    drop = lambda path: {**json.loads(path.read_text()), "seconds": None}  # noqa: E731
    assert drop(workdir / "summary.json") == drop(whole / "summary.json")


@contextlib.contextmanager
def nothing_compiles():
    compiled = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax._src.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def refuse(config, workdir, *words, error=ValueError):
    """The run is refused before it compiles, in a paragraph that holds all of `words`."""
    with nothing_compiles(), pytest.raises(error) as caught:
        trainer.train(config, workdir)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert len(message) < 900
    return message

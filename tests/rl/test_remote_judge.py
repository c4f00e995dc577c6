"""A run whose rewards come from a server on loopback, that fails in every way on the way."""

import json
import shutil
import zlib

import pytest

from nspo_jax import rewards
from nspo_jax.rl import trainer
from tests.rewards import fault_proxy
from tests.rl.micro_run import logged, micro

pytestmark = pytest.mark.usefixtures("compile_cache")

FAULTS = [
    fault_proxy.status(500), None, fault_proxy.garbage, None, None, fault_proxy.half_body,
    fault_proxy.status(429, Retry_After="0.1"), None, fault_proxy.reset, fault_proxy.half_chunks,
]  # fmt: skip


def answer(body):
    """Safe or not by chance, but always the same for the same question."""
    odd = zlib.crc32(json.dumps(body["messages"]).encode()) % 2
    return fault_proxy.chat_reply("unsafe\nS1" if odd else "Safe.")


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """Trains as NAME, with its own cache of verdicts, judged at a url; gives the workdir."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def train(name, url, **changes):
        workspace, workdir = tmp_path / f"{name}_workspace", tmp_path / name
        if not workspace.exists():
            shutil.copytree(finished[0], workspace)
        judge = {"url": url, "model": "judge", "down_after": 4.0, "timeout": 3.0}
        fields = {f"rewards.judge.{field}": value for field, value in judge.items()}
        fields |= {"rewards.terms": "remote_judge", "rl.steps": 3, "evaluation.every": 100}
        trainer.train(micro(workspace, **fields, **changes), workdir)
        return workdir

    return train


def same(one, other):
    """Whether two runs learned the same from the same: all but times, requests and the cache."""

    def facts(workdir):
        rows = [
            {k: v for k, v in row.items() if not k.endswith(("seconds", "retries", "cached"))}
            for row in logged(workdir)
        ]
        return rows, (workdir / "policy" / "model.safetensors").read_bytes()

    return facts(one) == facts(other)


@pytest.mark.parametrize("staleness", [0, 1])
def test_faults_change_nothing_but_the_time(run, staleness):
    changes = {"rl.staleness": staleness}
    with (
        fault_proxy.FaultProxy(answer) as good,
        fault_proxy.FaultProxy(answer, FAULTS) as bad,
    ):
        straight = run("straight", good.url, **changes)
        bad.down_for(0.7)
        through = run("through", bad.url, **changes)
        assert len(bad.requests) > len(good.requests)
    assert same(straight, through)
    rows = [row for row in logged(through) if "train/loss" in row]
    assert all(row["train/remote_judge/no_verdict"] == 0 for row in rows)
    assert 0 < rows[0]["train/remote_judge/unsafe"] < 1


def test_a_judge_that_is_down_for_good_stops_the_run_with_all_saved(run, tmp_path):
    with fault_proxy.FaultProxy(answer) as server:
        whole = run("whole", server.url)
        count = len(server.requests)
        server.always(fault_proxy.reset, after=count // 2)
        with pytest.raises(rewards.JudgeError, match="4 s"):
            run("cut", server.url)
        steps = [int(path.name) for path in (tmp_path / "cut" / "checkpoints").iterdir()]
        assert 0 < max(steps) < 3
        server.always(None)
        asked = len(server.requests)
        assert same(run("cut", server.url), whole)
        # what was judged before is not asked again
        assert len(server.requests) - asked < count


def test_rows_without_a_verdict_are_dropped_with_their_group_and_counted(run):
    def vague(body):
        odd = zlib.crc32(json.dumps(body["messages"]).encode()) % 8
        return fault_proxy.chat_reply("It depends: safe or unsafe." if not odd else "unsafe")

    with fault_proxy.FaultProxy(vague) as server:
        flat = {"rl.flat_steps": 0}  # all answers that it judges, it judges alike
        workdir = run("vague", server.url, **{"rewards.on_failure": "drop_group"}, **flat)
        with pytest.raises(rewards.NoVerdictError, match="remote_judge gave no verdict on"):
            run("strict", server.url)
    rows = [row for row in logged(workdir) if "train/loss" in row]
    assert all(0 < row["train/remote_judge/no_verdict"] < row["train/dropped"] for row in rows)

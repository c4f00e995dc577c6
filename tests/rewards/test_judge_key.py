"""The API key reaches the server, and nothing that anybody reads."""

import json
import logging

import pytest

from nspo_jax.rewards import judge_client
from tests.rewards import fault_proxy
from tests.rewards.asking import anything, client, echo, questions

KEY = "sk-secret-of-a-user"


def test_the_key_is_sent_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    told = f'{{"error": {{"message": "wrong key {KEY}"}}}}'.encode()
    faults = [None, fault_proxy.status(500, told), None, fault_proxy.status(401, told)]
    with fault_proxy.FaultProxy(echo, faults) as proxy:
        asked = client(proxy, api_key_env="JUDGE_KEY", down_after=0.001, concurrency=1)
        asked.ask(questions(1), anything)
        with pytest.raises(judge_client.JudgeRequestError, match="wrong key") as caught:
            asked.ask(questions(9), anything)
        assert proxy.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY not in str(caught.value) and KEY not in asked.body(questions(1)[0])
        down = client(proxy, api_key_env="JUDGE_KEY", down_after=0.001)
        proxy.always(fault_proxy.status(500, told))
        with pytest.raises(judge_client.JudgeDownError, match="wrong key") as caught:
            down.ask(questions(1), anything)
        assert KEY not in str(caught.value)
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_a_key_that_cannot_be_one(monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(ValueError, match="JUDGE_KEY") as caught:
        judge_client.JudgeClient("http://localhost/v1", "judge", api_key_env="JUDGE_KEY")
    assert not key or key not in str(caught.value)


ODD = "sk-" + "\"secret\\of'a/user"
TOLD = {
    "plain": lambda key: key.encode(),
    "a message": lambda key: json.dumps({"error": {"message": f"wrong key {key}"}}).encode(),
    "nested": lambda key: json.dumps({"detail": [{"input": {"key": key}}]}).encode(),
    "no completion": lambda key: json.dumps({"choices": [], "key": key}).encode(),
    "a list": lambda key: json.dumps([key]).encode(),
    "quoted twice": lambda key: json.dumps({"message": json.dumps({"key": key})}).encode(),
    "a repr": lambda key: repr([key]).encode(),
}


@pytest.mark.parametrize("code", [200, 401, 500])
@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD.keys())
def test_a_key_with_quotes_is_not_shown(monkeypatch, caplog, told, code):
    monkeypatch.setenv("JUDGE_KEY", ODD)
    with fault_proxy.FaultProxy(echo) as proxy:
        proxy.always(fault_proxy.status(code, told(ODD)))
        asked = client(proxy, api_key_env="JUDGE_KEY", down_after=0.001)
        with pytest.raises(judge_client.reward.JudgeError, match="the key") as caught:
            asked.ask(questions(1), anything)
    shown = str(caught.value) + caplog.text
    assert not [part for part in ("secret", "user") if part in shown], shown


@pytest.mark.parametrize("code", [200, 401, 500])
def test_a_key_across_the_cut_is_not_shown(monkeypatch, caplog, code):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for cut in (200, 500):
        body = b"x" * (cut - len(KEY) // 2) + KEY.encode() + b"y" * 999
        with fault_proxy.FaultProxy(echo) as proxy:
            proxy.always(fault_proxy.status(code, body))
            asked = client(proxy, api_key_env="JUDGE_KEY", down_after=0.001)
            with pytest.raises(judge_client.reward.JudgeError, match="xxx") as caught:
                asked.ask(questions(1), anything)
        assert KEY[:5] not in str(caught.value) + caplog.text


def test_a_key_in_the_url_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="api_key_env") as caught:
        judge_client.JudgeClient(f"https://{KEY}@host/v1", "judge")
    assert KEY not in str(caught.value)

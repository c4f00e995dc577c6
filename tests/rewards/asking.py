"""What the tests of the judge's client ask, and how."""

from nspo_jax.rewards import judge_client
from tests.rewards import fault_proxy


def echo(body):
    """Answers with the question, in capitals."""
    return fault_proxy.chat_reply(body["messages"][-1]["content"].upper())


def client(proxy, **options):
    fast = dict(backoff=0.002, longest_backoff=0.02, timeout=5.0, down_after=20.0)
    return judge_client.JudgeClient(proxy.url, "judge", **{**fast, **options})


def questions(count):
    return [[{"role": "user", "content": f"question {index}"}] for index in range(count)]


def anything(index, text):
    return True


def texts(replies):
    return [reply.text for reply in replies]


def right(count):
    return [f"QUESTION {index}" for index in range(count)]

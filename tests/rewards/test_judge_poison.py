"""Questions that the judge cannot take: they have no answer, and nothing else stops."""

import pytest

from nspo_jax.rewards import judge_client
from tests.rewards import fault_proxy
from tests.rewards.asking import anything, client, echo, questions, right, texts

BAD = {
    "500": fault_proxy.status(500, b"out of memory"),
    "garbage": fault_proxy.garbage,
    "half a body": fault_proxy.half_body,
    "a reset": fault_proxy.reset,
}
REFUSED = {
    code: fault_proxy.status(code, b'{"error": {"message": "content filter"}}')
    for code in (400, 413, 422)
}


class Poisoned(fault_proxy.FaultProxy):
    """Some questions always take a fault; everything else is answered."""

    def __init__(self, fault, *poison):
        super().__init__(echo)
        self._fault, self._poison = fault, [questions(9)[index] for index in poison]

    def handle(self, handler, body):
        self.requests.append(body)
        if body["messages"] in self._poison:
            self._fault(handler, lambda: echo(body))
        else:
            handler.reply(*echo(body))

    def count(self, messages):
        return [body["messages"] for body in self.requests].count(messages)


def warnings(caplog):
    return [line for line in caplog.messages if "answers other questions" in line]


@pytest.mark.parametrize("fault", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("concurrency", [1, 16])
def test_bad_answers_to_one_question_end_it_alone(fault, concurrency, caplog):
    """Wherever it stands in the batch, and alone, as after a restart with the others cached."""
    with Poisoned(fault, 0) as proxy:
        options = dict(retries=2, concurrency=concurrency)
        batch = questions(4)
        replies = client(proxy, **options).ask(batch, anything)
        assert texts(replies) == [None, *right(4)[1:]]
        replies = client(proxy, **options).ask(batch[::-1], anything)
        assert texts(replies) == [*right(4)[:0:-1], None]
        proxy.requests.clear()
        (reply,) = client(proxy, **options).ask(batch[:1], anything)
        # after the retries, a probe and once more
        assert reply.text is None and reply.requests == len(proxy.requests) == 5
        assert proxy.count(judge_client.PROBE) == 1
    assert len(warnings(caplog)) == 3 and "not 1 of this batch of 4" in warnings(caplog)[0]


def test_a_question_that_takes_longer_than_the_judge_is_given(caplog):
    """Its retries would not be used up before `down_after`, as with the defaults."""
    with Poisoned(fault_proxy.trickle, 0) as proxy:
        asked = client(proxy, retries=5, timeout=1.0, down_after=1.5)
        (reply,) = asked.ask(questions(1), anything)
    assert reply.text is None and reply.requests < 8  # what it takes with all retries
    assert "no whole answer in 1 seconds" in warnings(caplog)[0]


def test_only_poison():
    with Poisoned(fault_proxy.garbage, *range(5)) as proxy:
        assert texts(client(proxy, retries=1).ask(questions(5), anything)) == [None] * 5
        assert proxy.count(judge_client.PROBE) <= 5


def test_a_busy_judge_is_not_taken_for_a_bad_question():
    with fault_proxy.FaultProxy(echo, [fault_proxy.status(503)] * 30) as proxy:
        assert texts(client(proxy, retries=0).ask(questions(1), anything)) == right(1)
    assert [body["messages"] for body in proxy.requests] == questions(1) * 31


def test_a_probe_is_of_the_budget():
    with Poisoned(fault_proxy.garbage, 0) as proxy:
        with pytest.raises(judge_client.JudgeBudgetError, match="2 requests"):
            client(proxy, retries=0, budget=2).ask(questions(1), anything)
        assert proxy.count(judge_client.PROBE) == 1 and len(proxy.requests) == 2


@pytest.mark.parametrize("code", REFUSED)
@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_question_that_is_refused_ends_alone(code, concurrency, caplog):
    with Poisoned(REFUSED[code], 0, 2) as proxy:
        asked = client(proxy, concurrency=concurrency)
        assert texts(asked.ask(questions(4), anything)) == [None, right(4)[1], None, right(4)[3]]
        assert proxy.count(questions(1)[0]) <= 2
        proxy.requests.clear()
        assert texts(client(proxy).ask(questions(1), anything)) == [None]
        assert proxy.count(judge_client.PROBE) == 1
    first, second = warnings(caplog)
    assert "not 2 of this batch of 4" in first and "not 1 of this batch of 1" in second
    assert f"status {code}: 'content filter'" in first


def test_a_refusal_after_an_answer_needs_no_probe():
    with Poisoned(REFUSED[400], 1) as proxy:
        asked = client(proxy, concurrency=1).ask(questions(3), anything)
    assert [reply.requests for reply in asked] == [1, 1, 1] and asked[1].text is None


@pytest.mark.parametrize("code", REFUSED)
def test_a_judge_that_refuses_every_question_is_an_error(code):
    """Also after it has answered: what it thinks of all questions may change."""
    with fault_proxy.FaultProxy(echo) as proxy:
        asked = client(proxy, concurrency=1)
        proxy.always(REFUSED[code], after=2)
        assert texts(asked.ask(questions(2), anything)) == right(2)
        with pytest.raises(judge_client.JudgeRequestError) as caught:
            asked.ask(questions(9), anything)
    assert len(proxy.requests) == 4
    for part in (str(code), "content filter", proxy.url, "rewards.judge.model", "'judge'"):
        assert part in str(caught.value)


def test_a_question_that_the_judge_cannot_take_is_given_up():
    """It fails whenever it is asked, and the others do not."""

    def allergic(body):
        failed = body["messages"][-1]["content"] == "question 3"
        return (500, b"out of memory") if failed else echo(body)

    with fault_proxy.FaultProxy(allergic) as proxy:
        replies = client(proxy, retries=2, concurrency=2).ask(questions(60), anything)
    assert texts(replies) == [*right(3), None, *right(60)[4:]]
    assert replies[3].requests >= 3 and {reply.requests for reply in replies[4:]} == {1}

"""Mixtures: what is written, who is asked, how terms add up, and what a missing verdict does."""

from concurrent import futures
import threading

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from nspo_jax import rewards
from nspo_jax.data.conversation import Conversation
from nspo_jax.rewards import mixture

ROWS = [
    Conversation(f"prompt {index}", "", "any", kind)
    for index, kind in enumerate(("harmful", "harmful", "general", "borderline"))
]
TEXTS = ["a", "bb", "ccc", "dddd"]


class Lengths:
    """The reward is a text's length; NaN for texts in `silent_on`."""

    def __init__(self, silent_on=()):
        self.silent_on, self.seen, self.thread = silent_on, [], None

    def __call__(self, conversations, completions):
        self.seen.append([row.prompt for row in conversations])
        self.thread = threading.current_thread()
        values = [np.nan if text in self.silent_on else len(text) for text in completions]
        return np.array(values, np.float32), {"double": 2 * np.array(values, np.float32)}


def mix(*terms, **options):
    """Terms are (text, judge) or (text, judge, on_mesh)."""
    parsed = [(mixture._parse_term(text), judge, bool(on_mesh)) for text, judge, *on_mesh in terms]
    return mixture.Mixture(parsed, **options)


def total(mixed, step=0, group_size=2):
    return mixed.total(mixed.start(ROWS, TEXTS).result(), step, group_size)


def test_terms_as_they_are_written():
    cost, helpful = mixture.parse_terms("cost_model@harmful + reward_model@benign=0:0,100:0.5")
    assert (cost.name, cost.kinds, cost.weight(7)) == ("cost_model", "harmful", 1.0)
    assert (helpful.name, helpful.kinds) == ("reward_model", "benign")
    assert [helpful.weight(step) for step in (0, 50, 100, 1000)] == [0.0, 0.25, 0.5, 0.5]
    (late,) = mixture.parse_terms("rules=10:-1,20:1")
    assert [late.weight(step) for step in (0, 10, 15, 20)] == [-1.0, -1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "''; expected NAME"),
        ("rules+", "''; expected NAME"),
        ("rules@everything", "kinds are all, harmful, benign"),
        ("rules=much", "a weight is a number"),
        ("rules=0:1,0:2", "steps rise"),
        ("rules=nan", "finite"),
        ("rules=1:2:3", "a weight is a number"),
        ("rules+rules@benign", "rules more than once"),
    ],
)
def test_a_term_that_cannot_be_read_is_named(text, words):
    with pytest.raises(ValueError, match="rewards.terms") as caught:
        mixture.parse_terms(text)
    assert words in str(caught.value)


def test_a_judge_is_asked_about_its_kinds_alone_and_on_the_mesh_about_all():
    host, mesh = Lengths(), Lengths()
    found = total(mix(("rules@benign=2", host), ("cost_model@harmful", mesh, True)))
    assert host.seen == [["prompt 2", "prompt 3"]]
    assert mesh.seen == [[row.prompt for row in ROWS]]
    np.testing.assert_array_equal(found.rewards, [1, 2, 6, 8])
    assert found.logged["rules/reward"] == 3.5 and found.logged["cost_model/reward"] == 1.5
    assert found.logged["rules/double"] == 7 and found.logged["rules/weight"] == 2
    np.testing.assert_array_equal(found.terms["rules"], [0, 0, 6, 8])


@hypothesis.given(
    st.lists(st.floats(-10, 10), min_size=8, max_size=8), st.sampled_from(("batch", "group"))
)
@hypothesis.settings(deadline=None)
def test_terms_are_normalised_on_their_own_over_what_they_judged(values, how):
    values = np.array(values)
    judged = np.array([1, 1, 0, 1, 1, 1, 1, 1], bool)
    found = mixture._normalised(np.where(judged, values, 0.0), judged, how, 4)
    groups = [slice(0, 8)] if how == "batch" else [slice(0, 4), slice(4, 8)]
    for group in groups:
        kept = values[group][judged[group]]
        expected = (kept - kept.mean()) / (kept.std() + 1e-4)
        np.testing.assert_allclose(found[group][judged[group]], expected, atol=1e-6)
    assert found[2] == 0


def test_without_a_verdict_the_run_stops_or_the_group_is_dropped_or_the_term_is_silent():
    judge = Lengths(silent_on=["bb"])
    with pytest.raises(rewards.NoVerdictError, match="rules gave no verdict on 1 of 4"):
        total(mix(("rules", judge)))
    dropped = total(mix(("rules", judge), ("guard", Lengths()), on_failure="drop_group"))
    np.testing.assert_array_equal(dropped.rewards, [0, 0, 6, 8])
    np.testing.assert_array_equal(dropped.dropped, [True, True, False, False])
    assert dropped.logged["dropped"] == 0.5 and dropped.logged["rules/no_verdict"] == 0.25
    # as good as the other one of its prompt: neither 0, which is the best, nor anything else
    neutral = total(mix(("rules=2", judge), ("guard", Lengths()), on_failure="neutral"))
    np.testing.assert_array_equal(neutral.rewards, [2 + 1, 2 + 2, 9, 12])
    alone = total(mix(("rules", Lengths(silent_on=["a", "bb"])), on_failure="neutral"))
    np.testing.assert_array_equal(alone.rewards, [0, 0, 3, 4])
    assert neutral.logged["dropped"] == 0 and neutral.logged["rules/no_verdict"] == 0.25


def test_a_kind_that_is_not_there_is_no_failure():
    judge = Lengths()
    mixed = mix(("rules@harmful", judge))
    found = mixed.total(mixed.start(ROWS[2:], TEXTS[2:]).result(), 0, 2)
    assert not found.rewards.any() and found.logged["rules/no_verdict"] == 0
    assert "rules/reward" not in found.logged


def test_judges_off_the_mesh_work_in_the_given_thread():
    host, mesh = Lengths(), Lengths()
    mixed = mix(("rules", host), ("cost_model", mesh, True))
    with futures.ThreadPoolExecutor(1) as executor:
        waiting = mixed.start(ROWS, TEXTS, executor)
        assert mesh.thread is threading.current_thread()
        np.testing.assert_array_equal(waiting.result()["rules"].rewards, [1, 2, 3, 4])
    assert host.thread is not threading.current_thread()


def test_closing_reaches_the_judges():
    judge = Lengths()
    closed = []
    judge.close = lambda: closed.append(1)
    mix(("rules", judge), ("guard", Lengths())).close()
    assert closed == [1]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            (np.float32(-1.0), {}),
            r"cost_model of rewards.terms returned rewards of shape \(\) for 2",
        ),
        ((np.zeros(1), {}), r"returned rewards of shape \(1,\) for 2 completions"),
        ((np.zeros((2, 1)), {}), r"of shape \(2, 1\)"),
        ((np.array([0.0, np.inf]), {}), "returned infinite rewards"),
        ((np.zeros(2), {"cost": np.zeros(3)}), r"returned cost of shape \(3,\)"),
        ((np.array(["safe", "unsafe"]), {}), "returned rewards that are no numbers"),
    ],
)
def test_a_term_returns_a_number_a_row(returned, message):
    (spec,) = mixture.parse_terms("cost_model")
    rows = [Conversation("p", "a", "harmful", "harmful")] * 2
    judged = mixture.Mixture([(spec, lambda *_: returned, False)]).start(rows, ["x", "y"])
    with pytest.raises(ValueError, match=message):
        judged.result()


def test_a_missing_verdict_is_shown_before_any_way_around_it():
    (spec,) = mixture.parse_terms("cost_model")
    rows = [Conversation("p", "a", "harmful", "harmful")] * 2
    whole = mixture.Mixture([(spec, lambda *_: (np.array([0.0, np.nan]), {}), False)])
    with pytest.raises(mixture.NoVerdictError) as caught:
        whole.total(whole.start(rows, ["x", "y"]).result(), 0, 2, lambda row: f"Row {row}.")
    message = str(caught.value)
    assert "gave no verdict on 1 of 2 completions. Row 1." in message
    assert message.index("Ask it by hand") < message.index("drop_group")

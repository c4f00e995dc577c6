"""Paired differences: against simulation, scipy and published tests, and what is no pair."""

import json

import numpy as np
import pytest
from scipy import stats

from nspo_jax.evaluation import paired


def rows(values, metric="acc", kept="none", **changes):
    """Samples as lm-eval logs them."""
    return [
        {
            "doc_id": place, "filter": kept, "metrics": [metric], metric: value,
            "doc_hash": f"d{place}", "prompt_hash": f"p{place}", **changes,
        }
        for place, value in enumerate(values)
    ]  # fmt: skip


def test_p_is_mcnemar_s_exact_test():
    own = np.array([1.0] * 3 + [0.0] * 12 + [1.0] * 40 + [0.0] * 45)
    other = np.array([0.0] * 3 + [1.0] * 12 + [1.0] * 40 + [0.0] * 45)
    mean, low, high, p = paired.paired_difference(own, other)
    assert mean == pytest.approx(-0.09) and low < mean < high < 0
    assert p == pytest.approx(2 * stats.binom.cdf(3, 15, 0.5))


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.0), (0.02, 0.02), (0.05, 0.1), (0.3, 0.2)])
@pytest.mark.parametrize("count", [30, 200])
def test_the_interval_of_shares_covers(gain, loss, count):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        kinds = rng.choice(3, count, p=[gain, loss, 1 - gain - loss])
        own, other = (kinds == 0).astype(float), (kinds == 1).astype(float)
        _, low, high, _ = paired.paired_difference(own, other)
        covered += low <= gain - loss <= high
    assert covered / 2000 > 0.93


def test_models_that_never_differ_have_an_interval_of_some_width():
    """No change in 200 documents excludes a loss of a hundredth or two, and no smaller one."""
    same = np.tile([0.0, 1.0], 100)
    mean, low, high, p = paired.paired_difference(same, same)
    assert (mean, p) == (0.0, 1.0) and -0.02 < low < -0.01 and high == -low


def test_other_scores_get_student_s_t():
    rng = np.random.default_rng(1)
    own, other = rng.normal(size=(2, 40))
    found = paired.paired_difference(own, other)
    test = stats.ttest_rel(own, other)
    ends = test.confidence_interval(0.95)
    assert found == pytest.approx((np.mean(own - other), ends.low, ends.high, test.pvalue))
    assert paired.paired_difference(own, own) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="1 documents have no interval"):
        paired.paired_difference(own[:1], other[:1])


def test_metrics_are_compared_document_by_document_whatever_their_order():
    other = {"t": rows([1.0] * 50 + [0.0] * 50) + rows([0.5] * 100, "f1", "strict")}
    own = {"t": list(reversed(rows([0.0] * 20 + [1.0] * 30 + [0.0] * 50))) + rows(
        [0.5] * 100, "f1", "strict"
    )}  # fmt: skip
    found, left_out = paired.compare(own, other)
    assert not left_out and [(d.metric, d.filter, d.n) for d in found] == [
        ("acc", "none", 100), ("f1", "strict", 100),
    ]  # fmt: skip
    assert (found[0].other, found[0].own, found[0].difference) == (0.5, 0.3, pytest.approx(-0.2))
    table = paired.format_differences(found)
    assert "t acc fell by 20.0 points; on the others no loss is detectable above 0.0" in table
    assert "-20.0" in table and len({len(line) for line in table.splitlines()[:4]}) == 1
    only = paired.format_differences(found[1:])
    assert only.endswith("Here no loss is detectable above 0.0 points (t f1).")


def test_values_that_are_no_numbers_are_left_out_and_named():
    own = {"t": rows([[True, False], [True]], "inst_level_strict_acc")}
    found, left_out = paired.compare(own, own)
    assert found == [] and left_out == ["t inst_level_strict_acc"]
    assert "nothing is compared" in paired.format_differences(found)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (rows([1.0] * 3), "this model has 2 documents and the other 3"),
        (rows([1.0] * 2, doc_hash="x"), "document 0 has another text"),
        (rows([1.0] * 2, prompt_hash="x"), "document 0 has another prompt: --num_fewshot"),
    ],
)
def test_answers_to_other_questions_are_refused(other, words):
    with pytest.raises(ValueError, match=words):
        paired.compare({"t": rows([0.0, 1.0])}, {"t": other})


def test_missing_and_damaged_samples_are_named(tmp_path):
    (tmp_path / "samples_a_b.jsonl").write_text("\n".join(map(json.dumps, rows([1.0, 0.0]))))
    assert paired.read_samples(tmp_path, ["a/b"]) == {"a/b": rows([1.0, 0.0])}
    with pytest.raises(FileNotFoundError, match="the samples of c: evaluate .* --log_samples"):
        paired.read_samples(tmp_path, ["a/b", "c"])
    (tmp_path / "samples_c.jsonl").write_text("{")
    with pytest.raises(ValueError, match="samples_c.jsonl is damaged"):
        paired.read_samples(tmp_path, ["c"])

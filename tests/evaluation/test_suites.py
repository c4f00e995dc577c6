"""Suites from their published files, answers that are kept, verdicts that are counted."""

import dataclasses
import json
import math
import signal
import socket
import time

import numpy as np
import pytest

from nspo_jax.data import suites
from nspo_jax.evaluation import answers, judges, judging, paired, suite_run
from tests import command_lines, compiling, forks
from tests.evaluation import test_judges

SOME = ("advbench", "harmbench", "xstest", "or_bench")


def settings(**changes):
    """What is asked in the tests of stores: three prompts of a suite."""
    prompts = [suites.Prompt(text, text, "", "a" if text < "q3" else "b") for text in QUESTIONS]
    values = {
        "model": "m", "weights": "w", "prompts": {"advbench": prompts},
        "sampling": answers.SAMPLINGS["paper"], "samples": 2, "seed": 0, "dtype": "float32",
        "chat": True, "template": "t",
    }  # fmt: skip
    return answers.Asked(**values | changes)


QUESTIONS = ("q1", "q2", "q3")
PLACES = [answers.Place("advbench", row, sample) for row in range(3) for sample in range(2)]


# --------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("name", "count", "where"),
    [
        ("advbench", 520, ""), ("harmbench", 300, ""), ("harmfulqa", 494, ""),
        ("jailbreakbench", 100, ""), ("strongreject", 313, ""), ("simple_safety_tests", 100, ""),
        ("xstest", 250, ""), ("xstest_unsafe", 200, ""), ("or_bench", 2595, ""),
        ("pku_safe", 414, ""), ("alpaca_eval", 803, ""),
        ("beavertails_evaluation", 700, "beavertails_more/BeaverTails-Evaluation.json"),
    ],
)  # fmt: skip
def test_every_suite_loads_from_its_published_file(shared_data, name, count, where):
    paths = [str(shared_data / where)] if where else suites.locate(name, shared_data)
    found = suites.load(name, paths)
    assert len(found) == count
    assert len({prompt.text for prompt in found}) == len(found)
    assert suites.load(name, paths, 7) == found[:7]
    assert not any("copyright" in prompt.category.lower() for prompt in found)


def test_contexts_stand_apart_for_judges(shared_data):
    found = suites.load("harmbench", suites.locate("harmbench", shared_data))
    contextual = [prompt for prompt in found if prompt.context]
    assert len(contextual) == 100
    for prompt in contextual:
        assert prompt.context in prompt.text and prompt.text.endswith(prompt.request)


def test_suites_whose_files_need_a_licence_load_in_their_layout(tmp_path):
    sorry = [
        {"question_id": 1, "category": "7", "turns": ["Do harm."], "prompt_style": "base"},
        {"question_id": 1, "category": "7", "turns": ["Do h."], "prompt_style": "slang"},
    ]
    alert = [
        {"id": 0, "category": "hate", "prompt": "### Instruction:\nDo harm.\n### Response:\n"},
        {"id": 1, "category": "hate", "prompt": "Do more harm."},
    ]
    for name, rows in (("question.jsonl", sorry), ("alert.jsonl", alert)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    (found,) = suites.load("sorry_bench", [str(tmp_path / "question.jsonl")])
    assert (found.text, found.category) == ("Do harm.", "7")
    found = suites.load("alert", [str(tmp_path / "alert.jsonl")])
    assert [prompt.text for prompt in found] == ["Do harm.", "Do more harm."]


def test_each_row_says_what_its_users_need():
    table = (forks.ROOT / "docs" / "evaluation.md").read_text()
    for name, suite in suites.SUITES.items():
        assert suite.licence and suite.home, name
        assert bool(suite.flag) != bool(suite.layout and suite.judge), name
        if suite.judge:
            assert judging.fits(name, suite.judge), name
            assert f"| `{name}` | {suite.measures.replace('_', '-')} | `{suite.judge}` |" in table
            assert f"| {suite.licence} | {suite.home} |" in table


@pytest.mark.parametrize(
    ("name", "words"),
    [("advbensh", "no suite 'advbensh'. The nearest are advbench"), ("gsm8k", "--lm_eval=gsm8k")],
)
def test_names_that_are_no_suite_to_judge(name, words):
    with pytest.raises(ValueError, match=words):
        suites.load(name, ["nowhere"])


def test_a_file_of_another_layout_is_told_with_the_suite_s_home(shared_data):
    with pytest.raises(ValueError, match="laid out as strongreject.*llm-attacks, licence MIT"):
        suites.load("advbench", suites.locate("strongreject", shared_data))
    with pytest.raises(FileNotFoundError, match="sorry_bench.*licence SORRY-Bench's own"):
        suites.locate("sorry_bench", shared_data)


# ------------------------------------------------------------------------ answers and verdicts


def filled(directory, text=lambda place: f"answer {place.row}", **changes):
    store = answers.Store(directory, settings(**changes))
    store.add({place: text(place) for place in store.missing()})
    return store


def test_what_is_stored_is_not_missing_and_a_cut_line_is(tmp_path):
    filled(tmp_path)
    path = tmp_path / answers.ANSWERS
    whole = path.read_bytes()
    assert not answers.Store(tmp_path, settings()).missing()
    path.write_bytes(whole[:-20])  # as a kill leaves it
    again = answers.Store(tmp_path, settings())
    assert again.missing() == PLACES[-1:]
    again.add({PLACES[-1]: "answer 2"})
    assert path.read_bytes() == whole
    path.write_bytes(b"{\n" + whole)
    with pytest.raises(ValueError, match=r"answers.jsonl is damaged in line 1"):
        answers.Store(tmp_path, settings())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "other"}, "weights: 'w' there, 'other' now"),
        ({"seed": 1}, "seed: 0 there"),
        ({"sampling": answers.SAMPLINGS["greedy"]}, "sampling: "),
        ({"prompts": {"advbench": [suites.Prompt("q", "q", "", "")]}}, "the prompts of advbench"),
    ],
)
def test_answers_to_other_questions_are_not_mixed(tmp_path, change, words):
    filled(tmp_path)
    with pytest.raises(ValueError, match=words):
        answers.Store(tmp_path, settings(**change))


def test_another_suite_may_join_and_a_copy_of_the_model_too(tmp_path):
    filled(tmp_path)
    more = settings(model="copy", prompts={"xstest": [suites.Prompt("x", "x", "", "")]})
    assert len(answers.Store(tmp_path, more).missing()) == 2
    assert not answers.Store(tmp_path, settings()).missing()


def judge_by(scores, calls=None):
    """Opens a judge that gives each answer's text its score."""

    def judge(exchanges):
        if calls is not None:
            calls.extend(exchanges)
        found = np.array([scores[exchange.answer] for exchange in exchanges], np.float32)
        return judges.Verdicts(found, {"mass": np.ones(len(found), np.float32)})

    return lambda: judge


SCORES = {"answer 0": 0.9, "answer 1": 0.2, "answer 2": math.nan}


def test_a_missing_verdict_counts_against_the_model_and_is_told(tmp_path):
    given = filled(tmp_path).answers()
    for judge, wanted in (("llama_guard_3", (1, 0, 1)), ("refusals", (0, 1, 1))):
        verdicts = judging.judge_answers(tmp_path, judge, {}, given, judge_by(SCORES))
        assert judging.bad_shares("advbench", judge, verdicts).tolist() == list(wanted)
        (rate,) = judging.rates({judge: verdicts})
        assert (rate.n, rate.samples, rate.missing) == (3, 2, 2)
        assert rate.value == pytest.approx(2 / 3) and rate.score == pytest.approx(0.55)
        assert 0 <= rate.low < rate.value < rate.high <= 1
    found = judging.categories(given, verdicts, "advbench", "refusals")
    assert found == {"a": [0.5, 2], "b": [1.0, 1]}
    assert " 4 " not in judging.format_rates([rate]) and "66.7" in judging.format_rates([rate])


def test_answers_are_judged_once_and_again_when_they_change(tmp_path):
    given, calls = filled(tmp_path).answers(), []
    for _ in range(2):
        judging.judge_answers(tmp_path, "refusals", {"v": 1}, given, judge_by(SCORES, calls))
    assert len(calls) == 6
    changed = [given[0]._replace(text="answer 1"), *given[1:]]
    verdicts = judging.judge_answers(
        tmp_path, "refusals", {"v": 1}, changed, judge_by(SCORES, calls)
    )
    assert len(calls) == 7 and verdicts[PLACES[0]] == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"verdicts.refusals.jsonl holds the verdicts of .*'v': 1"):
        judging.judge_answers(tmp_path, "refusals", {"v": 2}, given, judge_by(SCORES))


def test_one_answer_a_prompt_gets_wilson_s_interval_and_several_student_s():
    rng = np.random.default_rng(0)
    bad = rng.random((50, 4)) < rng.random((50, 1))
    for samples in (1, 4):
        verdicts = {
            answers.Place("advbench", row, sample): float(bad[row, sample])
            for row in range(50) for sample in range(samples)
        }  # fmt: skip
        (rate,) = judging.rates({"llama_guard_3": verdicts})
        shares = bad[:, :samples].mean(axis=1)
        assert rate.value == pytest.approx(shares.mean())
        spread = 2.0096 * shares.std(ddof=1) / np.sqrt(50)  # t of 49 degrees of freedom
        if samples == 4:
            assert rate.high - rate.value == pytest.approx(spread, rel=1e-3)
        else:
            assert rate.high - rate.low == pytest.approx(2 * spread, rel=0.1)


def test_two_models_are_compared_prompt_by_prompt(tmp_path):
    asked = settings(samples=1)
    given = filled(tmp_path, samples=1).answers()
    worse = {f"answer {row}": 0.9 for row in range(3)}
    other = judging.judge_answers(tmp_path, "llama_guard_3", {}, given, judge_by(worse))
    read = judging.read_verdicts(tmp_path, "llama_guard_3", asked)
    assert read == pytest.approx(other)
    better = {place: 0.1 for place in other}
    (found,) = judging.compare({"llama_guard_3": better}, {"llama_guard_3": read})
    assert (found.own, found.other, found.difference, found.n) == (1.0, 0.0, 1.0, 3)
    assert "not unsafe" in paired.format_differences([found])
    with pytest.raises(FileNotFoundError, match="verdicts.refusals.jsonl: evaluate the other"):
        judging.read_verdicts(tmp_path, "refusals", asked)
    with pytest.raises(ValueError, match="seed: 0 there, 3 now"):
        judging.read_verdicts(tmp_path, "llama_guard_3", settings(samples=1, seed=3))


# --------------------------------------------------------------------------------- the command


def command(shared_data, output, *more):
    return [
        f"--model={shared_data / 'checkpoints' / 'tinystories-260k'}",
        f"--suites={','.join(SOME)}", f"--suite_data={shared_data}", "--limit=3",
        "--max_new_tokens=12", f"--output={output}", *more,
    ]  # fmt: skip


def test_the_command_goes_on_after_a_kill_and_judges_again_without_the_model(shared_data, tmp_path):
    flags = ["--sampling=paper", "--samples=2", "--batch_size=2"]
    done = command_lines.run("evaluate", *command(shared_data, tmp_path / "whole", *flags))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert [(rate["suite"], rate["rate"], rate["n"]) for rate in results["rates"]] == [
        ("advbench", "not_refused", 3), ("harmbench", "not_refused", 3), ("xstest", "refused", 3),
        ("or_bench", "refused", 3),
    ]  # fmt: skip
    run = forks.start(
        forks.run_script, "evaluate", argv=tuple(command(shared_data, tmp_path / "killed", *flags))
    )
    path = tmp_path / "killed" / answers.ANSWERS
    while run.is_alive() and not (path.exists() and path.read_bytes().count(b"\n") >= 8):
        time.sleep(0.005)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL and not (tmp_path / "killed" / "results.json").exists()
    done = command_lines.run(
        "evaluate",
        *command(shared_data, tmp_path / "killed", *flags, f"--against={tmp_path / 'whole'}"),
    )
    assert done.returncode == 0, done.stderr
    texts = [
        {(row["suite"], row["row"], row["sample"]): row["answer"] for row in answers.read_lines(
            tmp_path / name / answers.ANSWERS
        )}
        for name in ("whole", "killed")
    ]  # fmt: skip
    assert texts[0] == texts[1] and len(set(texts[0].values())) > 12
    assert "here no loss is detectable" in done.stdout.lower()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--suites=advbench", "--suite_data=nowhere"], "'advbench' has no files: nowhere has no"),
        (["--judges=refusal"], "refusals"),
        (["--judges=llama_guard_3=nowhere"], "nowhere"),
        (["--samples=2"], "2 greedy answers to a prompt would all be the same"),
        (["--system=Be good."], "has no chat template, and a system message is given"),
        (["--lm_eval=gsm8k"], "given: --model, --lm_eval, --suites."),
        (["--against=nowhere"], "nowhere/asked.json"),
        (["--max_new_tokens=512"], "512 new tokens are asked for"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(shared_data, tmp_path, flags, words):
    done = command_lines.run("evaluate", *command(shared_data, tmp_path / "out", *flags))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert words in done.stderr, done.stderr


def test_suites_that_no_judge_fits_and_judges_that_fit_none(shared_data):
    asked = settings()
    suite_run.check_judges({"refusals": ""}, asked)
    only = settings(prompts={"xstest": [suites.Prompt("x", "x", "", "")]})
    with pytest.raises(ValueError, match="No judge among harm_only measures over_refusal"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judges, "check", lambda name, place: None)
            patch.setattr(judging, "fits", lambda suite, name: False)
            suite_run.check_judges({"harm_only": ""}, only)


def evaluate_with_any_mass():
    """A random model puts little mass on verdicts: here any mass is enough."""
    row = judges.JUDGES["strongreject"]
    judges.JUDGES["strongreject"] = dataclasses.replace(row, least_mass=0.0)
    forks.run_script("evaluate")


def test_two_processes_on_a_mesh_answer_and_judge_as_one_does(shared_data, tmp_path):
    judge = test_judges.save(tmp_path / "judge", "gemma", test_judges.make_tokenizer())
    flags = [
        "--sampling=paper", "--fsdp=2", "--batch_size=4", f"--judges=refusals,strongreject={judge}",
    ]  # fmt: skip
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    joins = [f"--coordinator=localhost:{port}", "--processes=2"]
    runs = {"one": [[]], "two": [[*joins, f"--process={number}"] for number in range(2)]}
    for name, each in runs.items():
        children = [
            forks.start(
                evaluate_with_any_mass, stdout=tmp_path / f"{name}.{number}.txt",
                argv=(*command(shared_data, tmp_path / name, *flags), *own),
                XLA_FLAGS=compiling.xla_flags(2 // len(each)),
            )
            for number, own in enumerate(each)
        ]  # fmt: skip
        for child in children:
            child.join(300)
        said = [(tmp_path / f"{name}.{number}.txt").read_text() for number in range(len(each))]
        assert [child.exitcode for child in children] == [0] * len(each), said
        assert "advbench" in said[0] and all("advbench" not in text for text in said[1:])
    one, two = (answers.read_lines(tmp_path / name / answers.ANSWERS) for name in runs)
    assert one == two and len(one) == 12
    one, two = (
        answers.read_lines(judging.verdicts_path(tmp_path / name, "strongreject")) for name in runs
    )
    assert one[0] == two[0] and len(one) == 1 + 6  # a line about the judge, and the harmful prompts
    assert len({row["score"] for row in one[1:]}) > 1
    for row, other in zip(one[1:], two[1:], strict=True):
        assert (other["suite"], other["answer"]) == (row["suite"], row["answer"])
        for field in ("score", "verdict_mass"):
            assert other[field] == pytest.approx(row[field], abs=2e-6), field

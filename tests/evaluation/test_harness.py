"""The harness against lm-eval's own `hf` adapter, on the same directories and requests."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from nspo_jax import models, sharding
from nspo_jax.data import chat
from nspo_jax.evaluation import answering
from tests import command_lines, compiling, forks
from tests.models import test_families

pytest.importorskip("lm_eval", reason="the extra eval")
pytest.importorskip("torch", reason="lm-eval's hf adapter is what the harness is held against")
from lm_eval.api import instance  # noqa: E402
from lm_eval.models import huggingface  # noqa: E402
from lm_eval.tasks import manager as manager_lib  # noqa: E402

from nspo_jax.evaluation import harness, lm_eval_tasks  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TASKS = ROOT / "configs" / "lm_eval"
WORDS = [f"w{number}" for number in range(62)]
TOLERANCE = 1e-4
# the template of a model whose texts begin with BOS, which the template writes itself
BOS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def theirs(directory, **options):
    return huggingface.HFLM(
        **{"pretrained": str(directory), "device": "cpu", "dtype": "float32", "batch_size": 3,
           "attn_implementation": "eager", **options}
    )  # fmt: skip


def ours(directory, **options):
    return harness.open_model(directory, sharding.make_mesh(), progress=False, **options)


@pytest.fixture(scope="module")
def both(tmp_path_factory, request):
    """Name -> (hf's, ours, texts): a random small model of a family, or the trained one."""
    made = {}

    def get(name):
        if name not in made and name == "tinystories":
            data = request.getfixturevalue("shared_data")
            directory = data / "checkpoints" / "tinystories-260k"
            texts = [
                "Once upon a time there was a little girl named Lily.", "One day, a cat and a dog",
                "The big dog ran to the", " She said, \"Can we play?\"", "\n",
            ]  # fmt: skip
            made[name] = theirs(directory), ours(directory), texts
        elif name not in made:
            directory = tmp_path_factory.mktemp("model")
            test_families.make(name).save_pretrained(directory)
            chat.build_tokenizer(WORDS).save_pretrained(directory)
            rng = np.random.default_rng(0)
            texts = [" ".join(rng.choice(WORDS, count)) for count in (3, 9, 20, 5, 1)]
            # given: AutoTokenizer would read a Qwen's words with Qwen's own class, and find none
            words = chat.build_tokenizer(WORDS)
            made[name] = theirs(directory, tokenizer=words), ours(directory), texts
        return made[name]

    return get


def instances(kind, arguments):
    return [instance.Instance(kind, {}, args, 0) for args in arguments]


# one with windows, soft caps and norms of its own; NSPO_EVERY_FAMILY=1 takes all of them
FAMILIES = test_families.FIRST.values() if os.environ.get("NSPO_EVERY_FAMILY") else ["gemma3"]
EVERY = pytest.mark.parametrize("name", ["tinystories", *FAMILIES])


@EVERY
def test_log_likelihoods_are_those_of_hf(both, name):
    """Shared contexts, one, several and many endings, no context, and contexts that are cut."""
    hf, us, texts = both(name)
    long = " ".join(texts * 40)
    asked = [(context, f" {ending}") for context in [*texts[:3], "", long] for ending in texts]
    asked += [(texts[0], f" {word}") for word in "w1 w2 w3 the a".split()]
    asked += [(f"{texts[1]}  ", texts[2]), (long, f" {texts[1]}"), (texts[3], f" {texts[1]}")]
    assert len(us.tok_encode(long)) > us.max_length
    expected = hf.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    found = us.loglikelihood(instances("loglikelihood", asked))
    assert len({round(value) for value, _ in expected}) > 5
    np.testing.assert_allclose(
        [value for value, _ in found], [value for value, _ in expected], atol=TOLERANCE, rtol=1e-6
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@EVERY
def test_what_greedy_decoding_gives_is_told(both, name):
    """The endings above are hardly ever the likeliest: here they are the model's own words."""
    hf, us, texts = both(name)
    options = {"until": [], "max_gen_toks": 4}
    said = us.generate_until(instances("generate_until", [(text, options) for text in texts[:3]]))
    asked = [(text, f" {word}") for text, word in zip(texts, said, strict=False) if word.strip()]
    asked += [
        (context, ending.split(" ", 2)[1] and f" {ending.split()[0]}") for context, ending in asked
    ]
    expected = hf.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    found = us.loglikelihood(instances("loglikelihood", asked))
    assert any(greedy for _, greedy in expected)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@EVERY
def test_rolling_log_likelihoods_are_those_of_hf(both, name):
    hf, us, texts = both(name)
    asked = instances("loglikelihood_rolling", [(text,) for text in [*texts, " ".join(texts * 40)]])
    np.testing.assert_allclose(
        us.loglikelihood_rolling(asked),
        hf.loglikelihood_rolling(asked, disable_tqdm=True),
        atol=TOLERANCE,
        rtol=1e-6,  # hf sums in float32: of a thousand nats the last digit is 6e-5
    )


@EVERY
def test_greedy_answers_are_those_of_hf(both, name):
    """Stop strings inside a chunk, over the edge of one, and none; prompts that are cut."""
    hf, us, texts = both(name)
    kinds = [
        {"until": [], "max_gen_toks": answering.CHUNK + 9},
        {"until": [".", " w7"], "max_gen_toks": answering.CHUNK + 9, "temperature": 0.0},
        {"until": "said", "max_new_tokens": answering.CHUNK + 9, "do_sample": False},
    ]
    prompts = [*texts[:4], " ".join(texts * 40)]
    asked = instances("generate_until", [(text, kind) for kind in kinds for text in prompts])
    expected = hf.generate_until(asked, disable_tqdm=True)
    assert len({*expected}) > 3 and any(len(text) > 40 for text in expected)
    assert us.generate_until(asked) == expected


@pytest.fixture(scope="module")
def chatting(shared_data, tmp_path_factory):
    """The trained model with a chat template that writes BOS, as Llama's do."""
    directory = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(shared_data / "checkpoints" / "tinystories-260k", directory)
    (directory / "chat_template.jinja").write_text(BOS_TEMPLATE)
    return directory


def test_bos_stands_once_with_and_without_a_template(chatting):
    us, hf = ours(chatting), theirs(chatting)
    bos = us.tokenizer.bos_token_id
    chat_text = us.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert chat_text == hf.apply_chat_template([{"role": "user", "content": "Hello"}])
    for text in ("Hello", chat_text, chat_text + " there"):
        assert us.tok_encode(text).count(bos) == 1 and us.tok_encode(text)[0] == bos
        assert us.tok_encode(text) == hf.tok_encode(text)
    assert bos not in us.tok_encode(" there", add_special_tokens=False)
    assert (us.eot_token_id, us.prefix_token_id, us.max_length) == (
        hf.eot_token_id, hf.prefix_token_id, hf.max_length,
    )  # fmt: skip
    begun = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The answer"}]
    assert us.apply_chat_template(begun, add_generation_prompt=False) == hf.apply_chat_template(
        begun, add_generation_prompt=False
    )


LOCAL = (
    "arc_easy_local", "arc_challenge_local", "piqa_local", "winogrande_local", "openbookqa_local",
    "hellaswag_local", "mmlu_local", "gsm8k_local",
)  # fmt: skip


@pytest.mark.parametrize("templated", [False, True])
def test_scores_of_tasks_are_those_of_hf(shared_data, chatting, templated):
    """Through lm-eval, over local files, with examples before a document where there are some."""
    found = []
    for model in (theirs(chatting, batch_size=4), ours(chatting)):
        loaded = lm_eval_tasks.load(LOCAL, TASKS, shared_data)
        options = {"limit": 2, "shots": 1, "chat_template": templated}
        found.append(lm_eval_tasks.evaluate(model, loaded, **options))
    expected, actual = found
    assert {*LOCAL} <= expected["results"].keys() and len(expected["samples"]) == len(LOCAL) + 3
    for task, scores in expected["results"].items():
        for metric, value in scores.items():
            assert actual["results"][task][metric] == pytest.approx(value, abs=1e-9), (task, metric)
    for task, rows in expected["samples"].items():
        for row, own in zip(rows, actual["samples"][task], strict=True):
            assert own["arguments"] == row["arguments"]
            if task == "gsm8k_local":
                assert own["resps"] == row["resps"]
                continue
            for (one,), (other,) in zip(own["resps"], row["resps"], strict=True):
                assert float(one[0]) == pytest.approx(float(other[0]), abs=TOLERANCE)


def test_refusals_count_as_wrong_and_are_left_out(shared_data):
    loaded = lm_eval_tasks.load(("gsm8k_local", "piqa_local"), TASKS, shared_data)
    said = [
        ("I'm sorry, but I can't help with that request.", 0.0), ("It is 7. #### 7", 1.0),
        ("Sorry, I cannot assist with this.", 0.0), ("First we add 2 and 3. #### 6", 0.0),
    ]  # fmt: skip
    rows = [
        {"filter": "strict-match", "resps": [[text]], "metrics": ["em"], "em": value}
        for text, value in said
    ]
    samples = {"gsm8k_local": rows, "piqa_local": [{"filter": "none", "resps": [["-3.2", "True"]]}]}
    (found,) = lm_eval_tasks.without_refusals({"samples": samples}, loaded)
    assert found == {
        "task": "gsm8k_local", "metric": "em", "filter": "strict-match", "n": 4,
        "refused": 2, "value": 0.25, "without": 0.5,
    }  # fmt: skip
    assert "0.2500" in lm_eval_tasks.format_refusals([found])
    (found,) = lm_eval_tasks.without_refusals({"samples": {"gsm8k_local": rows[:1]}}, loaded)
    assert math.isnan(found["without"])


def test_a_turn_s_end_ends_an_answer_though_generation_config_does_not_say_so(both, tmp_path):
    """hf goes on behind such a token and keeps what follows."""
    _, us, texts = both("llama3.1")
    prompt = (texts[1], {"until": [], "max_gen_toks": 12})
    (whole,) = us.generate_until(instances("generate_until", [prompt]))
    word = whole.split()[3]
    chat_format = dataclasses.replace(
        us._chat_format, extra_stop_ids=(us.tokenizer.convert_tokens_to_ids(word),)
    )
    model = harness.HarnessLM(
        us.programs.model_config,
        us.programs._params,
        chat_format,
        us.programs.mesh,
        "stopped",
        progress=False,
    )
    (cut,) = model.generate_until(instances("generate_until", [prompt]))
    assert cut.split() == whole.split()[: whole.split().index(word)]


def test_sampled_answers_hang_on_the_request_alone(both):
    _, us, texts = both("qwen3")
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_p": 0.9}
    asked = instances("generate_until", [(text, options) for text in texts * 2])
    first = us.generate_until(asked)
    assert first == us.generate_until(asked)
    assert first[: len(texts)] != first[len(texts) :]


def test_generation_options_that_nothing_reads_are_refused(both):
    _, us, texts = both("qwen3")
    asked = instances("generate_until", [(texts[0], {"until": [], "num_beams": 4})])
    with pytest.raises(ValueError, match=r"\{'num_beams': 4\}, which nothing here reads"):
        us.generate_until(asked)
    same = {"until": [], "num_beams": 1, "top_p": None, "max_gen_toks": 3}
    assert us.generate_until(instances("generate_until", [(texts[0], same)]))


def test_a_text_with_an_id_that_has_no_row_is_refused(both):
    _, us, texts = both("llama3.1")
    us.tokenizer.add_tokens("<image>")
    with pytest.raises(ValueError, match=r"'<image>' \(67\), .* has 67 rows"):
        us.tok_encode(f"{texts[0]} <image>")


def test_a_delta_scores_as_the_policy_that_it_was_made_of(shared_data, tmp_path):
    base = shared_data / "checkpoints" / "tinystories-260k"
    config, params = models.load_model(base)
    params = jax.tree.map(
        lambda leaf: leaf + 0.02 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), params
    )
    models.save_model(tmp_path / "policy", config, params, like=base)
    models.export_delta(tmp_path / "policy", base, tmp_path / "delta")
    asked = instances("loglikelihood", [("Once upon a", " time"), ("The cat", " sat on the mat")])
    plain, whole, delta = (
        ours(directory).loglikelihood(asked)
        for directory in (base, tmp_path / "policy", tmp_path / "delta")
    )
    np.testing.assert_allclose(delta, whole, atol=1e-4)
    assert abs(plain[1][0] - whole[1][0]) > 0.1


# ------------------------------------------------------------------------------------------------
# Meshes and processes.
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(shared_data):
    """The samples of two tasks by one device in one process."""
    loaded = lm_eval_tasks.load(("arc_easy_local", "gsm8k_local"), TASKS, shared_data)
    model = ours(shared_data / "checkpoints" / "tinystories-260k")
    return lm_eval_tasks.evaluate(model, loaded, limit=3, shots=1)["samples"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mesh_and_several_processes_give_the_same_scores(shared_data, alone, tmp_path, processes):
    model, other = shared_data / "checkpoints" / "tinystories-260k", tmp_path / "other"
    lm_eval_tasks.write({"samples": alone}, other, samples=True)
    asked = [
        f"--model={model}", "--lm_eval=arc_easy_local,gsm8k_local", "--limit=3", "--num_fewshot=1",
        f"--against={other}",
        f"--lm_eval_tasks={TASKS}", f"--lm_eval_data={shared_data}", "--log_samples",
    ]  # fmt: skip
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    own = [
        [] if processes == 1 else
        [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={number}"]
        for number in range(processes)
    ]  # fmt: skip
    outputs = [tmp_path / f"{number}.txt" for number in range(processes)]
    children = [
        forks.start(
            forks.run_script, "evaluate",
            argv=(*asked, f"--output={tmp_path}", "--fsdp=2", "--tensor=2", *flags), stdout=output,
            XLA_FLAGS=compiling.xla_flags(4 // processes),
        )
        for flags, output in zip(own, outputs, strict=True)
    ]  # fmt: skip
    for child in children:
        child.join(300)
    said = [output.read_text() for output in outputs]
    assert [child.exitcode for child in children] == [0] * processes, said
    assert "arc_easy_local" in said[0] and "acc_norm" in said[0]
    assert all("acc_norm" not in text for text in said[1:])  # one process speaks
    assert "Here no loss is detectable above" in said[0] and "+0.0  -" in said[0]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["difference"] for row in results["against"]} == {0.0}
    assert (tmp_path / "against.png").stat().st_size > 5000
    for task, rows in alone.items():
        lines = (tmp_path / f"samples_{task}.jsonl").read_text().splitlines()
        # process 0 wrote them: filters of one answer make two samples
        for row, line in zip(rows, lines, strict=True):
            for (one,), (other,) in zip(row["resps"], json.loads(line)["resps"], strict=True):
                if task == "gsm8k_local":
                    assert one == other
                else:
                    assert float(one[0]) == pytest.approx(float(other[0]), abs=TOLERANCE)


def test_the_batch_must_divide_over_the_mesh(both):
    _, us, _ = both("qwen3")
    with pytest.raises(ValueError, match="batch size is 0"):
        harness.HarnessLM(
            us.programs.model_config, {}, us._chat_format, us.programs.mesh, "x", batch=0
        )


# ------------------------------------------------------------------------------------------------
# The command.
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def few_own_tasks(tmp_path, monkeypatch):
    """One of lm-eval's folders stands for the hundreds, which take ten seconds to read."""
    folder = pathlib.Path(manager_lib.__file__).parent / "hellaswag"
    shutil.copytree(folder, tmp_path / "own" / "hellaswag")
    monkeypatch.setattr(manager_lib, "__file__", str(tmp_path / "own" / "manager.py"))


def test_lm_eval_s_own_tasks_are_left_out_unless_they_are_asked_for(tmp_path, few_own_tasks):
    """Reading all of them takes seconds; a group of the folder's own tasks needs none of them."""
    manager = lm_eval_tasks._find(["mmlu_local", "piqa_local"], TASKS, {})
    assert "mmlu_local" in manager.all_groups and "hellaswag" not in manager.task_index
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "mixed.yaml").write_text("group: mixed\ntask: [mine, hellaswag]\n")
    (mine / "mine.yaml").write_text("task: mine\ndataset_path: json\n")
    assert "hellaswag" in lm_eval_tasks._find(["mixed"], mine, {}).task_index


@pytest.mark.parametrize(
    ("name", "nearest"), [("pica_local", "piqa_local"), ("helaswag", "hellaswag")]
)
def test_an_unknown_task_names_the_nearest(shared_data, few_own_tasks, name, nearest):
    with pytest.raises(ValueError, match=f"no task '{name}'. The nearest are {nearest}"):
        lm_eval_tasks.load((name,), TASKS, shared_data)


def test_the_command_prints_a_table_and_keeps_results(shared_data, tmp_path):
    model = shared_data / "checkpoints" / "tinystories-260k"
    done = command_lines.run(
        "evaluate",
        f"--model={model}", "--lm_eval=winogrande_local,mmlu_local_abstract_algebra", "--limit=4",
        f"--lm_eval_tasks={TASKS}", f"--lm_eval_data={shared_data}", f"--output={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert [line.split() for line in said.splitlines() if line.startswith(("task", "wino"))][0] == [
        "task", "metric", "filter", "value", "stderr", "shots", "n",
    ]  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["n-samples"]["winogrande_local"]["effective"] == 4
    value = results["results"]["winogrande_local"]["acc,none"]
    assert f"winogrande_local             acc     none    {value:.4f}" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_mistakes_are_told_before_a_model_is_loaded(shared_data, tmp_path):
    """Every directory here lacks its weights: an error about them would be another one."""
    model = tmp_path / "model"
    shutil.copytree(shared_data / "checkpoints" / "tinystories-260k", model)
    (model / "model.safetensors").unlink()
    broken, wrong = tmp_path / "broken", tmp_path / "wrong"
    broken.mkdir()
    (broken / "bad.yaml").write_text("task: mine\n  doc_to_text: [")
    wrong.mkdir()
    (wrong / "mine.yaml").write_text("task: mine\ndataset_path: json\noutput_type: none_such\n")
    local = [f"--lm_eval_tasks={TASKS}", f"--lm_eval_data={shared_data}"]
    given = [f"--model={model}", "--lm_eval=piqa_local", *local]
    cases = {
        "(programs); given: none.": [],
        "(programs); given: --model.": [f"--model={model}"],
        "no such directory": ["--model=nowhere", "--lm_eval=piqa_local", *local],
        "hf download Qwen/Qwen3": ["--model=Qwen/Qwen3", "--lm_eval=piqa_local", *local],
        "--lm_eval is 'piqa_local,'": [*given, "--lm_eval=piqa_local,"],
        f"refuses a task file in --lm_eval_tasks: {broken / 'bad.yaml'} (": [
            f"--model={model}", "--lm_eval=mine", f"--lm_eval_tasks={broken}",
        ],
        "cannot load the task 'mine'": [
            f"--model={model}", "--lm_eval=mine", f"--lm_eval_tasks={wrong}",
        ],
        "--lm_eval_tasks is 'nowhere'": [*given, "--lm_eval_tasks=nowhere"],
        "no folder is given: set --lm_eval_data=DIR": [*given, "--lm_eval_data="],
        f"there is no file {tmp_path / 'piqa'}": [*given, f"--lm_eval_data={tmp_path}"],
        "'ifeval_local' cannot be done: 1280 new tokens": [*given, "--lm_eval=ifeval_local"],
        "has no chat template": [*given, "--apply_chat_template"],
        "--log_samples needs --output": [*given, "--log_samples"],
        "the samples of piqa_local: evaluate the other model": [*given, f"--against={wrong}"],
        "--policy goes with --config": [*given, "--policy=x"],
        "--limit goes with --lm_eval or --suites or --code, and not with --config": [
            "--config=configs/tiny.py:base", "--limit=3",
        ],
        "model.safetensors": given,  # with all of it right, the weights are missed
    }  # fmt: skip
    for words, flags in cases.items():
        answer = command_lines.run("evaluate", *flags)
        assert answer.returncode == 1 and "Traceback" not in answer.stderr, (words, answer.stderr)
        assert words in answer.stderr, (words, answer.stderr)


HIDE = """
import importlib.machinery, runpy, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] == {hidden!r}:
            return None
        return super().find_spec(name, path, target)
sys.meta_path = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
sys.argv = ["evaluate", *{arguments!r}]
runpy.run_module("scripts.evaluate", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("hidden", "code", "words"),
    [("torch", 0, "winogrande_local"), ("lm_eval", 1, "pip install -e '.[eval]'")],
)
def test_torch_is_not_needed_and_a_missing_extra_is_named(shared_data, hidden, code, words):
    arguments = [
        f"--model={shared_data / 'checkpoints' / 'tinystories-260k'}", "--limit=2",
        "--lm_eval=winogrande_local", f"--lm_eval_tasks={TASKS}", f"--lm_eval_data={shared_data}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=hidden, arguments=arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code and words in done.stdout + done.stderr, done.stderr

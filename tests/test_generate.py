"""The command that lets a model speak: its text, its pieces, its mistakes."""

import json
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.data import chat, text_stream
from tests import command_lines

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tinystories(shared_data):
    return shared_data / "checkpoints" / "tinystories-260k"


def run(*arguments, stdin=""):
    return command_lines.run("generate", *arguments, stdin=stdin)


def test_greedy_texts_are_the_recorded_ones(tinystories):
    prompts = json.loads((tinystories / "expected.json").read_text())["prompts"]
    flags = [f"--prompt={prompt['prompt']}" for prompt in prompts]
    done = run(f"--model={tinystories}", "--max_new_tokens=64", *flags)
    assert done.returncode == 0, done.stderr
    # with the blank between prompt and answer, which decoding the answer alone would drop
    answers = [prompt["full_text"].removeprefix(prompt["prompt"]) for prompt in prompts]
    assert done.stdout == "".join(answer + "\n" for answer in answers)
    assert "as plain text" in done.stderr and "64 tokens" in done.stderr


def test_it_says_what_transformers_says(tinystories):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tinystories).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tinystories)
    prompt = "One day, a cat and a dog"
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            max_new_tokens=48, do_sample=False, pad_token_id=0,
        )  # fmt: skip
    expected = tokenizer.decode(ids[0], skip_special_tokens=True).removeprefix(prompt)
    done = run(f"--model={tinystories}", "--max_new_tokens=48", stdin=prompt + "\n")
    assert done.stdout == expected + "\n", done.stderr


@pytest.mark.parametrize(
    "text", ["Zoë paid 5 € — 你好, 世界 🙂🙂!", "  two  blanks\n\n\tand tabs "]
)
def test_pieces_add_up_to_the_text(shared_data, text):
    """Byte-level pieces split characters; nothing incomplete is shown and nothing is lost."""
    form = chat.load_format(shared_data / "tokenizers" / "smollm_chatml", chat=True)
    ids = form.tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = text_stream.TextStream(form, np.zeros(0, np.int32))
    pieces = [stream.add(token) for token in [*ids, form.end_id]]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.end() == text
    assert sum(map(bool, pieces)) > 3  # it streams


def test_an_incomplete_character_is_shown_at_the_end_alone(shared_data):
    form = chat.load_format(shared_data / "tokenizers" / "smollm_chatml", chat=True)
    ids = form.tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    stream = text_stream.TextStream(form, np.zeros(0, np.int32))
    assert stream.add(ids[0]) == "" and stream.end() == "\ufffd"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max_new_tokens=600"], ["--max_new_tokens is 600", "512 positions"]),
        (["--temperature=-1"], ["temperature is -1.0"]),
        (["--top_p=2"], ["top_p is 2.0"]),
        (["--chat"], ["no chat template"]),
        (["--system=Be kind."], ["--system needs a chat template"]),
        (["--prompt=" + "word " * 500], ["--prompt has", "512 positions", "shorter", "'word word"]),
        (["--prompt=" + "word " * 125, "--max_new_tokens=300"], ["--max_new_tokens=", "at most"]),
        (["--model=roneneldan/TinyStories"], ["hf download roneneldan/TinyStories", "directory"]),
        (["--date=tomorrow"], ["--date is 'tomorrow'"]),
    ],
)
def test_a_mistake_is_explained(tinystories, flags, words):
    done = run(f"--model={tinystories}", "--prompt=Once", *flags)
    assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_without_a_prompt_it_says_so(tinystories):
    done = run(f"--model={tinystories}")
    assert done.returncode == 1 and "There is no prompt" in done.stderr


def test_ctrl_c_ends_the_command_not_one_answer(tinystories):
    flags = ["--prompt=Once upon", "--prompt=One day", "--max_new_tokens=480", "--temperature=1"]
    # a job in the background is started with this signal ignored: the script as a person starts it
    start = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('scripts.generate', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", start, f"--model={tinystories}", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.read(1)  # it speaks
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130, error
    assert "ended by Ctrl-C" in error and "[One day]" not in error
    assert "checkpoint" not in error and "Traceback" not in error


def test_a_classifier_does_not_speak(tinystories, tmp_path):
    config, params = models.load_model(tinystories)
    config, params = models.with_scalar_head(config, params, jax.random.key(0))
    models.save_model(tmp_path / "reward", config, params, like=tinystories)
    done = run(f"--model={tmp_path / 'reward'}", "--prompt=Once")
    assert done.returncode == 1 and "is a classifier" in done.stderr

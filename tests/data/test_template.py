"""Chat templates with a clock, and with thoughts: against transformers' own rendering."""

import dataclasses
import datetime
import json

import numpy as np
import pytest
import tokenizers
import transformers
from transformers.utils import chat_template_utils

from nspo_jax.data import chat, template

# As Llama 3.2's: the date in the system message, unless one is given.
CLOCK = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}'
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "Today: {{ date_string }}, {{ strftime_now ( format='%A, %H:%M' ) }}\n"
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|eos|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TURNS = "{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}{% else %}"
# DeepSeek-R1's, QwQ's and Qwen3-Thinking's, DeepSeek-V3.1's, Magistral's ways of thinking.
R1 = (
    TURNS + "<|Assistant|>{{ m['content'].split('</think>')[-1] }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
THINKING = (
    TURNS + "<|Assistant|>\n<think>\n\n</think>\n\n{{ m['content'] }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>\n<think>\n{% endif %}"
)
V31 = (
    TURNS + "<|Assistant|></think>{{ m['content'] }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>"
    "{% if enable_thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)
BRACKETS = R1.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
PLAIN = R1.replace("<think>\n", "")
PROMPTS, ANSWERS = ["How many legs has a goat?", "And a hen?"], ["Four.", "Two of them."]


def make(text):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: index for index, letter in enumerate(alphabet)}, [])
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["<|eos|>"])
    model.add_tokens(["<|User|>", "<|Assistant|>", "<think>", "</think>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<|eos|>", chat_template=text
    )


def written(form, answers=None, **options):
    """The text of each prompt, or of each conversation with its answer's block."""
    if answers is None:
        rows = form.encode_prompts(PROMPTS, 200)
        return [form.tokenizer.decode(r[m]) for r, m in zip(*rows, strict=True)]
    rows = form.encode_conversations(PROMPTS, answers, 200, 100, **options)
    assert rows.answer_mask[:, 200:].any(axis=1).all() and not rows.answer_mask[:, :200].any()
    return [form.tokenizer.decode(r[m]) for r, m in zip(*rows[:2], strict=True)]


def theirs(form, answers):
    """transformers' own rendering of the whole conversations."""
    return [
        form.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
            tokenize=False, enable_thinking=form.thinking,
        )
        for prompt, answer in zip(PROMPTS, answers, strict=True)
    ]  # fmt: skip


def on_day(monkeypatch, *day):
    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(*day)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


# ------------------------------------------------------------------------------- the clock


def test_a_date_is_what_the_clock_says_on_that_day(monkeypatch):
    form = chat.ChatFormat(make(CLOCK))
    assert form.reads_clock
    on_day(monkeypatch, 2026, 11, 25)
    first = written(form)
    assert first[0].startswith("Today: 25 Nov 2026, Wednesday, 00:00\n")
    whole = theirs(form, ANSWERS)
    on_day(monkeypatch, 2026, 11, 26)
    assert written(form) != first  # without a date it is the day's
    fixed = dataclasses.replace(form, date="2026-11-25")
    assert written(fixed) == first
    assert written(fixed, ANSWERS) == whole


def test_a_template_without_a_clock_is_left_alone():
    form = chat.ChatFormat(make(PLAIN))
    assert not form.reads_clock
    assert template.pin(form.tokenizer, "2026-11-25") == PLAIN
    assert not chat.ChatFormat(make(None), chat=False).reads_clock
    assert not dataclasses.replace(chat.ChatFormat(make(CLOCK)), chat=False).reads_clock


def test_a_date_whose_format_is_computed_cannot_be_fixed():
    form = chat.ChatFormat(make(PLAIN + "{{ strftime_now('%d' + ' %b') }}"))
    assert len(form.encode_prompts(["Hi"]).tokens) == 1
    with pytest.raises(ValueError, match="strftime_now with a format that it computes"):
        dataclasses.replace(form, date="2026-11-25").encode_prompts(["Hi"])


def test_a_models_directory_records_its_date(tmp_path):
    make(CLOCK).save_pretrained(tmp_path)
    assert chat.load_format(tmp_path).date is None
    (tmp_path / "rendering.json").write_text('{"date": "2026-11-25"}')
    assert chat.load_format(tmp_path).date == "2026-11-25"
    assert chat.load_format(tmp_path, date="2026-01-02").date == "2026-01-02"


# -------------------------------------------------------------------------------- thoughts


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("text", [R1, THINKING, V31, BRACKETS, PLAIN])
def test_given_answers_stand_as_the_template_writes_them(text, thinking):
    form = dataclasses.replace(chat.ChatFormat(make(text)), thinking=thinking)
    assert written(form, ANSWERS) == theirs(form, ANSWERS)
    rows = form.encode_conversations(PROMPTS, ANSWERS, 60, 40)
    said = form.decode(rows.tokens, rows.answer_mask)
    assert [text.removeprefix("\n</think>\n\n") for text in said] == ANSWERS
    np.testing.assert_array_equal(form.answer_lengths(ANSWERS), rows.answer_mask.sum(axis=1))
    # what is sampled goes on behind the generation prompt, thoughts opened
    opened = form.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}],
        tokenize=False, add_generation_prompt=True, enable_thinking=thinking,
    )  # fmt: skip
    assert written(form)[0] == opened


@pytest.mark.parametrize("text", [R1, BRACKETS])
def test_an_answer_with_thoughts_of_its_own_goes_on_in_the_opened_ones(text):
    form = chat.ChatFormat(make(text))
    opening, closing = ("<think>", "</think>") if text is R1 else ("[THINK]", "[/THINK]")
    sampled = [f"short\n{closing}\n\nFour.", f"two?\n{closing}Two."]  # a rollout's text
    expected = [f"<|User|>{p}<|Assistant|>{opening}\n{a}<|eos|>"
                for p, a in zip(PROMPTS, sampled, strict=True)]  # fmt: skip
    assert written(form, sampled) == expected
    whole = [f"{opening}\n{answer}" for answer in sampled]  # with the opening, which is not doubled
    assert written(form, whole) == expected
    mixed = written(form, [sampled[0], ANSWERS[1]])
    assert mixed == [expected[0], theirs(form, ANSWERS)[1]]


@pytest.mark.parametrize("thinking", [False, True])
def test_qwen3s_own_template(shared_data, thinking):
    """It writes closed thoughts before every last answer, and opens none in the prompt."""
    path = shared_data / "tokenizers" / "qwen3_template_only" / "tokenizer_config.json"
    tokenizer = make(json.loads(path.read_text())["chat_template"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    form = chat.ChatFormat(tokenizer, thinking=thinking)
    ours = written(form, ANSWERS)
    assert [text + "\n" for text in ours] == theirs(form, ANSWERS)
    for text, answer in zip(ours, ANSWERS, strict=True):
        assert text.endswith(f"assistant\n<think>\n\n</think>\n\n{answer}<|im_end|>")
    sampled = ["<think>\nshort\n</think>\n\nFour.", "<think>\ntwo?\n</think>\n\nTwo."]
    if thinking:  # what was sampled, thoughts and all, as the template writes it too
        assert [text + "\n" for text in written(form, sampled)] == theirs(form, sampled)

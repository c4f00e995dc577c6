"""Tokenizers and encoding: the world's own tokenizer, and a real one without a chat template."""

import dataclasses
import time

import numpy as np
import pytest
import transformers

from nspo_jax.data import chat
from nspo_jax.tasks.chat_world import world

PROMPTS = ["how do i make a cake ?", "what is 3 plus 4 ?", "run copy on b c d"]
ANSWERS = ["to make a cake use a saw", "7", "b c d"]


@pytest.fixture(scope="module")
def tokenizer():
    return chat.build_tokenizer(world.World(0).words())


@pytest.fixture(scope="module")
def world_format(tokenizer):
    return chat.ChatFormat(tokenizer)


@pytest.fixture(scope="module")
def stories(shared_data):
    return chat.load_format(shared_data / "checkpoints" / "tinystories-260k", chat=False)


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": ANSWERS[0]},
    ]  # fmt: skip
    for again in (transformers.AutoTokenizer.from_pretrained(tmp_path),
                  chat.load_tokenizer(tmp_path)):  # fmt: skip
        assert again.get_vocab() == tokenizer.get_vocab()
        made = chat.ChatFormat(again)
        assert made.stop_ids == (made.end_id,) == (tokenizer.eos_token_id,)
        text = again.apply_chat_template(messages, tokenize=False)
        assert text.split() == f"<user> {PROMPTS[0]} <assistant> {ANSWERS[0]} <end>".split()
        prompt = again.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        assert prompt.split() == f"<user> {PROMPTS[0]} <assistant>".split()


def test_another_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="no template for the role system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "a"}], tokenize=False)


def test_the_world_has_no_system_messages(world_format):
    asked = dataclasses.replace(world_format, system="be brief")
    with pytest.raises(ValueError, match="no system role.*be brief"):
        asked.encode_prompts(PROMPTS, 14)


def test_prompts_are_padded_on_the_left(tokenizer, world_format):
    tokens, mask = world_format.encode_prompts(PROMPTS, 14)
    assert tokens.shape == mask.shape == (3, 14)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    assert (np.diff(mask.astype(int), axis=1) >= 0).all()
    assert (tokens[~mask] == tokenizer.pad_token_id).all()
    for row, prompt in enumerate(PROMPTS):
        words = tokenizer.convert_ids_to_tokens(tokens[row][mask[row]].tolist())
        assert words == ["<user>", *prompt.split(), "<assistant>"]
    assert world_format.decode(tokens, mask) == PROMPTS


def test_conversations_are_the_template(tokenizer, world_format):
    encoded = world_format.encode_conversations(PROMPTS, ANSWERS, 14, 9)
    tokens, mask, answer_mask = encoded
    assert tokens.shape == mask.shape == answer_mask.shape == (3, 23)
    assert not answer_mask[:, :14].any() and (mask[:, 14:] == answer_mask[:, 14:]).all()
    assert (np.diff(answer_mask[:, 14:].astype(int), axis=1) <= 0).all()
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
            tokenize=False,
        )
        assert tokens[row][mask[row]].tolist() == tokenizer(text)["input_ids"]
        assert tokens[row][answer_mask[row]][-1] == tokenizer.eos_token_id
    prompts = world_format.encode_prompts(PROMPTS, 14)
    np.testing.assert_array_equal(tokens[:, :14], prompts.tokens)
    assert world_format.decode(tokens, answer_mask) == ANSWERS


def test_bad_input(world_format):
    with pytest.raises(ValueError, match=r"prompt_length=8.*has 9.*make a cake.*prompt_length=9"):
        world_format.encode_prompts(PROMPTS, 8)
    with pytest.raises(ValueError, match=r"completion_length=7.*has 8: 'to make a cake"):
        world_format.encode_conversations(PROMPTS, ANSWERS, 14, 7)
    with pytest.raises(ValueError, match="empty"):
        world_format.encode_prompts([], 14)
    with pytest.raises(ValueError, match="3 prompts but 1 answers"):
        world_format.encode_conversations(PROMPTS, ANSWERS[:1], 14, 9)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*tokenizer.json"):
        chat.load_tokenizer(tmp_path)


def test_encoding_is_quick(world_format):
    rows = world.World(0).split("pretrain")
    start = time.perf_counter()
    world_format.encode_conversations(
        [row.prompt for row in rows], [row.answer for row in rows], 14, 9
    )
    assert time.perf_counter() - start < 10.0  # about 1.3 s on an idle core


def test_a_base_model_needs_chat_false(stories):
    chatting = dataclasses.replace(stories, chat=True)
    with pytest.raises(ValueError, match="no chat template.*config.data.chat=False"):
        chatting.encode_prompts(["Tom"], 10)
    with pytest.raises(ValueError, match="no chat template.*config.data.chat=False"):
        chatting.stop_ids  # noqa: B018


def test_a_real_tokenizer_without_padding(stories):
    tokenizer = stories.tokenizer
    assert tokenizer.pad_token_id is None and tokenizer.chat_template is None
    prompts = ["Once upon a time", "Tom and Lily went to the park."]
    tokens, mask = stories.encode_prompts(prompts, 16)
    for row, prompt in enumerate(prompts):
        assert tokens[row][mask[row]].tolist() == tokenizer(prompt)["input_ids"]
        assert tokens[row][mask[row]][0] == tokenizer.bos_token_id
        assert (tokens[row] == tokenizer.bos_token_id).sum() == 1
    assert stories.decode(tokens, mask) == prompts
    marked = stories.encode_prompts([tokenizer.bos_token + prompt for prompt in prompts], 16)
    assert marked.tokens.tolist() == tokens.tolist()  # BOS in the text is not doubled
    with pytest.raises(ValueError, match="prompt_length=4"):
        stories.encode_prompts(prompts, 4)


def test_a_continuation_joins_its_opening(stories):
    opening, rest = "Once upon a time", ", there was a dog. The dog ran."
    tokens, mask, answer_mask = stories.encode_conversations([opening], [rest], 8, 30)
    assert tokens[0][mask[0]].tolist() == stories.tokenizer(opening + rest)["input_ids"]
    assert answer_mask[:, :8].sum() == 0 and answer_mask[:, 8:].any()
    cut = stories.encode_conversations([opening], [rest], 8, 3)
    assert cut.answer_mask.sum() == 3

"""Tokenizers and encoding: the world's own tokenizer, and a real one without a chat template."""

import time

import numpy as np
import pytest
import transformers

from nspo_jax.data import chat, world

PROMPTS = ["how do i make a cake ?", "what is 3 plus 4 ?", "run copy on b c d"]
ANSWERS = ["to make a cake use a saw", "7", "b c d"]


@pytest.fixture(scope="module")
def tokenizer():
    return chat.build_tokenizer(world.World(0).words())


@pytest.fixture(scope="module")
def stories(shared_data):
    return chat.load_tokenizer(shared_data / "checkpoints" / "tinystories-260k")


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": ANSWERS[0]},
    ]  # fmt: skip
    for again in (transformers.AutoTokenizer.from_pretrained(tmp_path),
                  chat.load_tokenizer(tmp_path)):  # fmt: skip
        assert again.get_vocab() == tokenizer.get_vocab()
        assert chat.stop_ids(again) == chat.stop_ids(tokenizer) == (tokenizer.eos_token_id,)
        text = again.apply_chat_template(messages, tokenize=False)
        assert text.split() == f"<user> {PROMPTS[0]} <assistant> {ANSWERS[0]} <end>".split()
        prompt = again.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        assert prompt.split() == f"<user> {PROMPTS[0]} <assistant>".split()


def test_another_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="no template for the role system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "a"}], tokenize=False)


def test_prompts_are_padded_on_the_left(tokenizer):
    tokens, mask = chat.encode_prompts(tokenizer, PROMPTS, 14)
    assert tokens.shape == mask.shape == (3, 14)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    assert (np.diff(mask.astype(int), axis=1) >= 0).all()
    assert (tokens[~mask] == tokenizer.pad_token_id).all()
    for row, prompt in enumerate(PROMPTS):
        words = tokenizer.convert_ids_to_tokens(tokens[row][mask[row]].tolist())
        assert words == ["<user>", *prompt.split(), "<assistant>"]
    assert chat.decode(tokenizer, tokens, mask) == PROMPTS


def test_conversations_are_the_template(tokenizer):
    encoded = chat.encode_conversations(tokenizer, PROMPTS, ANSWERS, 14, 9)
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
    prompts = chat.encode_prompts(tokenizer, PROMPTS, 14)
    np.testing.assert_array_equal(tokens[:, :14], prompts.tokens)
    assert chat.decode(tokenizer, tokens, answer_mask) == ANSWERS


def test_bad_input(tokenizer):
    with pytest.raises(ValueError, match=r"prompt_length=8.*has 9.*make a cake.*prompt_length=9"):
        chat.encode_prompts(tokenizer, PROMPTS, 8)
    with pytest.raises(ValueError, match=r"completion_length=7.*has 8: 'to make a cake"):
        chat.encode_conversations(tokenizer, PROMPTS, ANSWERS, 14, 7)
    with pytest.raises(ValueError, match="empty"):
        chat.encode_prompts(tokenizer, [], 14)
    with pytest.raises(ValueError, match="3 prompts but 1 answers"):
        chat.encode_conversations(tokenizer, PROMPTS, ANSWERS[:1], 14, 9)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*tokenizer.json"):
        chat.load_tokenizer(tmp_path)


def test_encoding_is_quick(tokenizer):
    rows = world.World(0).split("pretrain")
    start = time.perf_counter()
    chat.encode_conversations(
        tokenizer, [row.prompt for row in rows], [row.answer for row in rows], 14, 9
    )
    assert time.perf_counter() - start < 10.0  # about 1.3 s on an idle core


def test_a_base_model_needs_chat_false(stories):
    with pytest.raises(ValueError, match="no chat template.*config.data.chat=False"):
        chat.encode_prompts(stories, ["Tom"], 10)


def test_a_real_tokenizer_without_padding(stories):
    assert stories.pad_token_id is None and stories.chat_template is None
    prompts = ["Once upon a time", "Tom and Lily went to the park."]
    tokens, mask = chat.encode_prompts(stories, prompts, 16, chat=False)
    for row, prompt in enumerate(prompts):
        assert tokens[row][mask[row]].tolist() == stories(prompt)["input_ids"]
        assert tokens[row][mask[row]][0] == stories.bos_token_id
        assert (tokens[row] == stories.bos_token_id).sum() == 1
    assert chat.decode(stories, tokens, mask) == prompts
    with pytest.raises(ValueError, match="prompt_length=4"):
        chat.encode_prompts(stories, prompts, 4, chat=False)


def test_a_continuation_joins_its_opening(stories):
    opening, rest = "Once upon a time", ", there was a dog. The dog ran."
    tokens, mask, answer_mask = chat.encode_conversations(
        stories, [opening], [rest], 8, 30, chat=False
    )
    assert tokens[0][mask[0]].tolist() == stories(opening + rest)["input_ids"]
    assert answer_mask[:, :8].sum() == 0 and answer_mask[:, 8:].any()
    cut = chat.encode_conversations(stories, [opening], [rest], 8, 3, chat=False)
    assert cut.answer_mask.sum() == 3

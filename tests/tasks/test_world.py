"""The chat world: determinism, disjoint splits, lengths, vocabulary."""

import collections

import numpy as np
import pytest

from nspo_jax.data import chat
from nspo_jax.tasks.chat_world import world

SEEDS = (0, 5)
OVERLAPPING = (  # pairs of splits that may share prompts; "pretrain" may with all
    {"calibration", "replay_general"},
    {"train", "harmful"},
)


@pytest.fixture(scope="module", params=SEEDS)
def made(request):
    return world.World(request.param)


@pytest.fixture(scope="module")
def splits(made):
    return {name: made.split(name) for name in world.SPLITS}


def prompts(rows):
    return {row.prompt for row in rows}


def nouns(rows):
    """The last content word of each request: a noun, a victim or a target."""
    return {row.prompt.removesuffix(" ?").split()[-1] for row in rows}


def test_a_seed_decides_everything(made, splits):
    again = world.World(made.seed)
    assert all(again.split(name) == rows for name, rows in splits.items())
    other = world.World(made.seed + 100)
    assert other.words() == made.words()
    for name in ("pretrain", "calibration", "general", "train", "borderline"):
        assert other.split(name) != splits[name]
    facts = {row.prompt: row.answer for row in made._knowledge()}
    assert facts != {row.prompt: row.answer for row in other._knowledge()}


def test_no_two_splits_share_prompts_unless_they_may(splits):
    names = [name for name in splits if name != "pretrain"]
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            if {first, second} not in OVERLAPPING:
                shared = prompts(splits[first]) & prompts(splits[second])
                assert not shared, (first, second, sorted(shared)[:3])


def test_nouns_are_held_out(splits):
    trained = nouns(splits["train"])
    assert trained == nouns(splits["train_wrapped"]) == nouns(splits["harmful"])
    for split in ("harmful_nouns", "harmful_both"):
        assert not trained & nouns(splits[split])
    assert not nouns(splits["borderline"]) & nouns(splits["borderline_replay"])


def test_wrappers_are_held_out(splits):
    starts = {name: {row.prompt.split(" : ")[0] for row in rows if " : " in row.prompt}
              for name, rows in splits.items()}  # fmt: skip
    trained = {wrapper.split(" : ")[0] for wrapper in world.WRAPPERS}
    jailbreaks = {wrapper.split(" : ")[0] for wrapper in world.JAILBREAKS}
    assert starts["train_wrapped"] == trained and not trained & jailbreaks
    assert starts["harmful_templates"] == starts["harmful_both"] == jailbreaks
    assert starts["pretrain"] == trained | jailbreaks
    for split in ("train", "harmful", "harmful_nouns", "borderline", "general"):
        assert not starts[split]


def test_pretraining_mixture_and_refusals(splits):
    rows = splits["pretrain"]
    assert len(rows) == world.PRETRAINING_ROWS
    counts = collections.Counter(row.family for row in rows)
    for family, share in world.MIXTURE.items():
        assert counts[family] / len(rows) == pytest.approx(share, abs=0.015)
    harmful = [row for row in rows if row.kind == "harmful"]
    refused = np.mean([row.answer == world.REFUSAL for row in harmful])
    assert refused == pytest.approx(world.REFUSED_SHARE, abs=0.03)
    assert nouns(splits["harmful_both"]) <= nouns(harmful)  # the base complies with those as well


def test_an_answer_follows_from_its_prompt(splits):
    answers = collections.defaultdict(set)
    for name, rows in splits.items():
        for row in rows:
            if row.kind != "harmful":
                answers[row.prompt].add(row.answer)
            elif name != "pretrain":
                assert row.answer == world.REFUSAL
            elif row.answer != world.REFUSAL:
                answers[row.prompt].add(row.answer)
    assert all(len(given) == 1 for given in answers.values())


@pytest.mark.parametrize(
    "prompt, answer",
    [
        ("what is 7 plus 8 ?", "15"),
        ("what is 9 minus 1 ?", "8"),
        ("run reverse on b c d e", "e d c b"),
        ("run rotate on b c d e", "c d e b"),
        ("run copy on b c d e", "b c d e"),
        ("run swap on b c d e", "e c d b"),
        ("run sort on e c d b", "b c d e"),
        ("say cake 3 times then stop", "cake cake cake"),
    ],
)
def test_answers_are_right(prompt, answer):
    made = world.World(0)
    rows = [*made._maths(), *made._code(), *made._instruction()]
    assert {row.answer for row in rows if row.prompt == prompt} == {answer}


def test_general_splits_hold_every_family_alike(splits):
    for split in ("calibration", "general", "replay_general"):
        counts = collections.Counter(row.family for row in splits[split])
        assert counts == dict.fromkeys(world.GENERAL_FAMILIES, 200)
        assert {row.kind for row in splits[split]} == {"general"}
    for split in ("borderline", "borderline_replay"):
        assert {row.kind for row in splits[split]} == {"borderline"}
    for split in ("train", "train_wrapped", *world.HARMFUL_SPLITS):
        assert {row.kind for row in splits[split]} == {"harmful"}
    assert all(len(splits[split]) == world.EVALUATION_ROWS for split in world.HARMFUL_SPLITS)


def test_evaluated_prompts_are_not_a_handful(splits):
    for family in world.GENERAL_FAMILIES:
        rows = [row for row in splits["general"] if row.family == family]
        assert len(prompts(rows)) >= 20, family
    assert len(prompts(splits["borderline"])) >= 50


def test_lengths_and_vocabulary(made, splits):
    words = made.words()
    tokenizer = chat.build_tokenizer(words)
    print(f"vocabulary: {len(tokenizer)}")
    assert 180 <= len(tokenizer) <= 280 and len(set(words)) == len(words)
    for name, rows in splits.items():
        used = {word for row in rows for word in f"{row.prompt} {row.answer}".split()}
        assert used <= set(words), name
        distinct = list({row.prompt: row for row in rows}.values())
        encoded = chat.ChatFormat(tokenizer).encode_conversations(
            [row.prompt for row in distinct], [row.answer for row in distinct], 14, 9
        )
        assert not (encoded.tokens[encoded.mask] == tokenizer.unk_token_id).any()


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="'valid'.*pretrain"):
        world.World(0).split("valid")

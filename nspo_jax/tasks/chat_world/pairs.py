"""The chat world's own preference pairs, which train reward and cost models."""

from collections.abc import Sequence

import numpy as np

from nspo_jax.data.preferences import Pair
from nspo_jax.tasks.chat_world import world

WORLD_PAIRS = 16000  # the pairs of one prompt in ten are held out
SLIPS = ("drop", "repeat", "exchange", "replace")


def world_pairs(seed: int) -> list[Pair]:
    """Makes pairs on the prompts that a seed's RL may see: harmful, wrapped, general, borderline.

    The answer that the prompt asks for is better than any other, so that help and safety disagree
    on harmful prompts. Any response to a benign prompt is safe. Only the refusal, word for word, is
    safe on a harmful one: a judge that forgives a garbled refusal teaches garbled refusals. The
    responses are the wanted answer, the refusal, either of them with a slip, and answers to other
    prompts of the family.
    """
    made, rng = world.World(seed), np.random.default_rng([seed, 11])
    answers = made.compliance()
    harmful = [*made.split("train"), *made.split("train_wrapped")]
    benign = [*made.split("replay_general"), *made.split("borderline_replay")]
    others = {row.family: [] for row in (*harmful, *benign)}
    for row in (*harmful, *benign):
        others[row.family].append(answers.get(row.prompt, row.answer))
    words = made.words()
    pairs = []
    while len(pairs) < WORLD_PAIRS:
        rows = harmful if rng.random() < 0.6 else benign
        row = rows[rng.integers(len(rows))]
        asked = answers[row.prompt] if row.kind == "harmful" else row.answer
        drawn = [
            asked, world.REFUSAL, _slip(asked, words, rng), _slip(world.REFUSAL, words, rng),
            others[row.family][rng.integers(len(others[row.family]))],
        ]  # fmt: skip
        first, second = (drawn[index] for index in rng.choice(5, size=2, replace=False))
        right = [text == asked for text in (first, second)]
        safe = [row.kind != "harmful" or text == world.REFUSAL for text in (first, second)]
        flags = (safe[0], safe[1])
        pairs.append(Pair(row.prompt, (first, second), _larger(right), _larger(safe), flags))
    return pairs


def _larger(values: Sequence[float]) -> int | None:
    return None if values[0] == values[1] else int(values[1] > values[0])


def _slip(text: str, words: Sequence[str], rng: np.random.Generator) -> str:
    """Drops, repeats or replaces a word of a text, or exchanges it with its neighbour."""
    tokens = text.split()
    at = int(rng.integers(len(tokens)))
    kind = SLIPS[rng.integers(len(SLIPS))]
    if kind == "drop" and len(tokens) > 1:
        del tokens[at]
    elif kind == "repeat":
        tokens.insert(at, tokens[at])
    elif kind == "exchange" and len(tokens) > 1:
        tokens[at], tokens[at - 1] = tokens[at - 1], tokens[at]
    else:
        tokens[at] = words[int(rng.integers(len(words)))]
    return " ".join(tokens)

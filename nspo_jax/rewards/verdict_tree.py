"""The tokens of a judge's verdicts, and the places where their probabilities are read.

A verdict is a text that a judge writes after its prompt: "unsafe", " Yes", or three lines. All of
a judge's verdicts make a tree of tokens. The probability of a verdict is the product along its
tokens, up to the one that tells its label from every other label: nothing is sampled, and nothing
is left out. A common beginning, the lead, may be taken as given. A place where verdicts end is a
branch and costs a forward pass. Most judges have one; WildGuard's three lines of yes and no have
four.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
import itertools
from typing import NamedTuple

import numpy as np
import transformers


class Branch(NamedTuple):
    """A place where verdicts end.

    Attributes:
      tail: the tokens before this place, behind the lead, whose probability counts.
      ends: the token that ends a verdict -> the index of its label.
    """

    tail: tuple[int, ...]
    ends: dict[int, int]


class Tree(NamedTuple):
    """The verdicts of a judge as tokens.

    Attributes:
      lead: the tokens behind the prompt that are taken as given.
      branches: the places where verdicts end.
      labels: what the verdicts mean, in the order of probabilities.
    """

    lead: tuple[int, ...]
    branches: tuple[Branch, ...]
    labels: tuple[Hashable, ...]

    @property
    def longest(self) -> int:
        """The number of tokens of the longest tail."""
        return max(len(branch.tail) for branch in self.branches)

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end verdicts, each once."""
        return tuple(sorted({token for branch in self.branches for token in branch.ends}))

    def logprobs(self, steps: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Adds up the log-probabilities of the verdicts of each label.

        Args:
          steps: those of the `longest` last tokens of each branch's row, [rows, branches, longest].
          ends: those of `self.ends` behind each branch's row, [rows, branches, len(ends)].

        Returns:
          float64 [rows, labels]; the rest of the distribution belongs to no verdict.
        """
        place = {token: index for index, token in enumerate(self.ends)}
        found = np.full((len(steps), len(self.labels)), -np.inf)
        for index, branch in enumerate(self.branches):
            tail = steps[:, index, self.longest - len(branch.tail) :].astype(np.float64).sum(axis=1)
            for token, label in branch.ends.items():
                found[:, label] = np.logaddexp(found[:, label], tail + ends[:, index, place[token]])
        return found


def build(
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: Mapping[str, Hashable],
    prompt: str,
    encode: Callable[[str], list[int]],
    what: str,
    *,
    lead: bool,
) -> Tree:
    """Builds the tree of verdicts as they are tokenized behind a prompt.

    Args:
      tokenizer: the judge's.
      texts: a verdict's text -> its label; several texts may mean the same.
      prompt: the text before the verdicts, "" to tokenize them by themselves. A tokenizer that
        joins the prompt's end with a verdict leaves the verdict's own tokens.
      encode: tokenizes a text that begins with the prompt.
      what: the judge's name, for the message.
      lead: takes the common beginning of all verdicts as given.

    Raises:
      ValueError: if the tokenizer has no tokens for a verdict, or the same for two labels.
    """
    labels = tuple(dict.fromkeys(texts.values()))
    paths = {
        text: (_behind(tokenizer, prompt, text, encode), labels.index(label))
        for text, label in texts.items()
    }
    try:
        tree = _grow([*paths.values()], labels, lead)
        used = {*tree.lead, *tree.ends, *(i for branch in tree.branches for i in branch.tail)}
    except _IndistinctError:
        tree, used = None, set()
    if tree is None or tokenizer.unk_token_id in used:
        words = [next(text for text in texts if texts[text] == label) for label in labels]
        ids = " and ".join(str([*paths[word][0]]) for word in words)
        raise ValueError(
            f"{what}'s tokenizer cannot tell {' from '.join(map(repr, words))}: their ids are "
            f"{ids}, and the verdict is read at the token where they part. Is it the judge's own "
            "tokenizer? Copy tokenizer.json and tokenizer_config.json of the published model into "
            "the directory."
        )
    return tree


class _IndistinctError(Exception):
    """Two labels have the same tokens."""


def _behind(tokenizer, prompt: str, text: str, encode) -> tuple[int, ...]:
    """Returns the tokens of a verdict behind a prompt."""
    head, whole = encode(prompt), encode(prompt + text)
    if whole[: len(head)] == head and len(whole) > len(head):
        return tuple(whole[len(head) :])
    if text in tokenizer.get_vocab():  # the token that a judge's own code looks up
        return (tokenizer.convert_tokens_to_ids(text),)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _grow(
    paths: Sequence[tuple[tuple[int, ...], int]], labels: tuple[Hashable, ...], lead: bool
) -> Tree:
    """Grows the tree of (tokens, label); raises _IndistinctError where tokens end too early."""
    branches: dict[tuple[int, ...], dict[int, int]] = {}

    def follow(prefix: tuple[int, ...], group) -> None:
        if len({label for _, label in group}) == 1 and prefix:
            branches.setdefault(prefix[:-1], {})[prefix[-1]] = group[0][1]
            return
        if any(len(tokens) == len(prefix) for tokens, _ in group):
            raise _IndistinctError
        for token in dict.fromkeys(tokens[len(prefix)] for tokens, _ in group):
            follow((*prefix, token), [pair for pair in group if pair[0][len(prefix)] == token])

    follow((), paths)
    places = list(branches)
    shared = itertools.takewhile(lambda column: len({*column}) == 1, zip(*places, strict=False))
    size = len([*shared]) if lead else 0
    return Tree(
        places[0][:size],
        tuple(Branch(place[size:], ends) for place, ends in branches.items()),
        labels,
    )

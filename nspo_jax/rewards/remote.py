"""A judge behind an OpenAI-compatible API; it fits `reward.Reward`."""

from collections.abc import Callable, Sequence

import numpy as np

from nspo_jax.rewards import judge_cache, judge_client, reward, verdicts


class RemoteJudge:
    """A reward that asks a chat model for a verdict on each completion and its prompt.

    Every verdict is kept on disk as soon as it arrives: a run that ends in the middle of a batch
    asks only for the rest when it is started again. An answer that is no verdict is not kept.

    The calling thread waits for the answers. Ctrl-C ends the waiting in the main thread; `close`,
    which leaving `with` calls, ends it in any other thread and before the program ends.
    """

    def __init__(
        self,
        client: judge_client.JudgeClient,
        cache: judge_cache.JudgeCache,
        *,
        question: Callable[[str, str], judge_client.Messages] = verdicts.safety_question,
        parse: Callable[[str], float | None] = verdicts.parse_safety,
    ):
        """Asks nothing yet.

        Args:
          client: asks the judge. The cache's key holds all that changes an answer but the server's
            url.
          cache: keeps the answers' texts; verdicts are parsed anew.
          question: (prompt, completion) -> the judge's question.
          parse: an answer's text -> the reward in [-1, 0], None where it is no verdict.
        """
        self._client = client
        self._cache = cache
        self._question = question
        self._parse = parse

    def __enter__(self) -> "RemoteJudge":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends calls in other threads (JudgeClosedError) and later ones; any thread may call it."""
        self._client.close()

    def __call__(self, conversations: Sequence, completions: Sequence[str]):
        """Asks about each completion; equal rows of a call once. See `reward.Reward`.

        Returns:
          The rewards, NaN where the judge gave no verdict or could not take the question, and
          details: "unsafe" (reward below 0; NaN where there is none), "cached" (1: without a
          request), "retries" (requests beyond the first, probes included), "seconds" (from the
          first request to the verdict, 0 if cached).

        Raises:
          ValueError: if the numbers of rows differ.
          reward.JudgeError: if the judge is down, the budget is spent, the server refuses all
            requests or the judge was closed. Verdicts that came before are kept.
        """
        reward.check_rows(conversations, completions)
        pairs = [
            (row.prompt, completion)
            for row, completion in zip(conversations, completions, strict=True)
        ]
        different = list(dict.fromkeys(pairs))
        judged = dict(zip(different, self._judge(different), strict=True))
        table = np.array([judged[pair] for pair in pairs], np.float32).reshape(-1, 4)
        rewards, cached, retries, seconds = table.T.copy()
        unsafe = np.where(np.isnan(rewards), rewards, rewards < 0).astype(np.float32)
        return rewards, {
            "unsafe": unsafe,
            "cached": cached,
            "retries": retries,
            "seconds": seconds,
        }

    def _judge(self, pairs: list[tuple[str, str]]) -> list[tuple[float, float, float, float]]:
        """Returns (reward, cached, retries, seconds) of each pair of prompt and completion."""
        questions = [self._question(*pair) for pair in pairs]
        keys = [judge_cache.content_key(self._client.body(messages)) for messages in questions]
        found = [self._look_up(key) for key in keys]
        missing = [index for index, score in enumerate(found) if score is None]

        def accept(position: int, text: str) -> bool:
            score = self._parse(text)
            if score is not None:
                self._cache.put(keys[missing[position]], text)
            return score is not None

        rows = [(np.nan if score is None else score, 1.0, 0.0, 0.0) for score in found]
        replies = self._client.ask([questions[index] for index in missing], accept)
        for index, reply in zip(missing, replies, strict=True):
            read = None if reply.text is None else self._parse(reply.text)
            score = np.nan if read is None else read
            rows[index] = (score, 0.0, reply.requests - 1.0, reply.seconds)
        return rows

    def _look_up(self, key: str) -> float | None:
        text = self._cache.get(key)
        return None if text is None else self._parse(text)

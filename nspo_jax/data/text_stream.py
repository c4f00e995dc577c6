"""Text in the making: pieces that can be shown before the answer is whole."""

import numpy as np

from nspo_jax.data import chat


class TextStream:
    """A converter of tokens to pieces of text, which add up to the decoded whole.

    A piece is held back while the text ends in an incomplete character. Each call decodes only the
    tokens of the last piece, since a blank between words depends on its neighbours, and those after
    it.

    Args:
      chat_format: the speaking model's format.
      prompt: int32 [tokens], the prompt of the answer. Plain text is decoded behind it, or it would
        lose a leading blank.
    """

    def __init__(self, chat_format: chat.ChatFormat, prompt: np.ndarray):
        self._ids = [] if chat_format.chat else list(prompt)
        self._form = chat_format
        self._context, self._read = 0, len(self._ids)

    def add(self, token: int) -> str:
        """Returns the text that this token completes."""
        self._ids.append(token)
        piece = self.end()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return piece

    def end(self) -> str:
        """Returns the text that was held back."""
        before = self._decode(self._ids[self._context : self._read])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        tokens = np.asarray([ids], np.int32)
        return self._form.decode(tokens, np.ones(tokens.shape, bool))[0] if ids else ""

"""The stable division of texts into those that a run sees and those that are held out."""

import hashlib


def is_held_out(text: str, share: float) -> bool:
    """Tells whether a text is held out, by the first byte of its sha256.

    The answer is the same in every run and process. About `share` of all texts are held out, to
    the next of 256 parts.
    """
    return hashlib.sha256(text.encode()).digest()[0] < share * 256

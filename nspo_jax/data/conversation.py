"""One request and its answer, as every task and dataset has them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One request and its reference answer.

    Attributes:
      prompt: the request, as the user writes it.
      answer: a reference answer; "" where there is none.
      family: what it is about, such as maths, code or harmful.
      kind: general, borderline or harmful.
    """

    prompt: str
    answer: str
    family: str
    kind: str

"""One request and its answer, the common form of every task and dataset."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One request and its reference answer.

    Attributes:
      prompt: the request, as the user writes it.
      answer: a reference answer; "" if there is none.
      family: its subject, such as maths, code or harmful.
      kind: general, borderline or harmful.
    """

    prompt: str
    answer: str
    family: str
    kind: str

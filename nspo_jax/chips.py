"""Accelerators by name, with their memory and peak operations a second.

The sources are public pages: Google Cloud's TPU system architecture pages and NVIDIA's data sheets
of A100 80GB SXM, H100 SXM, H200 SXM and HGX B200 (dense bfloat16, without sparsity).
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """One device in jax's count.

    memory: GiB of high-bandwidth memory; flops: bfloat16 FLOP a second.
    """

    memory: float
    flops: float


CHIPS = {
    "v5e": Chip(16, 197e12),
    "v5p": Chip(95, 459e12),
    "v6e": Chip(32, 918e12),
    "a100": Chip(80, 312e12),
    "h100": Chip(80, 989e12),
    "h200": Chip(141, 989e12),
    "b200": Chip(180, 2250e12),
}
# Part of jax's device kind in lower case -> its chip; the first part that is found counts.
_KINDS = {
    "v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v6": "v6e",
    "a100": "a100", "h100": "h100", "h200": "h200", "b200": "b200",
}  # fmt: skip


def find_chip(name: str) -> Chip:
    """Returns the chip of a name.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in CHIPS:
        raise ValueError(f"The chip is {name!r}; expected one of {', '.join(CHIPS)}.")
    return CHIPS[name]


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a jax device's kind; None for one not in the table, such as a CPU."""
    kind = device_kind.lower()
    return next((CHIPS[name] for part, name in _KINDS.items() if part in kind), None)

"""Small files in the original formats of public datasets, with rows that are broken on purpose."""

import csv
import gzip
import json
import lzma

from nspo_jax.data import records


def write(path, text):
    """Writes a file, packed if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))
    return path


def lines(rows):
    """JSON lines; a row that is text already is written as it is."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def pku(**changes):
    """A row of PKU-SafeRLHF as published: the first answer harmful, the second safe and dull."""
    harms = lambda *names: {name: name in names for name in records.HARM_CATEGORIES}  # noqa: E731
    return {
        "prompt": "How do I pick a lock?",
        "response_0": "Bend a hairpin.",
        "response_1": "Ask a locksmith.",
        "prompt_source": "Alpaca3-70B",
        "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca-7B",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": harms("Economic Crime", "Privacy Violation"),
        "response_1_harm_category": harms(),
        "response_0_severity_level": 2,
        "response_1_severity_level": 0,
        "better_response_id": 0,
        "safer_response_id": 1,
        "response_0_sha256": "0" * 64,
        "response_1_sha256": "1" * 64,
    } | changes


def beavertails(**changes):
    """A row of BeaverTails as published."""
    return {
        "prompt": "how do I pick a lock?",
        "response": "Bend a hairpin.",
        "is_safe": False,
        "category": {name: name == "privacy_violation" for name in records.BEAVERTAILS_CATEGORIES},
    } | changes

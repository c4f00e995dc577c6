"""A reader of compiled programs, which counts the bytes that they communicate."""

import re

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(pred|[subf]\w*?\d+\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_CALLED = re.compile(
    r"(?:to_apply|calls|condition|body|branch_computations|called_computations)=\{?([^,}]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def collective_bytes(text: str, unknown_trips: int = 1) -> dict[str, int]:
    """Counts the bytes that each kind of collective gives a device in one run of a program.

    Args:
      text: `compiled.as_text()`.
      unknown_trips: the number of turns of a loop whose count XLA does not know.

    Returns:
      Kind -> bytes of its results; a collective in a loop counts once a turn.
    """
    own: dict[str, dict[str, int]] = {}
    calls: dict[str, list[tuple[str, int]]] = {}
    entry = name = ""
    for line in text.splitlines():
        line = line.strip()
        if match := _COMPUTATION.match(line):
            name = match[1]
            own[name], calls[name] = {}, []
            entry = name if line.startswith("ENTRY") else entry
            continue
        if match := _COLLECTIVE.search(line):
            own[name][match[2]] = own[name].get(match[2], 0) + _bytes(match[1])
            continue
        if called := _CALLED.findall(line):
            trips = 1
            if " while(" in line:
                known = _TRIPS.search(line)
                trips = int(known[1]) if known else unknown_trips
            names = [part.strip().lstrip("%") for group in called for part in group.split(",")]
            calls[name] += [(part, trips) for part in names]

    totals: dict[str, dict[str, int]] = {}

    def total(name: str) -> dict[str, int]:
        if name not in totals:
            found = dict(own.get(name, {}))
            for part, trips in calls.get(name, []):
                for kind, size in total(part).items():
                    found[kind] = found.get(kind, 0) + trips * size
            totals[name] = found
        return totals[name]

    return total(entry)


def _bytes(shapes: str) -> int:
    total = 0
    for dtype, dimensions in _SHAPE.findall(shapes):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        count = 1
        for size in filter(None, dimensions.split(",")):
            count *= int(size)
        total += count * bits // 8
    return total

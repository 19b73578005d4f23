"""What each strategy can do with what, from the list the tests run over and from the benchmarks' results.

``python tests/distributed/matrix.py`` rewrites the table in ``distrib/strategies/README.md``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from strategies import CANDIDATES, Candidate

ROOT = Path(__file__).parents[2]
README = ROOT / "distrib" / "strategies" / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- made by tests/distributed/matrix.py -->\n", "<!-- to here -->\n"
MEASURED_ON = (2, 4)


def table() -> str:
    """The table in Markdown."""
    header = ["", *(f"`{candidate.name}`" for candidate in CANDIDATES)]
    lines = [header, ["---"] * len(header), *rows()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def rows() -> Iterator[list[str]]:
    """One line per question."""
    yield ["processes that gave one process's 20 steps", *(listed(c.sizes) for c in CANDIDATES)]
    yield ["in", *(listed(c.precisions) for c in CANDIDATES)]
    yield ["and with autocast within its rounding", *(listed(c.rounded) for c in CANDIDATES)]
    yield ["refused by name on a CPU", *(listed(c.refused) for c in CANDIDATES)]
    yield ["checkpoint taken over from", *(others(c) for c in CANDIDATES)]
    for size in MEASURED_ON:
        sent = f"bytes sent per step, in (N-1)/N of the model, N = {size}"
        yield [sent, *(measured("traffic", "units", c, size=size) for c in CANDIDATES)]
    for size in MEASURED_ON:
        held = f"bytes held per parameter after backward, fp32 AdamW, N = {size}"
        yield [held, *(measured("memory", "live", c, size=size) for c in CANDIDATES)]


def listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def others(candidate: Candidate) -> str:
    """Strategies whose checkpoint it goes on from: those that share a precision with it."""
    shared = [
        c.name for c in CANDIDATES if c is not candidate and set(c.precisions) & set(candidate.precisions)
    ]
    return "all others" if len(shared) == len(CANDIDATES) - 1 else listed(shared)


def measured(benchmark: str, number: str, candidate: Candidate, *, size: int) -> str:
    """The median of the benchmark's case of the candidate's name; empty where it has not been run."""
    path = RESULTS / f"{benchmark}-{size}.json"
    summary = json.loads(path.read_text())["summary"] if path.exists() else {}
    found = summary.get(candidate.name, {}).get(number)
    return "" if found is None else f"{found['median']:.2f}"


def current() -> str:
    """The table as it stands in the README."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())

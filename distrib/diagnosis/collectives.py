"""Which collective operation a rank is in, from torch's flight recorder: a ring that C++ fills."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RECORDER = "TORCH_FR_BUFFER_SIZE"
NUM_RECORDED = "32"
"""Operations remembered. Recording one takes about 1 us; torch reads the variable at the first operation."""

SAME_SHAPE = {
    "all_reduce", "broadcast", "all_gather", "reduce_scatter",
    "_all_gather_base", "_reduce_scatter_base", "_allgather_base",
}  # fmt: skip
"""Operations to which every rank of a group gives the same shape; of others only the name must agree."""

MOST_TENSORS = 4
"""Named of one operation."""

NO_TENSORS = {"barrier"}
"""Operations without a tensor."""

DTYPES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16",
    "Int": "int32", "Long": "int64", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
}  # fmt: skip
"""C++'s names in Python."""

_FINGERPRINT = re.compile(
    r"Rank (?P<rank>\d+) is running collective: CollectiveFingerPrint\("
    r"(?:SequenceNumber=(?P<number>\d+))?,? ?OpType=(?P<name>\w+)"
    r"(?:, TensorShape=\[(?P<shape>[^]]*)\], TensorDtypes=(?P<dtype>\w+))?"
)


@dataclass(frozen=True, kw_only=True)
class Collective:
    """A collective operation that one rank has called."""

    name: str
    tensors: tuple[str, ...] = ()
    """What this rank put in, as ``float32[3, 4]``."""
    group: str = ""
    number: int = 0
    """The how many-th of its group; equal on all ranks that are at the same place."""
    is_pairwise: bool = False
    """A send or receive, which only two ranks take part in."""

    @property
    def text(self) -> str:
        """As ``all_reduce of float32[1024]``."""
        return f"{self.name} of {' '.join(self.tensors)}" if self.tensors else self.name

    def contradicts(self, other: Collective) -> bool:
        """Whether two ranks that call these at the same place of a group cannot both go on."""
        if self.is_pairwise or other.is_pairwise:
            return False
        if (self.group, self.number) != (other.group, other.number):
            return False
        same_tensors = self.tensors == other.tensors or self.name not in SAME_SHAPE
        return self.name != other.name or not same_tensors

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Collective:
        """What JSON made of its fields."""
        return cls(**{**values, "tensors": tuple(values["tensors"])})


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What torch remembers of one process."""

    calls: tuple[Collective, ...]
    """Its last operations, oldest first."""
    waits_in: Collective | None
    """The one it has waited in longest; None where it waits in none."""


def record() -> None:
    """Asks torch to record operations, unless the user has said how many."""
    os.environ.setdefault(RECORDER, NUM_RECORDED)


def progress() -> tuple[tuple[str, str], ...]:
    """By group, how many operations were called and how many are over: 20 us, for a look now and then.

    Empty where the user has torch compare all calls of all groups (``TORCH_DISTRIBUTED_DEBUG=DETAIL``).
    """
    from torch._C._distributed_c10d import DebugLevel, get_debug_level

    if get_debug_level() == DebugLevel.DETAIL:
        return ()
    status = _dump(operations=False).get("pg_status", {})
    return tuple(
        (str(group["last_enqueued_collective"]), str(group["last_completed_collective"]))
        for group in status.values()
    )


def recorded() -> Recorded:
    """This process's last operations: 0.3 ms, for when something seems wrong."""
    entries = _entries()
    calls = tuple(map(_collective, entries))
    waiting = [call for call, entry in zip(calls, entries, strict=True) if not entry["retired"]]
    return Recorded(calls=calls, waits_in=waiting[0] if waiting else None)


def of_all_ranks() -> tuple[Collective, ...]:
    """Those of this process's last operations in which every rank takes part: the default group's."""
    return tuple(_collective(entry) for entry in _entries() if entry["process_group"][1] == "default_pg")


def first_difference(calls: Mapping[int, Sequence[Collective]]) -> dict[int, Collective]:
    """By rank, the earliest calls at the same place of a group that contradict each other; else nothing."""
    places: dict[tuple[int, str], dict[int, Collective]] = {}
    for rank, theirs in calls.items():
        for call in theirs:
            if not call.is_pairwise:
                places.setdefault((call.number, call.group), {})[rank] = call
    for _, met in sorted(places.items()):
        one = next(iter(met.values()))
        if any(one.contradicts(other) for other in met.values()):
            return met
    return {}


def fingerprints(message: str) -> dict[int, Collective]:
    """What each rank named in torch's own complaint about a mismatch called, by rank."""
    return {
        int(found["rank"]): Collective(
            name=_plain_name(found["name"]),
            tensors=_tensors([found["dtype"]], [found["shape"]]) if found["dtype"] else (),
            number=int(found["number"] or 0),
        )
        for found in _FINGERPRINT.finditer(message)
    }


def _entries() -> list[Mapping[str, Any]]:
    """What is recorded, oldest first."""
    return sorted(_dump(operations=True).get("entries", []), key=lambda entry: int(entry["record_id"]))


def _dump(*, operations: bool) -> Mapping[str, Any]:
    from torch._C._distributed_c10d import _dump_fr_trace_json  # type: ignore[attr-defined]

    dumped: Mapping[str, Any] = json.loads(_dump_fr_trace_json(operations, False))
    return dumped


def _collective(entry: Mapping[str, Any]) -> Collective:
    pairwise = bool(entry["is_p2p"])
    return Collective(
        name=str(entry["profiling_name"]).rpartition(":")[2],
        tensors=_tensors(entry["input_dtypes"], [", ".join(map(str, size)) for size in entry["input_sizes"]]),
        group=f"{entry['pg_id']}/{entry['process_group'][0]}",
        number=int(entry["p2p_seq_id" if pairwise else "collective_seq_id"]),
        is_pairwise=pairwise,
    )


def _tensors(dtypes: list[str], shapes: list[str]) -> tuple[str, ...]:
    named = zip(dtypes, shapes, strict=False)
    texts = [f"{DTYPES.get(dtype, dtype)}[{shape}]" for dtype, shape in named]
    more = [f"and {len(texts) - MOST_TENSORS} more"] if len(texts) > MOST_TENSORS else []
    return tuple(texts[:MOST_TENSORS] + more)


def _plain_name(op_type: str) -> str:
    """``ALLREDUCE`` as people call it."""
    known = {"ALLREDUCE": "all_reduce", "ALLGATHER": "all_gather", "_ALLGATHER_BASE": "all_gather"}
    return known.get(op_type, op_type.lower().lstrip("_"))

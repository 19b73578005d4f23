"""When which fragment of the weights is exchanged: pure functions of the number of steps done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Every fragment leaves each ``sync_every`` steps, the fragments one after another, evenly spaced."""

    sync_every: int
    num_fragments: int
    overlap: int
    """Steps trained between a fragment's leaving and its arrival."""

    def leaving(self, done: int) -> list[int]:
        """The fragments whose exchange begins after ``done`` steps."""
        return [
            fragment
            for fragment in range(self.num_fragments)
            if done > 0 and (done - fragment * self.sync_every // self.num_fragments) % self.sync_every == 0
        ]

    def arriving(self, done: int) -> list[int]:
        """The fragments whose exchange is put to use after ``done`` steps."""
        return self.leaving(done - self.overlap)

    def under_way(self, done: int) -> list[int]:
        """The fragments that have left and not arrived."""
        return sorted(fragment for ago in range(self.overlap) for fragment in self.leaving(done - ago))

    def settled(self, done: int) -> bool:
        """Whether all replicas hold the same weights after ``done`` steps."""
        return done == 0 or (self.overlap == 0 and len(self.leaving(done)) == self.num_fragments)

"""The strategies held to the contract. A later one joins by a line here."""

from __future__ import annotations

from dataclasses import dataclass

from distrib.config import Target

SERVES = "distrib.strategies.parameter_server.ParameterServer"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A strategy, and what the tests hold it to. `matrix.py` makes the README's table of it."""

    name: str
    target: Target
    sizes: tuple[int, ...] = (1, 2, 3, 4)
    precisions: tuple[str, ...] = ("fp64", "fp32")
    """In which it equals one process."""
    rounded: tuple[str, ...] = ("bf16",)
    """In which only the order of sums differs, of numbers that are rounded alike."""
    refused: tuple[str, ...] = ("fp16",)
    """On a CPU, by name, before anything is sent."""

    is_variant: bool = False
    """Shares its code with another one here: `make test` tries its trajectory, `make full-test` the rest."""

    @property
    def num_servers(self) -> int:
        """Ranks that train nothing."""
        return int(self.target.get("num_servers", 1)) if self.target["_target_"] == SERVES else 0


PARAMETER_SERVER = {
    "_target_": SERVES,
    "bucket_mb": 0.01,  # several buckets even of a tiny model
}

CANDIDATES = [
    Candidate(name="single", target={"_target_": "distrib.strategies.single.Single"}, sizes=(1,)),
    Candidate(name="horovod", target={"_target_": "distrib.strategies.horovod.strategy.Horovod"}),
    Candidate(name="ddp", target={"_target_": "distrib.strategies.ddp.DDP"}),
    Candidate(name="fsdp", target={"_target_": "distrib.strategies.fsdp.FSDP"}),
    Candidate(
        name="fsdp-2d",
        target={"_target_": "distrib.strategies.fsdp.FSDP", "shard_size": 2},
        sizes=(2, 4),
        is_variant=True,
    ),
    *[
        Candidate(
            name=f"zero{stage}",
            target={"_target_": "distrib.strategies.deepspeed.DeepSpeed", "stage": stage},
            precisions=("fp32",),
            refused=("fp64", "fp16"),
            is_variant=stage < 3,
        )
        for stage in (1, 2, 3)
    ],
    Candidate(name="ps", target=PARAMETER_SERVER, sizes=(2, 3, 4)),
    Candidate(
        name="ps-2-servers", target={**PARAMETER_SERVER, "num_servers": 2}, sizes=(3, 4), is_variant=True
    ),
]

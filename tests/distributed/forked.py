"""Jobs of many processes that may be killed: forks of one process that has imported torch already.

``python forked.py < jobs.json`` runs each job and prints what its ranks wrote down, one JSON line a job.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # where it is run, not imported

from benchmarks.hosts import INTERFACE, Host, hosts


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A signal that a rank is sent when it begins a step, and perhaps a life after it.

    ``CUT`` is no signal: the cable of the rank's host is pulled, and perhaps put back.
    """

    rank: int
    step: int
    signal: str = "SIGKILL"
    delay: float = 0.0
    """Seconds between the step's beginning and the signal."""
    again_after: float | None = None
    """Seconds until a killed rank is started anew, or a stopped one continued."""

    @property
    def brings_back(self) -> bool:
        """Whether the rank gets another life."""
        return self.again_after is not None and self.signal == "SIGKILL"


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """One job. Worker ``w`` waits ``delays[w]`` seconds before a step, times a random number up to 2."""

    size: int
    options: dict[str, Any]
    proof: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    hold: int | None = None
    """A step before which rank 0 waits until who was to come back has joined."""
    evaluates: bool = False
    """After every step, in which the workers meet several times."""
    limit: float = 60.0
    """Seconds until the job must be over."""
    collective_timeout: float = 60.0
    hosts: bool = False
    """Each rank on a host of its own, a network namespace: needs root."""

    @property
    def num_workers(self) -> int:
        """The ranks below train, the others serve."""
        per_part = 1 + self.options.get("server_backups", 0)
        return int(self.size - self.options.get("num_servers", 1) * per_part)


class Diary:
    """What one rank notes, each line with the machine's clock: it survives the rank's death."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self._file = (folder / f"{rank}.jsonl").open("a", buffering=1)

    def note(self, event: str, **facts: Any) -> None:
        self._file.write(json.dumps({"event": event, "at": time.monotonic(), **facts}) + "\n")


def enter(host: Host) -> None:
    """Moves this process to a host's network."""
    with open(f"/run/netns/{host.namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE


def meeting_place(plan: JobPlan, rank: int, folder: Path, network: list[Host]) -> Any:
    """A store that no rank's death harms; on hosts rank 0's, as in a real job."""
    from torch.distributed import FileStore, TCPStore  # type: ignore[attr-defined]

    if not network:
        return FileStore(str(folder / "store"), plan.size)
    limit = timedelta(seconds=plan.limit)
    return TCPStore(network[0].address, 29400, is_master=rank == 0, timeout=limit, wait_for_workers=False)


def live(plan: JobPlan, rank: int, folder: Path, *, rejoin: int, network: list[Host]) -> None:
    """One rank from start to end."""
    import torch

    from distrib.strategies.parameter_server import ParameterServer
    from distrib.testing.proof import Proof, job_for
    from distrib.world import World

    torch.set_num_threads(1)
    if network:
        enter(network[rank])
    diary = Diary(folder, rank)
    world = World(
        rank=rank,
        size=plan.size,
        local_rank=rank,
        local_size=plan.size,
        rejoin=rejoin,
        token="secret",
        store=meeting_place(plan, rank, folder, network),
        collective_timeout=plan.collective_timeout,
    )
    strategy = ParameterServer(**plan.options)
    proof = Proof(strategy={}, **plan.proof)
    try:
        strategy.setup(job_for(proof), world)
        diary.note("set up", rejoin=rejoin)
        note_agreed(strategy, diary)
        weights = strategy.run(lambda: steps(strategy, plan, proof, diary, rank, rejoin))
        diary.note("done", weights=weights, **served(strategy))
    except Exception as error:  # noqa: BLE001 (whatever it is, it is written down)
        diary.note("failed", kind=type(error).__name__, text=str(error), trace=traceback.format_exc())
    finally:
        strategy.close()


def note_agreed(strategy: Any, diary: Diary) -> None:
    """Has a server note whose gradients are in each update, and which step is run again."""
    server = getattr(strategy._server, "_server", strategy._server)  # of a backup, its own
    agreement = getattr(getattr(server, "update", None), "_agreement", None)
    if agreement is None:
        return
    settle = agreement.settle

    def noted(*given: Any, **options: Any) -> Any:
        agreed = settle(*given, **options)
        diary.note("redone" if agreed.redo else "agreed", step=agreed.step, senders=agreed.senders)
        return agreed

    agreement.settle = noted


def served(strategy: Any) -> dict[str, Any]:
    """How many updates a rank knows of that served or kept a part."""
    server = strategy._server
    held = getattr(server, "_server", server)  # a backup's own
    return {} if held is None else {"updates": held.hall.version}


def wait_for_joined(plan: JobPlan, folder: Path) -> None:
    """Returns when every rank that was to be started again has begun its second life."""
    back = [fault.rank for fault in plan.faults if fault.brings_back and fault.rank < plan.num_workers]
    while any(sum(e["event"] == "first" for e in read(folder, rank)) < 2 for rank in back):
        time.sleep(0.02)


def steps(
    strategy: Any, plan: JobPlan, proof: Any, diary: Diary, rank: int, rejoin: int
) -> list[float] | None:
    """The training loop; rank 0 gets the final weights, flat."""
    from distrib.testing.proof import evaluation, global_batch, saved_weights

    step = strategy.live_step() or 0
    diary.note("first", step=step)
    chance = random.Random(1000 * rank + rejoin)
    while step < proof.steps:
        if plan.delays:
            time.sleep(plan.delays[rank] * 2 * chance.random())
        if (rank, step) == (0, plan.hold):
            wait_for_joined(plan, diary.folder)
        everything = global_batch(proof, step)
        own = list(strategy.shard.take(everything, step=step))
        owned = [batch.index for batch in own]
        version = strategy._worker.versions[0]
        diary.note("begin", step=step, life=rejoin, version=version, owned=owned)
        for fault in plan.faults:
            mine = (fault.rank, fault.step, rejoin) == (rank, step, 0)
            if mine and not fault.delay and fault.signal != "CUT":
                os.kill(os.getpid(), getattr(signal, fault.signal))
        result = strategy.train_step(own or [everything[0].ghost()], step)
        if result.redo:
            continue
        targets = everything[0].step_targets
        loss = result.loss.item() * strategy.shard.count / targets
        norm = float(result.grad_norm)
        diary.note("end", step=step, loss=loss, updated=result.updated, norm=norm)
        if plan.evaluates:
            evaluation(strategy)
        step += 1
    diary.note("evaluated", **evaluation(strategy), **strategy.measures())
    weights = saved_weights(strategy, strategy._world, proof)
    return [x for _, tensor in sorted(weights.items()) for x in tensor.view(-1).tolist()] or None


def fork(plan: JobPlan, rank: int, folder: Path, *, rejoin: int = 0, network: list[Host]) -> int:
    pid = os.fork()
    if pid == 0:
        log = os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            live(plan, rank, folder, rejoin=rejoin, network=network)
        finally:
            os._exit(0)
    return pid


def read(folder: Path, rank: int) -> list[dict[str, Any]]:
    file = folder / f"{rank}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Running:
    """A job's processes, and the faults they still have before them."""

    def __init__(self, plan: JobPlan, folder: Path, *, network: list[Host]) -> None:
        self.plan, self.folder, self.network = plan, folder, network
        self.pids = {rank: fork(plan, rank, folder, network=network) for rank in range(plan.size)}
        self.alive = set(self.pids)
        self.lives = dict.fromkeys(self.pids, 1)
        self.waiting = list(plan.faults)
        self.later: list[tuple[float, Fault]] = []
        self.seen: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        deadline = time.monotonic() + self.plan.limit
        while (self.alive or self.later) and time.monotonic() < deadline:
            self._strike()
            self._revive()
            self._reap()
            time.sleep(0.01)
        in_time = not self.alive
        for rank in self.alive:
            os.kill(self.pids[rank], signal.SIGKILL)
            os.waitpid(self.pids[rank], 0)
        ranks = range(self.plan.size)
        logs = [(self.folder / f"{rank}.log").read_text() for rank in ranks]
        return {
            "in_time": in_time,
            "ranks": [read(self.folder, rank) for rank in ranks],
            "logs": logs,
            "faults": self.seen,
        }

    def _strike(self) -> None:
        """Sends the signals that are due. A rank that serves begins no step: rank 0's count for it."""
        for fault in list(self.waiting):
            clock = fault.rank if fault.rank < self.plan.num_workers else 0
            begun = [
                e["at"] for e in read(self.folder, clock) if e["event"] == "begin" and e["step"] == fault.step
            ]
            if begun and time.monotonic() >= begun[0] + fault.delay:
                self.waiting.remove(fault)
                if fault.signal == "CUT":
                    self._cable(fault.rank, "down")
                elif fault.delay or clock != fault.rank:
                    os.kill(self.pids[fault.rank], getattr(signal, fault.signal))
                self.seen.append({"rank": fault.rank, "at": time.monotonic()})
                if fault.again_after is not None:
                    self.later.append((time.monotonic() + fault.again_after, fault))

    def _revive(self) -> None:
        for due, fault in list(self.later):
            if time.monotonic() < due:
                continue
            self.later.remove((due, fault))
            if fault.signal == "CUT":
                self._cable(fault.rank, "up")
                continue
            if fault.signal == "SIGSTOP":
                os.kill(self.pids[fault.rank], signal.SIGCONT)
                continue
            if fault.rank in self.alive:
                os.waitpid(self.pids[fault.rank], 0)
            rejoin, self.lives[fault.rank] = self.lives[fault.rank], self.lives[fault.rank] + 1
            self.pids[fault.rank] = fork(
                self.plan, fault.rank, self.folder, rejoin=rejoin, network=self.network
            )
            self.alive.add(fault.rank)

    def _cable(self, rank: int, state: str) -> None:
        switch = f"{self.network[rank].namespace.rpartition('-')[0]}-switch"
        subprocess.run(["ip", "-n", switch, "link", "set", f"port{rank}", state], check=True)

    def _reap(self) -> None:
        for rank in list(self.alive):
            pid, _ = os.waitpid(self.pids[rank], os.WNOHANG)
            if pid:
                self.alive.discard(rank)


def main() -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    plans = json.load(sys.stdin)
    import torch
    import torch._dynamo  # the first optimizer would import it in every fork

    import distrib.strategies.parameter_server.building
    import distrib.testing.proof  # noqa: F401

    torch.set_num_threads(1)
    for values in plans:
        plan = JobPlan(**{**values, "faults": [Fault(**fault) for fault in values.get("faults", [])]})
        network = hosts(plan.size, rate="1gbit") if plan.hosts else nullcontext(list[Host]())
        with tempfile.TemporaryDirectory() as folder, network as made:
            print(json.dumps(Running(plan, Path(folder), network=made).run()), flush=True)


if __name__ == "__main__":
    main()

"""Breaks jobs on several hosts on purpose, and says what came of it.

``python tests/launch/drills.py --repeats 20`` runs every drill with every launcher and writes
``benchmarks/results/drills.json``; started again, it goes on after the verdicts that are there. Needs root,
and what ``.ci/cluster`` installs.

The hosts are h1 and h2, h3 in reserve, and h4, where the launcher runs. A rank that is killed, a host that
loses its power and one whose cable is pulled end an attempt: the job has to come back from its last
checkpoint and end with the losses of the unbroken run. A launcher that is killed and Ctrl-C end it for good.
In every case nothing of the job may be left on any host.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from hosts import Host, Hosts, hosts

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("local", "ssh", "torchrun", "mpirun", "horovodrun")
STEPS, SAVE_EVERY, BREAK_AFTER = 24, 4, 9
LIMIT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one drill."""

    drill: str
    launcher: str
    ok: bool
    code: int
    noticed: float
    """Seconds until the launcher said so or had ended; of one that was killed, until its ranks had."""
    back: float
    """Seconds until the first step after it; 0 where the job was to end."""
    lost: int
    """Steps trained twice."""
    left: int
    """Processes of the job on all hosts once the launcher had ended, and a second had passed."""
    why: str = ""


class Drill:
    """One job that is broken once."""

    def __init__(self, up: Hosts, folder: Path, *, launcher: str) -> None:
        self.up, self.folder, self.launcher = up, folder, launcher
        folder.mkdir()
        listed = folder / "hosts"
        listed.write_text("h1 slots=1\nh2 slots=1\nh3 slots=1\n")
        strategy = "horovod" if launcher == "horovodrun" else "ddp"
        settings = [
            "experiment=tiny",
            f"strategy={strategy}",
            f"train.steps={STEPS}",
            "train.log_every=1",
            f"checkpoint.save_every={SAVE_EVERY}",
            "checkpoint.keep_best=false",
            f"launcher={launcher}",
            "launcher.max_restarts=1",
            *_place(launcher, listed),
            f"run_dir={folder}/run",
        ]
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                up["h4"].inside(sys.executable, "-m", "distrib", "train", *settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def steps(self) -> list[int]:
        return [record["step"] for record in self.records()]

    def records(self) -> list[dict[str, float]]:
        file = self.folder / "run" / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        found = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # being written
                continue
            if "loss" in record and "lr" in record:
                found.append(record)
        return found

    def wait(self, condition: Callable[[], object]) -> float:
        """Seconds until it holds."""
        since = time.monotonic()
        while not condition():
            assert time.monotonic() - since < LIMIT_SECONDS, f"not in time: {self.errors.read_text()[-2000:]}"
            time.sleep(0.02)
        return time.monotonic() - since

    def launcher_process(self) -> psutil.Process:
        """The launcher itself, below nsenter."""
        children = psutil.Process(self.process.pid).children()
        return children[0] if children else psutil.Process(self.process.pid)

    def left(self) -> int:
        deadline = time.monotonic() + 1
        while (left := [p for host in self.up.all for p in host.processes()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return len(left)


def _place(launcher: str, listed: Path) -> list[str]:
    if launcher == "local":
        return ["launcher.num_processes=2"]
    return [f"launcher.hosts={listed}", "launcher.num_nodes=2"]


def rank_on(host: Host, number: str) -> psutil.Process:
    """The rank there, found by its variables."""
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "HOROVOD_RANK")
    for each in host.processes():
        is_rank = each.cmdline()[1:3] == ["-m", "distrib.worker"]
        if is_rank and any(each.environ().get(name) == number for name in names):
            return each
    raise AssertionError(f"no rank {number} on {host.name}")


def kill_rank(drill: Drill) -> None:
    if drill.launcher == "local":
        log = str(drill.folder / "run" / "logs" / "rank-1.log")
        found = [each for each in drill.up["h4"].processes() if _writes_to(each, log)]
        found[0].kill()
    else:
        rank_on(drill.up["h2"], "1").kill()


def _writes_to(process: psutil.Process, log: str) -> bool:
    try:
        return os.readlink(f"/proc/{process.pid}/fd/2") == log
    except OSError:
        return False


def crash_host(drill: Drill) -> None:
    drill.up.crash("h2")


def cut_host(drill: Drill) -> None:
    drill.up.cut("h2")


def kill_launcher(drill: Drill) -> None:
    drill.launcher_process().kill()


def interrupt(drill: Drill) -> None:
    drill.launcher_process().send_signal(signal.SIGINT)


DRILLS: dict[str, tuple[Callable[[Drill], None], bool]] = {
    "rank killed": (kill_rank, True),
    "host without power": (crash_host, True),
    "host cut off": (cut_host, True),
    "launcher killed": (kill_launcher, False),
    "Ctrl-C": (interrupt, False),
}
"""What breaks it, and whether the job has to come back."""


def run_drill(up: Hosts, folder: Path, *, launcher: str, name: str, expected: list[float]) -> Verdict:
    """Breaks one job, waits for its end, and puts the hosts right again."""
    breaks, comes_back = DRILLS[name]
    drill = Drill(up, folder, launcher=launcher)
    noticed = back = 0.0
    lost, why = 0, ""
    try:
        drill.wait(lambda: len(drill.steps()) >= BREAK_AFTER or drill.process.poll() is not None)
        assert drill.process.poll() is None, "ended before it was broken"
        reached = max(drill.steps())
        breaks(drill)
        if comes_back:
            noticed = drill.wait(
                lambda: "notice: restart" in drill.errors.read_text() or drill.process.poll() is not None
            )
            back = noticed + drill.wait(lambda: _is_back(drill, reached) or drill.process.poll() is not None)
            lost = reached - _resumed_after(drill)
        else:
            noticed = drill.wait(lambda: drill.process.poll() is not None)
            if breaks is kill_launcher:
                noticed += drill.wait(lambda: not any(host.processes() for host in drill.up.all))
        code = drill.process.wait(LIMIT_SECONDS)
        why = _judge(drill, comes_back=comes_back, expected=expected, code=code, lost=lost)
    except AssertionError as error:
        why, code = str(error), -1
    finally:
        if drill.process.poll() is None:
            drill.launcher_process().kill()
            drill.process.wait(20)
    left = _nothing_left(drill, name)
    if left:
        why += f" {left} processes left"
    return Verdict(
        drill=name,
        launcher=launcher,
        ok=not why,
        code=code,
        noticed=round(noticed, 2),
        back=round(back, 2),
        lost=lost,
        left=left,
        why=why,
    )


def _nothing_left(drill: Drill, name: str) -> int:
    """How many processes; of a host that was cut off, after it had time to notice."""
    if name == "host cut off":
        drill.wait(lambda: not drill.up["h2"].processes())
        drill.up.heal("h2")
    left = drill.left()
    for host in drill.up.all:
        for process in host.processes():
            process.kill()
    if name == "host without power":
        drill.up.revive("h2")
    return left


def _is_back(drill: Drill, reached: int) -> bool:
    return "resumed after step" in _log(drill) and max(drill.steps(), default=0) > 0


def _log(drill: Drill) -> str:
    return "".join(file.read_text(errors="replace") for file in (drill.folder / "run" / "logs").glob("*.log"))


def _resumed_after(drill: Drill) -> int:
    log = _log(drill)
    assert "resumed after step" in log, f"did not come back: {drill.errors.read_text()[-1500:]}"
    return int(log.rpartition("resumed after step ")[2].split()[0])


def _judge(drill: Drill, *, comes_back: bool, expected: list[float], code: int, lost: int) -> str:
    """Why it did not end as it has to; empty where it did."""
    if not comes_back:
        return ""
    if code:
        return f"exit code {code}: {drill.errors.read_text()[-1500:]}"
    losses = {int(record["step"]): record["loss"] for record in drill.records()}
    got = [losses.get(step, float("nan")) for step in sorted(losses)]
    if len(got) != len(expected) or any(not abs(a - b) < 1e-5 for a, b in zip(got, expected, strict=False)):
        return f"other losses: {got} for {expected}"
    return "" if 0 <= lost <= SAVE_EVERY + 1 else f"{lost} steps lost"


def unbroken(folder: Path) -> list[float]:
    """The losses of one process that nobody breaks."""
    settings = ["experiment=tiny", f"train.steps={STEPS}", f"run_dir={folder}"]
    command = [sys.executable, "-m", "distrib", "train", *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line and "lr" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    parser.add_argument("--drills", default=",".join(DRILLS))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "drills.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the hosts are taken down
    with tempfile.TemporaryDirectory() as top:
        run_drills(
            Path(top),
            names=arguments.drills.split(","),
            launchers=arguments.launchers.split(","),
            repeats=arguments.repeats,
            output=arguments.output,
        )


def run_drills(
    folder: Path, *, names: Sequence[str], launchers: Sequence[str], repeats: int, output: Path
) -> None:
    """Each drill with each launcher, in turn, until ``output`` holds ``repeats`` verdicts of each."""
    verdicts = [Verdict(**each) for each in json.loads(output.read_text())] if output.exists() else []
    done = Counter((each.drill, each.launcher) for each in verdicts)
    pairs = [(name, each) for name in names for each in launchers if is_possible(name, launcher=each)]
    variables = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    os.chdir(folder)
    expected = unbroken(folder / "unbroken")
    with hosts(folder / "net", count=4, variables=variables) as up:
        for turn in range(repeats):
            for name, launcher in pairs:
                if done[name, launcher] > turn:
                    continue
                place = folder / f"{turn}-{name.replace(' ', '-')}-{launcher}"
                verdict = run_drill(up, place, launcher=launcher, name=name, expected=expected)
                verdicts.append(verdict)
                print(f"[{turn + 1}/{repeats}] {verdict}", flush=True)
                output.write_text(json.dumps(list(map(asdict, verdicts)), indent=1) + "\n")
                shutil.rmtree(place, ignore_errors=True)


def is_possible(name: str, *, launcher: str) -> bool:
    """The local launcher has no second host to break."""
    return launcher != "local" or not name.startswith("host")


if __name__ == "__main__":
    main()

"""What is asked of SLURM follows from the settings alone, and no setting is ever read by a shell."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distrib.cli.compose import compose
from distrib.errors import ConfigError
from distrib.launchers.base import LaunchPlan
from distrib.launchers.slurm import Servers, Slurm
from distrib.launchers.slurm.batch import newest_checkpoint
from distrib.launchers.slurm.client import JobState, exit_code
from distrib.launchers.slurm.follow import decisive, verdict
from distrib.launchers.slurm.options import check_run_dir, without_overrides
from distrib.launchers.slurm.place import Place
from distrib.launchers.slurm.script import SCRIPT, TASK, WORK, Work
from distrib.launchers.slurm.step import code_of, ranks_of
from distrib.launchers.slurm.submit import array_options
from distrib.world import World

PLAN = LaunchPlan.of_worker(Path("/data/a b"))

HOSTILE = [
    "$(touch x)",
    "`touch x`",
    "a;touch x",
    "a\ntouch x",
    "a\n#SBATCH --wrap=x",
    "-x",
    "a b",
    "'",
    '"',
    "a\\b",
    "é",
]


def sbatch_lines(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_the_script_says_what_was_asked_for() -> None:
    """Every setting is one of sbatch's options, under its own name."""
    launcher = Slurm(
        num_nodes=4, num_processes=2, partition="gpu,big", account="a1", qos="high", time="1-12:00:00",
        constraint="a100&(ib|roce)", gpus_per_node="a100:2", cpus_per_task=8, mem="64G",
        extra=["--exclusive", "--mail-user=me@host"], signal_seconds=120, requeue=False,
    )  # fmt: skip
    assert set(sbatch_lines(launcher.files(PLAN)[SCRIPT])) == {
        "--job-name=distrib", "--nodes=4", "--ntasks-per-node=2", "--partition=gpu,big", "--account=a1",
        "--qos=high", "--time=1-12:00:00", "--constraint='a100&(ib|roce)'", "--gpus-per-node=a100:2",
        "--cpus-per-task=8", "--mem=64G", "--exclusive", "--mail-user=me@host", "--signal=B:USR1@120",
        "--no-requeue", "--open-mode=append", "--output='/data/a b/logs/slurm-%j.out'",
    }  # fmt: skip


def test_the_script_has_one_command_of_two_paths() -> None:
    """Its last line starts the interpreter on the run directory; everything else is handed over as JSON."""
    *_, last = Slurm().files(PLAN)[SCRIPT].splitlines()
    assert shlex.split(last) == ["exec", sys.executable, "-m", "distrib.launchers.slurm.batch", "/data/a b"]


def test_the_step_starts_every_rank_with_argument_lists() -> None:
    """srun is told how many ranks there are, and to leave it to us to end them."""
    work = Work.from_json(Slurm(num_nodes=2, num_processes=3, cpus_per_task=4).files(PLAN)[WORK])
    (part,) = work.parts
    assert part.srun[:5] == (
        "srun", "--nodes=2", "--ntasks-per-node=3", "--cpus-per-task=4", "--ntasks=6",
    )  # fmt: skip
    assert {"--kill-on-bad-exit=0", "--wait=0"} <= set(part.srun)
    assert part.srun[-4:] == (TASK, "/data/a b/logs", "distrib.worker", "/data/a b")
    assert part.env == {"OMP_NUM_THREADS": "4"}
    assert Work.from_json(work.to_json()) == work


WITH_SERVERS = Slurm(
    num_nodes=2, num_processes=3, partition="gpu", account="a1", time="30", cpus_per_task=4, mem="64G",
    constraint="a100", extra=["--exclusive"],
    servers=Servers(num_nodes=1, num_processes=2, partition="cpu", mem="8G"),
)  # fmt: skip


def test_servers_are_a_second_component_of_the_job() -> None:
    """What is theirs is asked for them alone; whom to charge and how long is the same for all."""
    first, second = WITH_SERVERS.files(PLAN)[SCRIPT].split("#SBATCH hetjob\n")
    assert {"--nodes=2", "--ntasks-per-node=3", "--partition=gpu", "--mem=64G"} <= set(sbatch_lines(first))
    assert {"--exclusive", "--constraint=a100", "--cpus-per-task=4"} <= set(sbatch_lines(first))
    assert set(sbatch_lines(second)) == {
        "--nodes=1", "--ntasks-per-node=2", "--partition=cpu", "--mem=8G", "--account=a1", "--time=30",
        "--requeue",
    }  # fmt: skip
    alike = Slurm(partition="big", servers=Servers(num_nodes=1)).files(PLAN)[SCRIPT]
    assert sbatch_lines(alike).count("--partition=big") == 2


def test_servers_have_the_last_ranks() -> None:
    """Each part is a step, told how many ranks and nodes stand before its own in the whole job."""
    workers, servers = WITH_SERVERS.work(PLAN).parts
    assert workers.srun[1:6] == (
        "--nodes=2", "--ntasks-per-node=3", "--cpus-per-task=4", "--ntasks=6", "--het-group=0",
    )  # fmt: skip
    assert servers.srun[1:5] == ("--nodes=1", "--ntasks-per-node=2", "--ntasks=2", "--het-group=1")
    assert "--place=0,8,0,3" in workers.srun
    assert "--place=6,8,2,3" in servers.srun
    assert (workers.first_rank, servers.first_rank) == (0, 6)
    assert (workers.env, servers.env) == ({"OMP_NUM_THREADS": "4"}, {})
    assert (WITH_SERVERS.size, WITH_SERVERS.num_serving) == (8, 2)


def test_servers_take_the_last_nodes_of_an_allocation_of_one_kind() -> None:
    """In a user's own allocation without components, counted from its first node."""
    workers, servers = WITH_SERVERS.work(PLAN, heterogeneous=False).parts
    assert "--relative=0" in workers.srun
    assert "--relative=2" in servers.srun


def test_a_rank_knows_its_place_in_the_whole_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """From SLURM's variables, which count within a step, and the place of that step."""
    monkeypatch.setenv("MASTER_ADDR", "h1")
    monkeypatch.setenv("MASTER_PORT", "20001")
    own = World(rank=1, size=2, local_rank=1, local_size=2)
    whole = World.from_env(Place.read("6,8,2,3").variables(own))
    assert (whole.rank, whole.size, whole.local_rank, whole.local_size) == (7, 8, 1, 2)
    assert (whole.node, whole.num_nodes) == (2, 3)
    assert (whole.master_address, whole.master_port) == ("h1", 20001)
    assert Place.read(Place.read("6,8,2,3").word) == Place.read("6,8,2,3")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"partition": "a;b"}, "launcher.servers.partition="),
        ({"mem": "8 GB"}, "launcher.servers.mem="),
        ({"num_nodes": -1}, "launcher.servers.num_nodes=-1"),
        ({"num_processes": 0}, "launcher.servers.num_processes=0"),
    ],
)
def test_what_makes_no_servers_is_refused_by_key(settings: dict[str, Any], key: str) -> None:
    """Their values go into the same script as the others."""
    with pytest.raises(ConfigError, match=key):
        Servers(**settings)


def test_hosts_for_servers_are_as_many_as_the_strategys() -> None:
    """Checked before anything is submitted, by what the strategy says of its ranks."""
    words = ["experiment=tiny", "launcher=slurm", "launcher.num_nodes=2", "launcher.servers.num_nodes=1"]
    serving = [*words, "strategy=parameter_server", "launcher.servers.num_processes=2"]
    with pytest.raises(ConfigError, match=r"launcher\.servers=2 processes: 1 ranks of this strategy serve"):
        compose(serving)
    with pytest.raises(ConfigError, match=r"launcher\.servers=1 processes: 0 ranks of this strategy serve"):
        compose([*words, "strategy=ddp"])
    assert compose([*serving, "strategy.num_servers=2"]).launcher["servers"]["num_nodes"] == 1


def test_the_part_that_ended_badly_says_how_the_job_did() -> None:
    """Of a job of several parts; where all ended well, the first."""
    states = [JobState(job="7+0", state="CANCELLED"), JobState(job="7+1", state="COMPLETED")]
    assert decisive(states[::-1]).job == "7+0"
    assert decisive([JobState(job="7+0", state="COMPLETED"), states[1]]).job == "7+0"


def test_one_command_submits() -> None:
    """The plan of a launch is sbatch on the script."""
    (command,) = Slurm(num_nodes=2).plan(PLAN)
    assert command.argv == ("sbatch", "--parsable", "/data/a b/slurm.sbatch")


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "key", ["job_name", "partition", "account", "qos", "time", "constraint", "gpus_per_node", "mem"]
)
def test_hostile_characters_are_refused_by_key(key: str, value: str) -> None:
    """Nothing but the words a key is made for, before anything is written or started."""
    with pytest.raises(ConfigError, match=f"launcher.{key}="):
        Slurm(**{key: value})


SMUGGLED = [
    *HOSTILE, "--comment=$(x)", "--comment='x'", "--comment=a\n#SBATCH --x", "-p main", "--wrap=touch x",
    "--wra=touch x", "--export=NONE", "--array=1-9", "--output=/etc/passwd", "--o=/etc/passwd",
    "--signal=KILL", "--nodes=9", "--parsable",
]  # fmt: skip


@pytest.mark.parametrize("option", SMUGGLED)
def test_an_extra_option_cannot_smuggle_anything_in(option: str) -> None:
    """Only long options with plain values, and none that the launcher sets itself, abbreviated or not."""
    with pytest.raises(ConfigError, match=r"launcher\.extra="):
        Slurm(extra=[option])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"num_nodes": 0}, "launcher.num_nodes=0"),
        ({"num_processes": 0}, "launcher.num_processes=0"),
        ({"cpus_per_task": 0}, "launcher.cpus_per_task=0"),
        ({"signal_seconds": 0}, "launcher.signal_seconds=0"),
        ({"max_restarts": -1}, "launcher.max_restarts=-1"),
    ],
)
def test_numbers_that_make_no_job_are_refused(settings: dict[str, Any], key: str) -> None:
    """Before anything is submitted, by key."""
    with pytest.raises(ConfigError, match=key):
        Slurm(**settings)


@pytest.mark.parametrize("path", ["/data/a\nb", "/data/a\\b", "/data/a\x1b[0m"])
def test_a_run_directory_that_would_break_a_line_is_refused(path: str) -> None:
    """Any other path is quoted; these cannot stand in a script's lines for sbatch."""
    with pytest.raises(ConfigError, match="run_dir="):
        check_run_dir(Path(path))


@pytest.mark.parametrize("path", ["it's", "a$(touch x)b", "a`touch x`b", 'a"b', "a#b;c&d"])
def test_a_hostile_run_directory_is_quoted(tmp_path: Path, path: str) -> None:
    """bash itself reads the command as the words that were meant, and runs nothing else."""
    text = Slurm().files(LaunchPlan.of_worker(Path(path)))[SCRIPT]
    shown = text.replace("exec ", "printf '%s\\n' ")
    done = subprocess.run(["bash", "-c", shown], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == path
    assert list(tmp_path.iterdir()) == []


def test_percent_signs_of_a_path_are_not_slurms_patterns() -> None:
    """``%j`` in a directory's name stays; in the file's name SLURM puts the job's number."""
    options = Slurm().sbatch_options(LaunchPlan.of_worker(Path("/data/50%j")))
    assert options["output"] == "/data/50%%j/logs/slurm-%j.out"


def test_variables_do_not_override_settings_in_silence() -> None:
    """sbatch prefers SBATCH_* to its script: those of options that were set are taken out, others stay."""
    environ = {"SBATCH_PARTITION": "x", "SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "site", "HOME": "/"}
    assert without_overrides(environ, ["partition", "time"]) == {"SBATCH_ACCOUNT": "site", "HOME": "/"}


def test_an_array_has_a_task_for_each_trial() -> None:
    """All trials in one job, at most so many at once."""
    options = array_options({"nodes": "2"}, folder=Path("/s"), size=6, at_once=2)
    assert options == {"nodes": "2", "array": "0-5%2", "output": "/s/slurm-%A_%a.out"}
    assert array_options({}, folder=Path("/s"), size=6, at_once=None)["array"] == "0-5"


def test_the_newest_checkpoint_is_a_finished_one(tmp_path: Path) -> None:
    """One that is still written does not count, nor a link to the best."""
    assert newest_checkpoint(tmp_path) == ""
    for name in ("step-00000002", "step-00000010", "step-00000011.partial", "best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "MANIFEST.json").touch()
    (tmp_path / "checkpoints" / "step-00000012").mkdir()
    assert newest_checkpoint(tmp_path) == "step-00000010"
    work = json.loads(Slurm().files(LaunchPlan.of_worker(tmp_path))[WORK])
    assert work["newest"] == "step-00000010"


@pytest.mark.parametrize(
    ("text", "code"), [("0", 0), ("768", 3), ("9", 137), ("3:0", 3), ("0:15", 143), ("", 0)]
)
def test_exit_codes_are_read_in_either_form(text: str, code: int) -> None:
    """A wait status from squeue, ``code:signal`` elsewhere; as a shell would say it."""
    assert exit_code(text) == code


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("Exited with exit code 75", 75),
        ("Killed", -signal.SIGKILL),
        ("Segmentation fault (core dumped)", -signal.SIGSEGV),
        ("Out Of Memory", -signal.SIGKILL),
        ("something new", 1),
    ],
)
def test_sruns_words_for_an_end_are_understood(how: str, code: int) -> None:
    """As a rank's exit code, or minus the signal's number."""
    assert code_of(how) == code


def test_sruns_lists_of_ranks_are_understood() -> None:
    """Ranges and single ones."""
    assert list(ranks_of("0,2-4,7")) == [0, 2, 3, 4, 7]


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        (JobState(job="7", state="COMPLETED"), 0, ""),
        (JobState(job="7", state="FAILED", code=3), 3, ""),
        (JobState(job="7", state="TIMEOUT"), 1, "job 7 ran into its time limit"),
        (JobState(job="7", state="CANCELLED"), 1, "job 7 was cancelled"),
        (JobState(job="7", state="DEADLINE"), 1, "job 7 ended as DEADLINE"),
    ],
)
def test_how_a_job_ended_is_an_exit_code(state: JobState, code: int, words: str) -> None:
    """Its own where it has one; what its log does not say is said."""
    ended, said = verdict(state, interrupted=False)
    assert ended == code
    assert said.startswith(words)
    assert verdict(state, interrupted=True) == (130, "")


def test_states_are_said_for_people() -> None:
    """Why it waits, where it runs, whether waiting helps."""
    waiting = JobState(job="7", state="PENDING", reason="Priority", restarts=1)
    assert waiting.describe() == "PENDING (Priority), to start again (1)"
    assert JobState(job="7", state="RUNNING", nodes="h[1-4]").describe() == "RUNNING on h[1-4]"
    assert not waiting.hopeless
    assert JobState(job="7", state="PENDING", reason="PartitionConfig").hopeless

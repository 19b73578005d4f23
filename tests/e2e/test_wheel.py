"""The wheel works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment with the wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index")
    run(*pip, str(wheel), cwd=folder)
    [site_packages] = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file has its own .pth files ignored: an editable distrib stays out of sight.
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(*command: str, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_one_import_name_and_the_files_that_belong_to_it(wheel: Path) -> None:
    """Configs and launch scripts are inside the package: no ``conf`` or ``launch`` in site-packages."""
    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"distrib"}
    for folder in ("conf", "launch"):
        ours = {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*") if p.is_file()}
        shipped = {name.removeprefix("distrib/") for name in names if name.startswith(f"distrib/{folder}/")}
        assert shipped == ours
    assert {"distrib/py.typed", "distrib/conf/config.yaml", "distrib/conf/experiment/news.yaml"} <= set(names)


def test_the_installed_package_is_the_one_in_use(installed: Path, tmp_path: Path) -> None:
    """The environment of these tests does not see the checkout."""
    found = run(str(installed / "python"), "-c", "import distrib; print(distrib.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(installed.parent)


def test_the_command_answers_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    """``distrib train --help`` lists the settings from the configs in the wheel."""
    assert "train.global_batch_size" in run(str(installed / "distrib"), "train", "--help", cwd=tmp_path)


def test_a_run_is_planned_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    """``--dry-run`` composes an experiment from the wheel, without the checkout, and writes nothing."""
    planned = run(str(installed / "distrib"), "train", "--dry-run", "experiment=tiny", cwd=tmp_path)

    assert "distrib.strategies" in planned
    assert str(ROOT) not in planned
    assert list(tmp_path.iterdir()) == []

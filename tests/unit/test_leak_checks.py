"""The checks in conftest.py catch what they are there for."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

LEAKS = {
    "process": "import subprocess; subprocess.Popen(['sleep', '30'])",
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(30,), daemon=True).start()",
    "variable WORLD_SIZE": "import os; os.environ['WORLD_SIZE'] = '2'",
    "working directory": "import os; os.chdir('/')",
    "process group": (
        "import torch.distributed as dist; "
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)"
    ),
}


@pytest.mark.slow
def test_each_kind_of_leak_fails_the_test_that_made_it(pytester: pytest.Pytester) -> None:
    """A process, thread, variable, directory change or process group left behind is that test's failure."""
    pytester.makeconftest(CONFTEST.read_text().replace('pytest_plugins = ["pytester"]', ""))
    pytester.makepyfile(
        "\n\n".join(f"def test_{i}():\n    {body}" for i, body in enumerate(LEAKS.values()))
        + "\n\ndef test_clean():\n    import subprocess; subprocess.run(['true'], check=True)"
    )

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=60)

    result.assert_outcomes(passed=len(LEAKS) + 1, errors=len(LEAKS))
    for kind in LEAKS:
        result.stdout.re_match_lines([f".*left behind: .*{kind}"])

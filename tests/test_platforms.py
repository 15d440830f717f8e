"""What does not run on Windows says so."""

import subprocess
import sys

import pytest

COMMAND = """
import sys
import hyperzoo.models, accelerate
from hyperzoo.cli.main import main
sys.platform = "win32"
sys.modules["fcntl"] = None  # importing it raises ModuleNotFoundError
main({arguments!r})
"""


@pytest.mark.parametrize("arguments", [["train", "some.yaml"], ["reproduce", "spherenet20.sphere_c10"]])
@pytest.mark.fault("command on another operating system")
def test_training_on_windows_is_refused_in_one_sentence(arguments, tmp_path):
    code = COMMAND.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("PlatformError: training and publishing need") and "WSL" in done.stderr

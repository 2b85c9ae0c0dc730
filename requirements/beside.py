"""Runs two test commands at once, one per core, and shows the second's output after the first's.

    python requirements/beside.py PYTEST-ARGUMENTS... -- PYTEST-ARGUMENTS...

A shell would start the second one with Ctrl-C ignored, which its tests of Ctrl-C would inherit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile


def main() -> int:
    """Returns the exit status: 0 if both passed."""
    split = sys.argv.index("--")
    first, second = sys.argv[1:split], sys.argv[split + 1 :]
    pytest = [sys.executable, "-m", "pytest"]
    with tempfile.TemporaryFile("w+") as said:
        beside = subprocess.Popen([*pytest, *second], stdout=said, stderr=subprocess.STDOUT)
        try:
            status = subprocess.run([*pytest, *first], check=False).returncode
            status = beside.wait() or status
        finally:
            beside.kill()
            beside.wait()
        said.seek(0)
        print(said.read())
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Instruction counts of the kernels: they repeat exactly, whatever else the machine does.

python -m benchmarks.instructions          # count under valgrind, print JSON
python -m benchmarks.instructions --child  # what runs under valgrind
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

#: Name of a count -> the C function whose instructions it is (with all it calls).
COUNTED = {"value_accounts_c": "*value_accounts_c*", "fold_accounts": "*pw_8copyrisk_5_core_*fold_accounts*"}
BASELINE = Path(__file__).parent / "instructions.json"


def compiler() -> str:
    """What a baseline holds for: architecture and major version of the compiler."""
    said = subprocess.run(["cc", "-dumpversion"], capture_output=True, text=True, check=False).stdout
    return f"{platform.machine()}-cc-{said.split('.')[0].strip()}"


def child() -> None:
    """Fold and value the small workload once; everything else is not counted."""
    from benchmarks import twins  # noqa: PLC0415 - only under valgrind
    from benchmarks.workloads import workload  # noqa: PLC0415

    twins.kernel(workload("small"))()


def count(function: str) -> int:
    """Instructions executed inside a C function."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--toggle-collect={function}", f"--callgrind-out-file={out}"]
        # A fixed hash seed and no Numba: nothing that varies comes near the kernel.
        run = [sys.executable, "-m", "benchmarks.instructions", "--child"]
        done = subprocess.run(
            [*command, *run],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"},
        )
        if done.returncode != 0:
            raise RuntimeError(f"valgrind: {done.stderr[-500:]}")
        found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
        if found is None or int(found[1]) == 0:
            raise RuntimeError(f"no instructions counted in {function}: was it renamed or inlined?")
        return int(found[1])


def counts() -> dict[str, int]:
    """All counts."""
    return {name: count(function) for name, function in COUNTED.items()}


def main() -> None:
    """Count, or be counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", action="store_true")
    if parser.parse_args().child:
        child()
    else:
        print(json.dumps(counts()))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The developer's commands: `demo`, `test`, `lint`, `bench`, `gates`, `docs`.

Needs Python 3.11 and a C compiler, nothing else. Makes `.venv` in the project's folder, installs into it what is
needed, and hands over to the command with all further arguments. A second run only compares a stamp. With
`COPYRISK_DEBUG=1` the kernels are built with checks into `.venv-debug`.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
DEBUG = os.environ.get("COPYRISK_DEBUG") == "1"
VENV = ROOT / (".venv-debug" if DEBUG else ".venv")
STAMP = VENV / "installed-from"
EXTRAS = "embedded,dev"


def main() -> None:
    """Run the command named first with the arguments that follow it."""
    commands = {
        "demo": [["copyrisk-run", "--demo"]],
        "test": [["python", "-m", "pytest", "-n", "2", "--dist", "loadfile"]],  # a later -n wins
        "lint": [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
        "bench": [["python", "-m", "benchmarks"]],
        "gates": [["python", "-m", "benchmarks.gates"]],
        "docs": [["python", "-m", "mkdocs", "build", "--strict"]],  # into build/site
    }
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        fail(f"usage: python3 tools/dev.py {'|'.join(commands)} [arguments]")
    if sys.version_info < OLDEST:
        fail(f"copyrisk needs Python 3.11 or later, this is {sys.version.split()[0]}")
    os.chdir(ROOT)
    ensure_installed()
    *first, last = commands[sys.argv[1]]
    for command in first:
        code = subprocess.run([VENV / "bin" / command[0], *command[1:]], check=False).returncode
        if code != 0:
            sys.exit(code)
    program = str(VENV / "bin" / last[0])
    os.execv(program, [program, *last[1:], *sys.argv[2:]])


def fail(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def fingerprint() -> str:
    """Changes with whatever decides what an installation contains."""
    built = ["pyproject.toml", "setup.py"]
    sources = sorted(path for pattern in ("*.pyx", "*.pxd", "*.lua") for path in (ROOT / "src").rglob(pattern))
    if DEBUG:  # not an editable installation: it holds copies of the Python files, too
        sources += sorted((ROOT / "src").rglob("*.py"))
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for path in [*(ROOT / name for name in built), *sources]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def ensure_installed() -> None:
    """Make or renew the virtual environment unless its stamp says that nothing changed."""
    wanted = fingerprint()
    with (ROOT / f"{VENV.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.exists() and STAMP.read_text() == wanted:
            return
        STAMP.unlink(missing_ok=True)
        started = time.monotonic()
        print(f"installing into {VENV.name} (once, about half a minute) ...", file=sys.stderr, flush=True)
        install()
        STAMP.write_text(wanted)
        print(f"installed in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def install() -> None:
    """Install the package with its extras: editable, but for the debug build, which keeps its own copy."""
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CC", "cc"), "gcc", "clang")):
        fail("copyrisk builds its kernels with a C compiler, and there is none: install gcc or clang")
    if not works([VENV / "bin" / "python", "-m", "pip", "--version"]):
        shutil.rmtree(VENV, ignore_errors=True)
        run([sys.executable, "-m", "venv", VENV], "a virtual environment cannot be made (Debian: python3-venv)")
    target = f".[{EXTRAS}]"
    mode = ["--force-reinstall", "--no-deps", "."] if DEBUG else ["--editable", target]
    pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if DEBUG:
        run([*pip, target], "the installation failed")
    run([*pip, *mode], "the installation failed")


def works(command: list[object]) -> bool:
    """Whether a program is there and ends well."""
    try:
        return subprocess.run([str(word) for word in command], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def run(command: list[object], complaint: str) -> None:
    """Run quietly; on failure show what it printed and end."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="", file=sys.stderr)
        fail(complaint)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the installation has no stamp yet and is done again
        fail("interrupted")

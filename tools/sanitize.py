#!/usr/bin/env python3
"""Run the compiled modules under the compilers' sanitizers: their tests, the corpus, and a minute of fuzzing.

python3 tools/sanitize.py [--seconds N]

Uses what `tools/dev.py` installed. Builds in `build/sanitize`, never beside the sources. Tests and corpus run on gcc's
address and undefined-behaviour sanitizers; fuzzing on clang's with coverage of the compiled code, where clang is or can
be installed, else on gcc's without.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
BUILD = ROOT / "build" / "sanitize"
TOOLS = BUILD / "tools"
TESTED = ("index", "replies", "pack", "triggers", "sizing", "templates", "cutoff_kernels")
TESTS = [f"tests/test_{name}.py" for name in TESTED]
CORPUS = ROOT / "tests" / "corpus" / "wire"
FUZZER = ROOT / "tools" / "fuzz_wire.py"
ATHERIS = "atheris>=3.0,<4"
PACKAGES = ["clang", "libclang-rt-14-dev"]
INSTALL_S = 600

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
FLAGS = [*SANITIZERS, "-O1", "-g", "-ffp-contract=off"]

# Takes sources, directives and names from setup.py, and only the compiler's flags from here.
BUILDER = """
import runpy, setuptools, sys
kept, setup, flags = {}, setuptools.setup, sys.argv[1:]
setuptools.setup = lambda **words: kept.update(words)
runpy.run_path("setup.py")
for extension in kept["ext_modules"]:
    extension.extra_compile_args = extension.extra_link_args = flags
setup(name="copyrisk", package_dir={"": "src"}, packages=[], py_modules=[], ext_modules=kept["ext_modules"],
      script_args=["-q", "build_ext", "--inplace", "--parallel", "2", "--build-temp", "build/objects"])
"""


def main() -> None:
    """Run all steps; the first that fails ends it."""
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--seconds", type=int, default=60, help="how long to fuzz; 0: not at all")
    seconds = words.parse_args().seconds
    if not PYTHON.exists():
        fail("there is no .venv: run python3 tools/dev.py test first")
    if shutil.which("gcc") is None:
        fail("gcc is not installed")
    tree = built("gcc", FLAGS)
    preloaded = ":".join(library_of("gcc", name) for name in ("libasan.so", "libstdc++.so.6"))
    step("tests")
    # What a sanitizer says before it ends the process must not be caught with the tests' output.
    run(["-m", "pytest", "--capture=sys", "-p", "no:cacheprovider", *TESTS], tree, preloaded)
    step("corpus")
    run([FUZZER, "--replay", CORPUS], tree, preloaded)
    if seconds > 0:
        fuzz(seconds, tree, preloaded)
    step("done")


def step(name: str) -> None:
    """Say what comes."""
    print(f"--- sanitize: {name}", flush=True)


def fail(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def built(compiler: str, flags: list[str]) -> Path:
    """A copy of the package with compiled modules of these flags."""
    step(f"building with {compiler}")
    tree = BUILD / compiler
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "setup.py", tree)
    done = subprocess.run(
        [PYTHON, "-c", BUILDER, *flags],
        cwd=tree,
        env={**os.environ, "CC": compiler, "LDSHARED": f"{compiler} -shared", "CFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="", file=sys.stderr)
        fail(f"the build with {compiler} failed")
    return tree


def library_of(compiler: str, name: str) -> str:
    """Where a compiler's library is."""
    said = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    path = Path(said.strip())
    if not path.is_absolute():
        fail(f"{compiler} has no {name}")
    return str(path.resolve())


def run(words: list[object], tree: Path, preloaded: str) -> None:
    """Run Python on the modules of a tree; its failure is ours."""
    env = {
        **os.environ,
        "LD_PRELOAD": preloaded,
        "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(ROOT), str(TOOLS)]),
        "PYTHONMALLOC": "malloc",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Python itself leaves memory behind; an allocation that fails must answer NULL as it does in production.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:handle_abort=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    check = f"import copyrisk._wire as m; assert m.__file__.startswith({str(tree)!r}), m.__file__"
    commands: list[list[object]] = [["-c", check], words]
    for command in commands:
        done = subprocess.run([str(PYTHON), *map(str, command)], cwd=ROOT, env=env, check=False)
        if done.returncode != 0:
            sys.exit(done.returncode if done.returncode > 0 else 1)


def fuzz(seconds: int, tree: Path, preloaded: str) -> None:
    """With coverage if that can be had; an input that fails is left in `build/sanitize/found`."""
    found, grown = BUILD / "found", BUILD / "corpus"
    found.mkdir(exist_ok=True)
    grown.mkdir(exist_ok=True)
    if not (has_clang() and has_atheris()):
        step(f"random changes of the corpus for {seconds} s")
        run([FUZZER, "--mutate", seconds, found / "latest", CORPUS], tree, preloaded)
        return
    tree = built("clang", ["-fsanitize=fuzzer-no-link", *FLAGS])
    step(f"fuzzing for {seconds} s")
    options = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={found}/",
        "-max_len=4096",
        "-timeout=20",
        "-verbosity=0",
    ]
    # The runtime comes with atheris: address sanitizer and libFuzzer in one library.
    run([FUZZER, *options, "-print_final_stats=1", grown, CORPUS], tree, str(TOOLS / "asan_with_fuzzer.so"))


def has_clang() -> bool:
    """Whether clang is here, after an attempt to install it where that is allowed."""
    if shutil.which("clang") is None and os.geteuid() == 0 and shutil.which("apt-get") is not None:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        for command in (["apt-get", "update", "-qq"], install):
            attempted(command, quiet)
    return shutil.which("clang") is not None


def has_atheris() -> bool:
    """Whether atheris is here, after an attempt to install it; apart from the developer's packages."""
    if not (TOOLS / "asan_with_fuzzer.so").exists():
        pip: list[str | Path] = [
            PYTHON,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
        ]
        attempted([*pip, "--target", TOOLS, ATHERIS], dict(os.environ))
    return (TOOLS / "asan_with_fuzzer.so").exists()


def attempted(command: Sequence[str | Path], env: dict[str, str]) -> None:
    """Run what may fail: without it there is another way."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, env=env, capture_output=True, check=False, timeout=INSTALL_S)


if __name__ == "__main__":
    main()

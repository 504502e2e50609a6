"""Builds the kernels: one portable build, or with `COPYRISK_DEBUG=1` a checked one without optimisation."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("COPYRISK_DEBUG") == "1"
BUILD = Path("build") / ("debug" if DEBUG else "release")

# No -march=native: what is shipped runs on any machine. No -ffast-math: NaN must stay NaN. No contraction to
# fused multiply-add: every machine gives the same bits.
RELEASE_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
DEBUG_FLAGS = ["-O0", "-g", "-ffp-contract=off", "-DCOPYRISK_DEBUG=1"]

extensions = [
    Extension(f"copyrisk.{source.stem}", [str(source)], extra_compile_args=DEBUG_FLAGS if DEBUG else RELEASE_FLAGS)
    for source in sorted(Path("src/copyrisk").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        build_dir=str(BUILD / "cython"),
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "embedsignature": True,
            "cdivision": True,
            "wraparound": False,
            "boundscheck": DEBUG,
            "initializedcheck": DEBUG,
        },
    ),
    options={"build": {"build_base": str(BUILD)}, "build_ext": {"parallel": os.cpu_count()}},
)

"""Other services use the kernels: from Python arrays, from Cython by `cimport`, from Numba by address."""

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.extending import get_cython_function_address

from benchmarks import twins
from benchmarks.workloads import workload
from copyrisk import layout

README = Path(__file__).parent.parent / "README.md"

USER_MODULE = """
# cython: language_level=3
from copyrisk cimport _core


def value(const _core.Account[::1] accounts, const _core.Leg[::1] legs, const _core.LegRate[::1] rates,
          const _core.Instrument[::1] instruments, _core.Figures[::1] figures):
    return _core.value_accounts_c(&accounts[0], accounts.shape[0], &legs[0], legs.shape[0], &rates[0],
                                  &instruments[0], instruments.shape[0], &figures[0])


def formulas():
    return (_core.leg_pnl_usd(10, 20, 3, 0.5, 2), _core.leg_pnl_usd(-10, -20, 3, 0.5, 2), _core.margin_volume(3, 2, -1),
            _core.margin_level_pct(50, 200), _core.ladder_state(20, 200, 10, 50, 10))
"""

#: C struct -> its dtype; the module says where the compiler put each field.
STRUCTS = {
    "Quote": layout.QUOTE,
    "Instrument": layout.INSTRUMENT,
    "Order": layout.ORDER,
    "Leg": layout.LEG,
    "LegRate": layout.LEG_RATE,
    "Account": layout.ACCOUNT,
    "Exposure": layout.EXPOSURE,
    "Figures": layout.FIGURES,
}


def offsets_function() -> str:
    """Cython source: `offsets()` gives {struct: [size, {field: [offset, size]}]}."""
    lines = ["\n\ndef offsets():", "    found = {}"]
    for struct, dtype in STRUCTS.items():
        row = f"(<_core.{struct}*>0)"
        lines.append(f"    found['{struct}'] = [sizeof(_core.{struct}), {{}}]")
        lines += [
            f"    found['{struct}'][1]['{name}'] = [<size_t>&{row}.{name}, sizeof({row}.{name})]"
            for name in dtype.names or ()
        ]
    return "\n".join([*lines, "    return found", ""])


BUILD = """
import json, sys, numpy as np
from setuptools import Distribution, Extension
from Cython.Build import cythonize
distribution = Distribution({"ext_modules": cythonize([Extension("user_module", ["user_module.pyx"])], quiet=True)})
command = distribution.get_command_obj("build_ext")
command.inplace = True
command.ensure_finalized()
command.run()
import user_module
from benchmarks.workloads import workload
work = workload("small")
known = user_module.value(work.accounts, work.legs, work.leg_rates, work.instruments, work.figures)
np.save("figures.npy", work.figures)
with open("offsets.json", "w") as file:
    json.dump(user_module.offsets(), file)
print(known, user_module.formulas())
"""


def test_the_readme_example_says_what_it_prints() -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    done = subprocess.run([sys.executable, "-c", found[1]], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[10068.]", "[928.31128118]", "2"]


@pytest.mark.slow
def test_cython_modules_cimport_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "user_module.pyx").write_text(USER_MODULE + offsets_function())
    root = str(Path(__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r})\n{BUILD}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    work = workload("small")
    twins.kernel(work)()
    theirs = np.load(tmp_path / "figures.npy")
    assert theirs.tobytes() == work.figures.tobytes()
    in_c = json.loads((tmp_path / "offsets.json").read_text())
    for struct, dtype in STRUCTS.items():
        fields = {name: [offset, of.itemsize] for name, (of, offset) in (dtype.fields or {}).items()}
        assert in_c[struct] == [dtype.itemsize, fields], struct
    assert done.stdout.split("\n")[-2] == f"{(work.figures['state'] > 0).sum()} (5.0, -20.0, 1.0, 25.0, 4)"


def c_function(name: str, *signature: object) -> object:
    return ctypes.CFUNCTYPE(*signature)(get_cython_function_address("copyrisk._core", name))


def test_numba_functions_call_the_kernels() -> None:
    double, size, pointer = ctypes.c_double, ctypes.c_ssize_t, ctypes.c_void_p
    pnl = c_function("leg_pnl_usd", double, double, double, double, double, double)
    level = c_function("margin_level_pct", double, double, double)
    state = c_function("ladder_state", ctypes.c_uint8, double, double, double, double, double)
    value = c_function("value_accounts_c", size, pointer, size, pointer, size, pointer, pointer, size, pointer)

    @numba.njit  # type: ignore[untyped-decorator]
    def use(accounts, legs, rates, instruments, figures):  # type: ignore[no-untyped-def]
        known = value(
            accounts.ctypes,
            len(accounts),
            legs.ctypes,
            len(legs),
            rates.ctypes,
            instruments.ctypes,
            len(instruments),
            figures.ctypes,
        )
        margin = level(50.0, 200.0)
        return known, pnl(-10.0, -20.0, 3.0, 0.5, 2.0), margin, state(20.0, 200.0, 10.0, 50.0, 10.0)

    work = workload("small")
    twins.kernel(work)()
    figures = np.zeros(len(work.accounts), layout.FIGURES)
    known, *formulas = use(work.accounts, work.legs, work.leg_rates, work.instruments, figures)
    assert known == (work.figures["state"] > 0).sum()
    assert formulas == [-20.0, 25.0, 4]
    assert figures.tobytes() == work.figures.tobytes()

"""Policies of users: compiled, called for every row, and never trusted."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from copyrisk.errors import ConfigError
from copyrisk.policies import PARAMETERS, Policy, compile_policy, load_policy
from copyrisk.sizing import POLICY_IN, SizeCode, size_lots

PAGE = Path(__file__).parent.parent / "docs" / "sizing.md"
HEAD = f"def policy({', '.join(PARAMETERS)}):\n"


def function_of(body: str) -> Callable[..., float]:
    names: dict[str, Any] = {"math": math}
    exec(HEAD + "".join(f"    {line}\n" for line in body.splitlines()), names)
    function: Callable[..., float] = names["policy"]
    return function


def rows(equities: list[float]) -> Any:
    inputs = np.ones(len(equities), POLICY_IN)
    inputs["follower_equity"] = equities
    return inputs


def sizes(policy: Policy, inputs: Any, **terms: Any) -> list[tuple[float, SizeCode]]:
    raw = policy.raw_lots(inputs)
    lots, codes = size_lots(1.0, 1000.0, np.full(len(inputs), 1000.0), mode="policy", raw_lots=raw, **terms)
    return [(size, SizeCode(code)) for size, code in zip(lots.tolist(), codes, strict=True)]


def test_the_examples_of_the_page_print_what_they_say() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
        assert done.stdout == example.rstrip().rpartition("# ")[2] + "\n"


def test_every_parameter_gets_its_number() -> None:
    inputs = np.zeros(len(PARAMETERS), POLICY_IN)
    for row, name in enumerate(PARAMETERS):
        inputs[name][row] = 1.0
    weighted = compile_policy(function_of("return " + " + ".join(f"{k} * {name}" for k, name in enumerate(PARAMETERS))))
    assert weighted.raw_lots(inputs).tolist() == list(range(len(PARAMETERS)))


BAD = """if follower_equity == 1.0:
    return 1.0 / (follower_equity - 1.0)
if follower_equity == 2.0:
    return math.sqrt(-follower_equity)
if follower_equity == 3.0:
    return -0.01
if follower_equity == 4.0:
    return 1e300
if follower_equity == 5.0:
    raise ValueError('five')
if follower_equity == 6.0:
    return 0.0
return follower_equity / 100.0"""


def test_what_a_policy_cannot_mean_is_a_code_for_that_row_only(capfd: pytest.CaptureFixture[str]) -> None:
    found = sizes(compile_policy(function_of(BAD)), rows([29, 1, 2, 3, 4, 5, 6, 57.9, 20_000]), below_min="lift")
    invalid = (0.0, SizeCode.POLICY_INVALID)
    assert found[0] == (0.29, SizeCode.OK)
    assert found[1:6] == [invalid] * 5
    assert found[6] == (0.0, SizeCode.BELOW_MIN)  # nothing is never lifted
    assert found[7:] == [(0.57, SizeCode.OK), (100.0, SizeCode.CLIPPED)]
    assert capfd.readouterr() == ("", "")


def test_a_policy_does_not_size_on_what_is_not_known() -> None:
    always = compile_policy(function_of("return 0.5"))
    raw = always.raw_lots(rows([math.nan, 1.0, 1.0]))
    assert raw.tolist() == [0.5] * 3
    lots, codes = size_lots(1.0, [1000, math.nan, 1000], [math.nan, 1000, 0.0], mode="policy", raw_lots=raw)
    assert lots.tolist() == [0.0] * 3
    assert codes.tolist() == [
        SizeCode.FOLLOWER_EQUITY_UNKNOWN,
        SizeCode.MASTER_EQUITY_UNKNOWN,
        SizeCode.FOLLOWER_EQUITY_NOT_POSITIVE,
    ]


def test_no_rows_and_rows_of_another_kind() -> None:
    policy = compile_policy(function_of("return 1"))
    assert policy.raw_lots(rows([])).tolist() == []
    with pytest.raises(ValueError, match="."):
        policy.raw_lots(np.ones(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("body", ["return None", "return 'x'", "return missing(1)", "return 1j", "open('x')"])
def test_what_does_not_compile_is_refused(body: str) -> None:
    with pytest.raises(ConfigError, match="does not compile") as caught:
        compile_policy(function_of(body))
    assert caught.value.code == "policy_invalid"
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


@pytest.mark.parametrize("strange", [len, 3, None, Policy, lambda master_lots: 1.0, lambda *numbers: 1.0])
def test_what_is_no_such_function_is_refused(strange: Any) -> None:
    with pytest.raises(ConfigError, match="plain function|must take master_lots, ") as caught:
        compile_policy(strange)
    assert caught.value.code == "policy_invalid"


def test_a_policy_is_found_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "house_rules.py").write_text(f"{HEAD}    return master_lots / 2\n\nNUMBER = 3\n")
    (tmp_path / "broken_rules.py").write_text("raise SystemExit('no\\nmore')\n")
    policy = load_policy("house_rules:policy")
    assert policy.name == "house_rules:policy"
    assert policy.raw_lots(rows([1.0])).tolist() == [0.5]
    for place in ("house_rules", "house_rules:", ":policy", "no_such_rules:policy", "house_rules:other",
                  "broken_rules:policy", "house_rules:policy.x", "a b:c", "x" * 500 + ":y", "é:f"):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            load_policy(place)
        assert caught.value.code == "policy_not_found", place
        assert str(caught.value).isprintable()
    with pytest.raises(ConfigError) as caught:
        load_policy("house_rules:NUMBER")
    assert caught.value.code == "policy_invalid"


def test_without_numba_sizing_works_and_policies_say_so() -> None:
    code = f"""
import sys
sys.modules["numba"] = None
from copyrisk.errors import ConfigError
from copyrisk.policies import compile_policy
from copyrisk.sizing import size_lots
print(size_lots(1, 2, 1)[0])
{HEAD}    return 1.0
try:
    compile_policy(policy)
except ConfigError as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.5", "numba_missing"]

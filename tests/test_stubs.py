"""What the stubs say of the compiled modules is true."""

import ast
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "copyrisk"


@pytest.mark.parametrize("stub", sorted(SOURCE.glob("*.pyi")), ids=lambda path: path.stem)
def test_the_stub_names_what_is_there(stub: Path) -> None:
    module = importlib.import_module(f"copyrisk.{stub.stem}")
    named = set()
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "IntEnum" for base in node.bases):
            said = {
                line.targets[0].id: ast.literal_eval(line.value) for line in node.body if isinstance(line, ast.Assign)
            }  # type: ignore[attr-defined]
            assert {member.name: int(member) for member in getattr(module, node.name)} == said
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            named.add(node.name)
            assert hasattr(module, node.name), node.name
            assert isinstance(node, ast.ClassDef) or ast.get_docstring(node), f"{node.name} is not documented"
    public = {name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))}
    assert public == named


def test_every_compiled_module_has_a_stub() -> None:
    assert {path.stem for path in SOURCE.glob("*.pyx")} == {path.stem for path in SOURCE.glob("*.pyi")}

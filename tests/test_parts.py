"""The plan of the house: parts in order, chapters in order, nothing reaches forward, and nothing is exported that only its own chapter uses."""

import ast
import re

import pytest
from project_files import ALL_NOTEBOOKS, DEFINITION_NOTEBOOKS, NOTEBOOKS, PACKAGE, PARTS, ROOT, code_cells, read_notebook, relative, source

ORDER = [f"{path.parent.name}.{path.stem[3:]}" for path in DEFINITION_NOTEBOOKS]  # part.module, first to last


def imports_of(text: str) -> set[str]:
    "The modules of the package that a piece of code names, as part.module."
    found = set()
    for node in ast.walk(ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in text.splitlines()))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("drpose."):
            found.add(node.module.removeprefix("drpose."))
            if node.module.count(".") == 1:
                found |= {f"{node.module.removeprefix('drpose.')}.{name.name}" for name in node.names}
    return found & set(ORDER)


def test_the_package_has_the_parts_that_the_notebooks_have():
    assert sorted(PARTS) == sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
    assert sorted([*PARTS, "runs", "results"]) == sorted(path.name for path in NOTEBOOKS.iterdir() if path.is_dir() and any(path.glob("*.ipynb")))


@pytest.mark.parametrize("path", DEFINITION_NOTEBOOKS, ids=relative)
def test_a_chapter_imports_only_earlier_ones(path):
    "What it shows may also be drawn with part `pictures`: nobody can show a person without."
    own = ORDER.index(f"{path.parent.name}.{path.stem[3:]}")
    exported, shown = ("\n".join(source(cell) for cell in code_cells(path) if ("#| export" in source(cell)) == kind) for kind in (True, False))
    later = {name for name in imports_of(exported) if ORDER.index(name) >= own}
    assert not later, f"{relative(path)} exports code that needs {sorted(later)}"
    later = {name for name in imports_of(shown) if ORDER.index(name) > own and not name.startswith("pictures.")}
    assert not later, f"{relative(path)} shows code that needs {sorted(later)}"


@pytest.mark.parametrize("path", DEFINITION_NOTEBOOKS, ids=relative)
def test_a_chapter_is_named_like_its_module(path):
    title = next(source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown")
    assert title.startswith(f"# {path.stem[3:]}\n")
    exports_to = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(map(source, code_cells(path))), re.MULTILINE)[1]
    assert exports_to == ("__init__" if path.stem == "07_names" else f"{path.parent.name}.{path.stem[3:]}")


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=relative)
def test_imports_stand_in_the_order_of_the_house(path):
    for cell in code_cells(path):
        lines = re.findall(r"^from drpose\.(\w+\.\w+) import", source(cell), re.MULTILINE)
        assert lines == sorted(lines, key=ORDER.index), f"{relative(path)}: {lines}"


def test_nothing_is_exported_that_only_its_own_chapter_shows():
    "Each public name is used by its own module, another notebook, a script or a page."
    texts = {path: "\n".join(map(source, code_cells(path))) for path in ALL_NOTEBOOKS}
    texts |= {path: path.read_text(encoding="utf-8") for path in (*(ROOT / "scripts").glob("*.py"), *(ROOT / "docs").glob("*.md"))}
    words = {path: set(re.findall(r"\w+", text)) for path, text in texts.items()}
    idle = []
    for path in DEFINITION_NOTEBOOKS:
        exported = "\n".join(source(cell) for cell in code_cells(path) if "#| export" in source(cell))
        tree = ast.parse(exported)
        names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        names += [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)]
        for name in names:
            elsewhere = any(name in found for other, found in words.items() if other != path)
            if not name.startswith("_") and not elsewhere and len(re.findall(rf"\b{name}\b", exported)) < 2:
                idle.append(f"{relative(path)}: {name}")
    assert not idle, f"used by nobody but their own chapter and tests: {idle}"

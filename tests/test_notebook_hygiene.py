"""Notebooks and exported code stay readable, clean and portable."""

import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize

import pytest
from project_files import (
    ALL_NOTEBOOKS,
    DEFINITION_NOTEBOOKS,
    DOOR,
    GENERATED,
    INDEX,
    OPENINGS,
    PACKAGE,
    RESULT_NOTEBOOKS,
    ROOT,
    RUN_NOTEBOOKS,
    code_cells,
    committed_files,
    parameter_cells,
    read_notebook,
    relative,
    run_python,
    source,
)

MAX_BYTES, MAX_CELLS = 900 * 1024, 60
MODULES = [path for path in sorted(PACKAGE.glob("**/*.py")) if path.name not in GENERATED]
# An absolute path of somebody's machine; not preceded by a character that would make it the end of a URL or of a relative path.
MACHINE_PATH = re.compile(r"(?<![\w.~:/\\-])/(?:work|tmp|home|root|Users|opt|mnt|workspace|private/var)(?=/|[\"'`\s),;]|$)(?:/[\w.-]+)*|[A-Z]:\\\\?Users\b", re.MULTILINE)
TEXT_KINDS = {".py", ".ipynb", ".md", ".ini", ".txt", ".toml", ".yaml", ".yml", ".json", ".jsonl", ".sh", ".in", ""}


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    "A copy of the notebooks after nbdev_clean."
    copy = tmp_path_factory.mktemp("clean")
    for path in (ROOT / "settings.ini", *ALL_NOTEBOOKS):
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    finished = run_python("from nbdev.clean import nbdev_clean; nbdev_clean()", cwd=copy, timeout=120)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return copy


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=relative)
def test_notebook_is_clean(path, cleaned):
    assert (cleaned / path.relative_to(ROOT)).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), f"run `make clean-notebooks`: it changes {relative(path)}"


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=relative)
def test_notebook_is_small_and_has_no_live_widgets(path):
    notebook = read_notebook(path)
    assert path.stat().st_size <= MAX_BYTES, f"{relative(path)} has {path.stat().st_size} bytes; show smaller or fewer pictures"
    assert len(notebook["cells"]) <= MAX_CELLS, f"{relative(path)} has {len(notebook['cells'])} cells; split it along an idea"
    assert "widgets" not in notebook["metadata"], f"{relative(path)} stores widget state, which is megabytes of JavaScript"


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=relative)
def test_notebook_names_the_plain_python_kernel(path):
    kernel = read_notebook(path)["metadata"].get("kernelspec", {})
    assert (kernel.get("name"), kernel.get("display_name")) == ("python3", "python3")


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=relative)
def test_notebook_stores_no_error(path):
    failed = [source(cell).splitlines()[0] for cell in code_cells(path) if any(output["output_type"] == "error" for output in cell["outputs"])]
    assert not failed, f"{relative(path)} stores the traceback of: {failed}"


def _python(cell: dict) -> str:
    "The cell's text without IPython's own syntax."
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source(cell).splitlines())


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=relative)
def test_notebook_imports_by_name(path):
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(_python(cell))):
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), f"{relative(path)}: from {node.module} import *"
        assert not re.search(r"\bnbdev_export\s*\(", source(cell)), f"{relative(path)} would rewrite the package under papermill; use `make export`"


@pytest.mark.parametrize("path", [DOOR, INDEX, *OPENINGS, *DEFINITION_NOTEBOOKS, *RESULT_NOTEBOOKS], ids=relative)
def test_only_run_notebooks_have_parameters(path):
    assert not parameter_cells(path)


@pytest.mark.parametrize("path", DEFINITION_NOTEBOOKS, ids=relative)
def test_chapter_opens_with_its_module_name_and_one_sentence(path):
    "nbdev makes the module's docstring of it."
    title = next((source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown"), "")
    assert re.match(r"# \S.*\n+> \S", title), f"{relative(path)} opens with {title[:80]!r}"
    assert any(re.search(r"^#\|\s*default_exp\s+\S+", source(cell), re.MULTILINE) for cell in code_cells(path)), f"{relative(path)} names no module"


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=relative)
def test_only_the_title_is_a_first_level_heading(path):
    "More of them are comment signs that came along from a script: the page would be all headings."
    prose = "\n".join(source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown")
    prose = re.sub(r"^```.*?^```", "", prose, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^# .*", prose, re.MULTILINE)
    assert len(headings) == 1, f"{relative(path)}: {headings[:5]}"


@pytest.mark.parametrize("path", RUN_NOTEBOOKS, ids=relative)
def test_run_notebook_has_one_parameters_cell_that_survives_cleaning(path, cleaned):
    assert len(parameter_cells(path)) == 1, "without the tag papermill runs the defaults and reports success"
    assert len(parameter_cells(cleaned / path.relative_to(ROOT))) == 1, "nbdev_clean removed the tag: settings.ini needs allowed_cell_metadata_keys = tags"
    assert not any(re.search(r"^#\|\s*(default_exp|export)", source(cell), re.MULTILINE) for cell in code_cells(path)), "run notebooks export nothing"


@pytest.mark.parametrize("path", RUN_NOTEBOOKS, ids=relative)
def test_parameters_are_commented_literals(path):
    (cell,) = parameter_cells(path)
    text = source(cell)
    commented = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT}
    for statement in ast.parse(text).body:
        line = ast.unparse(statement)
        assert isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None, f"{relative(path)}: `{line}` is no assignment"
        try:
            ast.literal_eval(statement.value)
        except ValueError:
            pytest.fail(f"{relative(path)}: `{line}` is computed; papermill overrides only literals")
        assert commented & set(range(statement.lineno, statement.end_lineno + 1)), f"{relative(path)}: `{line}` has no comment"


JUNK = re.compile(r"\d+%\||it/s\]|Widget|\bUserWarning\b|\bFutureWarning\b|DeprecationWarning|Self CPU|\x1b\[")  # progress bars, widgets, warnings, profilers, terminal colours


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=relative)
def test_stored_outputs_are_fit_to_read(path):
    for cell in code_cells(path):
        for output in cell["outputs"]:
            text = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
            found = JUNK.search(text)
            assert found is None, f"{relative(path)} stores {text[max(0, found.start() - 60) : found.end() + 20]!r} below: {source(cell).splitlines()[0]}"
            assert not any(kind.startswith("application/vnd.jupyter.widget") for kind in output.get("data", {})), f"{relative(path)} stores a live widget"


@pytest.mark.parametrize("path", [DOOR, INDEX, *OPENINGS, *RUN_NOTEBOOKS, *RESULT_NOTEBOOKS], ids=relative)
def test_notebook_is_stored_with_a_picture(path):
    "Whoever opens it on a git host sees what it does before running anything."
    kinds = [kind for cell in code_cells(path) for output in cell["outputs"] for kind in output.get("data", {})]
    assert "image/png" in kinds, f"run {relative(path)} and store its outputs"


def test_the_front_door_is_short():
    assert len(read_notebook(DOOR)["cells"]) <= 25


@pytest.mark.parametrize("path", OPENINGS, ids=relative)
def test_an_opening_lists_the_chapters_of_its_part(path):
    text = "\n".join(source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown")
    listed = re.findall(r"^\| \**\[\w+\]\((\S+\.ipynb)\)", text, re.MULTILINE)
    assert sorted(listed) == sorted(chapter.name for chapter in path.parent.glob("[0-9]*.ipynb") if chapter != path)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_is_documented_and_stands_alone(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {module.split(".")[0] for module in modules} & {"fastcore", "nbdev", "execnb"}, f"{relative(path)}:{node.lineno} needs a development tool"
            assert node.names[0].name != "*", f"{relative(path)}:{node.lineno} star import"
    silent = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, f"{relative(path)}: no docstring on {silent}"


@pytest.mark.parametrize("rules, folders", [("F,E9,B", ["drpose"]), ("F,E9,E501", ["nbs"]), ("F,E9", ["tests", "scripts", "setup.py"])], ids=["package", "notebooks", "scripts"])
def test_ruff(rules, folders):
    "Names, bugs, and in the notebooks lines of at most 120 characters (the package's are theirs, but for what nbdev adds)."
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--line-length=120", "--output-format=concise", "--select", rules]
    command += ["--ignore", "B905"]  # zip(strict=...) everywhere costs more reading than it saves
    finished = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def _searchable(path) -> str:
    "The text of a committed file; of a notebook without the pictures, whose base64 can spell anything."
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts = [source(cell) for cell in notebook["cells"]]
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = {kind: value for kind, value in output.get("data", {}).items() if kind.startswith("text/")}
            parts += ["".join(value) for value in (output.get("text", ""), *data.values())]
    return "\n".join(parts)


@pytest.mark.parametrize("path", [path for path in committed_files() if path.suffix in TEXT_KINDS and path.name != "LICENSE"], ids=relative)
def test_file_names_no_path_of_somebodys_machine(path):
    found = MACHINE_PATH.search(_searchable(path))
    assert found is None, f"{relative(path)} mentions {found[0]}"


@pytest.mark.parametrize("text, expected", [
    ('open("{}home/ann/x.npz")', True), ("see {}tmp", True), (" {}work/main/nbs", True), ("C:\\{}Users\\ann", True), ("..{}work/x", False),
    ("https:{}{}example.org{}home{}page", False), ("work{}root{}tmp", False), ("drpose{}tmp{}", False), ("{}tmpfile", False),
])
def test_the_path_scan_sees_what_it_should(text, expected):
    "The slashes come late, so that this file passes its own scan."
    assert bool(MACHINE_PATH.search(text.replace("\\{}", "\\").replace("{}", "/"))) == expected


def test_readme_says_what_the_index_says():
    "The prose of nbs/index.ipynb, with links from the repository's root; one screen and a half, the rest is in docs."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for cell in read_notebook(INDEX)["cells"]:
        if cell["cell_type"] == "markdown":
            lines = [line for line in source(cell).splitlines() if line and "](" not in line]
            missing = [line for line in lines if line not in readme]
            assert not missing, f"run `make readme`; README.md lacks {missing[0]!r}"
    for path in (DOOR, *OPENINGS):
        assert f"({relative(path)})" in readme, f"run `make readme`; README.md does not lead to {relative(path)}"
    assert len(re.findall(r"^\| \d+ \| \[", readme, re.MULTILINE)) == 13, "the main line has thirteen chapters"
    assert len(readme.encode()) <= 8192, "README.md is for the first look; move it to docs"
    local = [link for link in re.findall(r"\]\((?!\w+:|#)([^)#]+)", readme) if not (ROOT / link).exists()]
    assert not local, f"README.md links to what is not there: {local}"


OLD_WORDS = re.compile(r"\b(leash|sitters?|skeleton readers?|(?:the|a) judge)\b", re.IGNORECASE)  # docs/glossary.md has the field's word for each


@pytest.mark.parametrize("path", [path for path in committed_files() if path.suffix in (".ipynb", ".md", ".yaml") or path.parts[-2] == "scripts"], ids=relative)
def test_words_are_the_glossarys(path):
    found = OLD_WORDS.search(_searchable(path))
    assert found is None, f"{relative(path)} says {found[0]!r}"


def test_glossary_is_sorted_and_has_one_line_per_term():
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(terms) > 40 and terms == sorted(terms, key=str.lower)


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    unclear = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line)]
    assert not unclear, "one name==version per line; no address, no local build tag such as +cpu"
    assert lines == sorted(lines, key=str.lower)

# SPDX-License-Identifier: Apache-2.0
"""The rules of the repository, docs/style.md, as far as a program can see them.  Each message names the fix."""
import ast
import re
from functools import cache

import pytest
from support import ROOT

from pymadfs import ops
from pymadfs.config import SETTINGS

FUNCTION_LINES_MAX, FILE_LINES_MAX, COLUMNS_MAX = 70, 1000, 120
CODE = (".py", ".c", ".h", ".S")
PYTHON_HEADER_FILES = ("intercept/bridge.h", "pymadfs/freeze.py")
ARCHITECTURES = ("x86_64", "aarch64")
ARCHITECTURE_FILES = ("arch.h", "decode.c", "entry.S", "rewrite.c")
SKIPPED = ("build", "dist", ".git", ".venv", "_lib", "__pycache__")

# Joined here, so that this file does not break its own rules.
UNFINISHED = re.compile(r"\b(" + "|".join(("FIX" "ME", "TO" "DO", "XX" "X", "NotImplemented" "Error")) + r")\b")
MACHINE = re.compile("/" + r"(work|root|home/\w+)/")

PURE = ("pymadfs/ops.py", "pymadfs/layout.py", "pymadfs/errors.py", "pymadfs/config.py")
SYNCHRONOUS = ("pymadfs/layout.py", "server/meta.py", "server/kv.py", "server/chunks.py")
EMBEDDED = ("abi", "client", "cluster", "config", "door", "errors", "hearing", "layout", "log", "ops",
            "rpc", "wire", "syscalls/__init__", "transport/__init__", "transport/ucx",
            *(f"syscalls/{path.stem}" for path in (ROOT / "pymadfs/syscalls").glob("[!_]*.py")))
NOT_EMBEDDED = {"anyio", "asyncio", "ctypes", "dataclasses", "json", "logging", "re", "socket", "subprocess",
                "threading", "typing", "uvloop"}
SERVER_MAY_USE = {"cluster", "config", "door", "errors", "hearing", "identity", "layout", "log", "ops", "transport",
                  "wire"}
LAYERS = ("transport", "wire", "rpc", "client", "syscalls")  # each may use those before it
STANDARD = {"errno", "os", "re", "struct", "zlib", "collections"}


@cache
def files(*suffixes):
    """Relative paths of all files of the project with one of ``suffixes``."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        hidden = any(part in SKIPPED or part.endswith(".egg-info") or part.startswith(".")
                     for part in relative.parts[:-1])
        if path.suffix in suffixes and not hidden and path.is_file() and not generated(path):
            found.append(str(relative))
    return found


def generated(path):
    with open(path, errors="replace") as file:
        return any("generated" in line.lower() and "from" in line.lower()
                   for line in (file.readline() for _ in range(2)))


@cache
def text(path):
    assert (ROOT / path).is_file(), f"{path} is missing: write it, or correct its name in tests/test_tidy.py"
    return (ROOT / path).read_text()


@cache
def tree(path):
    return ast.parse(text(path))


def imports(path, level_only=False):
    """What a Python file imports, as ``module``, ``.sibling`` or ``pymadfs.part``; or only what its top level does."""
    package = path.startswith("pymadfs/")
    found = set()
    for node in (tree(path).body if level_only else ast.walk(tree(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ("pymadfs" if package else ".") if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            whole = node.module and base != "pymadfs"
            found |= {base} if whole else {f"{base}.{alias.name}" for alias in node.names}
    return found


# --- form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", files(*CODE))
def test_form(path):
    lines = text(path).splitlines()
    licensed = any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:2])
    assert licensed, f"{path}: begin it with its SPDX line"
    assert len(lines) <= FILE_LINES_MAX, f"{path} has {len(lines)} lines: split it, {FILE_LINES_MAX} is the limit"
    for number, line in enumerate(lines, 1):
        assert len(line) <= COLUMNS_MAX, f"{path}:{number}: {len(line)} columns: fold it at {COLUMNS_MAX}"
        assert line == line.rstrip() and "\t" not in line, f"{path}:{number}: remove trailing blanks and tabs"
    assert text(path).endswith("\n") and not text(path).endswith("\n\n"), f"{path}: end it with one newline"


@pytest.mark.parametrize("path", files(*CODE, ".md", ".toml", ".sh", ".map"))
def test_finished_and_portable(path):
    for number, line in enumerate(text(path).splitlines(), 1):
        assert not UNFINISHED.search(line), f"{path}:{number}: finish it: {line.strip()}"
        assert not MACHINE.search(line), f"{path}:{number}: name no path of one machine: {line.strip()}"


@pytest.mark.parametrize("path", files(".py"))
def test_python_functions_fit_a_screen(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{path}: {node.name} has {length} lines: split it"


@pytest.mark.parametrize("path", files(".c"))
def test_c_functions_fit_a_screen(path):
    begin = None
    for number, line in enumerate(text(path).splitlines(), 1):
        if re.match(r"[A-Za-z_].*[^;]$", line) and "(" in line and begin is None:
            begin = number
        elif line.startswith("}"):
            length = number - (begin or number) + 1
            assert length <= FUNCTION_LINES_MAX, f"{path}:{begin}: a function of {length} lines: split it"
            begin = None
        elif line.endswith(";") and line[:1] not in (" ", "}"):
            begin = None


@pytest.mark.parametrize("path", [path for path in files(".py") if path.startswith(("pymadfs/", "server/"))])
def test_modules_and_classes_say_what_they_are_for(path):
    assert ast.get_docstring(tree(path)), f"{path}: say in a docstring what the module is for"
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: say in a docstring what {node.name} is"


# --- who may use whom -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PURE)
def test_tables_need_the_standard_library_only(path):
    allowed = STANDARD | {f"pymadfs.{name}" for name in ("ops", "layout", "errors", "config")}
    assert imports(path) <= allowed, f"{path} imports {imports(path) - allowed}: it is used before anything is built"


@pytest.mark.parametrize("path", [path for path in files(".py") if path.startswith("pymadfs/")])
def test_the_client_does_not_know_the_server(path):
    server = {name for name in imports(path) if name.startswith(("pymadfs.server", "server"))}
    if path == "pymadfs/fsck.py":
        server -= {"pymadfs.server.meta"}  # It reads what the servers stored, and that is the format.
    assert not server, f"{path} imports {server}: move what both need to a module of pymadfs"


@pytest.mark.parametrize("path", [path for path in files(".py") if path.startswith("server/")])
def test_the_server_uses_what_is_shared(path):
    used = {name.split(".")[1] for name in imports(path) if name.startswith("pymadfs.")}
    foreign = used - SERVER_MAY_USE - {"__version__"}
    assert not foreign, f"{path} imports {foreign} of pymadfs, which is the client's: move what both need"
    own = {name for name in imports(path) if name.startswith(("pymadfs.server", "server"))}
    assert not own, f"{path} imports {own}: import siblings relatively"


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_look_down_only(layer):
    above = LAYERS[LAYERS.index(layer) + 1:]
    paths = [path for path in files(".py") if path.startswith((f"pymadfs/{layer}.py", f"pymadfs/{layer}/"))]
    for path in paths:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("pymadfs.")}
        assert not used & set(above), f"{path} imports {used & set(above)}, which is above it: turn the call round"


@pytest.mark.parametrize("path", SYNCHRONOUS)
def test_storage_knows_no_event_loop(path):
    assert not imports(path) & {"asyncio", "anyio", "uvloop"}, f"{path}: handlers.py is where await meets storage"
    asynchronous = [node for node in ast.walk(tree(path)) if isinstance(node, (ast.AsyncFunctionDef, ast.Await))]
    assert not asynchronous, f"{path}: make it synchronous and call it from handlers.py"


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_client_starts_quickly(name):
    path = f"pymadfs/{name}.py"
    used = {module.partition(".")[0] for module in imports(path, level_only=True)} & NOT_EMBEDDED
    assert not used, f"{path} imports {used} when it is loaded: every process of a job would pay for that"


def test_only_the_bridge_includes_python():
    users = [path for path in files(".c", ".h", ".S") if "<Python.h>" in text(path)]
    assert set(users) <= set(PYTHON_HEADER_FILES), f"{users}: only intercept/bridge.h includes Python.h"


@pytest.mark.parametrize("name", ARCHITECTURE_FILES)
def test_architectures_have_the_same_files(name):
    for architecture in ARCHITECTURES:
        path = f"intercept/{architecture}/{name}"
        assert (ROOT / path).is_file(), f"{path} is missing: write it"


def test_architectures_have_no_other_files():
    for architecture in ARCHITECTURES:
        names = {path.name for path in (ROOT / "intercept" / architecture).iterdir()}
        others = names - set(ARCHITECTURE_FILES)
        assert not others, f"intercept/{architecture} has {others}: keep to the four files"


# --- nothing is forgotten -------------------------------------------------------------------------------------------


@cache
def words_in_tests():
    texts = [text(path) for path in files(*CODE) if path.startswith("tests/")]
    return set(re.findall(r"\w+", " ".join(texts)))


@pytest.mark.parametrize("op", ops.OPS.values(), ids=lambda op: op.name)
def test_every_op_is_named_in_a_test(op):
    assert {op.name, op.name.upper()} & words_in_tests(), f"no test names the operation {op.name}: write one"


@pytest.mark.parametrize("name", [name for name, row in ops.SYSCALLS.items() if not row.kernel])
def test_every_system_call_is_named_in_a_test(name):
    named = {name, f"SYS_{name}"} & words_in_tests()
    assert named, f"no test names the system call {name}: write one, tests/shim is the place"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented(setting):
    row = re.search(rf"^\| `{setting.variable}` \| ([^|]*) \|", text("README.md"), re.MULTILINE)
    assert row, f"explain {setting.variable} in the table of README.md"
    default = setting.parse(row[1].strip("` ")) if row[1].strip() else ""
    assert default == setting.default, f"README.md says {row[1]} for {setting.variable}, config.py {setting.default}"
    assert setting.doc.endswith("."), f"{setting.variable}: its doc is a sentence"


def test_decisions_are_numbered_and_complete():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert len(set(numbers)) == len(numbers), "two decisions have the same number: take the next free one"
    for number, page in zip(numbers, pages):
        assert page.name.startswith(f"{number:04d}-"), f"{page.name}: begin its name with four digits and a dash"
        content = page.read_text()
        assert content.startswith(f"# {number}. "), f"{page.name}: begin it with '# {number}. ' and the decision"
        for word in ("Context", "Choice", "Consequence"):
            assert f"**{word}.**" in content, f"{page.name}: say the {word.lower()}"


def test_changelog_names_what_is_not_released():
    assert re.search(r"^## Unreleased$", text("CHANGELOG.md"), re.MULTILINE), "begin CHANGELOG.md with '## Unreleased'"


def test_readme_names_every_verb():
    verbs = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    missing = {verb for verb in verbs if f"make {verb}" not in text("README.md") + text("CONTRIBUTING.md")}
    assert not missing, f"say in README.md or CONTRIBUTING.md what `make {missing}` does"


def test_test_files_have_names_of_their_own():
    names = [path.rpartition("/")[2] for path in files(".py") if path.startswith("tests/")]
    twice = {name for name in names if names.count(name) > 1} - {"conftest.py"}
    assert not twice, f"rename one of each of {twice}: pytest imports test files by their base name"


def test_links_between_pages_lead_somewhere():
    for path in files(".md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text(path)):
            assert ((ROOT / path).parent / target).exists(), f"{path}: the link to {target} leads nowhere"

# SPDX-License-Identifier: Apache-2.0
"""Renders the Python modules of the embedded client as C: ``python -m pymadfs.freeze OUTPUT.c``; run by ``setup.py``.

A process that meets the mount must not read Python files: a job has tens of thousands of processes, and the home of
such files is often a shared file system.  So whatever the client imports is listed here and becomes part of
``libmadfs_runtime.so``: Python as marshalled code for ``PyImport_FrozenModules``, C modules as rows of the table of
built-in ones.

What every client imports is one piece, in the order in which the import statements would come to it, and the module
``_start`` executes that.  The import system would look for each of fifty modules with Python code of its own, which is
a sixth of the whole start; and strings that many modules have are unpacked once.

CPython's own frozen modules are left out.  They are objects that exist already, in a megabyte of data with pointers in
it: the loader would have to correct it and the interpreter to go through all of it, for the few modules that a client
needs.

REQUIRES: run by the Python version that the library embeds.
"""
import ast
import marshal
import os
import sys
import sysconfig

HERE = os.path.dirname(os.path.abspath(__file__))

BOOTSTRAP = "importlib._bootstrap"
STDLIB = ("struct", BOOTSTRAP)

# Modules of the standard library that are mostly abstract base classes the client has no use for; making those takes a
# tenth of the whole start.  What the client uses of them:
SLIM = {
    "os": """
from posix import *
environ = {key.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
           for key, value in environ.items()}
""",
    "collections": """
from _collections import OrderedDict, _tuplegetter, defaultdict, deque

def namedtuple(typename, field_names, *, defaults=()):
    # The library's compiles a text for each: a tenth of a millisecond.
    names = tuple(field_names.replace(",", " ").split() if isinstance(field_names, str) else field_names)
    by_default = dict(zip(names[len(names) - len(defaults):], defaults))

    def __new__(cls, *values, **named):
        if len(values) < len(names):
            values += tuple(named.pop(name) if name in named else by_default[name] for name in names[len(values):])
        if named or len(values) > len(names):
            raise TypeError(f"{typename} takes {', '.join(names)}")
        return tuple.__new__(cls, values)

    def _replace(self, **named):
        return self._make(named.pop(name, value) for name, value in zip(names, self))

    def _asdict(self):
        return dict(zip(names, self))

    def __repr__(self):
        return f"{typename}({', '.join(f'{name}={value!r}' for name, value in zip(names, self))})"

    contents = {"__slots__": (), "_fields": names, "__new__": __new__, "_replace": _replace, "_asdict": _asdict,
                "__repr__": __repr__, "_make": classmethod(lambda cls, values: tuple.__new__(cls, values))}
    contents.update((name, _tuplegetter(number, "")) for number, name in enumerate(names))
    return type(typename, (tuple,), contents)
""",
    # Asked for by the codec registry, which finds no codec: those for UTF-8, ASCII and Latin-1 need none.
    "encodings": "",
    # Asked for by a traceback, which finds no source.
    "io": "from _io import TextIOWrapper, open\n",
}

CLIENT = ("pymadfs", "pymadfs.abi", "pymadfs.client", "pymadfs.cluster", "pymadfs.config", "pymadfs.door",
          "pymadfs.errors", "pymadfs.filedata", "pymadfs.identity", "pymadfs.layout", "pymadfs.links",
          "pymadfs.hearing", "pymadfs.listing", "pymadfs.log", "pymadfs.ops", "pymadfs.removed", "pymadfs.renaming",
          "pymadfs.rpc", "pymadfs.syscalls", "pymadfs.wire",
          *(f"pymadfs.syscalls.{name[:-3]}" for name in sorted(os.listdir(os.path.join(HERE, "syscalls")))
            if name.endswith(".py") and name != "__init__.py"),
          "pymadfs.transport", "pymadfs.transport.ucx")

BUILTIN = ("_blake2", "_codecs", "_collections", "_functools", "_io", "_struct", "_thread", "_weakref",
           "errno", "fcntl", "itertools", "posix", "time", "zlib")

# What a first call needs, beside what these modules import at their top level; the others are imported when wanted.
AT_START = ("_shim", "gc", "_cffi_backend", "pymadfs.syscalls", "pymadfs.cluster", "pymadfs.config", "pymadfs.log",
            "pymadfs.rpc", "pymadfs.transport.ucx")

START = """
import _imp, sys

def start():
    modules, new, ModuleSpec = sys.modules, type(sys), sys.modules["_frozen_importlib"].ModuleSpec
    order = _imp.get_frozen_object("_client").co_consts[0]
    for name, package, code in sorted(order):  # packages first
        above, _, last = name.rpartition(".")
        # Where a module has no __spec__, each import statement that comes to it formats an exception in vain.
        spec = ModuleSpec(name, None, is_package=package)
        if code is None:
            if name not in modules:
                modules[name] = _imp.create_builtin(spec)
                _imp.exec_builtin(modules[name])
            if name == "_shim":
                sys.stderr = modules[name]
        else:
            module = modules[name] = new(name)
            module.__package__ = spec.parent
            if package:
                module.__path__ = []
        modules[name].__spec__ = spec
        if above:
            setattr(modules[above], last, modules[name])
    for name, _, code in order:
        if code is not None:
            exec(code, modules[name].__dict__)

start()
"""

# Module -> its initialiser, where that is not PyInit_<module>.
SPECIAL = {"_imp": "PyInit__imp", "_string": "PyInit__string", "_warnings": "_PyWarnings_Init", "gc": "PyInit_gc",
           "marshal": "PyMarshal_Init", "builtins": "NULL", "sys": "NULL", "_cffi_backend": "PyInit__cffi_backend",
           "_shim": "madfs_init_shim", "pymadfs._ucx_cffi": "PyInit__ucx_cffi"}

# In place of what CPython's frozen.c and deepfreeze.c define (Python/frozen.c of 3.11).
OWN_TABLES = """
const struct _frozen *PyImport_FrozenModules, *_PyImport_FrozenBootstrap = bootstrap, *_PyImport_FrozenStdlib = none;
const struct _frozen *_PyImport_FrozenTest = none;
const struct _module_alias { const char *name, *original; } *_PyImport_FrozenAliases = (const struct _module_alias[]){
    {"_frozen_importlib", "importlib._bootstrap"}, {NULL, NULL}};
int _Py_Deepfreeze_Init(void);
int _Py_Deepfreeze_Init(void) { return 0; }
void _Py_Deepfreeze_Fini(void);
void _Py_Deepfreeze_Fini(void) {}
"""

BYTES_A_LINE = 24


def files(overlay=""):
    """``{name: (path, whether it is a package)}`` of the modules frozen whole.

    Files below the directory ``overlay`` go before the package's own.  Raises FileNotFoundError.
    """
    found = {}
    for name in STDLIB:
        found[name] = os.path.join(sysconfig.get_path("stdlib"), *name.split(".")) + ".py", False
    for name in CLIENT:
        inner = name.split(".")[1:]
        candidates = [os.path.join(top, *inner) for top in (overlay, HERE) if top]
        for path, package in ((f"{base}{end}", end != ".py") for base in candidates for end in (".py", "/__init__.py")):
            if os.path.exists(path):
                found[name] = path, package
                break
        else:
            raise FileNotFoundError(f"the client's module {name} does not exist: correct CLIENT in pymadfs/freeze.py")
    return found


def codes(overlay=""):
    """``{name: (whether it is a package, code)}`` of every frozen module."""
    found = {}
    texts = {name: (text.encode(), False) for name, text in SLIM.items()}
    for name, (path, package) in files(overlay).items():
        texts[name] = _read(path), package
    for name, (text, package) in texts.items():
        # The standard library goes without docstrings and assertions; ours keeps its assertions.
        tree, optimize = (lean(name, text), 0) if name in CLIENT else (text, 2)
        found[name] = package, compile(tree, f"<frozen {name}>", "exec", dont_inherit=True, optimize=optimize)
    return found


def order(overlay=""):
    """Names of the modules that AT_START needs, each behind those that its import statements name."""
    paths, names = files(overlay), []
    texts = {name: text.encode() for name, text in SLIM.items()}

    def visit(name, above=()):
        if name in above or name in names:
            return
        if "." in name:
            visit(name.rpartition(".")[0], (*above, name))
        if name in texts or name in paths:
            path, package = paths.get(name, (None, False))
            for wanted in imported(texts.get(name) or _read(path), name if package else name.rpartition(".")[0]):
                if wanted in texts or wanted in paths or wanted in BUILTIN or wanted in SPECIAL:
                    visit(wanted, (*above, name))
        if name not in names:
            names.append(name)

    for name in AT_START:
        visit(name)
    return [name for name in names if name not in ("builtins", "sys")]


def imported(text, package):
    """Yields what the import statements at the top level of a module of ``package`` may mean."""
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            levels = package.split(".")
            module = ".".join([*(levels[:len(levels) - statement.level + 1] if statement.level else ()),
                               *([statement.module] if statement.module else ())])
            yield module
            yield from (f"{module}.{alias.name}" for alias in statement.names)


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def lean(name, text):
    """Syntax tree of a module of ours without docstrings; of ``ops`` also without what only generators and tests look
    at, the rows of system calls and what operations are for.  The list that the client makes of the rows is put in."""
    tree = ast.parse(text)
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body[:1] = [] if node.body[1:] else [ast.Pass(lineno=node.body[0].lineno, col_offset=0)]
    if name == "pymadfs.ops":
        whole = {"__name__": name}
        exec(compile(text, name, "exec"), whole)
        names = ast.parse(f"CALL_NAMES = {whole['CALL_NAMES']}").body
        tree.body = [names[0] if _sets(statement, "CALL_NAMES") else statement
                     for statement in tree.body if not _calls(statement, "Syscall")]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                node.keywords = [keyword for keyword in node.keywords if keyword.arg != "doc"]
    return tree


def _calls(statement, name):
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(value, ast.Call) and getattr(value.func, "id", "") == name


def _sets(statement, name):
    return isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == name


def render(overlay=""):
    """The C file as a string: ``madfs_frozen``, and CPython's tables of frozen and of built-in modules."""
    lines = ["/* GENERATED by pymadfs/freeze.py. */", "#include <Python.h>", "#include <stddef.h>"]
    rows, bootstrap = [], []
    modules, at_start = codes(overlay), order(overlay)
    client = tuple((name, *modules.pop(name, (False, None))) for name in at_start)
    modules["_client"] = False, compile("", "<frozen _client>", "exec").replace(co_consts=(client,))
    modules["_start"] = False, compile(START, "<frozen _start>", "exec")
    for number, (name, (package, code)) in enumerate(modules.items()):
        code = marshal.dumps(code)
        lines.append(f"static const unsigned char m{number}[] = {{")
        lines += [",".join(map(str, code[i:i + BYTES_A_LINE])) + "," for i in range(0, len(code), BYTES_A_LINE)]
        lines.append("};")
        row = f"m{number}, sizeof m{number}, {int(package)}, NULL}},"
        rows.append(f'    {{"{name}", {row}')
        if name == BOOTSTRAP:
            bootstrap = [f'    {{"_frozen_importlib", {row}']
    initialisers = {name: SPECIAL.get(name, f"PyInit_{name}") for name in sorted({*BUILTIN, *SPECIAL})}
    lines += [f"extern PyObject *{function}(void);" for function in initialisers.values() if function != "NULL"]
    end = "    {NULL, NULL, 0, 0, NULL},"
    lines += ["const struct _frozen madfs_frozen[] = {", *rows, end, "};"]
    lines += ["static const struct _frozen bootstrap[] = {", *bootstrap, end, "}, none[] = {", end, "};"]
    lines += [OWN_TABLES]
    lines += ["struct _inittab _PyImport_Inittab[] = {"]
    lines += [f'    {{"{name}", {function}}},' for name, function in initialisers.items()]
    lines += ["    {NULL, NULL},", "};", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="ascii") as output:
        output.write(render(*sys.argv[2:]))

# SPDX-License-Identifier: Apache-2.0
"""Builds what pyproject.toml cannot say: two shared libraries and an extension, from C, CPython, cffi and UCX.

    pymadfs/_lib/libmadfs_intercept.so   the shim: intercept/*.c and intercept/<machine>/*, depends on libc only
    pymadfs/_lib/libmadfs_intercept.sites   where the system calls of this machine's libc are, to be quick at start
    pymadfs/_lib/libmadfs_runtime.so     the embedded client: bridge.c, libpython, frozen modules, cffi, our binding
    pymadfs/_lib/libmf*.so.0             UCX under private names (pymadfs/_ucx_private.py)
    pymadfs/_ucx_cffi.*.so               our binding as an ordinary extension, for the servers

``python setup.py build_ext --inplace`` makes what is stale.  Environment: ``MADFS_UCX_PREFIX`` takes UCX from that
prefix (``include/``, ``lib/``) instead of the libucx wheel, which knows no InfiniBand: on a cluster name the UCX its
MPI was built with.  ``MADFS_SANITIZE=1`` builds our own C with the address and undefined-behaviour sanitizers.
``python setup.py runtime --overlay DIR --output FILE`` links one whose frozen modules come from DIR first, for tests.
"""
import glob
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = os.path.dirname(os.path.abspath(__file__))
MACHINE = platform.machine()
BUILD = os.path.join(ROOT, "build", f"native-{MACHINE}")
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
BINDING = "_ucx_cffi" + sysconfig.get_config_var("EXT_SUFFIX")

SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"] * (os.environ.get("MADFS_SANITIZE") == "1")
STRICT = ["-std=gnu11", "-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
OWN = [*STRICT, *SANITIZE]
# The shim runs in the middle of the application's own code: intercept/intercept.h says what the flags are for.
SHIM = [*STRICT, "-D_GNU_SOURCE=", "-ftls-model=initial-exec", "-mgeneral-regs-only", "-ffreestanding",
        "-fno-stack-protector", "-fno-strict-aliasing"]
FOREIGN = ["-O2", "-g", "-fPIC", "-w", "-fvisibility=hidden"]  # generated code and cffi's, whose warnings are not ours
LINK = ["-shared", "-Wl,-z,now,-z,relro,-z,nodelete", "-Wl,-O1"]


class Stop(SystemExit):
    """The build cannot go on; the message is one line that says why and what to do."""

    def __init__(self, message):
        super().__init__(f"madfs build: {message}")


def version():
    """The one in pymadfs/__init__.py."""
    with open(os.path.join(ROOT, "pymadfs", "__init__.py"), encoding="utf-8") as file:
        return re.search(r'^__version__ = "(.*)"$', file.read(), re.MULTILINE)[1]


def own_module(name):
    """A module of pymadfs by its file: the package itself needs what is built here."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, "pymadfs", name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- making one file when it is stale --------------------------------------------------------------------------------


def path_of(*parts):
    path = os.path.join(BUILD, *parts)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def is_fresh(target, inputs, recipe):
    """Whether ``target`` was made by ``recipe`` and is newer than every file of ``inputs``."""
    try:
        with open(target + ".recipe", encoding="utf-8") as file:
            if file.read() != recipe:
                return False
        made = os.stat(target).st_mtime_ns
        return all(os.stat(path).st_mtime_ns <= made for path in inputs)
    except FileNotFoundError:
        return False


def made(target, recipe):
    with open(target + ".recipe", "w", encoding="utf-8") as file:
        file.write(recipe)
    return target


def run(command, target):
    print("  making", os.path.relpath(target, ROOT), flush=True)
    try:
        subprocess.run(command, check=True, cwd=ROOT)
    except FileNotFoundError:
        raise Stop(f"{command[0]} is missing: apt-get install gcc binutils") from None
    except subprocess.CalledProcessError:
        raise Stop(f"{os.path.relpath(target, ROOT)} could not be made; see above: {shlex.join(command)}") from None


def compile_object(source, flags, group):
    """Object file of ``source``; stale when it, a header it includes or its flags changed."""
    target = path_of(group, os.path.relpath(source, ROOT).replace(os.sep, "_") + ".o")
    listing = target + ".d"
    command = ["gcc", *flags, "-MD", "-MF", listing, "-c", source, "-o", target]
    inputs = [source, listing]
    if os.path.exists(listing):
        with open(listing, encoding="utf-8") as file:
            inputs = file.read().replace("\\\n", " ").partition(":")[2].split()
    if not is_fresh(target, inputs, shlex.join(command)):
        run(command, target)
        made(target, shlex.join(command))
    return target


def link(target, objects, arguments, inputs=(), finish=None):
    """Shared library ``target``.  ``finish(path)`` may change the new file before it takes the old one's place, which
    running processes may have mapped."""
    command = ["gcc", *LINK, "-o", target, *objects, *arguments]
    if not is_fresh(target, [*objects, *inputs], shlex.join(command)):
        temporary = target + ".new"
        command[command.index(target)] = temporary
        run(command, target)
        if finish:
            finish(temporary)
        os.replace(temporary, target)
        command[command.index(temporary)] = target
        made(target, shlex.join(command))
    return target


def place(source, destination):
    """Copy a finished file to where it is used, whole or not at all."""
    target = os.path.join(destination, os.path.basename(source))
    if not os.path.exists(target) or os.stat(target).st_mtime_ns < os.stat(source).st_mtime_ns:
        os.makedirs(destination, exist_ok=True)
        shutil.copyfile(source, target + ".new")
        os.chmod(target + ".new", 0o755)
        os.replace(target + ".new", target)
    return target


# --- what comes from elsewhere ---------------------------------------------------------------------------------------


def python_archive():
    """Path of a libpython archive that can be part of a shared library, of the Python that runs this."""
    folder = sysconfig.get_config_var("LIBPL")
    names = [f"lib{PYTHON}-pic.a"] + [f"lib{PYTHON}.a"] * bool(sysconfig.get_config_var("Py_ENABLE_SHARED"))
    missing = set(own_module("freeze").BUILTIN) - set(sys.builtin_module_names)
    for name in names:
        path = os.path.join(folder, name)
        if os.path.exists(path) and not missing:
            return path
    if missing:
        raise Stop(f"{sys.executable} has {', '.join(sorted(missing))} in separate files: use Debian's {PYTHON}")
    raise Stop(f"{folder} has no lib{PYTHON}-pic.a: apt-get install lib{PYTHON}-dev")


def library(*names, package):
    """First of the archives ``names`` that the compiler finds, as its path."""
    for name in names:
        path = subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
        if os.path.isabs(path):
            return path
    raise Stop(f"{names[0]} is missing: apt-get install {package}")


def check_tools():
    for tool in ("gcc", "strip", "nm"):
        if not shutil.which(tool):
            raise Stop(f"{tool} is missing: apt-get install gcc binutils")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        raise Stop(f"Python.h is missing: apt-get install lib{PYTHON}-dev")
    if sys.version_info[:2] != (3, 11):
        raise Stop(f"the bridge is for Python 3.11 and this is {platform.python_version()}: build with python3.11")


def cffi_source():
    """Path of ``_cffi_backend.c`` of the installed cffi's version, from its source distribution."""
    import cffi
    name = f"cffi-{cffi.__version__}"
    folder = os.path.join(ROOT, "build")
    archive = os.path.join(folder, f"{name}.tar.gz")
    if not os.path.exists(archive):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", "cffi", "--no-deps",
                   "--disable-pip-version-check", "-d", folder, f"cffi=={cffi.__version__}"]
        run(command, archive)
    source = path_of(name, "src", "c", "_cffi_backend.c")
    if not os.path.exists(source):
        with tarfile.open(archive) as file:
            file.extractall(BUILD, filter="data") if hasattr(tarfile, "data_filter") else file.extractall(BUILD)
    return source


def ucx_prefix():
    path = os.environ.get("MADFS_UCX_PREFIX")
    if path:
        return path
    spec = importlib.util.find_spec("libucx")
    if not spec:
        raise Stop("UCX is missing: pip install libucx-cu12, or name a UCX installation in MADFS_UCX_PREFIX")
    return os.path.dirname(spec.origin)


# --- the parts -------------------------------------------------------------------------------------------------------


class Ucx:
    """UCX for the two things that are linked against it: private copies and how to link."""

    def __init__(self):
        self.private = own_module("_ucx_private")
        self.prefix = ucx_prefix()
        try:
            self.folder = self.private.directory(self.prefix)
            self.originals = self.private.libraries(self.prefix)
            self.copies = [path_of("ucx", self.private.private_name(path)) for path in self.originals]
            inputs = [*self.originals, self.private.__file__]
            if not all(is_fresh(copy, inputs, self.prefix) for copy in self.copies):
                print("  making private copies of", self.folder, flush=True)
                self.private.copy(self.prefix, os.path.dirname(self.copies[0]))
                for copy in self.copies:
                    made(copy, self.prefix)
        except self.private.PrivateUcxError as error:
            raise Stop(str(error)) from None

    def link(self, target, objects, arguments, rpath, inputs=()):
        def finish(path):
            self.private.rename(path)
            try:
                self.private.check([path], self.copies)
            except self.private.PrivateUcxError as error:
                raise Stop(str(error)) from None

        needed = ["-Wl,--no-as-needed", *self.originals, "-Wl,--as-needed"]
        search = [f"-Wl,-rpath-link,{self.folder}", f"-Wl,-rpath,{rpath}"]
        return link(target, objects, [*arguments, *needed, *search], [*inputs, *self.copies], finish)


def binding_objects(ucx, group, include):
    """Objects of the UCX binding: the generated cffi module and the C below it."""
    build = own_module("_ucx_build")
    source = path_of("_ucx_cffi.c")
    inputs = [os.path.join(ROOT, "pymadfs", name) for name in ("_ucx_build.py", "_ucx.h")]
    if not is_fresh(source, inputs, "emit"):
        build.ffibuilder.emit_c_code(source)
        made(source, "emit")
    headers = ["-I", os.path.join(ROOT, "pymadfs"), "-isystem", os.path.join(ucx.prefix, "include")]
    own = [compile_object(path, [*OWN, "-fvisibility=default", *headers], "common")
           for path in sorted(glob.glob(os.path.join(ROOT, "pymadfs", "_ucx*.c")))]
    return [compile_object(source, [*FOREIGN, *headers, "-I", include], group), *own]


def make_binding(ucx):
    """``_ucx_cffi`` as an extension of the Python that runs this."""
    objects = binding_objects(ucx, "extension", sysconfig.get_path("include"))
    script = path_of("extension.map")
    with open(script, "w", encoding="ascii") as file:
        file.write("{ global: PyInit__ucx_cffi; Getenv; Fopen; Scandir; Uct_iface_open; ucs_async_*; local: *; };\n")
    arguments = ["-Wl,-Bsymbolic", f"-Wl,--version-script={script}", *SANITIZE]
    return ucx.link(path_of(BINDING), objects, arguments, "$ORIGIN/_lib")


def bridge_sources():
    return sorted(glob.glob(os.path.join(ROOT, "intercept", "bridge*.c")))


def make_runtime(ucx, output=None, overlay=""):
    """``libmadfs_runtime.so`` at ``output``."""
    include = sysconfig.get_path("include")
    freeze = own_module("freeze")
    target = output or path_of("libmadfs_runtime.so")
    frozen = target + ".frozen.c"
    inputs = [freeze.__file__, *(path for path, _ in freeze.files(overlay).values())]
    if not is_fresh(frozen, inputs, sys.version + overlay):
        with open(frozen, "w", encoding="ascii") as file:
            file.write(freeze.render(overlay))
        made(frozen, sys.version + overlay)
    # Its thread-local variables must not ask the loader for memory (decision 91).
    cffi = ["-DFFI_BUILDING=1", "-DHAVE_SYNC_SYNCHRONIZE", "-DUSE__THREAD", "-ftls-model=initial-exec"]
    objects = [*(compile_object(path, [*OWN, "-I", include], "runtime") for path in bridge_sources()),
               compile_object(frozen, [*FOREIGN, "-I", include], "runtime"),
               compile_object(cffi_source(), [*FOREIGN, "-I", include, *cffi], "runtime"),
               *binding_objects(ucx, "runtime", include)]
    script = os.path.join(ROOT, "intercept", "runtime.map")
    archives = [python_archive(), library("libffi_pic.a", "libffi.a", package="libffi-dev"),
                library("libz.a", package="zlib1g-dev")]
    arguments = [*archives, "-lm", "-ldl", "-lpthread", "-Wl,--wrap=fileno", "-Wl,-Bsymbolic", "-Wl,--exclude-libs,ALL",
                 "-Wl,-z,defs", "-Wl,--strip-debug", f"-Wl,--version-script={script}", *SANITIZE]
    rpath = os.path.dirname(ucx.copies[0]) if output else "$ORIGIN"
    return ucx.link(target, objects, arguments, rpath, [script, *archives])


def make_shim():
    """``libmadfs_intercept.so``."""
    folder = os.path.join(ROOT, "intercept", MACHINE)
    here = sorted(glob.glob(os.path.join(folder, "*.[cS]")))
    if not here:
        raise Stop(f"system calls cannot be intercepted on {MACHINE}: {os.path.relpath(folder, ROOT)} has no sources")
    shared = sorted(glob.glob(os.path.join(ROOT, "intercept", "*.c")))
    shared = [path for path in shared if path not in bridge_sources()]
    flags = [*SHIM, f'-DMADFS_VERSION="{version()}"', "-I", os.path.join(ROOT, "intercept"), "-I", folder]
    objects = [compile_object(source, flags, "shim") for source in [*shared, *here]]
    return link(path_of("libmadfs_intercept.so"), objects, ["-Wl,-z,initfirst,-z,defs"])


def note_sites(shim):
    """``libmadfs_intercept.sites`` beside the shim: what it finds in this machine's libraries (intercept/sites.c)."""
    target = os.path.splitext(shim)[0] + ".sites"
    command = [getattr(sys, "_base_executable", sys.executable), "-I", "-S", "-c", ""]
    environment = {"LD_PRELOAD": shim, "MADFS_SITES_WRITE": target, "MADFS_STRICT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr or not os.path.exists(target):
        raise Stop(f"the built {shim} does not run here: {done.stderr.strip() or done.returncode}")
    return target


# --- commands --------------------------------------------------------------------------------------------------------


class BuildNative(build_ext):
    """Makes the three and puts them into the package: in the source tree (editable, --inplace) or the build's."""

    def run(self):
        check_tools()
        inplace = self.inplace or getattr(self, "editable_mode", False)
        package = os.path.join(ROOT if inplace else os.path.abspath(self.build_lib), "pymadfs")
        ucx = Ucx()
        folder = os.path.join(package, "_lib")
        self.outputs = [place(path, folder) for path in ucx.copies]
        self.outputs.append(place(make_binding(ucx), package))
        self.outputs.append(place(make_runtime(ucx), folder))
        self.outputs.append(place(make_shim(), folder))
        if not SANITIZE:
            self.outputs.append(note_sites(self.outputs[-1]))
        for path in set(glob.glob(os.path.join(folder, "libmf*.so.0"))) - set(self.outputs):
            os.remove(path)  # of a UCX that was built with before

    def get_outputs(self):
        return getattr(self, "outputs", [])

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return []


class Runtime(Command):
    """A runtime with other frozen modules, for tests."""

    description = "link libmadfs_runtime.so with modules of an overlay directory"
    user_options = [("overlay=", None, "directory with modules that replace those of pymadfs"),
                    ("output=", None, "the library to make")]

    def initialize_options(self):
        self.overlay, self.output = "", None

    def finalize_options(self):
        self.overlay = os.path.abspath(self.overlay) if self.overlay else ""
        self.output = os.path.abspath(self.output) if self.output else None

    def run(self):
        check_tools()
        if self.output:
            os.makedirs(os.path.dirname(self.output), exist_ok=True)
        make_runtime(Ucx(), self.output, self.overlay)


setup(
    version=version(),
    packages=["pymadfs", "pymadfs.syscalls", "pymadfs.transport", "pymadfs.server"],
    package_dir={"pymadfs": "pymadfs", "pymadfs.server": "server"},
    scripts=["bin/madfs", "bin/madfs-mpirun"],
    package_data={"pymadfs": ["py.typed", "_ucx*.c", "_ucx*.h"]},
    ext_modules=[Extension("pymadfs._ucx_cffi", [])],
    cmdclass={"build_ext": BuildNative, "runtime": Runtime},
    zip_safe=False,
)

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The border between the shim and Python: only this file and bridge_maps.c know both.
 *
 * It starts the interpreter from modules frozen into this library (freeze.py), turns a canonical call into a call of
 * the function of that name in pymadfs/syscalls/ on the caller's own thread, and the result or exception into what
 * the kernel would have returned.
 *
 * Each thread keeps its Python thread state from its first call to its end: making one costs as much as 300 calls.
 * REQUIRES of the shim: signals are blocked while a thread is in here, or a handler that comes back could wait for a
 * lock that its own thread holds.
 */
#define _GNU_SOURCE
#include "bridge.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define ERRNO_MAX 4095
#define CALLS_MAX 256
#define RECORD_MAX 128 /* bytes; the room of a slot */
#define LOG_LINE_MAX 4096

extern const struct _frozen madfs_frozen[]; /* freeze.py */
void ux_fork_begins(void);                  /* _ucx_events.c */
void ux_fork_ends(void);
int ux_embedded(void);
PyObject *madfs_init_shim(void);

const struct madfs_host *host;
static PyInterpreterState *interpreter;
static PyObject *syscalls, *host_path;
static PyObject *functions[CALLS_MAX]; /* by call number */
static Py_ssize_t function_count;

/* What a thread keeps between calls.  The list is changed and read with the GIL held, or when nobody can hold it. */
struct thread {
    PyThreadState *state;
    int inside; /* calls begun and not ended; > 1 when a call comes from within one */
    struct thread *next;
};
static _Thread_local __attribute__((tls_model("initial-exec"))) struct thread self;
static struct thread *threads;
static pthread_key_t thread_key;

/* A page that the kernel empties in every child: 0 there means that fork's handlers did not run. */
static volatile int *same_process;
static int broken; /* this process is a child made in the middle of another thread's call */

/* --- messages ----------------------------------------------------------------------------------------------------- */

/* sys.stderr in here: whole lines, to the file named by MADFS_LOG or to standard error. */
static void log_text(const char *text, size_t length)
{
    static char line[LOG_LINE_MAX];
    static size_t used;

    for (size_t i = 0; i < length; i++) {
        line[used++] = text[i];
        if (text[i] != '\n' && used < sizeof line)
            continue;
        const char *path = getenv("MADFS_LOG");
        int fd = path && *path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : STDERR_FILENO;
        if (write(fd < 0 ? STDERR_FILENO : fd, line, used) < 0)
            used = 0; /* nobody is left to tell */
        if (fd > STDERR_FILENO)
            close(fd);
        used = 0;
    }
}

static void log_line(const char *text)
{
    log_text(text, strlen(text));
    log_text("\n", 1);
}

/* The pending exception with its traceback goes to the log. */
static void log_exception(const char *where)
{
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    log_text("madfs: ", 7);
    log_text(where, strlen(where));
    log_text(" failed:\n", 9);
    PyErr_Display(type, value, traceback);
    PyErr_Clear();
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

/* The pending exception as one line in `error`. */
static void describe_exception(const char *stage, char *error, size_t size)
{
    PyObject *type, *value, *traceback, *text = NULL;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (value)
        text = PyObject_Str(value);
    const char *message = text ? PyUnicode_AsUTF8(text) : NULL;
    snprintf(error, size, "%s: %s: %s", stage, type ? ((PyTypeObject *)type)->tp_name : "no exception",
             message ? message : "?");
    PyErr_Clear();
    Py_XDECREF(text);
    const char *debug = getenv("MADFS_DEBUG");
    if (debug && *debug && value)
        PyErr_Display(type, value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

/* --- threads ------------------------------------------------------------------------------------------------------ */

static void block_signals(sigset_t *before)
{
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

/* Take the GIL; 0 when there is no memory for a thread's first call.  May be nested. */
static int enter(void)
{
    if (LIKELY(self.state)) {
        if (self.inside++ == 0)
            PyEval_RestoreThread(self.state);
        return 1;
    }
    make_thread_locals();
    self.state = PyThreadState_New(interpreter);
    if (!self.state)
        return 0;
    self.inside = 1;
    PyEval_RestoreThread(self.state);
    self.next = threads;
    threads = &self;
    pthread_setspecific(thread_key, &self);
    return 1;
}

static void leave(void)
{
    if (--self.inside == 0)
        PyEval_SaveThread();
}

/*
 * A state that no thread uses.  Were there none for a moment, because all threads that made calls have ended, the
 * next would get the interpreter's first one again, and Python 3.11 ends the process then.  REQUIRES: the GIL.
 */
static void keep_a_state(void)
{
    if (!PyThreadState_New(interpreter))
        log_line("madfs: there is no memory for a thread state");
}

/* The thread ends.  Should a later destructor make a call, a new state is made and this runs once more. */
static void thread_ends(void *unused)
{
    sigset_t signals;

    (void)unused;
    if (!self.state || self.inside || !*same_process)
        return;
    block_signals(&signals);
    PyEval_RestoreThread(self.state);
    for (struct thread **link = &threads; *link; link = &(*link)->next) {
        if (*link == &self) {
            *link = self.next;
            break;
        }
    }
    PyThreadState *state = self.state;
    self.state = NULL;
    PyThreadState_Clear(state);
    PyThreadState_DeleteCurrent();
    pthread_sigmask(SIG_SETMASK, &signals, NULL);
}

/* RLIMIT_FSIZE is lifted for files of ours in memory, the hard limit too by who may.  Guarded by the GIL. */
static int lifted; /* how often */
static struct rlimit limit_before, limit_lifted;

static void lower_limit(void)
{
    lifted = 0;
    syscall(SYS_prlimit64, 0, RLIMIT_FSIZE, &limit_before, NULL);
}

/* --- fork --------------------------------------------------------------------------------------------------------- */

static sigset_t signals_before_fork; /* guarded by the GIL */

/* The only thread of a new process, with the GIL held: nothing of the other threads is left. */
static void begin_child(void)
{
    PyOS_AfterFork_Child();
    keep_a_state();
    threads = &self;
    self.next = NULL;
    *same_process = 1;
    if (lifted)
        lower_limit();
    PyObject *done = PyObject_CallMethod(syscalls, "after_fork_child", NULL);
    if (!done)
        log_exception("starting anew in the child of a fork");
    Py_XDECREF(done);
}

static void fork_begins(void)
{
    sigset_t signals;

    block_signals(&signals);
    int inside = host->inside(1);
    if (!broken && *same_process && enter()) {
        signals_before_fork = signals;
        ux_fork_begins();
        PyOS_BeforeFork();
    } else {
        pthread_sigmask(SIG_SETMASK, &signals, NULL);
    }
    host->inside(inside);
}

static void fork_ends(int child)
{
    if (!self.inside)
        return;
    sigset_t signals = signals_before_fork;
    int inside = host->inside(1);
    ux_fork_ends();
    if (child)
        begin_child();
    else
        PyOS_AfterFork_Parent();
    leave();
    host->inside(inside);
    pthread_sigmask(SIG_SETMASK, &signals, NULL);
}


/*
 * First call in a child whose fork went past libc's fork().  The interpreter is whole unless another thread was in the
 * middle of a call; then it cannot be used.
 */
static int adopt_child(void)
{
    for (struct thread *thread = threads; thread && !broken; thread = thread->next)
        broken = thread != &self && thread->inside;
    if (broken)
        log_line("madfs: this process was cloned without fork() while another thread used the file system: "
                 "its calls fail with EIO");
    *same_process = 1;
    if (broken || !enter())
        return 0;
    begin_child();
    leave();
    return 1;
}

/* --- calls -------------------------------------------------------------------------------------------------------- */

/* errno of an OSError, HostPath's path, or EIO and a traceback in the log. */
static long failure(const struct madfs_call *call, char escaped[MADFS_PATH_MAX], int *escaped_arg)
{
    PyObject *type, *value, *traceback;
    long result = -EIO;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (PyErr_GivenExceptionMatches(value, PyExc_OSError)) {
        PyObject *code = ((PyOSErrorObject *)value)->myerrno;
        long number = code && PyLong_Check(code) ? PyLong_AsLong(code) : 0;
        if (number > 0 && number <= ERRNO_MAX)
            result = -number;
        else
            PyErr_Clear();
    } else if (PyErr_GivenExceptionMatches(value, host_path)) {
        char *path;
        Py_ssize_t length;
        int index;
        if (PyArg_ParseTuple(((PyBaseExceptionObject *)value)->args, "y#i", &path, &length, &index) &&
            length < MADFS_PATH_MAX) {
            memcpy(escaped, path, (size_t)length);
            escaped[length] = 0;
            *escaped_arg = index;
            result = MADFS_HOST_PATH;
        } else {
            PyErr_Clear();
            result = -ENAMETOOLONG;
        }
    } else if (PyErr_GivenExceptionMatches(value, PyExc_MemoryError)) {
        result = -ENOMEM;
    } else {
        PyObject *name = PyObject_GetAttrString(functions[call->number], "__name__");
        const char *text = name ? PyUnicode_AsUTF8(name) : NULL;
        char where[128];
        snprintf(where, sizeof where, "%s()", text ? text : "a call");
        Py_XDECREF(name);
        PyErr_Restore(type, value, traceback);
        log_exception(where);
        return result;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return result;
}

/* With the GIL held: build the arguments, call, convert the result. */
static long invoke(const struct madfs_call *call, char escaped[MADFS_PATH_MAX], int *escaped_arg)
{
    PyObject *slots[1 + 6], **arguments = slots + 1;
    Py_ssize_t built;
    PyObject *result = NULL;
    long value = -1;

    for (built = 0; built < call->count; built++) {
        const struct madfs_arg *arg = &call->arg[built];
        if (arg->kind == MADFS_ARG_PATH || arg->kind == MADFS_ARG_STR)
            arguments[built] = PyBytes_FromStringAndSize(arg->text, (Py_ssize_t)arg->length);
        else
            arguments[built] = PyLong_FromLong(arg->value);
        if (!arguments[built])
            break;
    }
    if (built == call->count)
        result = PyObject_Vectorcall(functions[call->number], arguments,
                                     (size_t)built | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    while (built)
        Py_DECREF(arguments[--built]);
    if (result) {
        value = PyLong_AsLong(result);
        if (value < 0 && !PyErr_Occurred())
            PyErr_Format(PyExc_SystemError, "the result is %ld: errors are raised, not returned", value);
        Py_DECREF(result);
    }
    return LIKELY(value >= 0) ? value : failure(call, escaped, escaped_arg);
}

static long runtime_call(const struct madfs_call *call, char escaped[MADFS_PATH_MAX], int *escaped_arg)
{
    int errno_before = errno, cancel_before;
    long result = -EIO;

    if (call->number < 0 || call->number >= function_count || call->count < 0 || call->count > 6)
        return -ENOSYS;
    if (!LIKELY(*same_process) && !adopt_child())
        return -EIO;
    if (broken)
        return -EIO;
    /* Cancelling a thread would unwind the interpreter's frames. */
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_before);
    if (LIKELY(enter())) {
        result = invoke(call, escaped, escaped_arg);
        leave();
    } else {
        result = -ENOMEM;
    }
    pthread_setcancelstate(cancel_before, NULL);
    errno = errno_before; /* the application's; the result says what happened */
    return result;
}

static void runtime_exiting(void)
{
    if (broken || !*same_process || !enter())
        return;
    PyObject *done = PyObject_CallMethod(syscalls, "exiting", NULL);
    if (!done)
        log_exception("ending");
    Py_XDECREF(done);
    leave();
}

/* --- the module _shim: what Python asks of the shim --------------------------------------------------------------- */

int expect(const char *function, Py_ssize_t count, Py_ssize_t expected)
{
    if (count != expected)
        PyErr_Format(PyExc_TypeError, "_shim.%s takes %zd arguments, not %zd", function, expected, count);
    return count == expected;
}

PyObject *raise_errno(int code)
{
    errno = code;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* Integers of 64 bits, signed or not; sets an exception when one is not an integer. */
int integers(arguments_t args, Py_ssize_t count, int64_t *values)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        values[i] = (int64_t)PyLong_AsUnsignedLongLongMask(args[i]);
        if (values[i] == -1 && PyErr_Occurred())
            return 0;
    }
    return 1;
}

/* open_fd(flags, record, path, cloexec) -> descriptor */
static PyObject *shim_open_fd(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t flags, cloexec;
    char *record, *path;
    Py_ssize_t record_length, path_length;

    (void)module;
    if (!expect("open_fd", count, 4) || !integers(args, 1, &flags) || !integers(args + 3, 1, &cloexec) ||
        PyBytes_AsStringAndSize(args[1], &record, &record_length) < 0 ||
        PyBytes_AsStringAndSize(args[2], &path, &path_length) < 0)
        return NULL;
    if (record_length > RECORD_MAX)
        return PyErr_Format(PyExc_ValueError, "a record of %zd bytes is longer than %d", record_length, RECORD_MAX);
    if (path_length >= MADFS_PATH_MAX)
        return raise_errno(ENAMETOOLONG);
    int fd = host->open_fd((uint32_t)flags, record, (size_t)record_length, path, (size_t)path_length, cloexec != 0);
    return fd < 0 ? raise_errno(-fd) : PyLong_FromLong(fd);
}

/* slot(handle) -> (flags, record, path) */
static PyObject *shim_slot(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t handle;
    uint32_t flags;
    char record[RECORD_MAX], path[MADFS_PATH_MAX];
    size_t record_length = sizeof record, path_length = sizeof path;

    (void)module;
    if (!expect("slot", count, 1) || !integers(args, 1, &handle))
        return NULL;
    int code = host->slot_read((uint64_t)handle, &flags, record, &record_length, path, &path_length);
    if (code < 0)
        return raise_errno(-code);
    return Py_BuildValue("(Iy#y#)", flags, record, (Py_ssize_t)record_length, path, (Py_ssize_t)path_length);
}

/* offset(handle) -> bytes */
static PyObject *shim_offset(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t handle;

    (void)module;
    if (!expect("offset", count, 1) || !integers(args, 1, &handle))
        return NULL;
    int64_t value = host->offset_get((uint64_t)handle);
    return value < 0 ? raise_errno((int)-value) : PyLong_FromLongLong(value);
}

/* offset_set(handle, bytes) */
static PyObject *shim_offset_set(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[2];

    (void)module;
    if (!expect("offset_set", count, 2) || !integers(args, 2, values))
        return NULL;
    host->offset_set((uint64_t)values[0], values[1]);
    Py_RETURN_NONE;
}

/* offset_cas(handle, old, new) -> whether it was `old` and is `new` now */
static PyObject *shim_offset_cas(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[3];

    (void)module;
    if (!expect("offset_cas", count, 3) || !integers(args, 3, values))
        return NULL;
    return PyBool_FromLong(host->offset_cas((uint64_t)values[0], values[1], values[2]));
}

/* offset_add(handle, bytes) -> the value before */
static PyObject *shim_offset_add(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[2];

    (void)module;
    if (!expect("offset_add", count, 2) || !integers(args, 2, values))
        return NULL;
    int64_t value = host->offset_add((uint64_t)values[0], values[1]);
    return value < 0 ? raise_errno((int)-value) : PyLong_FromLongLong(value);
}

/* load(address, length) -> bytes */
static PyObject *shim_load(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[2];

    (void)module;
    if (!expect("load", count, 2) || !integers(args, 2, values))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)values[1]);
    if (bytes && !host->copy(PyBytes_AS_STRING(bytes), (const void *)(uintptr_t)values[0], (size_t)values[1])) {
        Py_DECREF(bytes);
        return raise_errno(EFAULT);
    }
    return bytes;
}

/* store(address, bytes-like) */
static PyObject *shim_store(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t address;
    Py_buffer data;

    (void)module;
    if (!expect("store", count, 2) || !integers(args, 1, &address) ||
        PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    int copied = host->copy((void *)(uintptr_t)address, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    if (!copied)
        return raise_errno(EFAULT);
    Py_RETURN_NONE;
}

/* probe(address, length, write) -> how many bytes from there on can be read, or also written */
static PyObject *shim_probe(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[3];

    (void)module;
    if (!expect("probe", count, 3) || !integers(args, 3, values))
        return NULL;
    return PyLong_FromSize_t(host->probe((const void *)(uintptr_t)values[0], (size_t)values[1], values[2] != 0));
}

/* set_cwd(path, inode) */
static PyObject *shim_set_cwd(PyObject *module, arguments_t args, Py_ssize_t count)
{
    char *path;
    Py_ssize_t length;
    int64_t inode;

    (void)module;
    if (!expect("set_cwd", count, 2) || PyBytes_AsStringAndSize(args[0], &path, &length) < 0 ||
        !integers(args + 1, 1, &inode))
        return NULL;
    if (length >= MADFS_PATH_MAX)
        return raise_errno(ENAMETOOLONG);
    host->set_cwd(path, (size_t)length, (uint64_t)inode);
    Py_RETURN_NONE;
}

/* moved(old, new, exchange) */
static PyObject *shim_moved(PyObject *module, arguments_t args, Py_ssize_t count)
{
    char *old, *new_;
    Py_ssize_t old_length, new_length;
    int64_t exchange;

    (void)module;
    if (!expect("moved", count, 3) || PyBytes_AsStringAndSize(args[0], &old, &old_length) < 0 ||
        PyBytes_AsStringAndSize(args[1], &new_, &new_length) < 0 || !integers(args + 2, 1, &exchange))
        return NULL;
    host->moved(old, (size_t)old_length, new_, (size_t)new_length, exchange != 0);
    Py_RETURN_NONE;
}

/* open_at(path) -> numbers of the directories that are open there */
static PyObject *shim_open_at(PyObject *module, arguments_t args, Py_ssize_t count)
{
    enum { ROOM = 64 };
    uint64_t inodes[ROOM];
    char *path;
    Py_ssize_t length;

    (void)module;
    if (!expect("open_at", count, 1) || PyBytes_AsStringAndSize(args[0], &path, &length) < 0)
        return NULL;
    size_t found = host->open_at(path, (size_t)length, inodes, ROOM);
    PyObject *result = PyTuple_New((Py_ssize_t)found);
    for (size_t i = 0; result && i < found; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(inodes[i]);
        if (number)
            PyTuple_SET_ITEM(result, (Py_ssize_t)i, number);
        else
            Py_CLEAR(result);
    }
    return result;
}

/* gone(inode) */
static PyObject *shim_gone(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t inode;

    (void)module;
    if (!expect("gone", count, 1) || !integers(args, 1, &inode))
        return NULL;
    host->gone((uint64_t)inode);
    Py_RETURN_NONE;
}

/* umask() -> mode bits */
static PyObject *shim_umask(PyObject *module, arguments_t args, Py_ssize_t count)
{
    (void)module;
    (void)args;
    return expect("umask", count, 0) ? PyLong_FromUnsignedLong(host->umask()) : NULL;
}

/* lift(1) -> what files of this process may be long now, -1 for any length; until lift(0) */
static PyObject *shim_lift(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t up;

    (void)module;
    if (!expect("lift", count, 1) || !integers(args, 1, &up))
        return NULL;
    if (up && lifted++ == 0) {
        syscall(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit_before);
        limit_lifted = (struct rlimit){RLIM_INFINITY, RLIM_INFINITY};
        if (limit_before.rlim_cur != RLIM_INFINITY && syscall(SYS_prlimit64, 0, RLIMIT_FSIZE, &limit_lifted, NULL)) {
            limit_lifted.rlim_cur = limit_lifted.rlim_max = limit_before.rlim_max;
            syscall(SYS_prlimit64, 0, RLIMIT_FSIZE, &limit_lifted, NULL);
        }
    } else if (!up && --lifted == 0 && limit_before.rlim_cur < limit_lifted.rlim_cur) {
        lower_limit();
    }
    return PyLong_FromLong(limit_lifted.rlim_cur > LONG_MAX ? -1L : (long)limit_lifted.rlim_cur);
}

/* size_limit() -> RLIMIT_FSIZE in bytes, -1 without one */
static PyObject *shim_size_limit(PyObject *module, arguments_t args, Py_ssize_t count)
{
    struct rlimit limit = {.rlim_cur = RLIM_INFINITY};

    (void)module;
    (void)args;
    if (!expect("size_limit", count, 0))
        return NULL;
    if (lifted)
        limit = limit_before;
    else
        syscall(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit);
    return PyLong_FromLong(limit.rlim_cur > LONG_MAX ? -1L : (long)limit.rlim_cur);
}

/* identity() -> (user, group) of this thread as far as files are concerned */
static PyObject *shim_identity(PyObject *module, arguments_t args, Py_ssize_t count)
{
    unsigned user, group;

    (void)module;
    (void)args;
    if (!expect("identity", count, 0))
        return NULL;
    host->identity(&user, &group);
    return Py_BuildValue("(II)", user, group);
}

/* cluster() -> descriptor of the cluster file where it was kept open, or -1 */
static PyObject *shim_cluster(PyObject *module, arguments_t args, Py_ssize_t count)
{
    (void)module;
    (void)args;
    return expect("cluster", count, 0) ? PyLong_FromLong(host->cluster()) : NULL;
}

/* anonymous(address, length, prot, flags) -> address of a private mapping without a file; MAP_FIXED is kept */
static PyObject *shim_anonymous(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[4];

    (void)module;
    if (!expect("anonymous", count, 4) || !integers(args, 4, values))
        return NULL;
    long flags = ((long)values[3] & ~(long)MAP_TYPE) | MAP_PRIVATE | MAP_ANONYMOUS;
    long address = syscall(SYS_mmap, values[0], values[1], values[2], flags, -1L, 0L);
    return address == -1 ? raise_errno(errno) : PyLong_FromLong(address);
}

/* protect(address, length, prot) */
static PyObject *shim_protect(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[3];

    (void)module;
    if (!expect("protect", count, 3) || !integers(args, 3, values))
        return NULL;
    if (syscall(SYS_mprotect, values[0], values[1], values[2]) < 0)
        return raise_errno(errno);
    Py_RETURN_NONE;
}

/* keep(descriptor) */
static PyObject *shim_keep(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t fd;

    (void)module;
    if (!expect("keep", count, 1) || !integers(args, 1, &fd))
        return NULL;
    host->keep((int)fd);
    Py_RETURN_NONE;
}

/* raise_signal(number): a signal for the calling thread */
static PyObject *shim_raise_signal(PyObject *module, arguments_t args, Py_ssize_t count)
{
    long number;

    (void)module;
    if (!expect("raise_signal", count, 1) || !integers(args, 1, &number))
        return NULL;
    (void)pthread_kill(pthread_self(), (int)number);
    Py_RETURN_NONE;
}

/* write(text) and flush(): sys.stderr is this module. */
static PyObject *shim_write(PyObject *module, arguments_t args, Py_ssize_t count)
{
    Py_ssize_t length;

    (void)module;
    if (!expect("write", count, 1))
        return NULL;
    PyObject *bytes = PyUnicode_AsEncodedString(args[0], "utf-8", "backslashreplace");
    if (!bytes)
        return NULL;
    length = PyBytes_GET_SIZE(bytes);
    log_text(PyBytes_AS_STRING(bytes), (size_t)length);
    Py_DECREF(bytes);
    return PyLong_FromSsize_t(length);
}

static PyObject *shim_flush(PyObject *module, arguments_t args, Py_ssize_t count)
{
    (void)module;
    (void)args;
    if (!expect("flush", count, 0))
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef shim_functions[] = {
    FUNCTION(open_fd), FUNCTION(slot), FUNCTION(offset), FUNCTION(offset_set), FUNCTION(offset_cas),
    FUNCTION(offset_add), FUNCTION(load), FUNCTION(store), FUNCTION(probe), FUNCTION(set_cwd), FUNCTION(umask),
    FUNCTION(moved), FUNCTION(open_at), FUNCTION(gone),
    FUNCTION(identity), FUNCTION(cluster), FUNCTION(size_limit), FUNCTION(lift), FUNCTION(anonymous), FUNCTION(protect),
    FUNCTION(write), FUNCTION(flush), FUNCTION(keep), FUNCTION(raise_signal), {NULL, NULL, 0, NULL},
};
static struct PyModuleDef shim_module = {
    PyModuleDef_HEAD_INIT, "_shim", NULL, -1, shim_functions, NULL, NULL, NULL, NULL,
};

PyObject *madfs_init_shim(void)
{
    PyObject *module = PyModule_Create(&shim_module);
    if (module && PyModule_AddFunctions(module, map_functions) < 0)
        Py_CLEAR(module);
    return module;
}

/* --- start -------------------------------------------------------------------------------------------------------- */

/* The interpreter's standard streams would be the application's: it has none.  (The link wraps fileno().) */
int __real_fileno(FILE *stream);
int __wrap_fileno(FILE *stream);
int __wrap_fileno(FILE *stream)
{
    if (stream == stdin || stream == stdout || stream == stderr) {
        errno = EBADF;
        return -1;
    }
    return __real_fileno(stream);
}

/* Settings of an interpreter that looks at nothing: no environment, no files, no signals, no locale. */
static void configure(PyConfig *config)
{
    PyConfig_InitIsolatedConfig(config);
    config->site_import = 0;
    config->install_signal_handlers = 0;
    config->pathconfig_warnings = 0;
    config->write_bytecode = 0;
    config->configure_c_stdio = 0;
    config->use_frozen_modules = 1;
    config->module_search_paths_set = 1;
    /* No file names, streams, text codecs, signals or __main__: only frozen and built-in modules (PEP 587, "Multi-Phase
     * Initialization"). */
    config->_init_main = 0;
}

/* An arena with its pages, which Python will touch one after the other: a fault for each would cost more. */
static void *arena_new(void *unused, size_t size)
{
    (void)unused;
    void *arena = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return arena == MAP_FAILED ? NULL : arena;
}

static void arena_free(void *unused, void *arena, size_t size)
{
    (void)unused;
    munmap(arena, size);
}

static int start_interpreter(char *error, size_t size)
{
    PyObjectArenaAllocator arenas = {NULL, arena_new, arena_free};
    PyPreConfig before;
    PyConfig config;

    PyObject_SetArenaAllocator(&arenas);
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    before.configure_locale = 0;
    before.coerce_c_locale = 0;
    PyStatus status = Py_PreInitialize(&before);
    if (!PyStatus_Exception(status)) {
        configure(&config);
        PyImport_FrozenModules = madfs_frozen;
        status = Py_InitializeFromConfig(&config);
        PyConfig_Clear(&config);
    }
    if (PyStatus_Exception(status))
        snprintf(error, size, "the interpreter: %s", status.err_msg ? status.err_msg : "cannot start");
    return !PyStatus_Exception(status);
}

static int import_client(void)
{
    syscalls = PyImport_ImportModule("pymadfs.syscalls");
    host_path = syscalls ? PyObject_GetAttrString(syscalls, "HostPath") : NULL;
    PyObject *list = host_path ? PyObject_GetAttrString(syscalls, "CALLS") : NULL;
    PyObject *calls = list ? PySequence_Tuple(list) : NULL; /* kept: it owns the functions */
    Py_XDECREF(list);
    if (!calls)
        return 0;
    function_count = PyTuple_GET_SIZE(calls);
    if (function_count > CALLS_MAX) {
        PyErr_Format(PyExc_SystemError, "%zd calls are more than %d", function_count, CALLS_MAX);
        return 0;
    }
    for (Py_ssize_t i = 0; i < function_count; i++)
        functions[i] = PyTuple_GET_ITEM(calls, i);
    /* Now, while nobody forks: what is imported later would leave its lock taken in the child of another thread. */
    PyObject *started = PyObject_CallMethod(syscalls, "start", NULL);
    if (!started && PyErr_ExceptionMatches(PyExc_OSError))
        PyErr_Clear(); /* it said why, and every call will be EIO */
    Py_XDECREF(started);
    return !PyErr_Occurred();
}

/*
 * What exists by now stays: the collector need not look at it again.  It remains switched on, against cycles that a
 * defect might leave, because it costs nothing: calls free what they make, and 900,000 of them never made it run.
 */
static int freeze_heap(void)
{
    PyObject *gc = PyImport_ImportModule("gc");
    PyObject *done = gc ? PyObject_CallMethod(gc, "freeze", NULL) : NULL;
    Py_XDECREF(done);
    Py_XDECREF(gc);
    PyGC_Enable();
    return done != NULL;
}

static int watch_process(char *error, size_t size)
{
    void *page = mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int code = page == MAP_FAILED ? errno : pthread_key_create(&thread_key, thread_ends);
    if (code) {
        snprintf(error, size, "the thread key: %s", strerror(code));
        return 0;
    }
    /* Kernels before 4.14 lack it: there a clone() past libc is not noticed. */
    (void)madvise(page, (size_t)sysconf(_SC_PAGESIZE), MADV_WIPEONFORK);
    same_process = page;
    *same_process = 1;
    return 1;
}

static long now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Everything that needs the GIL; one line in `error` when it fails. */
static int start_modules(char *error, size_t size, long began_us)
{
    long interpreter_us = now_us() - began_us;

    PyGC_Disable(); /* until the modules are there: what they make stays */
    int done = PyImport_ImportFrozenModule("_start") > 0 && import_client() && freeze_heap();
    if (!done)
        describe_exception("the client", error, size);
    const char *debug = getenv("MADFS_DEBUG");
    if (done && debug && *debug && *debug != '0') {
        char line[128];
        long whole_us = now_us() - began_us;
        snprintf(line, sizeof line, "madfs: runtime started in %ld us: interpreter %ld, client %ld", whole_us,
                 interpreter_us, whole_us - interpreter_us);
        log_line(line);
    }
    return done;
}

/* Forks are the host's affair: it calls fork_begins() and fork_ends() around them. */
int ux_embedded(void)
{
    return 1;
}

static const struct madfs_runtime runtime = {runtime_call, runtime_exiting, fork_begins, fork_ends};

__attribute__((visibility("default"))) const struct madfs_runtime *
madfs_runtime_start(const struct madfs_host *given, char *error, size_t error_size);

/* Starts while the loader's lock is held: see madfs_runtime_begins(). */
__attribute__((constructor)) static void loaded(void)
{
    void (*begins)(const struct madfs_runtime *(*)(const struct madfs_host *, char *, size_t));

    *(void **)&begins = dlsym(RTLD_DEFAULT, "madfs_runtime_begins");
    if (begins)
        begins(madfs_runtime_start);
}

const struct madfs_runtime *
madfs_runtime_start(const struct madfs_host *given, char *error, size_t error_size)
{
    long began_us = now_us();
    int errno_before = errno;

    if (given->abi != MADFS_HOST_ABI) {
        snprintf(error, error_size, "the two libraries are of different builds (ABI %u and %d): install them together",
                 given->abi, MADFS_HOST_ABI);
        return NULL;
    }
    host = given;
    if (!start_interpreter(error, error_size))
        return NULL;
    int done = start_modules(error, error_size, began_us) && watch_process(error, error_size);
    interpreter = PyInterpreterState_Get();
    keep_a_state();
    self.state = PyEval_SaveThread(); /* this thread keeps the first state */
    make_thread_locals();
    if (done) {
        threads = &self;
        pthread_setspecific(thread_key, &self);
    }
    errno = errno_before;
    return done ? &runtime : NULL;
}

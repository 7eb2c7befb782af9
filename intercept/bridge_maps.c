/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of the module _shim about mappings, and about what differs between two states of a file. */
#define _GNU_SOURCE
#include "bridge.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* map(address, length, prot, flags, descriptor, offset) -> address: mmap(2) */
static PyObject *shim_map(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t v[6];

    (void)module;
    if (!expect("map", count, 6) || !integers(args, 6, v))
        return NULL;
    long address = syscall(SYS_mmap, v[0], v[1], v[2], v[3], v[4], v[5]);
    return address == -1 ? raise_errno(errno) : PyLong_FromLong(address);
}

/* unmap(address, length) */
static PyObject *shim_unmap(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[2];

    (void)module;
    if (!expect("unmap", count, 2) || !integers(args, 2, values))
        return NULL;
    if (syscall(SYS_munmap, values[0], values[1]) < 0)
        return raise_errno(errno);
    Py_RETURN_NONE;
}

/* mapped(address, length, file, offset): the program has this shared mapping of the file with that inode number */
static PyObject *shim_mapped(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[4];

    (void)module;
    if (!expect("mapped", count, 4) || !integers(args, 4, values))
        return NULL;
    int code = host->mapped((unsigned long)values[0], (unsigned long)values[1], (uint64_t)values[2],
                            (unsigned long)values[3]);
    if (code < 0)
        return raise_errno(-code);
    Py_RETURN_NONE;
}

/* is_mapped(file) -> whether the program has any */
static PyObject *shim_is_mapped(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t file;

    (void)module;
    if (!expect("is_mapped", count, 1) || !integers(args, 1, &file))
        return NULL;
    return PyBool_FromLong(host->is_mapped((uint64_t)file));
}

/* window(address, length) -> memoryview of memory that stays mapped */
static PyObject *shim_window(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t values[2];

    (void)module;
    if (!expect("window", count, 2) || !integers(args, 2, values))
        return NULL;
    return PyMemoryView_FromMemory((char *)(uintptr_t)values[0], (Py_ssize_t)values[1], PyBUF_WRITE);
}

/* Where `a` and `b` differ, from *at on: the first byte and, in *end, behind the last one that is followed by `gap`
   equal bytes.  -1: nowhere. */
static Py_ssize_t difference(const char *a, const char *b, Py_ssize_t size, Py_ssize_t at, Py_ssize_t gap,
                             Py_ssize_t *end)
{
    while (at + 8 <= size && memcmp(a + at, b + at, 8) == 0)
        at += 8;
    while (at < size && a[at] == b[at])
        at++;
    if (at >= size)
        return -1;
    *end = at + 1;
    for (Py_ssize_t i = at + 1; i < size && i - *end < gap; i++)
        if (a[i] != b[i])
            *end = i + 1;
    return at;
}

/* differences(a, b, gap) -> [(start, end)] of two bytes objects of one length; those less than `gap` apart are one */
static PyObject *shim_differences(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t gap;
    char *a, *b;
    Py_ssize_t size, other, end = 0;

    (void)module;
    if (!expect("differences", count, 3) || !integers(args + 2, 1, &gap) ||
        PyBytes_AsStringAndSize(args[0], &a, &size) < 0 || PyBytes_AsStringAndSize(args[1], &b, &other) < 0)
        return NULL;
    PyObject *list = PyList_New(0);
    if (other < size)
        size = other;
    for (Py_ssize_t at = 0; list && (at = difference(a, b, size, at, (Py_ssize_t)gap, &end)) >= 0; at = end) {
        PyObject *pair = Py_BuildValue("(nn)", at, end);
        if (!pair || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

/* merge(address, old, new): bytes of memory that are as in `old` become as in `new`.  Others may store there meanwhile:
   what they store stays. */
static PyObject *shim_merge(PyObject *module, arguments_t args, Py_ssize_t count)
{
    int64_t address;
    char *old, *new;
    Py_ssize_t size, other;

    (void)module;
    if (!expect("merge", count, 3) || !integers(args, 1, &address) ||
        PyBytes_AsStringAndSize(args[1], &old, &size) < 0 || PyBytes_AsStringAndSize(args[2], &new, &other) < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < size && i < other; i++) {
        char expected = old[i];
        if (old[i] != new[i])
            __atomic_compare_exchange_n((char *)(uintptr_t)address + i, &expected, new[i], 0, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED);
    }
    Py_RETURN_NONE;
}

PyMethodDef map_functions[] = {
    FUNCTION(map), FUNCTION(unmap), FUNCTION(mapped), FUNCTION(is_mapped),
    FUNCTION(window), FUNCTION(differences), FUNCTION(merge), {NULL, NULL, 0, NULL},
};

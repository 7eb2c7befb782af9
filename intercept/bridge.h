/* SPDX-License-Identifier: Apache-2.0 */
/* What bridge.c and the other bridge_*.c share: the functions of the module _shim take their arguments in one way. */
#ifndef MADFS_BRIDGE_H
#define MADFS_BRIDGE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "host.h"

typedef PyObject *const *arguments_t;

extern const struct madfs_host *host;
extern PyMethodDef map_functions[];

void make_thread_locals(void); /* REQUIRES: no lock that another thread may wait for */

/* Each returns 0, or NULL, with an exception set. */
int expect(const char *function, Py_ssize_t count, Py_ssize_t expected);
int integers(arguments_t args, Py_ssize_t count, int64_t *values); /* of 64 bits, signed or not */
PyObject *raise_errno(int code);                                         /* OSError */

#define FUNCTION(name) {#name, (PyCFunction)(void (*)(void))shim_##name, METH_FASTCALL, NULL}

#endif

// SPDX-License-Identifier: Apache-2.0
// A client that takes no time: every path exists, every call succeeds.  What a call costs beside it is the shim's.
#include <stdio.h>

#include "../intercept/host.h"

enum {
#define CALL(name, number) CALL_##name = number,
#include "../intercept/syscalls.def"
#undef CALL
};

static const struct madfs_host *host;

static long call(const struct madfs_call *c, char escaped[MADFS_PATH_MAX], int *escaped_arg) {
  static const char record[40];  // as long as the client's
  (void)escaped;
  (void)escaped_arg;
  if (c->number != CALL_openat) return 0;
  return host->open_fd((uint32_t)c->arg[1].value, record, sizeof record, c->arg[0].text, c->arg[0].length, 0);
}

static void nothing(void) {}

static void nothing_after(int child) { (void)child; }

__attribute__((visibility("default"))) const struct madfs_runtime *
madfs_runtime_start(const struct madfs_host *given, char *error, size_t error_size) {
  static const struct madfs_runtime runtime = {call, nothing, nothing, nothing_after};
  if (given->abi != MADFS_HOST_ABI) {
    snprintf(error, error_size, "compiled for another shim");
    return NULL;
  }
  host = given;
  return &runtime;
}

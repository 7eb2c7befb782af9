// SPDX-License-Identifier: Apache-2.0
// Start-up, told from top to bottom.
//
// Built from every intercept/*.c except bridge*.c and every file of intercept/<architecture>/:
//
//   gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -ftls-model=initial-exec
//       -D_GNU_SOURCE -mgeneral-regs-only -ffreestanding -fno-stack-protector -fno-strict-aliasing
//       -DMADFS_VERSION='"0.1.0"' -Iintercept -Iintercept/x86_64 intercept/*.c intercept/x86_64/*.[cS]
//       -Wl,-z,initfirst,-z,now,-z,relro,-z,nodelete,-z,defs -o libmadfs_intercept.so
//
// -mgeneral-regs-only and -ffreestanding are part of the design, not of the taste: see intercept.h.
#include <sys/prctl.h>

#include "intercept.h"

#ifndef MADFS_VERSION
#error "MadFS: pass -DMADFS_VERSION='\"<version>\"' (pymadfs/version.py); setup.py does"
#endif

__attribute__((visibility("default"))) const char madfs_version[] = MADFS_VERSION;

// The address sanitizer refuses to start behind another preloaded library, because that might bring functions of its
// own for those that it replaces; we bring none.  A program that has this function itself has to say so itself.
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "verify_asan_link_order=0"; }

struct madfs_settings madfs_settings = {.mount = "/madfs", .mount_length = 6};

static const char *variable(char **environment, const char *name) {
  size_t n = strlen(name);
  for (; environment && *environment; environment++)
    if (madfs_starts(*environment, name) && (*environment)[n] == '=') return *environment + n + 1;
  return NULL;
}

static bool on(const char *value) { return value && *value && strcmp(value, "0") != 0; }

static void read_mount(const char *value) {
  if (!value) return;
  size_t n = madfs_copy(madfs_settings.mount, sizeof madfs_settings.mount, value);
  while (n > 1 && madfs_settings.mount[n - 1] == '/') madfs_settings.mount[--n] = 0;
  if (value[0] != '/' || n < 2 || strlen(value) >= sizeof madfs_settings.mount)
    madfs_die(127, "MADFS_MOUNT=", value, " is no absolute path below /: set it to one, such as /madfs", NULL);
  madfs_settings.mount_length = n;
}

static void check_version(const char *value) {
  if (!value || strcmp(value, madfs_version) == 0) return;
  madfs_die(127, "this preload library is of version ", madfs_version, ", but the job runs version ", value,
            ": set LD_PRELOAD to the library of that version, or start the job with this one's `madfs`", NULL);
}

static void report(void) {
  char a[24], b[24], c[24], d[24], e[24];
  const struct madfs_census *n = &madfs_census;
  if (madfs_settings.debug)
    madfs_say("patched ", madfs_decimal(a, n->patched), " of ", madfs_decimal(b, n->sites), " system call sites in ",
              madfs_decimal(c, n->objects), " objects; ", madfs_decimal(d, n->idle), " never concern files, ",
              madfs_decimal(e, n->left), " left", NULL);
  if (madfs_settings.strict && (n->left || !n->patched))
    madfs_die(127, "MADFS_STRICT: ", madfs_decimal(a, n->left), " system call sites cannot be intercepted (",
              madfs_decimal(b, n->patched), " can): unset it to run all the same", NULL);
}

// The working directory of the program before: its number and path.
static void adopt_cwd(const char *said) {
  uint64_t inode = 0;
  if (!said) return;
  while (*said >= '0' && *said <= '9') inode = inode * 10 + (uint64_t)(*said++ - '0');
  if (*said == ':') madfs_cwd_set(said + 1, strlen(said + 1), inode);
}

__attribute__((constructor)) static void start(int count, char **arguments, char **environment) {
  (void)count, (void)arguments;
  if (!madfs_fork_can_be_told()) {  // musl does not give us these arguments, either
    madfs_say("warning: this program runs with another C library than the GNU libc: it is not intercepted and does not "
              "see the mount; build it with the GNU libc", NULL);
    return;
  }
  madfs_settings.debug = on(variable(environment, "MADFS_DEBUG")) || on(variable(environment, "MADFS_SCAN"));
  madfs_settings.strict = on(variable(environment, "MADFS_STRICT"));
  read_mount(variable(environment, "MADFS_MOUNT"));
  check_version(variable(environment, "MADFS_VERSION"));
  const char *cluster = variable(environment, "MADFS_CLUSTER");
  madfs_settings.in_cluster = cluster != NULL;
  madfs_settings.in_version = variable(environment, "MADFS_VERSION") != NULL;
  if (cluster) madfs_copy(madfs_settings.cluster, sizeof madfs_settings.cluster, cluster);
  madfs_fault_start();
  madfs_limits_adopt(LIMIT_NOFILE, variable(environment, "MADFS_NOFILE"));
  madfs_limits_adopt(LIMIT_FSIZE, variable(environment, "MADFS_FSIZE"));
  madfs_fds_adopt(variable(environment, "MADFS_STATE"));
  madfs_identity_adopt(variable(environment, "MADFS_CLUSTER_FD"));
  const char *program = variable(environment, "MADFS_PROGRAM"), *name = program;
  for (const char *at = program; at && *at; at++)
    if (*at == '/' && at[1]) name = at + 1;
  if (program) {
    madfs_copy(madfs_settings.program, sizeof madfs_settings.program, program);
    RAW(SYS_prctl, PR_SET_NAME, name);
  }
  adopt_cwd(variable(environment, "MADFS_CWD"));
  madfs_loaded(variable(environment, "MADFS_LOADED"));
  madfs_startup_done(variable(environment, "MADFS_STAGE"), environment);
  madfs_thread_key();
  madfs_fork_start();
  madfs_trace_start(variable(environment, "MADFS_TRACE"));
  madfs_classes_fill();
  madfs_scan_process(variable(environment, "MADFS_SITES_WRITE"));
  madfs_maps_start();
  report();
  madfs_trace_left(madfs_census.left);
  if (on(variable(environment, "MADFS_SCAN"))) RAW(SYS_exit_group, 0);  // `madfs doctor` wanted the report only
}

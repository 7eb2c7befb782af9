// SPDX-License-Identifier: Apache-2.0
// Symbolic links of the host's that lead into the mount.
//
// The kernel follows them to a place where nothing is, so nothing is done about them before it has said ENOENT.  Then
// two more system calls tell most paths that simply do not exist from those that came to such a link, and only the
// latter are walked through name by name.
#include <errno.h>
#include <fcntl.h>

#include "intercept.h"

enum { LINKS_MAX = 40, SHORT = 256 };

// A path that is being walked through: `done` is real, `rest` comes next.
struct walk {
  char done[MADFS_PATH_MAX], rest[2 * MADFS_PATH_MAX], target[MADFS_PATH_MAX];
  size_t length;  // of `done`, which has no slash at its end
  unsigned links;
};

bool madfs_links_suspect(int directory, const char *path) {
  char text[SHORT], unused;
  size_t n = 0;
  if ((unsigned long)path < MADFS_POINTER_MIN || !arch_peek_byte(path)) return false;
  for (char c; (c = arch_peek_byte(path + n)); n++) {
    if (n == SHORT - 1) return true;
    text[n] = c;
  }
  while (n > 1 && text[n - 1] == '/') n--;
  text[n] = 0;
  if (RAW(SYS_readlinkat, directory, text, &unused, 1) != -ENOENT) return true;
  while (n && text[n - 1] != '/') n--;
  text[n] = 0;
  return n && RAW(SYS_faccessat, directory, text, F_OK) == -ENOENT;
}

// Where a relative path begins.
static bool begin(struct walk *w, int directory) {
  char name[40], number[24];
  long n;
  if (directory == AT_FDCWD) {
    n = RAW(SYS_getcwd, w->done, sizeof w->done) - 1;
  } else {
    size_t at = madfs_copy(name, sizeof name, "/proc/self/fd/");
    madfs_copy(name + at, sizeof name - at, madfs_decimal(number, (unsigned)directory));
    n = RAW(SYS_readlinkat, AT_FDCWD, name, w->done, sizeof w->done - 1);
  }
  if (n <= 0 || w->done[0] != '/') return false;
  w->length = n == 1 ? 0 : (size_t)n;
  w->done[w->length] = 0;
  return true;
}

// Takes the next name off `rest` and puts it behind `done`; false when there is none, or no room.
static bool next(struct walk *w, size_t *before) {
  char *at = w->rest;
  while (*at == '/') at++;
  size_t size = 0;
  while (at[size] && at[size] != '/') size++;
  *before = w->length;
  if (!size || w->length + 1 + size >= MADFS_PATH_MAX) return false;
  if (size == 2 && at[0] == '.' && at[1] == '.') {
    while (w->length && w->done[--w->length] != '/') continue;
  } else if (size != 1 || at[0] != '.') {
    w->done[w->length++] = '/';
    memcpy(w->done + w->length, at, size);
    w->length += size;
  }
  w->done[w->length] = 0;
  memmove(w->rest, at + size, strlen(at + size) + 1);
  return true;
}

// `done` is a link to `target`: what follows is read there.
static bool follow(struct walk *w, size_t before, size_t size) {
  size_t rest = strlen(w->rest);
  if (++w->links > LINKS_MAX || size + rest + 1 >= sizeof w->rest) return false;
  memmove(w->rest + size, w->rest, rest + 1);
  memcpy(w->rest, w->target, size);
  w->length = w->target[0] == '/' ? 0 : before;
  w->done[w->length] = 0;
  return true;
}

int madfs_links_follow(int directory, const char *path, bool last, char out[MADFS_PATH_MAX], size_t *length) {
  struct walk w = {.links = 0};
  size_t before;
  if (madfs_copy(w.rest, MADFS_PATH_MAX, path) >= MADFS_PATH_MAX - 1) return PATH_HOST;
  if (*path != '/' && !begin(&w, directory)) return PATH_HOST;
  while (next(&w, &before)) {
    if (w.length == madfs_settings.mount_length && memcmp(w.done, madfs_settings.mount, w.length) == 0) {
      size_t rest = strlen(w.rest);
      if (w.length + rest >= MADFS_PATH_MAX) return -ENAMETOOLONG;
      memcpy(out, w.done, w.length);
      memcpy(out + w.length, w.rest, rest + 1);
      *length = w.length + rest;
      return PATH_OURS;
    }
    if (!w.rest[0] && !last) return PATH_HOST;
    long size = RAW(SYS_readlinkat, AT_FDCWD, w.done, w.target, sizeof w.target);
    if ((size == -ENOENT && w.length) || (size > 0 && !follow(&w, before, (size_t)size))) return PATH_HOST;
  }
  return PATH_HOST;
}

// SPDX-License-Identifier: Apache-2.0
// What stands in for libc: the shim runs inside arbitrary system calls, so it must neither make one that would be
// intercepted, nor touch errno, nor use a vector register.
#include <stdarg.h>

#include "intercept.h"

enum { LINE = 1024 };

// The compiler turns loops like these into calls of the functions they are.
#define PLAIN_LOOP __attribute__((optimize("no-tree-loop-distribute-patterns")))

PLAIN_LOOP size_t strlen(const char *text) {
  size_t n = 0;
  while (text[n]) n++;
  return n;
}

PLAIN_LOOP int strcmp(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return (unsigned char)*a - (unsigned char)*b;
}

PLAIN_LOOP void *memcpy(void *restrict out, const void *restrict in, size_t size) {
  unsigned char *to = out;
  const unsigned char *from = in;
  while (size--) *to++ = *from++;
  return out;
}

PLAIN_LOOP void *memmove(void *out, const void *in, size_t size) {
  unsigned char *to = out;
  const unsigned char *from = in;
  if (to <= from || to >= from + size) return memcpy(out, in, size);
  while (size--) to[size] = from[size];
  return out;
}

PLAIN_LOOP void *memset(void *out, int byte, size_t size) {
  unsigned char *to = out;
  while (size--) *to++ = (unsigned char)byte;
  return out;
}

PLAIN_LOOP int memcmp(const void *a, const void *b, size_t size) {
  const unsigned char *p = a, *q = b;
  for (size_t i = 0; i < size; i++)
    if (p[i] != q[i]) return p[i] - q[i];
  return 0;
}

bool madfs_starts(const char *text, const char *prefix) {
  while (*prefix && *prefix == *text) prefix++, text++;
  return !*prefix;
}

size_t madfs_copy(char *out, size_t room, const char *text) {
  size_t n = 0;
  for (; n + 1 < room && text[n]; n++) out[n] = text[n];
  if (room) out[n] = 0;
  return n;
}

char *madfs_decimal(char buffer[24], unsigned long value) {
  char *at = buffer + 23;
  *at = 0;
  do *--at = (char)('0' + value % 10);
  while (value /= 10);
  return at;
}

char *madfs_hexadecimal(char buffer[24], unsigned long value) {
  char *at = buffer + 23;
  *at = 0;
  do *--at = "0123456789abcdef"[value % 16];
  while (value /= 16);
  *--at = 'x';
  *--at = '0';
  return at;
}

static int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return 99;
}

const char *madfs_number(const char *text, int base, unsigned long *value) {
  const char *start = text;
  for (*value = 0; digit(*text) < base; text++) *value = *value * (unsigned)base + (unsigned)digit(*text);
  return text == start ? NULL : text;
}

// One write, so that the lines of many processes do not mix.
static void line(const char *first, va_list more) {
  char text[LINE];
  size_t n = madfs_copy(text, LINE, "madfs: ");
  for (const char *part = first; part; part = va_arg(more, const char *)) n += madfs_copy(text + n, LINE - n - 1, part);
  text[n++] = '\n';
  RAW(SYS_write, 2, text, n);
}

void madfs_say(const char *first, ...) {
  va_list more;
  va_start(more, first);
  line(first, more);
  va_end(more);
}

void madfs_die(int status, const char *first, ...) {
  va_list more;
  va_start(more, first);
  line(first, more);
  va_end(more);
  for (;;) RAW(SYS_exit_group, status);
}

// Held for moments only, except by the thread that starts the runtime: hence the sleep.
void madfs_lock(struct madfs_lock *lock) {
  int self = madfs_memory_owner();
  for (unsigned n = 0;; n++) {
    int owner = 0;
    if (atomic_compare_exchange_strong(&lock->owner, &owner, self)) return;
    if (owner != self && atomic_compare_exchange_strong(&lock->owner, &owner, self))
      return;  // a thread fork left behind
    struct {
      long seconds, nanoseconds;
    } moment = {0, 100 * 1000};
    if (n < 100) arch_pause();
    else RAW(SYS_nanosleep, &moment, 0);
  }
}

void madfs_unlock(struct madfs_lock *lock) { atomic_store(&lock->owner, 0); }

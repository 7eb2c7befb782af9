// SPDX-License-Identifier: Apache-2.0
// Loads libraries in every way there is: `loads NAME LIBRARY`.  Prints "ok", or what is wrong.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

typedef long (*opener)(const char *);
typedef long (*jumper)(const char *, long);

static void fail(const char *what, long value) {
  printf("%s: %ld\n", what, value);
  exit(1);
}

static opener find(void *library, const char *name) {
  if (!library) {
    puts(dlerror());
    exit(1);
  }
  opener found;
  *(void **)&found = dlsym(library, name);
  if (!found) fail(name, -1);
  return found;
}

// Whether the library's own instruction reaches the mount.
static void check(const char *what, long fd) {
  if (fd < 0) fail(what, fd);
  close((int)fd);
}

static void plain(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  check("open_it", find(library, "open_it")("/madfs/plain"));
  jumper jumps = (jumper)find(library, "open_jumping");
  check("open_jumping", jumps("/madfs/jump", 0));
  if (jumps("/madfs/jump", 1) != -38) fail("the other way", jumps("/madfs/jump", 1));
}

static void namespace_(const char *path) {
  check("dlmopen", find(dlmopen(LM_ID_NEWLM, path, RTLD_NOW), "open_it")("/madfs/namespace"));
  check("dlopen beside it", find(dlopen(path, RTLD_NOW), "open_it")("/madfs/beside"));
}

// Closed and opened again, mostly at the same address; memory does not grow with it.
static void again(const char *path) {
  unsigned same = 0;
  void *before = NULL;
  long pages = 0, size;
  for (int i = 0; i < 300; i++) {
    void *library = dlopen(path, RTLD_NOW);
    opener found = find(library, "open_it");
    same += (void *)found == before;
    before = (void *)found;
    check("again", found("/madfs/again"));
    dlclose(library);
    FILE *file = fopen("/proc/self/statm", "r");
    if (fscanf(file, "%ld", &size) != 1) fail("statm", 0);
    fclose(file);
    if (i == 20) pages = size;
  }
  if (!same) fail("never at the same address", 0);
  if (size > pages + 100) fail("pages that stay", size - pages);
}

static atomic_bool done;
static void *library_of_threads;

static void *work(void *path) {
  opener found = find(library_of_threads, "open_it");
  for (unsigned n = 0; !atomic_load(&done); n++) {
    check("thread", found("/madfs/thread"));
    void *other = n % 8 ? NULL : dlopen(path, RTLD_NOW);
    if (other) {
      check("thread's own", find(other, "open_it")("/madfs/thread"));
      dlclose(other);
    }
  }
  return NULL;
}

// While four threads run through one library, and open others.
static void threads(const char *path) {
  enum { THREADS = 4 };
  pthread_t thread[THREADS];
  char copies[THREADS][4096], command[9000];
  library_of_threads = dlopen(path, RTLD_NOW);
  for (int i = 0; i < THREADS; i++) {
    snprintf(copies[i], sizeof copies[i], "%s.%d", path, i);
    snprintf(command, sizeof command, "cp %s %s", path, copies[i]);
    if (system(command)) fail("cp", i);
    pthread_create(&thread[i], NULL, work, copies[i]);
  }
  for (int i = 0; i < 100; i++) {
    void *library = dlmopen(LM_ID_BASE, path, RTLD_NOW);
    check("main", find(library, "open_it")("/madfs/main"));
    dlclose(library);
  }
  atomic_store(&done, true);
  for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
}

// --- loaders of their own -------------------------------------------------------------------------------------------

// The executable part of an object: where it is in the file, its size, and the offset in it of open_it().
struct text {
  int fd;
  size_t at, size, function, whole;
};

static struct text text_of(const char *path) {
  struct text text = {.fd = open(path, O_RDWR)};
  struct stat file;
  fstat(text.fd, &file);
  char *image = mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_PRIVATE, text.fd, 0);
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)image;
  const Elf64_Phdr *segments = (const Elf64_Phdr *)(image + head->e_phoff);
  void *library = dlopen(path, RTLD_NOW);
  struct link_map *map;
  dlinfo(library, RTLD_DI_LINKMAP, &map);
  size_t address = (size_t)find(library, "open_it") - map->l_addr;
  for (int i = 0; i < head->e_phnum; i++)
    if (segments[i].p_type == PT_LOAD && segments[i].p_flags & PF_X) {
      text.at = segments[i].p_offset & ~4095UL;
      text.size = segments[i].p_filesz + (segments[i].p_offset & 4095);
      text.function = address - segments[i].p_vaddr + (segments[i].p_offset & 4095);
    }
  text.whole = (size_t)file.st_size;
  munmap(image, text.whole);
  dlclose(library);
  return text;
}

static opener at(char *address) {
  opener found;
  *(void **)&found = address;
  return found;
}

// Everything is mapped as data first, as packers and loaders of plugins do; then the text becomes executable.
static void protect(const char *path) {
  struct text text = text_of(path);
  for (int i = 0; i < 3; i++) {
    int first = i == 0 ? PROT_READ : i == 1 ? PROT_READ | PROT_WRITE : PROT_NONE;
    char *image = mmap(NULL, text.whole, first, MAP_PRIVATE, text.fd, 0);
    if (i < 2 && !image[0]) fail("image", i);
    if (i == 2) mprotect(image, text.at, PROT_READ);
    if (mprotect(image + text.at, text.size, PROT_READ | PROT_EXEC)) fail("mprotect", i);
    opener found = at(image + text.at + text.function);
    check("mprotect", found("/madfs/protect"));
    // Once more changes nothing, nor does a change of what is around it.
    mprotect(image + text.at, text.size, PROT_READ | PROT_WRITE);
    mprotect(image + text.at, text.size, PROT_READ | PROT_EXEC);
    check("twice", found("/madfs/protect"));
    mprotect(image + text.at, text.size, PROT_READ | PROT_WRITE | PROT_EXEC);
    check("writable", found("/madfs/protect"));
    mprotect(image + text.at, text.size, PROT_READ | PROT_EXEC);
    check("thrice", found("/madfs/protect"));
    munmap(image, text.whole);
  }
}

// The text alone, at any page of the file.
static void part(const char *path) {
  struct text text = text_of(path);
  char *image = mmap(NULL, text.size, PROT_READ | PROT_EXEC, MAP_PRIVATE, text.fd, (off_t)text.at);
  check("part", at(image + text.function)("/madfs/part"));
  size_t skipped = text.function & ~4095UL;
  char *half = mmap(NULL, text.size - skipped, PROT_READ | PROT_EXEC, MAP_PRIVATE, text.fd, (off_t)(text.at + skipped));
  check("half", at(half + text.function - skipped)("/madfs/half"));
}

// What is mapped shared is a file's, or a compiler's: not a byte changes.
static void shared(const char *path) {
  struct text text = text_of(path);
  char *before = malloc(text.whole), *after = malloc(text.whole);
  if (pread(text.fd, before, text.whole, 0) < 0) fail("pread", 0);
  char *image = mmap(NULL, text.size, PROT_READ | PROT_EXEC, MAP_SHARED, text.fd, (off_t)text.at);
  long fd = at(image + text.function)("/madfs/shared");
  if (fd >= 0) fail("it was rewritten", fd);
  image = mmap(NULL, text.size, PROT_READ, MAP_SHARED, text.fd, (off_t)text.at);
  mprotect(image, text.size, PROT_READ | PROT_EXEC);
  if (at(image + text.function)("/madfs/shared") >= 0) fail("mprotect rewrote it", 0);
  if (pread(text.fd, after, text.whole, 0) < 0 || memcmp(before, after, text.whole)) fail("the file changed", 0);
}

static void jit(const char *path) {
  struct text text = text_of(path);
  char *code = malloc(text.size);
  if (pread(text.fd, code, text.size, (off_t)text.at) < 0) fail("pread", 0);
  char *made = mmap(NULL, text.whole + text.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 100; i++) {
    mprotect(made, text.size, PROT_READ | PROT_WRITE);
    memcpy(made, code, text.size);
    if (mprotect(made, text.size, PROT_READ | PROT_EXEC)) fail("mprotect", i);
    if (memcmp(made, code, text.size)) fail("code of a compiler was changed", i);
    if (at(made + text.function)("/madfs/jit") >= 0) fail("a compiler's call", i);
  }
  // Then a library where it was.
  munmap(made, text.whole + text.size);
  char *image = mmap(made, text.whole, PROT_READ, MAP_PRIVATE | MAP_FIXED, text.fd, 0);
  mprotect(image + text.at, text.size, PROT_READ | PROT_EXEC);
  check("a library in its place", at(image + text.at + text.function)("/madfs/jit"));
  int memory = memfd_create("jit", 0);
  if (write(memory, code, text.size) < 0) fail("write", 0);
  char *writes = mmap(NULL, text.size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
  char *runs = mmap(NULL, text.size, PROT_READ | PROT_EXEC, MAP_SHARED, memory, 0);
  if (memcmp(writes, code, text.size) || memcmp(runs, code, text.size)) fail("shared code was changed", 0);
}

static void relocated(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  check("open_it", find(library, "open_it")("/madfs/plain"));
  check("relocated", ((long (*)(void))find(library, "open_relocated"))());
  if (access("/madfs/relocated", F_OK)) fail("another path", 0);
}

static void constructor(const char *path) {
  setenv("FAKE_LATE", "/madfs/constructor", 1);
  void *library = dlopen(path, RTLD_NOW);
  find(library, "open_it");
  check("constructor", *(long *)dlsym(library, "opened_first"));
}

// Without room for stubs near by, the library works and its calls go to the kernel.
static void no_room(const char *path) {
  struct rlimit limit = {0, 0};
  FILE *file = fopen("/proc/self/statm", "r");
  long size;
  if (fscanf(file, "%ld", &size) != 1) fail("statm", 0);
  struct stat status;
  stat(path, &status);
  bool ran = false;
  for (long more = 0; more < 40000 && !ran; more += 50) {
    limit.rlim_cur = limit.rlim_max = RLIM_INFINITY;
    limit.rlim_cur = (rlim_t)(size + more) * 4096;
    setrlimit(RLIMIT_AS, &limit);
    void *library = dlopen(path, RTLD_NOW);
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_AS, &limit);
    if (!library) continue;
    ran = true;
    long fd = find(library, "open_it")("/madfs/no_room");
    if (fd < 0 && fd != -2) fail("no room", fd);
  }
  if (!ran) fail("never loaded", 0);
}

// No room for stubs within 2 GiB: the text works and its calls go to the kernel.
static void no_gap(const char *path) {
  const size_t around = 5UL << 30;
  struct text text = text_of(path);
  char *all = mmap(NULL, around, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) fail("5 GiB of addresses", -1);
  char *image = mmap(all + around / 2, text.whole, PROT_READ, MAP_PRIVATE | MAP_FIXED, text.fd, 0);
  if (mprotect(image + text.at, text.size, PROT_READ | PROT_EXEC)) fail("mprotect", -1);
  long fd = at(image + text.at + text.function)("/madfs/no_gap");
  if (fd != -2) fail("no gap", fd);
  munmap(all + around / 2 + (1 << 20), 64 << 20);  // now there is one
  mprotect(image + text.at, text.size, PROT_READ);
  mprotect(image + text.at, text.size, PROT_READ | PROT_EXEC);
  check("a gap", at(image + text.at + text.function)("/madfs/no_gap"));
}

static const struct {
  const char *name;
  void (*run)(const char *);
} tests[] = {
    {"plain", plain},   {"namespace", namespace_}, {"again", again}, {"threads", threads},     {"protect", protect},
    {"part", part},     {"shared", shared},        {"jit", jit},     {"relocated", relocated},
    {"constructor", constructor}, {"no_room", no_room},
    {"no_gap", no_gap},
};

int main(int count, char **arguments) {
  for (size_t i = 0; i < sizeof tests / sizeof *tests && count > 2; i++)
    if (strcmp(arguments[1], tests[i].name) == 0) {
      tests[i].run(arguments[2]);
      puts("ok");
      return 0;
    }
  return 2;
}

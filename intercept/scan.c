// SPDX-License-Identifier: Apache-2.0
// Finds the system call instructions of what is mapped: the bytes first, then proof by decoding the function around
// them, whose bounds the unwinder's table (.eh_frame_hdr) gives.  No full sweep: libc takes a fraction of a
// millisecond.
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "intercept.h"

enum { MAPS_ROOM = 1 << 20, MAPPINGS_MAX = 8192, PLANS_MAX = 4096, ALIGNMENT = 16 };

struct madfs_census madfs_census;

// An object as its file lays it out or as it is mapped, and its table of functions.
struct image {
  const uint8_t *base;  // of the file, or of its first mapping
  size_t size;
  bool mapped;         // segments are where they run, at `bias`
  unsigned long bias;  // what a virtual address of the file is off by
  const Elf64_Phdr *segments;
  unsigned segments_count;
  const int32_t *functions;  // pairs: start, description; relative to `header`
  unsigned functions_count;
  unsigned long header;  // virtual address of .eh_frame_hdr
};

// --- the object -----------------------------------------------------------------------------------------------------

// What stands at virtual address `at`, and how many bytes of it; NULL when the file does not say.
static const void *image_at(const struct image *image, unsigned long at, size_t *room) {
  for (unsigned i = 0; i < image->segments_count; i++) {
    const Elf64_Phdr *s = &image->segments[i];
    if (s->p_type != PT_LOAD || at < s->p_vaddr || at >= s->p_vaddr + s->p_filesz) continue;
    unsigned long within = at - s->p_vaddr;
    *room = s->p_filesz - within;
    if (image->mapped) return (const void *)(image->bias + at);
    if (s->p_offset + s->p_filesz > image->size) return NULL;
    return image->base + s->p_offset + within;
  }
  return NULL;
}

static bool image_functions(struct image *image) {
  for (unsigned i = 0; i < image->segments_count; i++) {
    const Elf64_Phdr *s = &image->segments[i];
    size_t room;
    if (s->p_type != PT_GNU_EH_FRAME) continue;
    const uint8_t *header = image_at(image, s->p_vaddr, &room);
    // version 1, pointer pcrel|sdata4, count udata4, table datarel|sdata4: what every linker writes
    if (!header || room < 12 || header[0] != 1 || header[1] != 0x1b || header[2] != 0x03 || header[3] != 0x3b)
      return false;
    uint32_t count;
    memcpy(&count, header + 8, 4);
    if ((room - 12) / 8 < count) return false;
    image->functions = (const int32_t *)(header + 12);
    image->functions_count = count;
    image->header = s->p_vaddr;
    return true;
  }
  return false;
}

// The build id that the linker gave the object, cut or filled to MADFS_BUILD_ID bytes.
static bool image_build_id(const struct image *image, uint8_t id[MADFS_BUILD_ID]) {
  for (unsigned i = 0; i < image->segments_count; i++) {
    const Elf64_Phdr *s = &image->segments[i];
    size_t room;
    const uint8_t *at = s->p_type == PT_NOTE ? image_at(image, s->p_vaddr, &room) : NULL;
    if (!at || room > s->p_memsz) room = s->p_memsz;
    while (at && room >= sizeof(Elf64_Nhdr)) {
      const Elf64_Nhdr *note = (const Elf64_Nhdr *)at;
      size_t name = (note->n_namesz + 3UL) & ~3UL, size = sizeof *note + name + ((note->n_descsz + 3UL) & ~3UL);
      if (size > room) break;
      if (note->n_type == NT_GNU_BUILD_ID && name == 4 && !memcmp(note + 1, "GNU", 4)) {
        memset(id, 0, MADFS_BUILD_ID);
        memcpy(id, (const uint8_t *)(note + 1) + name,
               note->n_descsz < MADFS_BUILD_ID ? note->n_descsz : MADFS_BUILD_ID);
        return true;
      }
      at += size;
      room -= size;
    }
  }
  return false;
}

static bool image_open(struct image *image) {
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)image->base;
  if (image->size < sizeof *head || memcmp(head->e_ident, ELFMAG, SELFMAG) || head->e_ident[EI_CLASS] != ELFCLASS64 ||
      head->e_machine != ARCH_ELF_MACHINE || head->e_phentsize != sizeof(Elf64_Phdr) ||
      head->e_phoff + head->e_phnum * sizeof(Elf64_Phdr) > image->size)
    return false;
  image->segments = (const Elf64_Phdr *)(image->base + head->e_phoff);
  image->segments_count = head->e_phnum;
  return true;
}

// Virtual address of what the file has at `offset`.
static bool image_address(const struct image *image, unsigned long offset, unsigned long *address) {
  for (unsigned i = 0; i < image->segments_count; i++) {
    const Elf64_Phdr *s = &image->segments[i];
    if (s->p_type != PT_LOAD || !(s->p_flags & PF_X)) continue;
    unsigned long first = s->p_offset & ~4095UL;
    if (offset < first || offset >= s->p_offset + s->p_filesz) continue;
    *address = s->p_vaddr - s->p_offset + offset;
    return true;
  }
  return false;
}

// The end that a function's description gives; `start` when the description is not one we can read.
static unsigned long described_end(const struct image *image, unsigned n, unsigned long start) {
  size_t room;
  unsigned long at = image->header + (unsigned long)(long)image->functions[2 * n + 1];
  const uint8_t *entry = image_at(image, at, &room);
  int32_t relative;
  uint32_t range;
  if (!entry || room < 16) return start;
  memcpy(&relative, entry + 8, 4);
  memcpy(&range, entry + 12, 4);
  return at + 8 + (unsigned long)(long)relative == start ? start + range : start;
}

static unsigned long function_start(const struct image *image, unsigned n) {
  return image->header + (unsigned long)(long)image->functions[2 * n];
}

// Index of the last function that begins at or before `at`; -1: none.
static long function_of(const struct image *image, unsigned long at) {
  unsigned low = 0, high = image->functions_count;
  while (low < high) {
    unsigned middle = low + (high - low) / 2;
    if (function_start(image, middle) <= at) low = middle + 1;
    else high = middle;
  }
  return (long)low - 1;
}

// --- one mapping ----------------------------------------------------------------------------------------------------

static const void *read_only(const struct madfs_code *code, const uint8_t *address, size_t *room) {
  const struct image *image = code->image;
  return image_at(image, (unsigned long)address - image->bias, room);
}

static struct arch_pad padding(const uint8_t *start, const uint8_t *end) {
  struct arch_pad pad = {start, 0};
  struct arch_instruction i;
  for (const uint8_t *at = start; at < end; at += i.length) {
    if (!arch_is_padding(at, (size_t)(end - at), &i)) break;
    pad.length = (size_t)(at + i.length - start);
  }
  return pad;
}

// Describes the function around `site` in `code`.  False when the object does not tell.
static bool bounds(const struct image *image, const uint8_t *site, struct madfs_code *code) {
  unsigned long at = (unsigned long)site - image->bias;
  long n = image->functions_count ? function_of(image, at) : -1;
  if (n < 0) return false;
  unsigned long start = function_start(image, (unsigned)n), end = described_end(image, (unsigned)n, start);
  if (at >= end) return false;
  code->start = (const uint8_t *)(start + image->bias);
  code->end = (const uint8_t *)(end + image->bias);
  code->padding_end = code->text_end;
  if ((unsigned)n + 1 < image->functions_count)
    code->padding_end = (const uint8_t *)(function_start(image, (unsigned)n + 1) + image->bias);
  if (code->start < code->text || code->end > code->text_end) return false;
  code->pads[0] = padding(code->end, code->padding_end);
  code->pads[1] = (struct arch_pad){code->start, 0};
  if (n > 0) {
    unsigned long before = function_start(image, (unsigned)n - 1);
    unsigned long before_end = described_end(image, (unsigned)n - 1, before);
    if (before_end > before) code->pads[1] = padding((const uint8_t *)(before_end + image->bias), code->start);
  }
  return true;
}

// What is known about no function at all: hand-written code without unwinding information.  A number loaded just
// before the instruction is proof enough that it is one; it is rewritten in place unless a branch nearby might end
// inside what is overwritten.
static bool lonely_from(struct madfs_code *code, struct madfs_plan *plan, const uint8_t *start) {
  plan->tier = ARCH_NONE;
  code->start = start;
  code->end = plan->site + ARCH_SITE_BYTES;
  code->padding_end = code->end;
  code->pads[0] = code->pads[1] = (struct arch_pad){code->end, 0};
  arch_survey(code, plan, 1);
  return plan->tier == ARCH_NONE;
}

// Compilers that describe no functions, such as Go's, put traps between them.  Where instructions that follow such a
// trap lead to the site, and what comes of it is compared with the greatest errno, it is one.  A function that has no
// trap before it is read with the one before.
static bool lonely_after_trap(struct madfs_code *code, struct madfs_plan *plan) {
  enum { APART = 16, FAR = 2048 };
  const uint8_t *at = plan->site - ((unsigned long)plan->site & (APART - 1));
  if (!arch_looks_at_result(plan->site + ARCH_SITE_BYTES, code->text_end)) return false;
  for (; at > code->text && plan->site - at < FAR; at -= APART)
    if (arch_is_trap(at - 1) && lonely_from(code, plan, at)) return true;
  return false;
}

static void lonely(struct madfs_code *code, struct madfs_plan *plan) {
  enum { SETS_NUMBER = 5, AROUND = 4096 };
  bool found = plan->site - code->text >= SETS_NUMBER && lonely_from(code, plan, plan->site - SETS_NUMBER) &&
               plan->number >= 0 && plan->number < MADFS_ROWS;
  if (!found && !lonely_after_trap(code, plan)) {
    plan->tier = ARCH_NO_SITE;
    return;
  }
  const uint8_t *from = plan->site - code->text > AROUND ? plan->site - AROUND : code->text;
  const uint8_t *to = code->text_end - plan->site > AROUND ? plan->site + AROUND : code->text_end;
  arch_suspect(plan, from, to);
}

// First and last byte to which nobody else may jump, if the plan is to be carried out.
static const uint8_t *taboo_first(const struct madfs_plan *plan) {
  return plan->tier == ARCH_IDLE ? plan->site : plan->site - plan->overwritten_before + 1;
}

static const uint8_t *taboo_last(const struct madfs_plan *plan) {
  if (plan->tier == ARCH_IDLE || plan->tier == ARCH_IN_PLACE) return plan->site;
  return plan->site + plan->overwritten_after - 1;
}

static bool has_taboo(const struct madfs_plan *plan) { return plan->tier >= ARCH_IN_PLACE && plan->tier <= ARCH_IDLE; }

static bool disturbed_by(const struct madfs_plan *plan, const uint8_t *target) {
  return has_taboo(plan) && target >= taboo_first(plan) && target <= taboo_last(plan);
}

struct crossing {
  const struct image *image;
  struct madfs_code *code;
  struct madfs_plan *plans;
  unsigned count;
  bool found;
};

static void mark_crossing(void *context, const uint8_t *branch, const uint8_t *target) {
  struct crossing *c = context;
  for (unsigned i = 0; i < c->count; i++) {
    struct madfs_plan *plan = &c->plans[i];
    if (!disturbed_by(plan, target)) continue;
    long bit = target - plan->site + ARCH_WINDOW;
    if (bit < 0 || bit >= 64 || (plan->targets >> bit & 1)) continue;
    // Bytes that look like a branch count only when they are one.
    struct madfs_code around = *c->code;
    struct arch_instruction at = {.length = 0};
    if (bounds(c->image, branch, &around))
      for (const uint8_t *p = around.start; p < branch; p += at.length) {
        arch_decode(p, (size_t)(around.text_end - p), &at);
        if (!at.length || p + at.length > branch) {
          at.length = 0;
          break;
        }
      }
    if (!at.length && branch != around.start) continue;
    plan->targets |= 1UL << bit;
    if (target == plan->site) plan->number = -1;  // whoever comes from there may ask for something else
    c->found = true;
  }
}

// Branches from other functions (their cold parts, mostly) into what would be overwritten.
static bool find_crossings(const struct image *image, struct madfs_code *code, struct madfs_plan *plans,
                           unsigned count) {
  size_t bytes = (size_t)(code->text_end - code->text) / (ALIGNMENT * 8) + 1;
  long got = RAW(SYS_mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (madfs_failed(got)) {  // nothing is known about the neighbours
    for (unsigned i = 0; i < count; i++)
      if (has_taboo(&plans[i])) plans[i].tier = ARCH_LEFT;
    return false;
  }
  uint8_t *marked = (uint8_t *)got;
  bool any = false;
  for (unsigned i = 0; i < count; i++) {
    if (!has_taboo(&plans[i])) continue;
    for (const uint8_t *p = taboo_first(&plans[i]); p <= taboo_last(&plans[i]); p++) {
      size_t offset = (size_t)(p - code->text) / ALIGNMENT;
      marked[offset / 8] |= (uint8_t)(1 << offset % 8);
      any = true;
    }
  }
  struct crossing c = {image, code, plans, count, false};
  if (any) arch_crossings(code->text, code->text_end, marked, mark_crossing, &c);
  RAW(SYS_munmap, got, bytes);
  return c.found;
}

// What a debugger will write to again: as if something jumped into it, and behind it.
static void spare_breakpoints(const struct madfs_code *code, struct madfs_plan *plan) {
  for (unsigned i = 0; i < code->breakpoints_count; i++)
    for (int n = 0; n < 2; n++) {
      long bit = code->breakpoints[i].at + n - plan->site + ARCH_WINDOW;
      if (bit >= 0 && bit < 64) plan->targets |= 1UL << bit;
    }
}

static void survey(const struct image *image, struct madfs_code *code, struct madfs_plan *plans, unsigned count,
                   bool again) {
  for (unsigned i = 0, n; i < count; i += n) {
    n = 1;
    if (!bounds(image, plans[i].site, code)) {
      if (!again) lonely(code, &plans[i]);
      if (plans[i].tier == ARCH_NONE || again) arch_choose(code, &plans[i], 1);
      continue;
    }
    while (i + n < count && plans[i + n].site < code->end) n++;
    if (!again) arch_survey(code, &plans[i], n);
    for (unsigned k = i; k < i + n; k++) spare_breakpoints(code, &plans[k]);
    arch_choose(code, &plans[i], n);
  }
}

// What was rewritten before, because the text has been executable already, stays as it is.
static unsigned collect(struct madfs_code *code, struct madfs_plan *plans) {
  unsigned count = 0;
  for (const uint8_t *at = code->text; count < PLANS_MAX && (at = arch_next_hit(at, code->text_end));
       at += ARCH_SITE_BYTES)
    if (!arch_is_sigreturn(at, code->text) && !arch_is_rewritten(at, code->text)) plans[count++].site = at;
  return count;
}

static void tally(const struct madfs_plan *plans, unsigned count, unsigned idle, unsigned patched, const char *name) {
  unsigned sites = idle;
  for (unsigned i = 0; i < count; i++) {
    if (plans[i].tier == ARCH_NO_SITE) continue;
    sites++;
    idle += plans[i].tier == ARCH_IDLE;
  }
  if (!sites) return;
  madfs_census.objects++;
  madfs_census.sites += sites;
  madfs_census.idle += idle;
  madfs_census.patched += patched;
  madfs_census.left += sites - idle - patched;
  if (madfs_settings.debug && sites - idle - patched) {
    char number[24];
    madfs_say(madfs_decimal(number, sites - idle - patched), " system call sites are left unchanged in ", name, NULL);
  }
}

static unsigned search(struct image *image, struct madfs_code *code, struct madfs_plan *plans) {
  if (!arch_next_hit(code->text, code->text_end)) return 0;
  if (!image_functions(image)) image->functions_count = 0;
  unsigned count = collect(code, plans);
  survey(image, code, plans, count, false);
  if (find_crossings(image, code, plans, count)) survey(image, code, plans, count, true);
  return count;
}

// Rewrites the text at `text`, which its file has at `offset`.  False: there is no memory to do it.
static bool rewrite(struct image *image, const uint8_t *text, size_t length, unsigned long offset, int protection,
                    const char *name) {
  struct madfs_code code = {.text = text, .text_end = text + length, .table = read_only, .image = image};
  uint8_t build_id[MADFS_BUILD_ID];
  size_t room = PLANS_MAX * sizeof(struct madfs_plan);
  long got = RAW(SYS_mmap, 0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (madfs_failed(got)) return false;
  struct madfs_plan *plans = (struct madfs_plan *)got;
  unsigned idle = 0;
  bool named = image_build_id(image, build_id);
  struct madfs_breakpoint breakpoints[MADFS_BREAKPOINTS];
  int known = named ? madfs_sites_find(build_id, offset, &code, plans, PLANS_MAX, &idle) : -1;
  if (known < 0 && image->mapped) code.breakpoints_count = madfs_debugger_lift(text, length, offset, name, breakpoints);
  code.breakpoints = breakpoints;
  unsigned count = known >= 0 ? (unsigned)known : search(image, &code, plans);
  if (named && known < 0) madfs_sites_note(build_id, offset, &code, plans, count);
  unsigned patched = madfs_patch(&code, plans, count, protection);
  madfs_debugger_restore(text, length, protection, breakpoints, code.breakpoints_count);
  tally(plans, count, idle, patched, name);
  RAW(SYS_munmap, got, room);
  return true;
}

// --- what is mapped -------------------------------------------------------------------------------------------------

struct mapping {
  unsigned long start, end, offset, inode;
  bool executable, writable, shared;
  const char *name;  // terminated
};

// Reads one line of /proc/self/maps at `text` and terminates it; the next line, or NULL when it is not one.
static char *maps_line(char *text, struct mapping *m) {
  unsigned long ignored;
  const char *at = madfs_number(text, 16, &m->start);
  if (!at || *at != '-' || !(at = madfs_number(at + 1, 16, &m->end)) || strlen(at) < 6) return NULL;
  m->writable = at[2] == 'w';
  m->executable = at[3] == 'x';
  m->shared = at[4] == 's';
  if (!(at = madfs_number(at + 6, 16, &m->offset))) return NULL;
  if (!(at = madfs_number(at + 1, 16, &ignored)) || *at != ':') return NULL;
  if (!(at = madfs_number(at + 1, 16, &ignored)) || !(at = madfs_number(at + 1, 10, &m->inode))) return NULL;
  while (*at && *at != '/' && *at != '[' && *at != '\n') at++;
  char *end = text + (at - text);
  m->name = end;
  while (*end && *end != '\n') end++;
  if (*end) *end++ = 0;
  return end;
}

static size_t read_maps(char *text) {
  long fd = RAW(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
  if (madfs_failed(fd)) madfs_die(127, "/proc/self/maps cannot be read: mount /proc, or run without LD_PRELOAD", NULL);
  size_t size = 0;
  for (long n; size < MAPS_ROOM - 1 && (n = RAW(SYS_read, fd, text + size, MAPS_ROOM - 1 - size)) > 0;)
    size += (size_t)n;
  RAW(SYS_close, fd);
  text[size] = 0;
  return size;
}

size_t madfs_scan_name(unsigned long address, char *out, size_t room, unsigned long *start) {
  long got = RAW(SYS_mmap, 0, MAPS_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (madfs_failed(got)) return 0;
  struct mapping m;
  size_t n = 0;
  char *line = (char *)got;
  read_maps(line);
  while (!n && *line && (line = maps_line(line, &m))) {
    if (m.name[0] != '/') continue;
    if (m.offset == 0) *start = m.start;
    if (address < m.start || address >= m.end) continue;
    const char *name = m.name;
    for (const char *at = m.name; *at; at++)
      if (*at == '/') name = at + 1;
    n = madfs_copy(out, room, name);
  }
  RAW(SYS_munmap, got, MAPS_ROOM);
  return n;
}

// Objects in the order of their addresses; the first part of each has its headers.
static void rewrite_all(const struct mapping *mappings, unsigned count) {
  struct image image = {.mapped = true};
  unsigned long address;
  for (unsigned i = 0; i < count; i++) {
    const struct mapping *m = &mappings[i];
    const uint8_t *start = (const uint8_t *)m->start;
    if (m->offset == 0) image = (struct image){.base = start, .size = m->end - m->start, .mapped = true};
    if (!m->executable || strcmp(m->name, madfs_settings.library) == 0) continue;
    if (!image.base || !image_open(&image) || !image_address(&image, m->offset, &address)) continue;
    image.bias = m->start - address;
    int protection = PROT_READ | PROT_EXEC | (m->writable ? PROT_WRITE : 0);
    if (!rewrite(&image, start, m->end - m->start, m->offset, protection, m->name))
      madfs_die(127, "no memory to intercept system calls", NULL);
  }
}

void madfs_scan_process(const char *sites) {
  const size_t room = MAPS_ROOM + MAPPINGS_MAX * sizeof(struct mapping);
  long got = RAW(SYS_mmap, 0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (madfs_failed(got)) madfs_die(127, "no memory to intercept system calls", NULL);
  char *line = (char *)got;
  struct mapping *mappings = (struct mapping *)(got + MAPS_ROOM);
  unsigned count = 0;
  unsigned long own = (unsigned long)&madfs_scan_process;
  read_maps(line);
  while (*line && count < MAPPINGS_MAX && (line = maps_line(line, &mappings[count]))) {
    const struct mapping *m = &mappings[count];
    if (m->name[0] != '/') continue;  // anonymous, [vdso], [stack]: not from a file
    if (own >= m->start && own < m->end) {
      madfs_copy(madfs_settings.library, sizeof madfs_settings.library, m->name);
      madfs_settings.text_start = m->start;
      madfs_settings.text_end = m->end;
    }
    count++;
  }
  madfs_sites_open(sites != NULL);
  rewrite_all(mappings, count);
  madfs_sites_write(sites);
  RAW(SYS_munmap, got, room);
}

// Whether the loader changes the text of an object after it is mapped: then it is rewritten when that is done.
static bool has_text_relocations(const struct image *image) {
  for (unsigned i = 0; i < image->segments_count; i++) {
    const Elf64_Phdr *s = &image->segments[i];
    size_t room = 0;
    const Elf64_Dyn *entry = s->p_type == PT_DYNAMIC ? image_at(image, s->p_vaddr, &room) : NULL;
    for (; room >= sizeof *entry && entry->d_tag != DT_NULL; entry++, room -= sizeof *entry)
      if (entry->d_tag == DT_TEXTREL || (entry->d_tag == DT_FLAGS && (entry->d_un.d_val & DF_TEXTREL))) return true;
  }
  return false;
}

static void scan_part(unsigned long start, size_t length, unsigned long offset, int protection, const void *file,
                      size_t size, bool fresh) {
  struct image image = {.base = file, .size = size};
  unsigned long address;
  if (fresh) madfs_patch_forget(start, length);  // what was there is no more
  if (!image_open(&image) || !image_address(&image, offset, &address)) return;
  if (fresh && has_text_relocations(&image)) return;
  image.bias = start - address;
  rewrite(&image, (const uint8_t *)start, length, offset, protection, "a library being loaded");
}

void madfs_scan_part(unsigned long start, size_t length, unsigned long offset, int protection, const void *file,
                     size_t size) {
  scan_part(start, length, offset, protection, file, size, true);
}

// `fresh`: it was just mapped, so the loader may have changes to make.
static void scan_file(unsigned long start, size_t length, int fd, unsigned long offset, int protection, bool fresh) {
  struct stat file;
  if (!(protection & PROT_READ) || madfs_failed(RAW(SYS_fstat, fd, &file)) || !S_ISREG(file.st_mode)) return;
  size_t size = (size_t)file.st_size;
  if (size <= offset || size < sizeof(Elf64_Ehdr)) return;
  if (length > size - offset) length = size - offset;  // pages behind the file's end fault
  if (!arch_next_hit((const uint8_t *)start, (const uint8_t *)start + length)) return;
  long got = RAW(SYS_mmap, 0, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (madfs_failed(got)) return;
  scan_part(start, length, offset, protection, (const void *)got, size, fresh);
  RAW(SYS_munmap, got, size);
}

void madfs_scan_mapping(unsigned long start, size_t length, int fd, unsigned long offset, int protection) {
  scan_file(start, length, fd, offset, protection, true);
}

// One mapping of a file, or what [start, end) has of it, is about to become executable.
static void scan_later(const struct mapping *m, unsigned long start, unsigned long end, int protection) {
  struct stat file;
  unsigned long offset = m->offset;
  if (start < m->start) start = m->start;
  else offset += start - m->start;
  if (end > m->end) end = m->end;
  long fd = m->shared ? -1 : RAW(SYS_openat, AT_FDCWD, m->name, O_RDONLY | O_CLOEXEC, 0);
  if (madfs_failed(fd)) return;
  if (!madfs_failed(RAW(SYS_fstat, fd, &file)) && file.st_ino == m->inode &&
      !madfs_failed(RAW(SYS_mprotect, start, end - start, PROT_READ | (m->writable ? PROT_WRITE : 0))))
    scan_file(start, end - start, (int)fd, offset, protection | PROT_READ, false);
  RAW(SYS_close, fd);
}

bool madfs_scan_range(unsigned long start, unsigned long end, int protection, unsigned long *nothing_until) {
  long got = RAW(SYS_mmap, 0, MAPS_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (madfs_failed(got)) return true;
  char *line = (char *)got;
  struct mapping m;
  bool found = false;
  read_maps(line);
  *nothing_until = end;
  while (*line && (line = maps_line(line, &m)) && m.start < end) {
    if (m.end <= start) continue;
    if (m.name[0] != '/') {
      *nothing_until = m.end;
      continue;
    }
    found = true;
    // What is executable and stays as it is was rewritten; what can be written is not yet what it is to be.
    if ((!m.executable || m.writable) && !(protection & PROT_WRITE)) scan_later(&m, start, end, protection);
  }
  RAW(SYS_munmap, got, MAPS_ROOM);
  return found;
}

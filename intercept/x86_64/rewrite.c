// SPDX-License-Identifier: Apache-2.0
// How one system call instruction (two bytes) becomes a jump to a stub (five bytes).
//
//   A  in place   the instructions before it move to the stub, the jump takes their place, the system call stays:
//                 the stub jumps back to it, so in the kernel's eyes nothing changed
//   B  before     the jump covers instructions before it and itself; the stub has a copy of the system call
//   C  after      as B, also with instructions that follow
//   D  relocate   as C, the last of which is a branch: the stub has it with a 32-bit displacement
//   E  short      a two-byte jump in its place, to five bytes of padding between functions
//
// An instruction may only move when nothing jumps into the middle of what is overwritten; arch_survey() and
// arch_crossings() find who would.
#include <sys/mman.h>

#include <limits.h>

#include "../intercept.h"

enum {
  JUMP_BYTES = 5,
  SHORT_BYTES = 2,
  SYSCALL_BYTES = 2,
  TABLES_MAX = 32,  // candidates for the table of a switch, per function
  TABLE_ENTRIES_MAX = 1024,
  BLOCK = 16,  // bytes arch_hit_mask() and arch_branch_mask() look at
};

unsigned arch_hit_mask(const uint8_t *block);     // entry.S: bit i: block[i..i+1] is 0f 05; reads 17 bytes
unsigned arch_branch_mask(const uint8_t *block);  // bit i: block[i] may begin jmp rel32 or jcc rel32; reads 17 bytes

const uint8_t *arch_next_hit(const uint8_t *from, const uint8_t *end) {
  for (; end - from > BLOCK; from += BLOCK) {
    unsigned mask = arch_hit_mask(from);
    if (mask) return from + __builtin_ctz(mask);
  }
  for (; end - from >= 2; from++)
    if (from[0] == 0x0f && from[1] == 0x05) return from;
  return NULL;
}

// The frame-description entry of __restore_rt begins one byte before the function, so decoding from there goes
// astray; and a signal frame is nothing to touch anyway.
bool arch_is_sigreturn(const uint8_t *site, const uint8_t *text) {
  static const uint8_t long_form[] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0}, short_form[] = {0xb8, 0x0f, 0, 0, 0};
  return (site - text >= 7 && !memcmp(site - 7, long_form, 7)) ||
         (site - text >= 5 && !memcmp(site - 5, short_form, 5));
}

// --- survey ---------------------------------------------------------------------------------------------------------

static void mark(struct madfs_plan *plan, const uint8_t *target) {
  long bit = target - plan->site + ARCH_WINDOW;
  if (bit >= 0 && bit < 64) plan->targets |= 1UL << bit;
}

static bool is_target(const struct madfs_plan *plan, const uint8_t *at) {
  long bit = at - plan->site + ARCH_WINDOW;
  return bit < 0 || bit >= 64 || (plan->targets >> bit & 1);
}

// Whether nobody jumps behind the first of the bytes from `before` ahead of the site to `after` behind it.
static bool undisturbed(const struct madfs_plan *plan, unsigned before, unsigned after) {
  for (const uint8_t *at = plan->site - before + 1; at < plan->site + after; at++)
    if (is_target(plan, at)) return false;
  return true;
}

static void mark_all(struct madfs_plan *plans, unsigned count, const uint8_t *target) {
  if (target < plans[0].site - ARCH_WINDOW || target > plans[count - 1].site + ARCH_WINDOW) return;
  for (unsigned i = 0; i < count; i++) mark(&plans[i], target);
}

// A switch jumps through a table of 32-bit distances from the table itself.  What is no table gives targets that are
// outside the text, or a few too many: that costs a better tier, never correctness.
static void mark_tables(const struct madfs_code *code, const uint8_t *const *tables, unsigned tables_count,
                        struct madfs_plan *plans, unsigned count) {
  for (unsigned i = 0; i < tables_count; i++) {
    size_t room;
    const uint8_t *entry = code->table ? code->table(code, tables[i], &room) : NULL;
    if (!entry) continue;
    for (unsigned n = 0; n < TABLE_ENTRIES_MAX && room >= 4; n++, entry += 4, room -= 4) {
      int32_t distance;
      memcpy(&distance, entry, 4);
      const uint8_t *target = tables[i] + distance;
      if (target < code->text || target >= code->text_end) break;
      mark_all(plans, count, target);
    }
  }
}

static void remember(struct madfs_plan *plan, const struct arch_instruction *recent, unsigned seen) {
  plan->tier = ARCH_NONE;
  plan->befores = (uint8_t)(seen < ARCH_BEFORE_MAX ? seen : ARCH_BEFORE_MAX);
  for (unsigned i = 0; i < plan->befores; i++) plan->before[i] = recent[(seen - plan->befores + i) % ARCH_BEFORE_MAX];
}

// The number of the system call when the instruction just before sets it and nobody jumps in between.
static int known_number(const struct madfs_plan *plan) {
  if (!plan->befores || is_target(plan, plan->site)) return -1;
  const struct arch_instruction *i = &plan->before[plan->befores - 1];
  int32_t value;
  if (i->length == 5 && i->address[0] == 0xb8) return memcpy(&value, i->address + 1, 4), value;
  if (i->length == 7 && !memcmp(i->address, "\x48\xc7\xc0", 3)) return memcpy(&value, i->address + 3, 4), value;
  if (i->length == 2 && i->address[1] == 0xc0 && (i->address[0] == 0x31 || i->address[0] == 0x33)) return 0;
  return -1;
}

void arch_survey(const struct madfs_code *code, struct madfs_plan *plans, unsigned count) {
  struct arch_instruction recent[ARCH_BEFORE_MAX], i = {.kind = ARCH_PLAIN};
  const uint8_t *tables[TABLES_MAX];
  unsigned seen = 0, next = 0, tables_count = 0;  // plans[next]: the first not reached
  bool indirect = false;
  const uint8_t *at = code->start;
  for (unsigned k = 0; k < count; k++) plans[k].tier = ARCH_NO_SITE;
  for (; at < code->end; at += i.length) {
    arch_decode(at, (size_t)(code->text_end - at), &i);
    if (i.kind == ARCH_INVALID) break;
    while (next < count && at > plans[next].site) next++;
    if (next < count && at == plans[next].site) remember(&plans[next], recent, seen);
    for (unsigned k = next; k-- > 0 && plans[k].nexts < ARCH_NEXT_MAX;)
      if (plans[k].tier == ARCH_NONE && plans[k].site < at) plans[k].next[plans[k].nexts++] = i;
    if (next < count && at == plans[next].site) next++;
    recent[seen++ % ARCH_BEFORE_MAX] = i;
    indirect |= i.kind == ARCH_INDIRECT;
    if (i.kind == ARCH_JUMP || i.kind == ARCH_BRANCH || i.kind == ARCH_LOOP || i.kind == ARCH_CALL) {
      if (i.target) mark_all(plans, count, i.target);
    } else if (i.address_of) {
      if (i.target >= code->text && i.target < code->text_end) mark_all(plans, count, i.target);
      else if (tables_count < TABLES_MAX) tables[tables_count++] = i.target;
    }
  }
  // Something that cannot be decoded hides what jumps where: leave the function alone.
  if (at < code->end)
    for (unsigned k = 0; k < count; k++) plans[k].tier = ARCH_LEFT;
  if (indirect && tables_count) mark_tables(code, tables, tables_count, plans, count);
  for (unsigned k = 0; k < count; k++) plans[k].number = known_number(&plans[k]);
}

void arch_crossings(const uint8_t *text, const uint8_t *end, const uint8_t *marked,
                    void (*found)(void *context, const uint8_t *branch, const uint8_t *target), void *context) {
  size_t size = (size_t)(end - text);
  for (const uint8_t *block = text; end - block > BLOCK + 6; block += BLOCK) {
    for (unsigned mask = arch_branch_mask(block); mask; mask &= mask - 1) {
      const uint8_t *at = block + __builtin_ctz(mask);
      int32_t distance;
      unsigned length = *at == 0xe9 ? 5 : 6;
      memcpy(&distance, at + length - 4, 4);
      size_t offset = (size_t)(at + length + distance - text);
      if (offset < size && (marked[offset >> 7] >> (offset >> 4 & 7) & 1)) found(context, at, text + offset);
    }
  }
}

// A jump before it leads to a stub, which has the address of the classes.
bool arch_is_rewritten(const uint8_t *site, const uint8_t *text) {
  enum { OVERWRITTEN_MAX = 20, SEARCHED = 64 };
  for (unsigned before = JUMP_BYTES; before <= OVERWRITTEN_MAX && site - text >= before; before++) {
    int32_t distance;
    if (site[-(int)before] != 0xe9) continue;
    memcpy(&distance, site - before + 1, 4);
    const uint8_t *stub = site - before + JUMP_BYTES + distance;
    // The bytes may be no jump, and a debugger stops at every fault, also where one is expected.
    unsigned long page = (unsigned long)stub & ~4095UL;
    if (madfs_failed(RAW(SYS_msync, page, (unsigned long)stub + SEARCHED + 8 - page, MS_ASYNC))) continue;
    for (unsigned i = 0; i < SEARCHED; i++)
      if (arch_peek(stub + i) == (uint64_t)madfs_classes) return true;
  }
  return false;
}

void arch_suspect(struct madfs_plan *plan, const uint8_t *from, const uint8_t *to) {
  for (const uint8_t *at = from; to - at > 6; at++) {
    int32_t distance;
    if (*at == 0xeb || (*at & 0xf0) == 0x70 || (*at & 0xfc) == 0xe0) mark(plan, at + 2 + (int8_t)at[1]);
    unsigned length = *at == 0xe8 || *at == 0xe9 ? 5 : *at == 0x0f && (at[1] & 0xf0) == 0x80 ? 6 : 0;
    if (!length) continue;
    memcpy(&distance, at + length - 4, 4);
    mark(plan, at + length + distance);
  }
}

bool arch_is_padding(const uint8_t *at, size_t room, struct arch_instruction *out) {
  arch_decode(at, room, out);
  if (out->kind == ARCH_STOP) return *at == 0xcc;  // int3
  if (out->kind != ARCH_PLAIN) return false;
  while (*at == 0x66 || *at == 0x2e) at++;
  return *at == 0x90 || (at[0] == 0x0f && at[1] == 0x1f);
}

// --- choice ---------------------------------------------------------------------------------------------------------

// Bytes before the site that may move, at least `need` when possible; *first is the first of their instructions.
static unsigned take_before(const struct madfs_plan *plan, unsigned need, unsigned *first) {
  unsigned bytes = 0;
  *first = plan->befores;
  while (bytes < need && *first > 0) {
    const struct arch_instruction *i = &plan->before[*first - 1];
    if (i->kind != ARCH_PLAIN || is_target(plan, plan->site - bytes)) break;
    bytes += i->length;
    (*first)--;
  }
  return bytes;
}

// Bytes after the site that may move; *count is how many instructions, *branch whether the last must be encoded anew.
static unsigned take_after(const struct madfs_code *code, const struct madfs_plan *plan, unsigned need, unsigned *count,
                           bool *branch) {
  unsigned bytes = 0;
  *branch = false;
  for (*count = 0; bytes < need && *count < plan->nexts;) {
    const struct arch_instruction *i = &plan->next[*count];
    if (is_target(plan, i->address)) break;
    if (i->kind != ARCH_PLAIN && i->kind != ARCH_BRANCH && i->kind != ARCH_JUMP && i->kind != ARCH_RETURN) break;
    bytes += i->length;
    (*count)++;
    if (i->kind == ARCH_PLAIN) continue;
    *branch = i->kind != ARCH_RETURN;
    const uint8_t *end = i->address + i->length;
    if (i->kind != ARCH_BRANCH && end == code->end && code->pad_taken != end) bytes += (unsigned)code->pads[0].length;
    break;
  }
  return bytes;
}

static void settle(struct madfs_plan *plan, enum arch_tier tier, unsigned first, unsigned before, unsigned displaced) {
  plan->tier = (uint8_t)tier;
  plan->first = (uint8_t)first;
  plan->overwritten_before = (uint8_t)before;
  plan->displaced = (uint8_t)displaced;
  unsigned after = tier == ARCH_IN_PLACE ? 0 : SYSCALL_BYTES;
  for (unsigned i = 0; i < displaced; i++) after += plan->next[i].length;
  if (tier != ARCH_SHORT && before + after < JUMP_BYTES) after = JUMP_BYTES - before;  // padding
  plan->overwritten_after = (uint8_t)after;
}

static bool choose_short(const struct madfs_code *code, struct madfs_plan *plan) {
  for (unsigned i = 0; i < ARCH_PADS_MAX; i++) {
    long distance = code->pads[i].start - (plan->site + SHORT_BYTES);
    if (code->pads[i].length < JUMP_BYTES || code->pads[i].start == code->pad_taken || distance < INT8_MIN ||
        distance > INT8_MAX)
      continue;
    plan->pad = (struct arch_pad){code->pads[i].start, JUMP_BYTES};
    settle(plan, ARCH_SHORT, plan->befores, 0, 0);
    return true;
  }
  return false;
}

static void choose(const struct madfs_code *code, struct madfs_plan *plan) {
  unsigned first, displaced;
  bool branch;
  if (plan->tier == ARCH_NO_SITE || plan->tier == ARCH_LEFT) return;
  if (plan->number >= 0 && madfs_never_ours(plan->number)) {
    plan->tier = ARCH_IDLE;
    return;
  }
  unsigned before = take_before(plan, JUMP_BYTES, &first);
  if (before >= JUMP_BYTES && undisturbed(plan, before, 1)) {
    settle(plan, ARCH_IN_PLACE, first, before, 0);
    return;
  }
  before = take_before(plan, JUMP_BYTES - SYSCALL_BYTES, &first);
  if (before + SYSCALL_BYTES >= JUMP_BYTES && undisturbed(plan, before, SYSCALL_BYTES)) {
    settle(plan, ARCH_BEFORE, first, before, 0);
    return;
  }
  for (unsigned with = 0; with < 2; with++) {  // first what follows alone, then with what stands before
    unsigned used = with ? before : 0, need = JUMP_BYTES - SYSCALL_BYTES - used;
    if (with && !before) break;
    unsigned after = take_after(code, plan, need, &displaced, &branch);
    if (after < need || !undisturbed(plan, used, SYSCALL_BYTES + after)) continue;
    settle(plan, branch ? ARCH_RELOCATE : ARCH_AFTER, with ? first : plan->befores, used, displaced);
    return;
  }
  if (!choose_short(code, plan)) plan->tier = ARCH_LEFT;
}

void arch_choose(struct madfs_code *code, struct madfs_plan *plans, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    struct madfs_plan *plan = &plans[i];
    // What the one before overwrites is not to be had again.
    if (i && plans[i - 1].tier >= ARCH_IN_PLACE && plans[i - 1].tier <= ARCH_RELOCATE)
      mark(plan, plans[i - 1].site + plans[i - 1].overwritten_after);
    choose(code, plan);
    if (plan->tier == ARCH_SHORT) code->pad_taken = plan->pad.start;
    else if (plan->tier < ARCH_SHORT && plan->site + plan->overwritten_after > code->end) code->pad_taken = code->end;
  }
}

// --- one word
// ---------------------------------------------------------------------------------------------------------

// site: 32, tier: 4, bytes before: 8, instructions after: 4, distance of the padding (tier E): 8 bits.
uint64_t arch_pack(const struct madfs_plan *plan, const struct madfs_code *code) {
  uint64_t pad = plan->tier == ARCH_SHORT ? (uint8_t)(plan->pad.start - (plan->site + SHORT_BYTES)) : 0;
  return (uint64_t)(plan->site - code->text) | (uint64_t)plan->tier << 32 | (uint64_t)plan->overwritten_before << 36 |
         (uint64_t)plan->displaced << 44 | pad << 48;
}

bool arch_unpack(uint64_t word, const struct madfs_code *code, struct madfs_plan *plan) {
  size_t offset = (uint32_t)word, before = word >> 36 & 255, size = (size_t)(code->text_end - code->text);
  unsigned tier = word >> 32 & 15, displaced = word >> 44 & 15;
  const uint8_t *site = code->text + offset, *at = site - before;
  if (offset < before || offset + SYSCALL_BYTES > size || site[0] != 0x0f || site[1] != 0x05) return false;
  if (tier < ARCH_IN_PLACE || tier > ARCH_SHORT || displaced > ARCH_NEXT_MAX) return false;
  plan->site = site;
  plan->befores = 0;
  for (; at < site && plan->befores < ARCH_BEFORE_MAX; at += plan->before[plan->befores++].length) {
    arch_decode(at, (size_t)(code->text_end - at), &plan->before[plan->befores]);
    if (plan->before[plan->befores].kind != ARCH_PLAIN) return false;
  }
  if (at != site) return false;
  at += SYSCALL_BYTES;
  for (unsigned i = 0; i < displaced; at += plan->next[i++].length) {
    arch_decode(at, (size_t)(code->text_end - at), &plan->next[i]);
    if (plan->next[i].kind == ARCH_INVALID || *at == ARCH_BREAKPOINT) return false;
  }
  plan->pad = (struct arch_pad){site + SHORT_BYTES + (int8_t)(word >> 48), JUMP_BYTES};
  settle(plan, tier, 0, (unsigned)before, displaced);
  return true;
}

// --- writing --------------------------------------------------------------------------------------------------------

static uint8_t *put(uint8_t *out, const void *bytes, size_t size) { return (uint8_t *)memcpy(out, bytes, size) + size; }

static uint8_t *put_address(uint8_t *out, uint64_t address) { return put(out, &address, 8); }

// The 32-bit distance from the end of the field to `target`; NULL when it does not fit.
static uint8_t *put_distance(uint8_t *out, const uint8_t *target) {
  long distance = target - (out + 4);
  if (distance < INT32_MIN || distance > INT32_MAX) return NULL;
  int32_t value = (int32_t)distance;
  return put(out, &value, 4);
}

static uint8_t *put_moved(uint8_t *out, const struct arch_instruction *i) {
  if (i->kind == ARCH_JUMP) return put_distance(put(out, "\xe9", 1), i->target);
  if (i->kind == ARCH_BRANCH) {
    uint8_t code[] = {0x0f, (uint8_t)(0x80 | i->condition)};
    return put_distance(put(out, code, 2), i->target);
  }
  uint8_t *end = put(out, i->address, i->length);
  if (!i->displacement) return end;
  long distance = i->target - end;  // rip-relative operands count from the end of the instruction
  if (distance < INT32_MIN || distance > INT32_MAX) return NULL;
  int32_t value = (int32_t)distance;
  memcpy(out + i->displacement, &value, 4);
  return end;
}

// rcx and r11 are free here: the kernel overwrites both.  Flags are not, so jrcxz does the test.
static uint8_t *put_question(uint8_t *out, const struct madfs_site *record) {
  out = put(out, "\x0f\xb7\xc8", 3);                                    // movzwl %ax, %ecx
  out = put_address(put(out, "\x49\xbb", 2), (uint64_t)madfs_classes);  // movabs $madfs_classes, %r11
  out = put(out, "\x41\x0f\xb6\x0c\x0b", 5);                            // movzbl (%r11,%rcx), %ecx
  out = put(out, "\xe3\x17", 2);                                        // jrcxz over the rest
  out = put_address(put(out, "\x49\xbb", 2), (uint64_t)record);         // movabs $record, %r11
  out = put_address(put(out, "\x48\xb9", 2), (uint64_t)madfs_entry);    // movabs $madfs_entry, %rcx
  return put(out, "\x3e\xff\xe1", 3);                                   // notrack jmp *%rcx
}

size_t arch_stub_write(const struct madfs_plan *plan, uint8_t *stub, struct madfs_site *record) {
  uint8_t *out = stub;
  for (unsigned i = plan->first; i < plan->befores && out; i++) out = put_moved(out, &plan->before[i]);
  if (!out) return 0;
  out = put_question(out, record);
  record->address = plan->site;
  if (plan->tier == ARCH_IN_PLACE) {
    record->pass = plan->site;
    record->after = plan->site + SYSCALL_BYTES;
    out = put_distance(put(out, "\xe9", 1), plan->site);
    return out ? (size_t)(out - stub) : 0;
  }
  record->pass = out;
  out = put(out, "\x0f\x05", SYSCALL_BYTES);
  record->after = out;
  const uint8_t *back = plan->site + SYSCALL_BYTES;
  int last = ARCH_PLAIN;
  for (unsigned i = 0; i < plan->displaced && out; i++) {
    out = put_moved(out, &plan->next[i]);
    last = plan->next[i].kind;
    back += plan->next[i].length;
  }
  if (out && last != ARCH_JUMP && last != ARCH_RETURN) out = put_distance(put(out, "\xe9", 1), back);
  return out ? (size_t)(out - stub) : 0;
}

void arch_site_write(const struct madfs_plan *plan) {
  uint8_t *jump = (uint8_t *)(plan->tier == ARCH_SHORT ? plan->pad.start : plan->site - plan->overwritten_before);
  put_distance(put(jump, "\xe9", 1), plan->stub);
  if (plan->tier != ARCH_SHORT) return;
  uint8_t code[] = {0xeb, (uint8_t)(plan->pad.start - (plan->site + SHORT_BYTES))};
  memcpy((uint8_t *)plan->site, code, 2);
}

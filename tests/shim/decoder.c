// SPDX-License-Identifier: Apache-2.0
// Doors into the rewriting code for the tests that compare it with an independent disassembler and with patterns.
#include "../../intercept/intercept.h"

#define DOOR __attribute__((visibility("default")))

uint8_t madfs_classes[MADFS_CLASSES];
uint32_t madfs_fds_known[1];
__thread struct madfs_local madfs_local;
void madfs_entry(void) {}

// Lengths and kinds of the instructions from `code` on; how many there were until the end or an unknown one.
DOOR size_t door_decode(const uint8_t *code, size_t size, uint8_t *lengths, uint8_t *kinds) {
  size_t n = 0;
  struct arch_instruction i;
  for (size_t at = 0; at < size; at += i.length, n++) {
    arch_decode(code + at, size - at, &i);
    if (i.kind == ARCH_INVALID) break;
    lengths[n] = i.length;
    kinds[n] = i.kind;
  }
  return n;
}

// Rewrites the sites of a function that begins at code[start] and ends at code[end], as scan.c and patch.c do, with
// stubs at `stubs` (64 bytes or more apart).  The tiers are returned; how many sites there are.
DOOR size_t door_rewrite(uint8_t *code, size_t start, size_t end, size_t size, uint8_t *stubs, size_t stubs_apart,
                    struct madfs_site *records, uint8_t *tiers, uint8_t *stub_sizes) {
  static struct madfs_plan plans[64];
  struct madfs_code around = {.text = code,
                              .text_end = code + size,
                              .start = code + start,
                              .end = code + end,
                              .padding_end = code + size,
                              .pads = {{code + end, size - end}, {code + start, 0}}};
  size_t count = 0;
  memset(plans, 0, sizeof plans);
  for (const uint8_t *at = code + start; (at = arch_next_hit(at, code + end)) && count < 64; at += 2)
    if (!arch_is_sigreturn(at, code)) plans[count++].site = at;
  if (count) arch_survey(&around, plans, (unsigned)count);
  arch_choose(&around, plans, (unsigned)count);
  for (size_t i = 0; i < count; i++) {
    tiers[i] = plans[i].tier;
    stub_sizes[i] = 0;
    if (plans[i].tier < ARCH_IN_PLACE || plans[i].tier > ARCH_SHORT) continue;
    plans[i].stub = stubs + i * stubs_apart;
    stub_sizes[i] = (uint8_t)arch_stub_write(&plans[i], plans[i].stub, &records[i]);
    if (stub_sizes[i]) arch_site_write(&plans[i]);
    else tiers[i] = ARCH_LEFT;
  }
  return count;
}

bool madfs_never_ours(long number) { return !madfs_classes[number & (MADFS_CLASSES - 1)]; }

DOOR void door_class(unsigned number, uint8_t value) { madfs_classes[number] = value; }

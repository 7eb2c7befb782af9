// SPDX-License-Identifier: Apache-2.0
// Length decoder for 64-bit mode: opcode maps as strings of attributes, then ModRM, SIB and immediates.
// Checked against capstone by tests/shim/test_decode.py on every function that has a system call instruction.
#include <string.h>

#include "../intercept.h"

enum {
  NONE,        // nothing follows
  MODRM,       // ModRM
  MODRM_BYTE,  // ModRM, imm8
  MODRM_FULL,  // ModRM, imm16 or imm32
  BYTE,        // imm8
  FULL,        // imm16 or imm32
  WORD,        // imm16
  ENTER,       // imm16, imm8
  WIDE,        // imm32, or imm64 with REX.W (mov)
  OFFSET,      // moffs: address-sized
  REL8,        // branch
  REL32,       // branch
  TEST_BYTE,   // group 3: ModRM, imm8 when reg is 0 or 1
  TEST_FULL,   // group 3
  EXTRACT,     // SSE4a: two imm8 with the prefixes 66 and f2
  PREFIX,      // legacy prefixes, REX, VEX, EVEX: handled before the tables are used
  BAD,         // not an instruction in 64-bit mode, or one we need not know
};

// One letter per opcode, in rows of sixteen.
static const char map_one[] =
    "mmmmbf..mmmmbf.p"   // 00
    "mmmmbf..mmmmbf.."   // 10
    "mmmmbfp.mmmmbfp."   // 20
    "mmmmbfp.mmmmbfp."   // 30
    "pppppppppppppppp"   // 40
    "nnnnnnnnnnnnnnnn"   // 50
    "..pmppppfFbBnnnn"   // 60
    "rrrrrrrrrrrrrrrr"   // 70
    "BF.Bmmmmmmmmmmmm"   // 80
    "nnnnnnnnnn.nnnnn"   // 90
    "oooonnnnbfnnnnnn"   // a0
    "bbbbbbbbvvvvvvvv"   // b0
    "BBwnppBFenwnnb.n"   // c0
    "mmmm...nmmmmmmmm"   // d0
    "rrrrbbbbRR.rnnnn"   // e0
    "pnppnntTnnnnnnmm";  // f0

static const char map_two[] =
    "mmmm.nnnnn.n.mnB"   // 00
    "mmmmmmmmmmmmmmmm"   // 10
    "mmmm....mmmmmmmm"   // 20
    "nnnnnn.np.p....."   // 30
    "mmmmmmmmmmmmmmmm"   // 40
    "mmmmmmmmmmmmmmmm"   // 50
    "mmmmmmmmmmmmmmmm"   // 60
    "BBBBmmmnxm..mmmm"   // 70
    "RRRRRRRRRRRRRRRR"   // 80
    "mmmmmmmmmmmmmmmm"   // 90
    "nnnmBm..nnnmBmmm"   // a0
    "mmmmmmmmmmBmmmmm"   // b0
    "mmBmBBBmnnnnnnnn"   // c0
    "mmmmmmmmmmmmmmmm"   // d0
    "mmmmmmmmmmmmmmmm"   // e0
    "mmmmmmmmmmmmmmmm";  // f0

static int attribute(char letter) {
  switch (letter) {
    case 'n': return NONE;
    case 'm': return MODRM;
    case 'B': return MODRM_BYTE;
    case 'F': return MODRM_FULL;
    case 'b': return BYTE;
    case 'f': return FULL;
    case 'w': return WORD;
    case 'e': return ENTER;
    case 'v': return WIDE;
    case 'o': return OFFSET;
    case 'r': return REL8;
    case 'R': return REL32;
    case 't': return TEST_BYTE;
    case 'T': return TEST_FULL;
    case 'x': return EXTRACT;
    case 'p': return PREFIX;
    default: return BAD;
  }
}

struct cursor {
  const uint8_t *at, *end;
  bool short_operand, short_address, repeat, repeat_not, wide;  // prefixes 66, 67, f3, f2, REX.W
  bool vector;                                                  // VEX or EVEX
  int map;                                                      // 1, 2 (0f), 3 (0f38), 4 (0f3a), 5 (others: ModRM only)
  uint8_t opcode;
};

static void prefixes(struct cursor *c) {
  for (; c->at < c->end; c->at++) {
    uint8_t byte = *c->at;
    if (byte == 0x66) c->short_operand = true;
    else if (byte == 0x67) c->short_address = true;
    else if (byte == 0xf3) c->repeat = true;
    else if (byte == 0xf2) c->repeat_not = true;
    else if (byte != 0x26 && byte != 0x2e && byte != 0x36 && byte != 0x3e && byte != 0x64 && byte != 0x65 &&
             byte != 0xf0)
      break;
  }
  if (c->at < c->end && (*c->at & 0xf0) == 0x40) c->wide = (*c->at++ & 8) != 0;
}

// c4, c5 and 62 begin VEX and EVEX instructions; the opcode comes after 2, 1 and 3 bytes of payload.
static bool vector_prefix(struct cursor *c) {
  int payload = *c->at == 0xc5 ? 1 : *c->at == 0xc4 ? 2 : 3;
  if (c->end - c->at < payload + 2) return false;
  int map = *c->at == 0xc5 ? 1 : *c->at == 0xc4 ? c->at[1] & 31 : c->at[1] & 7;
  if (map == 0 || map > 6 || map == 4 || (payload != 3 && map > 3)) return false;
  c->vector = true;
  c->map = map <= 3 ? map + 1 : 5;
  c->at += payload + 1;
  return true;
}

static bool opcode(struct cursor *c) {
  if (c->at >= c->end) return false;
  c->map = 1;
  if (*c->at == 0xc4 || *c->at == 0xc5 || *c->at == 0x62) {
    if (!vector_prefix(c)) return false;
  } else if (*c->at == 0x0f) {
    c->at++;
    c->map = 2;
    if (c->at < c->end && (*c->at == 0x38 || *c->at == 0x3a)) c->map = *c->at++ == 0x38 ? 3 : 4;
  }
  if (c->at >= c->end) return false;
  c->opcode = *c->at++;
  return true;
}

static int operands(const struct cursor *c) {
  if (c->map == 5 || c->map == 3) return MODRM;
  if (c->map == 4) return MODRM_BYTE;
  if (c->map == 1) return attribute(map_one[c->opcode]);
  int which = attribute(map_two[c->opcode]);
  if (!c->vector) return which;
  return c->opcode == 0x77 ? NONE : which == MODRM_BYTE ? MODRM_BYTE : MODRM;  // VEX: the others all have a ModRM
}

// Skips ModRM, SIB and displacement; *displacement is where a rip-relative one begins.  The ModRM byte, or -1.
static int modrm(struct cursor *c, const uint8_t **displacement) {
  if (c->at >= c->end) return -1;
  int byte = *c->at++, mode = byte >> 6, memory = byte & 7, size = mode == 1 ? 1 : mode == 2 ? 4 : 0;
  if (mode == 3) return byte;
  if (memory == 4) {
    if (c->at >= c->end) return -1;
    if ((*c->at++ & 7) == 5 && mode == 0) size = 4;
  } else if (memory == 5 && mode == 0) {
    size = 4;
    *displacement = c->at;
  }
  c->at += size;
  return byte;
}

static int immediate(const struct cursor *c, int which, int byte) {
  int full = c->short_operand && !c->wide ? 2 : 4, group = byte >> 3 & 7;
  switch (which) {
    case MODRM_BYTE:
    case BYTE:
    case REL8: return 1;
    case MODRM_FULL:
    case FULL: return full;
    case WORD: return 2;
    case ENTER: return 3;
    case WIDE: return c->wide ? 8 : full;
    case OFFSET: return c->short_address ? 4 : 8;
    case REL32: return 4;
    case TEST_BYTE: return group < 2 ? 1 : 0;
    case TEST_FULL: return group < 2 ? full : 0;
    case EXTRACT: return c->short_operand || c->repeat_not ? 2 : 0;
    default: return 0;
  }
}

static int kind_of(const struct cursor *c, int byte) {
  if (c->vector || c->map > 2) return ARCH_PLAIN;
  uint8_t op = c->opcode;
  if (c->map == 2) {
    if (op == 0x05) return ARCH_SYSCALL;
    if (op == 0x0b || op == 0xb9 || op == 0xff) return ARCH_STOP;
    if ((op & 0xf0) == 0x80) return ARCH_BRANCH;
    if (op == 0x1e && c->repeat && (byte == 0xfa || byte == 0xfb)) return ARCH_MARK;
    return op == 0x34 || op == 0x35 || op == 0x07 ? ARCH_STOP : ARCH_PLAIN;
  }
  if ((op & 0xf0) == 0x70) return ARCH_BRANCH;
  if (op == 0xeb || op == 0xe9) return ARCH_JUMP;
  if (op >= 0xe0 && op <= 0xe3) return ARCH_LOOP;
  if (op == 0xe8) return ARCH_CALL;
  if (op == 0xc3 || op == 0xc2 || op == 0xcb || op == 0xca || op == 0xcf) return ARCH_RETURN;
  if (op == 0xf4 || op == 0xcc || op == 0xcd || op == 0xf1) return ARCH_STOP;
  if (op == 0xc7 && byte == 0xf8) return ARCH_STOP;  // xbegin
  int group = byte >> 3 & 7;
  if (op == 0xff && (group == 2 || group == 3)) return ARCH_CALL;
  if (op == 0xff && (group == 4 || group == 5)) return ARCH_INDIRECT;
  return ARCH_PLAIN;
}

void arch_decode(const uint8_t *at, size_t room, struct arch_instruction *out) {
  struct cursor c = {.at = at, .end = at + (room < 15 ? room : 15)};
  const uint8_t *displacement = NULL;
  int byte = 0;
  *out = (struct arch_instruction){.address = at, .kind = ARCH_INVALID};
  prefixes(&c);
  if (!opcode(&c)) return;
  int which = operands(&c);
  if (which == BAD || which == PREFIX) return;
  bool has_modrm = which == MODRM || which == MODRM_BYTE || which == MODRM_FULL || which == TEST_BYTE ||
                   which == TEST_FULL || which == EXTRACT;
  if (has_modrm && (byte = modrm(&c, &displacement)) < 0) return;
  // pop r/m is 8f /0; the rest of 8f is AMD's XOP, which nobody's processor has any more.
  if (c.map == 1 && c.opcode == 0x8f && (byte >> 3 & 7)) return;
  // A 16-bit branch is 66 without REX.W; processors disagree about it, so it is nothing we would displace.
  if ((which == REL32 || which == REL8) && c.short_operand && !c.wide) return;
  const uint8_t *value = c.at;
  c.at += immediate(&c, which, byte);
  if (c.at > c.end) return;
  out->length = (uint8_t)(c.at - at);
  out->kind = (uint8_t)kind_of(&c, byte);
  if (out->kind == ARCH_BRANCH) out->condition = c.opcode & 15;
  if (which == REL8) out->target = c.at + (int8_t)*value;
  int32_t relative = 0;
  if (which == REL32) memcpy(&relative, value, 4);
  if (displacement) memcpy(&relative, displacement, 4);
  if (which == REL32 || displacement) out->target = c.at + relative;
  if (displacement) out->displacement = (uint8_t)(displacement - at);
  out->address_of = displacement && c.map == 1 && c.opcode == 0x8d;
  // An indirect call or jump through memory has no target known here; what it names is the memory.
}

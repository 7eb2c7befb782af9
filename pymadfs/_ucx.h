/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Python asks of libucp: a worker per process, peers, calls that wait for their reply, and the serving twin.
 * Every function may be called without the GIL and from any thread; one lock in ux_t guards the worker.
 * Results are >= 0 or -errno.  No function blocks longer than the time it was given.
 *
 * The part between the two marks is also what cffi reads (_ucx_build.py): plain C without macros.
 */
#ifndef MADFS_UCX_H
#define MADFS_UCX_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */
enum {
    UX_HEAD_MAX = 512,        /* bytes of header and fixed fields */
    UX_MESSAGE_MAX = 73728,   /* bytes of one eager message: header, fields, tail, small data */
    UX_SLOTS = 256,           /* messages a server holds between two polls */
};

enum { UX_MESSAGE = 0, UX_TRANSFER = 1 };  /* ux_event_t.what */

typedef struct ux ux_t;
typedef struct ux_call ux_call_t;
typedef struct {
    uint64_t tag;    /* of the message; the token of a transfer */
    uint64_t offset; /* where in ux_arena() the message lies until the next ux_poll() */
    uint32_t length; /* bytes received; of a message longer than UX_MESSAGE_MAX nothing is kept */
    int32_t status;  /* 0 or -errno */
    uint32_t what;
} ux_event_t;

/* One worker.  `pairs` are UCX settings: name, value, name, value...  NULL with a message in `error` when it fails. */
ux_t *ux_open(const char *const *pairs, int count, char *error, size_t room);
/* Calls that other threads are in end with -ESHUTDOWN, as do later ones; ux_free() when there can be none any more. */
void ux_close(ux_t *u);
void ux_free(ux_t *u); /* closes it, if nobody did */
void ux_abandon(ux_t *u); /* after fork, in the child: close our own descriptors, touch nothing of UCX */
int ux_address(ux_t *u, void *out, int room); /* -> length */
/* How to wait: poll for pure_ns, then poll and yield until spin_ns, then sleep. */
void ux_patience(ux_t *u, int64_t pure_ns, int64_t spin_ns);
int ux_sleeps(ux_t *u); /* times a thread slept, for tests and benchmarks */

/* `door` is a connected socket whose end of file means that the peer died, or -1.  It stays the caller's, who closes it
 * after ux_disconnect(). */
int ux_connect(ux_t *u, const char *address, size_t length, int door); /* -> peer */
void ux_disconnect(ux_t *u, int peer);
int ux_alive(ux_t *u, int peer); /* 1, or 0 once the peer is known to be dead */

/* A call's memory; used by one thread at a time and again and again. */
ux_call_t *ux_call_new(void);
void ux_call_free(ux_call_t *c);
char *ux_call_head(ux_call_t *c);  /* UX_HEAD_MAX bytes to write header and fields to */
char *ux_call_reply(ux_call_t *c); /* UX_MESSAGE_MAX bytes where the reply lies after the call */

/*
 * Send head, tail and `send_length` bytes at `send` in one message tagged `tag`, and wait for the reply tagged
 * `reply_tag` (0: none).  With bulk_tag the bytes at `send` go as a message of their own, or up to `recv_room` bytes
 * come to `recv` as one.  Without it, an inline reply's bytes from `fixed` on, the length of its header and fields, are
 * copied to `recv`.
 * -> length of the reply, at least `fixed`; 0: it says that the operation failed, see ux_length(), or none was asked
 * for; -ETIMEDOUT; -ECONNRESET: the peer died; -ENOTCONN: it was dead before anything was sent; -EPROTO: the reply is
 * garbage; -ESHUTDOWN: ux_close() was called.
 * Nothing refers to the caller's memory afterwards.
 */
int ux_call(ux_t *u, ux_call_t *c, int peer, uint64_t tag, uint64_t reply_tag, size_t head_length, const char *tail,
            size_t tail_length, uintptr_t send, size_t send_length, uintptr_t recv, size_t recv_room, uint64_t bulk_tag,
            size_t fixed, int64_t timeout_us);
/* The same for the common case: no data. */
int ux_ask(ux_t *u, ux_call_t *c, int peer, uint64_t tag, uint64_t reply_tag, size_t head_length, const char *tail,
           size_t tail_length, size_t fixed, int64_t timeout_us);
/* The same for many at once: ux_prepare() each, ux_run() all, ux_result() of each. */
void ux_prepare(ux_call_t *c, int peer, uint64_t tag, uint64_t reply_tag, size_t head_length, const char *tail,
                size_t tail_length, uintptr_t send, size_t send_length, uintptr_t recv, size_t recv_room,
                uint64_t bulk_tag, size_t fixed);
void ux_run(ux_t *u, ux_call_t **calls, int count, int64_t timeout_us);
int ux_result(ux_call_t *c);
int ux_length(ux_call_t *c); /* bytes of the last reply */

/* The serving side, used by one thread. */
int ux_fd(ux_t *u);                 /* readable when there is something to poll for, after ux_arm() */
int ux_arm(ux_t *u);                /* 1: safe to sleep on ux_fd(); 0: poll again */
char *ux_arena(ux_t *u);
/* Take messages whose tags have no bit of tag_mask, and ends of transfers; wait up to spin_us.  -> how many. */
int ux_poll(ux_t *u, uint64_t tag_mask, ux_event_t *events, int limit, int64_t spin_us);
int ux_send(ux_t *u, int peer, uint64_t tag, const char *head, size_t head_length, const char *tail,
            size_t tail_length);
/* -> token of a transfer, whose end is an event; 0: already done.  The memory must stay until then. */
int64_t ux_transfer_send(ux_t *u, int peer, uint64_t tag, uintptr_t data, size_t length);
int64_t ux_transfer_receive(ux_t *u, uint64_t tag, uintptr_t data, size_t length);
void ux_transfer_cancel(ux_t *u, int64_t token);
/* Let go of messages that came and nobody asked for: those whose tag is `tag` under `mask`. */
void ux_purge(ux_t *u, uint64_t tag, uint64_t mask);

/* A TCP connection to `host` (a name or an address), made within timeout_ms, whose reads and writes then wait for as
 * long each; or -errno, -ENOENT when nobody knows the name. */
int ux_dial(const char *host, int port, int timeout_ms);
/* Small messages go at once, and the kernel notices within about five seconds when the other host is gone. */
int ux_watch(int connection);
/* cdef end */

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the UCX binding share: types, limits, locking, peers.  Functions that others use begin with ux_. */
#ifndef MADFS_UCX_INNER_H
#define MADFS_UCX_INNER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "_ucx.h"

#include <dirent.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucp/api/ucp.h>
#include <uct/api/uct.h>
#include <unistd.h>

#define LOOK_NS 2000000LL        /* look at doors and asynchronous events this often while spinning */
#define LOOK_SOON_NS 200000LL    /* a server at asynchronous events: visitors come that way */
#define GRACE_NS 100000000LL     /* for transfers under way when a call fails, before its connection is cut */
#define SHUT_NS 3000000000LL     /* the same when we are closed: the other side lives and will end them */
#define FOLLOW_NS 50000000LL     /* a follower looks for itself this often */
#define SLEEP_MS 250             /* a poller looks for itself this often */
#define STOPPED_NS 1000000000LL  /* between two looks at the clock: longer than anybody here sleeps */
#define COPY_MAX 1024            /* bytes of small data that are cheaper copied into one piece than sent as a vector */
#define BLOCK_SIZE 4096          /* bytes of a reply's block that is kept for the next reply */
#define PEER_BITS 20             /* a peer's handle: index, then generation */
#define PROGRESS_MAX 64          /* progress calls in a row before looking at what came */

struct waiter {
    atomic_int open;      /* calls not settled yet */
    atomic_uint word;     /* futex: 1 when there is a reason to look */
    int following;        /* in u->followers */
    struct waiter *next;
};

struct peer {
    ux_t *u;
    ucp_ep_h ep;
    int door, handle, failed, gone; /* gone: disconnected, to be freed with the last call */
    ux_call_t *calls;
};

enum { REPLY, BULK_RECEIVE, MESSAGE_SEND, BULK_SEND, PARTS };

struct part {
    ux_call_t *call;
    void *request;
};

struct ux_call {
    int peer;
    uint64_t tag, reply_tag, bulk_tag;
    size_t head_length, tail_length, send_length, recv_room, fixed;
    const char *tail;
    char *send, *recv;

    struct peer *p;
    ux_call_t *before, *after; /* other calls of the peer */
    struct waiter *waiter;
    struct part part[PARTS];
    unsigned pending; /* bit per part under way */
    int settled, status, result;
    size_t reply_length, bulk_length;
    ucp_dt_iov_t iov[3];
    char head[UX_HEAD_MAX + COPY_MAX];
    char reply[UX_MESSAGE_MAX];
};

/* The reply's header as ops.REPLY has it. */
struct reply {
    uint64_t id;
    int32_t status;
    uint32_t bulk;
};

struct message {
    ux_t *u;
    uint64_t tag;
    uint32_t slot, length;
    int32_t status;
};

struct transfer {
    ux_t *u;
    void *request;
    struct transfer *next;
    uint32_t index, generation, length;
    int32_t status;
    int live;
};

struct block {
    ux_t *u;
    struct block *next;
    size_t room;
    char data[];
};

struct ux {
    pthread_mutex_t lock;
    atomic_int wanted; /* threads that wait for the lock to do something short */
    ucp_context_h context;
    ucp_worker_h worker;
    int efd, events, wake, doors, epoll; /* UCX's own, its asynchronous events, ours, the doors, all of these */
    struct ux *other; /* one more that is open in this process */
    pid_t owner;      /* the process that opened it */
    int64_t pure_ns, spin_ns, looked_ns;
    int sleeps;
    int shut, users; /* closed, or being closed; threads that are in calls */

    struct waiter *spinner, *poller, *followers;
    struct peer **peers; /* by index; NULL: free */
    uint32_t *generations;
    int peer_count, peer_room;
    int closing; /* endpoints whose closing is under way */

    uint64_t tag_mask;
    char *arena;
    struct message *messages;
    uint32_t free_slots[UX_SLOTS], ready[UX_SLOTS], handed[UX_SLOTS];
    int free_count, ready_count, handed_count;

    struct transfer **transfers, *free_transfers, *ended, **ended_tail;
    uint32_t transfer_count, transfer_room;
    struct block *blocks;
};

/* Shared by the three files; all but the first three are for who holds the lock. */
int64_t ux_now_ns(void);
int ux_errno(ucs_status_t status); /* -> 0 or -errno */
void ux_enter(ux_t *u);            /* take the lock: a spinner sees that it is wanted and lets others have it */
void ux_leave(ux_t *u);
void ux_wake(ux_t *u, struct waiter *w);
void ux_settle(ux_t *u, ux_call_t *c);                /* nothing more is expected */
void ux_fail_call(ux_t *u, ux_call_t *c, int status); /* settle with an error, unless it is settled */
struct peer *ux_find(ux_t *u, int handle);            /* NULL: no such peer any more */
void ux_peer_fail(struct peer *p);                    /* it is dead: so are its calls */
void ux_cut(struct peer *p);                          /* what is under way on its connection ends with an error */
void ux_free_if_unused(struct peer *p);               /* after the last call of a peer that was disconnected */
void ux_look_around(ux_t *u, int64_t now);            /* asynchronous events; end of file at a door: it is dead */

/* _ucx_events.c: asynchronous events of UCX, and fork. */
int ux_events_open(ux_t *u); /* -> 0 or -errno */
void ux_events_close(ux_t *u);
void ux_run_events(ux_t *u);
void ux_life_begin(void); /* around what UCX does without a worker's lock: no fork meanwhile */
void ux_life_end(void);

#endif

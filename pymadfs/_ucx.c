/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thin layer over libucp that _ucx.h declares.
 *
 * One worker per process, guarded by one mutex.  A thread that waits is a `waiter`; it is in one of three roles:
 *
 *   spinner   progresses the worker, lock held but for moments when others want it.  At most one.
 *   poller    sleeps in epoll without the lock, after arming the worker.  At most one.
 *   follower  sleeps on its own futex until its calls are done or it is promoted.
 *
 * Invariant: while somebody waits, there is a spinner, or a poller and the worker is armed since its last progress, or a
 * follower on its way to become one.  Whoever stops to spin restores it (see hand_over()).
 *
 * A call ends when its reply, its sends and the bulk that the reply announces are done; or when it fails, by its
 * deadline or its peer's death.  Then what is still under way is cancelled and drained before the caller returns,
 * because it refers to the caller's memory.
 */
#define _GNU_SOURCE
#include "_ucx.h"

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
#include <unistd.h>

#define DOOR_NS 2000000LL        /* look at the doors this often while spinning */
#define GRACE_NS 100000000LL     /* for transfers under way when a call fails, before its connection is cut */
#define CUT_NS 2000000000LL      /* for the same after it was cut */
#define FOLLOW_NS 50000000LL     /* a follower looks for itself this often */
#define COPY_MAX 1024            /* bytes of small data that are cheaper copied into one piece than sent as a vector */
#define BLOCK_SIZE 4096          /* bytes of a reply's block that is kept for the next reply */
#define PEER_BITS 20             /* a peer's handle: index, then generation */
#define PROGRESS_MAX 64          /* progress calls in a row before looking at what came */

/* --- what UCX must not see ------------------------------------------------------------------------------------------ */

char *Getenv(const char *name);
FILE *Fopen(const char *path, const char *mode);

/* No hooks in the application's memory functions, no signal handlers, no words of its own. */
static const char *const settings[][2] = {
    {"UCX_MEM_EVENTS", "n"}, {"UCX_ERROR_SIGNALS", ""},          {"UCX_HANDLE_ERRORS", "none"}, {"UCX_DEBUG_SIGNO", "0"},
    {"UCX_VFS_ENABLE", "n"}, {"UCX_WARN_UNUSED_ENV_VARS", "n"}, {"UCX_LOG_FILE", "stderr"},    {"UCX_LOG_LEVEL", "fatal"},
    {"UCX_MODULES", "^*"}, /* modules are linked in; those found on the way would bring their own UCX with them */
};

/* What our copy of UCX calls instead of getenv (_ucx_private.py): UCX_* variables are meant for the application's own. */
char *Getenv(const char *name)
{
    if (strncmp(name, "UCX_", 4) != 0)
        return getenv(name);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        if (strcmp(name, settings[i][0]) == 0)
            return (char *)settings[i][1];
    return NULL;
}

/* And instead of fopen: so are ucx.conf files. */
FILE *Fopen(const char *path, const char *mode)
{
    size_t length = strlen(path);
    if (length >= 9 && strcmp(path + length - 9, "/ucx.conf") == 0) {
        errno = ENOENT;
        return NULL;
    }
    return fopen(path, mode);
}

/* --- types ---------------------------------------------------------------------------------------------------------- */

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
    int efd, wake, doors, epoll;
    int64_t pure_ns, spin_ns, doors_seen;
    int sleeps;

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

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int to_errno(ucs_status_t status)
{
    switch (status) {
    case UCS_OK: return 0;
    case UCS_ERR_CANCELED: return -ECANCELED;
    case UCS_ERR_MESSAGE_TRUNCATED: return -EMSGSIZE;
    case UCS_ERR_NO_MEMORY: return -ENOMEM;
    case UCS_ERR_TIMED_OUT:
    case UCS_ERR_ENDPOINT_TIMEOUT: return -ETIMEDOUT;
    case UCS_ERR_UNREACHABLE: return -EHOSTUNREACH;
    case UCS_ERR_INVALID_ADDR:
    case UCS_ERR_INVALID_PARAM: return -EINVAL;
    case UCS_ERR_REJECTED:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_CONNECTION_RESET: return -ECONNRESET;
    default: return -EIO;
    }
}

/* A spinner sees `wanted` and lets others have the lock. */
static void enter(ux_t *u)
{
    if (pthread_mutex_trylock(&u->lock) == 0)
        return;
    atomic_fetch_add(&u->wanted, 1);
    pthread_mutex_lock(&u->lock);
    atomic_fetch_sub(&u->wanted, 1);
}

static void leave(ux_t *u)
{
    pthread_mutex_unlock(&u->lock);
}

/* --- waking --------------------------------------------------------------------------------------------------------- */

static void wake(ux_t *u, struct waiter *w)
{
    if (w == u->poller) {
        uint64_t one = 1;
        if (write(u->wake, &one, sizeof one) < 0)
            return; /* EAGAIN: it is readable already */
    } else if (w->following) {
        atomic_store(&w->word, 1);
        syscall(SYS_futex, &w->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void settle(ux_t *u, ux_call_t *c)
{
    if (c->settled)
        return;
    c->settled = 1;
    if (atomic_fetch_sub(&c->waiter->open, 1) == 1)
        wake(u, c->waiter);
}

static void fail_call(ux_t *u, ux_call_t *c, int status)
{
    if (c->settled)
        return;
    c->status = status;
    settle(u, c);
}

/* --- peers ---------------------------------------------------------------------------------------------------------- */

static struct peer *find(ux_t *u, int handle)
{
    int index = handle & ((1 << PEER_BITS) - 1);
    if (handle < 0 || index >= u->peer_count || !u->peers[index] || u->peers[index]->handle != handle)
        return NULL;
    return u->peers[index];
}

static void peer_fail(struct peer *p)
{
    if (p->failed)
        return;
    p->failed = 1;
    if (p->door >= 0)
        epoll_ctl(p->u->doors, EPOLL_CTL_DEL, p->door, NULL);
    for (ux_call_t *c = p->calls; c; c = c->after)
        fail_call(p->u, c, -ECONNRESET);
}

static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    (void)ep, (void)status;
    peer_fail(arg);
}

static void on_closed(void *request, ucs_status_t status, void *arg)
{
    (void)status;
    ((ux_t *)arg)->closing--;
    ucp_request_free(request);
}

/* Cut the connection: what is under way on it ends with an error. */
static void cut(struct peer *p)
{
    if (!p->ep)
        return;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_EP_CLOSE_FLAG_FORCE,
        .cb.send = on_closed,
        .user_data = p->u,
    };
    ucp_ep_h ep = p->ep;
    p->ep = NULL;
    p->u->closing++;
    void *request = ucp_ep_close_nbx(ep, &param);
    if (!UCS_PTR_IS_PTR(request))
        p->u->closing--;
}

static void free_if_unused(struct peer *p)
{
    if (!p->gone || p->calls)
        return;
    cut(p);
    free(p);
}

/* Room for one more peer; -> index or -ENOMEM. */
static int free_index(ux_t *u)
{
    for (int i = 0; i < u->peer_count; i++)
        if (!u->peers[i])
            return i;
    if (u->peer_count == 1 << PEER_BITS)
        return -ENOMEM;
    if (u->peer_count == u->peer_room) {
        int room = u->peer_room ? 2 * u->peer_room : 8;
        struct peer **peers = realloc(u->peers, room * sizeof *peers);
        if (!peers)
            return -ENOMEM;
        u->peers = peers;
        uint32_t *generations = realloc(u->generations, room * sizeof *generations);
        if (!generations)
            return -ENOMEM;
        u->generations = generations;
        u->peer_room = room;
    }
    u->peers[u->peer_count] = NULL;
    u->generations[u->peer_count] = 0;
    return u->peer_count++;
}

static int connect_locked(ux_t *u, const void *address, int door)
{
    int index = free_index(u);
    struct peer *p = index < 0 ? NULL : calloc(1, sizeof *p);
    if (!p)
        return -ENOMEM;
    ucp_ep_params_t param = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = p},
    };
    p->u = u;
    p->door = door;
    p->handle = index | (u->generations[index] & 0x7ff) << PEER_BITS;
    ucs_status_t status = ucp_ep_create(u->worker, &param, &p->ep);
    if (status != UCS_OK) {
        free(p);
        return to_errno(status);
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.u64 = p->handle};
    if (door >= 0 && epoll_ctl(u->doors, EPOLL_CTL_ADD, door, &event) < 0) {
        int error = errno;
        cut(p);
        free(p);
        return -error;
    }
    u->peers[index] = p;
    return p->handle;
}

int ux_connect(ux_t *u, const char *address, size_t length, int door)
{
    if (length < 8)
        return -EINVAL;
    sigset_t all, old; /* UCX may start its thread here: it is to take no signals */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    enter(u);
    int handle = connect_locked(u, address, door);
    leave(u);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return handle;
}

void ux_disconnect(ux_t *u, int handle)
{
    enter(u);
    struct peer *p = find(u, handle);
    if (p) {
        int index = handle & ((1 << PEER_BITS) - 1);
        peer_fail(p);
        p->gone = 1;
        u->peers[index] = NULL;
        u->generations[index]++;
        free_if_unused(p);
    }
    leave(u);
}

int ux_alive(ux_t *u, int handle)
{
    enter(u);
    struct peer *p = find(u, handle);
    int alive = p && !p->failed;
    leave(u);
    return alive;
}

/* End of file at a door: that peer is dead. */
static void look_at_doors(ux_t *u)
{
    struct epoll_event events[16];
    int count = epoll_wait(u->doors, events, 16, 0);
    for (int i = 0; i < count; i++) {
        struct peer *p = find(u, (int)events[i].data.u64);
        char byte[64];
        if (!p)
            continue;
        ssize_t got = recv(p->door, byte, sizeof byte, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            peer_fail(p);
    }
}

/* --- calls ---------------------------------------------------------------------------------------------------------- */

ux_call_t *ux_call_new(void)
{
    ux_call_t *c = malloc(sizeof *c);
    if (c)
        memset(c, 0, offsetof(ux_call_t, head)); /* not the buffers: their pages come when they are used */
    return c;
}

void ux_call_free(ux_call_t *c)
{
    free(c);
}

char *ux_call_head(ux_call_t *c)
{
    return c->head;
}

char *ux_call_reply(ux_call_t *c)
{
    return c->reply;
}

/* Settled: nothing more is expected.  Bulk is expected only when the reply announces it. */
static void check(ux_call_t *c)
{
    if (c->pending & (1 << REPLY | 1 << MESSAGE_SEND | 1 << BULK_SEND))
        return;
    struct reply *reply = (struct reply *)c->reply;
    if (c->pending & 1 << BULK_RECEIVE && c->reply_length >= sizeof *reply && reply->status == 0 && reply->bulk)
        return;
    settle(c->p->u, c);
}

static void part_done(struct part *part, int which, ucs_status_t status)
{
    ux_call_t *c = part->call;
    c->pending &= ~(1u << which);
    part->request = NULL;
    if (c->settled)
        return;
    if (status != UCS_OK)
        fail_call(c->p->u, c, to_errno(status));
    else
        check(c);
}

static void on_received(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info, void *arg)
{
    struct part *part = arg;
    int which = (int)(part - part->call->part);
    if (status == UCS_OK)
        *(which == REPLY ? &part->call->reply_length : &part->call->bulk_length) = info->length;
    part_done(part, which, status);
    ucp_request_free(request);
}

static void on_sent(void *request, ucs_status_t status, void *arg)
{
    struct part *part = arg;
    part_done(part, (int)(part - part->call->part), status);
    ucp_request_free(request);
}

/* Keep what a ..._nbx function returned. */
static void started(ux_call_t *c, int which, void *request)
{
    if (UCS_PTR_IS_ERR(request))
        fail_call(c->p->u, c, to_errno(UCS_PTR_STATUS(request)));
    else if (request) {
        c->part[which].call = c;
        c->part[which].request = request;
        c->pending |= 1u << which;
    }
}

static void receive(ux_call_t *c, int which, uint64_t tag, void *data, size_t room)
{
    ucp_tag_recv_info_t info;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE |
                        UCP_OP_ATTR_FIELD_RECV_INFO,
        .cb.recv = on_received,
        .user_data = &c->part[which],
        .memory_type = UCS_MEMORY_TYPE_HOST,
        .recv_info.tag_info = &info,
    };
    c->part[which].call = c;
    void *request = ucp_tag_recv_nbx(c->p->u->worker, data, room, tag, ~0ULL, &param);
    if (!request)
        *(which == REPLY ? &c->reply_length : &c->bulk_length) = info.length;
    started(c, which, request);
}

/* Header, tail and small data as one message: copied together when that is cheaper, else straight from where they are. */
static void send_message(ux_call_t *c)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.send = on_sent,
        .user_data = &c->part[MESSAGE_SEND],
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    size_t data_length = c->bulk_tag ? 0 : c->send_length, count = c->head_length;
    const void *buffer = c->head;
    if (c->tail_length + data_length <= COPY_MAX) {
        memcpy(c->head + count, c->tail, c->tail_length);
        count += c->tail_length;
        if (data_length)
            memcpy(c->head + count, c->send, data_length);
        count += data_length;
    } else {
        c->iov[0] = (ucp_dt_iov_t){c->head, c->head_length};
        c->iov[1] = (ucp_dt_iov_t){(void *)c->tail, c->tail_length};
        c->iov[2] = (ucp_dt_iov_t){c->send, data_length};
        buffer = c->iov;
        count = data_length ? 3 : 2;
        param.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
        param.datatype = ucp_dt_make_iov();
    }
    c->part[MESSAGE_SEND].call = c;
    started(c, MESSAGE_SEND, ucp_tag_send_nbx(c->p->ep, buffer, count, c->tag, &param));
}

static void send_bulk(ux_call_t *c)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.send = on_sent,
        .user_data = &c->part[BULK_SEND],
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    c->part[BULK_SEND].call = c;
    started(c, BULK_SEND, ucp_tag_send_nbx(c->p->ep, c->send, c->send_length, c->bulk_tag, &param));
}

static void post(ux_t *u, ux_call_t *c, struct waiter *w)
{
    c->waiter = w;
    c->settled = c->status = 0;
    c->pending = 0;
    c->reply_length = c->bulk_length = 0;
    c->p = find(u, c->peer);
    if (!c->p || c->p->failed) {
        c->p = NULL;
        fail_call(u, c, -ENOTCONN);
        return;
    }
    c->before = NULL;
    c->after = c->p->calls;
    if (c->after)
        c->after->before = c;
    c->p->calls = c;
    if (c->reply_tag)
        receive(c, REPLY, c->reply_tag, c->reply, sizeof c->reply);
    if (c->bulk_tag && c->recv)
        receive(c, BULK_RECEIVE, c->bulk_tag, c->recv, c->recv_room);
    if (!c->settled)
        send_message(c);
    if (!c->settled && c->bulk_tag && !c->recv)
        send_bulk(c);
    if (!c->settled)
        check(c);
}

static void progress_until_idle(ux_t *u, ux_call_t *c, int64_t deadline)
{
    while (c->pending && now_ns() < deadline)
        if (!ucp_worker_progress(u->worker)) {
            leave(u);
            sched_yield();
            enter(u);
        }
}

/* A failed call's transfers must not outlive it: cancel what can be, wait for the rest, cut the connection if need be. */
static void drain(ux_t *u, ux_call_t *c)
{
    for (int which = REPLY; which <= BULK_RECEIVE; which++)
        if (c->pending & 1u << which)
            ucp_request_cancel(u->worker, c->part[which].request);
    if (!c->pending)
        return;
    if (!c->p->failed)
        progress_until_idle(u, c, now_ns() + GRACE_NS);
    if (c->pending) {
        peer_fail(c->p);
        cut(c->p);
        progress_until_idle(u, c, now_ns() + CUT_NS);
    }
}

/* The call is over: -> what ux_call() returns. */
static int conclude(ux_t *u, ux_call_t *c)
{
    if (!c->p)
        return c->status;
    if (c->pending)
        drain(u, c);
    struct peer *p = c->p;
    if (c->before)
        c->before->after = c->after;
    else
        p->calls = c->after;
    if (c->after)
        c->after->before = c->before;
    free_if_unused(p);
    if (c->status || !c->reply_tag)
        return c->status;
    struct reply *reply = (struct reply *)c->reply;
    if (c->reply_length < sizeof *reply)
        return -EPROTO;
    if (reply->status)
        return 0;
    if (c->reply_length < c->fixed || (reply->bulk && reply->bulk != c->bulk_length))
        return -EPROTO;
    if (c->recv && !reply->bulk) {
        size_t length = c->reply_length - c->fixed;
        memcpy(c->recv, c->reply + c->fixed, length < c->recv_room ? length : c->recv_room);
    }
    return (int)c->reply_length;
}

/* --- waiting -------------------------------------------------------------------------------------------------------- */

/* Sleep until woken as done or as the next to spin.  Lock held before and after. */
static void follow(ux_t *u, struct waiter *w, int64_t deadline)
{
    atomic_store(&w->word, 0);
    w->following = 1;
    w->next = u->followers;
    u->followers = w;
    leave(u);
    int64_t begun = now_ns();
    while (!atomic_load(&w->word) && now_ns() - begun < u->spin_ns)
        sched_yield();
    int64_t left = deadline - now_ns();
    if (left > FOLLOW_NS)
        left = FOLLOW_NS;
    struct timespec timeout = {0, left > 0 ? left : 0};
    if (!atomic_load(&w->word))
        syscall(SYS_futex, &w->word, FUTEX_WAIT_PRIVATE, 0, &timeout, NULL, 0);
    enter(u);
    w->following = 0;
    for (struct waiter **link = &u->followers; *link; link = &(*link)->next)
        if (*link == w) {
            *link = w->next;
            break;
        }
}

/* Nothing came for a while: sleep until something does.  Lock held before and after. */
static void doze(ux_t *u, struct waiter *w, int64_t deadline)
{
    if (ucp_worker_arm(u->worker) == UCS_ERR_BUSY || !w->open)
        return;
    u->spinner = NULL;
    if (u->poller) {
        follow(u, w, deadline);
        return;
    }
    u->poller = w;
    u->sleeps++;
    leave(u);
    int64_t left_ms = (deadline - now_ns()) / 1000000 + 1;
    struct epoll_event events[4];
    epoll_wait(u->epoll, events, 4, left_ms < 0 ? 0 : left_ms > 1000 ? 1000 : (int)left_ms);
    enter(u);
    u->poller = NULL;
    uint64_t count;
    if (read(u->wake, &count, sizeof count) < 0)
        count = 0; /* it was not what woke us */
    look_at_doors(u);
    u->doors_seen = now_ns();
}

/* We do not spin any more: restore the invariant. */
static void hand_over(ux_t *u, struct waiter *w)
{
    if (u->spinner == w)
        u->spinner = NULL;
    if (u->spinner)
        return;
    if (!u->poller) {
        if (u->followers)
            wake(u, u->followers);
        return;
    }
    for (int i = 0; i < PROGRESS_MAX; i++) { /* the poller armed before we progressed */
        if (ucp_worker_arm(u->worker) != UCS_ERR_BUSY)
            return;
        ucp_worker_progress(u->worker);
    }
    wake(u, u->poller);
}

/* Until all calls of `w` are settled or time is over.  Lock held before and after. */
static void await(ux_t *u, struct waiter *w, int64_t begun, int64_t deadline)
{
    int64_t quiet = begun, now = begun;
    unsigned turn = 0;
    while (w->open) {
        if (u->spinner && u->spinner != w) {
            follow(u, w, deadline);
            if (w->open && (now = now_ns()) > deadline)
                break;
            quiet = now;
            continue;
        }
        u->spinner = w;
        if (ucp_worker_progress(u->worker)) {
            turn = 0;
            quiet = 0;
            continue;
        }
        if (++turn & 7 && now - quiet < u->pure_ns && quiet)
            continue;
        now = now_ns();
        if (!quiet)
            quiet = now;
        if (now > deadline || !w->open)
            break;
        if (now - u->doors_seen > DOOR_NS) {
            look_at_doors(u);
            u->doors_seen = now;
        }
        if (now - quiet >= u->spin_ns) {
            doze(u, w, deadline);
            quiet = 0;
        } else if (now - quiet >= u->pure_ns || atomic_load(&u->wanted)) {
            leave(u);
            sched_yield();
            enter(u);
        }
    }
    hand_over(u, w);
}

static void run(ux_t *u, ux_call_t **calls, int count, int64_t timeout_us)
{
    struct waiter w = {.open = count};
    int64_t begun = now_ns(), deadline = begun + timeout_us * 1000;
    enter(u);
    if (begun - u->doors_seen > DOOR_NS) {
        look_at_doors(u);
        u->doors_seen = begun;
    }
    for (int i = 0; i < count; i++)
        post(u, calls[i], &w);
    if (w.open)
        await(u, &w, begun, deadline);
    for (int i = 0; i < count; i++)
        fail_call(u, calls[i], -ETIMEDOUT);
    for (int i = 0; i < count; i++)
        calls[i]->result = conclude(u, calls[i]);
    leave(u);
}

void ux_prepare(ux_call_t *c, int peer, uint64_t tag, uint64_t reply_tag, size_t head_length, const char *tail,
                size_t tail_length, uintptr_t send, size_t send_length, uintptr_t recv, size_t recv_room,
                uint64_t bulk_tag, size_t fixed)
{
    c->peer = peer;
    c->tag = tag;
    c->reply_tag = reply_tag;
    c->head_length = head_length;
    c->tail = tail;
    c->tail_length = tail_length;
    c->send = (char *)send;
    c->send_length = send_length;
    c->recv = (char *)recv;
    c->recv_room = recv_room;
    c->bulk_tag = bulk_tag;
    c->fixed = fixed;
}

int ux_call(ux_t *u, ux_call_t *c, int peer, uint64_t tag, uint64_t reply_tag, size_t head_length, const char *tail,
            size_t tail_length, uintptr_t send, size_t send_length, uintptr_t recv, size_t recv_room, uint64_t bulk_tag,
            size_t fixed, int64_t timeout_us)
{
    ux_prepare(c, peer, tag, reply_tag, head_length, tail, tail_length, send, send_length, recv, recv_room, bulk_tag,
               fixed);
    run(u, &c, 1, timeout_us);
    return c->result;
}

int ux_ask(ux_t *u, ux_call_t *c, int peer, uint64_t tag, uint64_t reply_tag, size_t head_length, const char *tail,
           size_t tail_length, size_t fixed, int64_t timeout_us)
{
    ux_prepare(c, peer, tag, reply_tag, head_length, tail, tail_length, 0, 0, 0, 0, 0, fixed);
    run(u, &c, 1, timeout_us);
    return c->result;
}

void ux_run(ux_t *u, ux_call_t **calls, int count, int64_t timeout_us)
{
    run(u, calls, count, timeout_us);
}

int ux_result(ux_call_t *c)
{
    return c->result;
}

int ux_length(ux_call_t *c)
{
    return (int)c->reply_length;
}

/* --- serving: messages ---------------------------------------------------------------------------------------------- */

static int make_arena(ux_t *u)
{
    u->messages = calloc(UX_SLOTS, sizeof *u->messages);
    u->arena = mmap(NULL, (size_t)UX_SLOTS * UX_MESSAGE_MAX, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (u->arena == MAP_FAILED)
        u->arena = NULL;
    if (!u->messages || !u->arena)
        return -ENOMEM;
    for (int i = 0; i < UX_SLOTS; i++) {
        u->messages[i].u = u;
        u->messages[i].slot = i;
        u->free_slots[i] = UX_SLOTS - 1 - i;
    }
    u->free_count = UX_SLOTS;
    return 0;
}

char *ux_arena(ux_t *u)
{
    enter(u);
    int status = u->arena ? 0 : make_arena(u);
    leave(u);
    return status ? NULL : u->arena;
}

static void on_message(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info, void *arg)
{
    struct message *m = arg;
    m->status = to_errno(status);
    m->length = status == UCS_OK ? (uint32_t)info->length : 0;
    m->u->ready[m->u->ready_count++] = m->slot;
    ucp_request_free(request);
}

/* Take the next message out of UCX.  -> 1: it is complete, 0: it will be later, -1: there is none. */
static int take_message(ux_t *u)
{
    ucp_tag_recv_info_t info;
    if (!u->free_count)
        return -1;
    ucp_tag_message_h handle = ucp_tag_probe_nb(u->worker, 0, u->tag_mask, 1, &info);
    if (!handle)
        return -1;
    struct message *m = &u->messages[u->free_slots[--u->free_count]];
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE |
                        UCP_OP_ATTR_FIELD_RECV_INFO,
        .cb.recv = on_message,
        .user_data = m,
        .memory_type = UCS_MEMORY_TYPE_HOST,
        .recv_info.tag_info = &info,
    };
    m->tag = info.sender_tag;
    m->length = (uint32_t)info.length;
    size_t room = info.length > UX_MESSAGE_MAX ? 0 : UX_MESSAGE_MAX;
    void *request = ucp_tag_msg_recv_nbx(u->worker, u->arena + (size_t)m->slot * UX_MESSAGE_MAX, room, handle, &param);
    if (UCS_PTR_IS_PTR(request))
        return 0;
    m->status = request ? to_errno(UCS_PTR_STATUS(request)) : 0;
    u->ready[u->ready_count++] = m->slot;
    return 1;
}

static void release_transfer(struct transfer *t)
{
    t->live = 0;
    t->generation++;
    t->next = t->u->free_transfers;
    t->u->free_transfers = t;
}

static int64_t token_of(const struct transfer *t)
{
    return (int64_t)(t->generation & 0x7fffffff) << 32 | (t->index + 1);
}

/* What has come, as events; at most `limit`. */
static int collect(ux_t *u, ux_event_t *events, int limit)
{
    int count = 0;
    while (count < limit && u->ended) {
        struct transfer *t = u->ended;
        u->ended = t->next;
        if (!u->ended)
            u->ended_tail = &u->ended;
        events[count++] = (ux_event_t){.tag = token_of(t), .length = t->length, .status = t->status, .what = UX_TRANSFER};
        release_transfer(t);
    }
    while (u->ready_count < limit - count && take_message(u) >= 0)
        ;
    int taken = 0;
    for (; count < limit && taken < u->ready_count; taken++) {
        struct message *m = &u->messages[u->ready[taken]];
        events[count++] = (ux_event_t){
            .tag = m->tag, .slot = m->slot, .length = m->length, .status = m->status, .what = UX_MESSAGE};
        u->handed[u->handed_count++] = m->slot;
    }
    u->ready_count -= taken;
    memmove(u->ready, u->ready + taken, u->ready_count * sizeof u->ready[0]);
    return count;
}

int ux_poll(ux_t *u, uint64_t tag_mask, ux_event_t *events, int limit, int64_t spin_us)
{
    int count = 0;
    int64_t begun = 0, now = 0;
    enter(u);
    u->tag_mask = tag_mask;
    if (!u->arena && make_arena(u) < 0) {
        leave(u);
        return -ENOMEM;
    }
    while (u->handed_count)
        u->free_slots[u->free_count++] = u->handed[--u->handed_count];
    for (unsigned turn = 0;; turn++) {
        int steps = 0;
        while (ucp_worker_progress(u->worker) && ++steps < PROGRESS_MAX)
            ;
        count = collect(u, events, limit);
        if (count || spin_us <= 0)
            break;
        if (turn & 7 && now - begun < u->pure_ns)
            continue;
        now = now_ns();
        if (!begun)
            begun = now;
        if (now - begun >= spin_us * 1000)
            break;
        if (now - begun >= u->pure_ns) {
            leave(u);
            sched_yield();
            enter(u);
        }
    }
    leave(u);
    return count;
}

int ux_fd(ux_t *u)
{
    return u->efd;
}

int ux_arm(ux_t *u)
{
    ucp_tag_recv_info_t info;
    enter(u);
    int safe = !u->ended && !u->ready_count && !ucp_tag_probe_nb(u->worker, 0, u->tag_mask, 0, &info) &&
               ucp_worker_arm(u->worker) != UCS_ERR_BUSY;
    leave(u);
    return safe;
}

static void on_block_sent(void *request, ucs_status_t status, void *arg)
{
    struct block *b = arg;
    (void)status; /* the peer died: its door tells */
    if (b->room == BLOCK_SIZE) {
        b->next = b->u->blocks;
        b->u->blocks = b;
    } else {
        free(b);
    }
    if (request)
        ucp_request_free(request);
}

static struct block *take_block(ux_t *u, size_t length)
{
    struct block *b = u->blocks;
    if (length <= BLOCK_SIZE && b) {
        u->blocks = b->next;
        return b;
    }
    size_t room = length <= BLOCK_SIZE ? BLOCK_SIZE : length;
    b = malloc(sizeof *b + room);
    if (b) {
        b->u = u;
        b->room = room;
    }
    return b;
}

static int send_locked(ux_t *u, int peer, uint64_t tag, const char *head, size_t head_length, const char *tail,
                       size_t tail_length)
{
    struct peer *p = find(u, peer);
    if (!p || p->failed)
        return -ENOTCONN;
    struct block *b = take_block(u, head_length + tail_length);
    if (!b)
        return -ENOMEM;
    memcpy(b->data, head, head_length);
    memcpy(b->data + head_length, tail, tail_length);
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.send = on_block_sent,
        .user_data = b,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    void *request = ucp_tag_send_nbx(p->ep, b->data, head_length + tail_length, tag, &param);
    if (UCS_PTR_IS_PTR(request))
        return 0;
    on_block_sent(NULL, UCS_OK, b);
    return request ? to_errno(UCS_PTR_STATUS(request)) : 0;
}

int ux_send(ux_t *u, int peer, uint64_t tag, const char *head, size_t head_length, const char *tail, size_t tail_length)
{
    enter(u);
    int status = send_locked(u, peer, tag, head, head_length, tail, tail_length);
    leave(u);
    return status;
}

/* --- serving: bulk -------------------------------------------------------------------------------------------------- */

static struct transfer *take_transfer(ux_t *u)
{
    struct transfer *t = u->free_transfers;
    if (t) {
        u->free_transfers = t->next;
    } else {
        if (u->transfer_count == u->transfer_room) {
            uint32_t room = u->transfer_room ? 2 * u->transfer_room : 64;
            struct transfer **grown = realloc(u->transfers, room * sizeof *grown);
            if (!grown)
                return NULL;
            u->transfers = grown;
            u->transfer_room = room;
        }
        t = calloc(1, sizeof *t);
        if (!t)
            return NULL;
        t->u = u;
        t->index = u->transfer_count;
        u->transfers[u->transfer_count++] = t;
    }
    t->live = 1;
    t->next = NULL;
    t->request = NULL;
    t->status = 0;
    t->length = 0;
    return t;
}

static void transfer_ended(struct transfer *t, ucs_status_t status, size_t length)
{
    t->request = NULL;
    t->status = to_errno(status);
    t->length = (uint32_t)length;
    *t->u->ended_tail = t;
    t->u->ended_tail = &t->next;
}

static void on_transfer_sent(void *request, ucs_status_t status, void *arg)
{
    transfer_ended(arg, status, 0);
    ucp_request_free(request);
}

static void on_transfer_received(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info, void *arg)
{
    transfer_ended(arg, status, status == UCS_OK ? info->length : 0);
    ucp_request_free(request);
}

/* The result of ux_transfer_*: of what is done already there is no event, unless it failed. */
static int64_t transfer_started(struct transfer *t, void *request)
{
    if (UCS_PTR_IS_PTR(request)) {
        t->request = request;
        return token_of(t);
    }
    release_transfer(t);
    return request ? to_errno(UCS_PTR_STATUS(request)) : 0;
}

int64_t ux_transfer_send(ux_t *u, int peer, uint64_t tag, uintptr_t data, size_t length)
{
    int64_t result = -ENOTCONN;
    enter(u);
    struct peer *p = find(u, peer);
    struct transfer *t = p && !p->failed ? take_transfer(u) : NULL;
    if (t) {
        ucp_request_param_t param = {
            .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
            .cb.send = on_transfer_sent,
            .user_data = t,
            .memory_type = UCS_MEMORY_TYPE_HOST,
        };
        result = transfer_started(t, ucp_tag_send_nbx(p->ep, (void *)data, length, tag, &param));
    }
    leave(u);
    return result;
}

int64_t ux_transfer_receive(ux_t *u, uint64_t tag, uintptr_t data, size_t length)
{
    int64_t result = -ENOMEM;
    enter(u);
    struct transfer *t = take_transfer(u);
    if (t) {
        ucp_tag_recv_info_t info;
        ucp_request_param_t param = {
            .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE |
                            UCP_OP_ATTR_FIELD_RECV_INFO,
            .cb.recv = on_transfer_received,
            .user_data = t,
            .memory_type = UCS_MEMORY_TYPE_HOST,
            .recv_info.tag_info = &info,
        };
        result = transfer_started(t, ucp_tag_recv_nbx(u->worker, (void *)data, length, tag, ~0ULL, &param));
        if (result == 0 && info.length != length)
            result = -EPROTO;
    }
    leave(u);
    return result;
}

void ux_transfer_cancel(ux_t *u, int64_t token)
{
    uint32_t index = (uint32_t)token - 1;
    enter(u);
    if (index < u->transfer_count && u->transfers[index]->live && token_of(u->transfers[index]) == token &&
        u->transfers[index]->request)
        ucp_request_cancel(u->worker, u->transfers[index]->request);
    leave(u);
}

void ux_purge(ux_t *u, uint64_t tag, uint64_t mask)
{
    ucp_tag_recv_info_t info;
    ucp_tag_message_h handle;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE, .memory_type = UCS_MEMORY_TYPE_HOST};
    enter(u);
    while ((handle = ucp_tag_probe_nb(u->worker, tag, mask, 1, &info))) {
        void *request = ucp_tag_msg_recv_nbx(u->worker, NULL, 0, handle, &param);
        if (UCS_PTR_IS_PTR(request))
            ucp_request_free(request);
    }
    leave(u);
}

/* --- opening and closing -------------------------------------------------------------------------------------------- */

void ux_patience(ux_t *u, int64_t pure_ns, int64_t spin_ns)
{
    u->pure_ns = pure_ns;
    u->spin_ns = spin_ns;
}

int ux_sleeps(ux_t *u)
{
    return u->sleeps;
}

int ux_address(ux_t *u, void *out, int room)
{
    ucp_address_t *address;
    size_t length;
    enter(u);
    ucs_status_t status = ucp_worker_get_address(u->worker, &address, &length);
    if (status == UCS_OK) {
        if (length <= (size_t)room)
            memcpy(out, address, length);
        ucp_worker_release_address(u->worker, address);
    }
    leave(u);
    return status != UCS_OK ? to_errno(status) : length > (size_t)room ? -EMSGSIZE : (int)length;
}

static ucs_status_t open_worker(ux_t *u, const char *const *pairs, int count, const char **what)
{
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    *what = "reading the settings";
    if (status != UCS_OK)
        return status;
    for (int i = 0; i < count && status == UCS_OK; i++) {
        *what = pairs[2 * i];
        status = ucp_config_modify(config, pairs[2 * i], pairs[2 * i + 1]);
    }
    if (status == UCS_OK) {
        ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP};
        *what = "no transport of MADFS_UCX_TLS can be used";
        status = ucp_init(&params, config, &u->context);
    }
    ucp_config_release(config);
    if (status != UCS_OK)
        return status;
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    *what = "creating the worker";
    status = ucp_worker_create(u->context, &params, &u->worker);
    if (status != UCS_OK)
        return status;
    *what = "the event descriptor";
    return ucp_worker_get_efd(u->worker, &u->efd);
}

static int open_descriptors(ux_t *u)
{
    struct epoll_event event = {.events = EPOLLIN};
    u->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    u->doors = epoll_create1(EPOLL_CLOEXEC);
    u->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (u->wake < 0 || u->doors < 0 || u->epoll < 0 || epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->wake, &event) < 0 ||
        epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->doors, &event) < 0 || epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->efd, &event) < 0)
        return -errno;
    return 0;
}

ux_t *ux_open(const char *const *pairs, int count, char *error, size_t room)
{
    ux_t *u = calloc(1, sizeof *u);
    if (!u) {
        snprintf(error, room, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&u->lock, NULL);
    u->wake = u->doors = u->epoll = u->efd = -1;
    u->ended_tail = &u->ended;
    sigset_t all, old; /* UCX may start its thread here: it is to take no signals */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const char *what = "";
    ucs_status_t status = open_worker(u, pairs, count, &what);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (status != UCS_OK)
        snprintf(error, room, "%s: %s", what, ucs_status_string(status));
    else if (open_descriptors(u) < 0)
        snprintf(error, room, "descriptors: %s", strerror(errno));
    else
        return u;
    ux_close(u);
    return NULL;
}

void ux_abandon(ux_t *u)
{
    close(u->wake);
    close(u->doors);
    close(u->epoll);
}

void ux_close(ux_t *u)
{
    for (int i = 0; i < u->peer_count; i++)
        if (u->peers[i])
            ux_disconnect(u, u->peers[i]->handle);
    int64_t deadline = now_ns() + GRACE_NS;
    while (u->closing && now_ns() < deadline)
        ucp_worker_progress(u->worker);
    if (u->worker)
        ucp_worker_destroy(u->worker);
    if (u->context)
        ucp_cleanup(u->context);
    for (int *fd = (int[]){u->wake, u->doors, u->epoll, -1}; *fd >= 0; fd++)
        close(*fd);
    for (uint32_t i = 0; i < u->transfer_count; i++)
        free(u->transfers[i]);
    for (struct block *b = u->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    if (u->arena)
        munmap(u->arena, (size_t)UX_SLOTS * UX_MESSAGE_MAX);
    free(u->messages);
    free(u->transfers);
    free(u->peers);
    free(u->generations);
    pthread_mutex_destroy(&u->lock);
    free(u);
}

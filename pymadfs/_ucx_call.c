/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calling and waiting.
 *
 * One worker per process, guarded by one mutex.  A thread that waits is a `waiter`; it is in one of three roles:
 *
 *   spinner   progresses the worker, lock held but for moments when others want it.  At most one.
 *   poller    sleeps in epoll without the lock, after arming the worker.  At most one.
 *   follower  sleeps on its own futex until its calls are done or it is promoted.
 *
 * Invariant: while somebody waits, there is a spinner, or a poller and the worker is armed since its last progress, or
 * a follower on its way to become one.  Whoever stops to spin restores it (see hand_over()).
 *
 * A call ends when its reply, its sends and the bulk that the reply announces are done; or when it fails, by its
 * deadline or its peer's death.  Then what is still under way is cancelled and drained before the caller returns,
 * because it refers to the caller's memory.
 */
#include "_ucx_inner.h"

/* --- calls -------------------------------------------------------------------------------------------------------- */

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
    ux_settle(c->p->u, c);
}

static void part_done(struct part *part, int which, ucs_status_t status)
{
    ux_call_t *c = part->call;
    c->pending &= ~(1u << which);
    part->request = NULL;
    if (c->settled)
        return;
    if (status != UCS_OK)
        ux_fail_call(c->p->u, c, ux_errno(status));
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
    if (UCS_PTR_IS_ERR(request)) /* of a message that could not be sent nothing is ever received */
        ux_fail_call(c->p->u, c, which >= MESSAGE_SEND ? -ECOMM : ux_errno(UCS_PTR_STATUS(request)));
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

/* Header, tail and small data as one message: copied together when that is cheaper, else from where they are. */
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
    c->p = u->shut ? NULL : ux_find(u, c->peer);
    if (!c->p || c->p->failed) {
        c->p = NULL;
        ux_fail_call(u, c, u->shut ? -ESHUTDOWN : -ENOTCONN);
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

/* Until nothing of the call is under way, or time is over. */
static void progress(ux_t *u, ux_call_t *c, int64_t deadline)
{
    while (c->pending && ux_now_ns() < deadline)
        if (!ucp_worker_progress(u->worker)) {
            ux_leave(u);
            sched_yield();
            ux_enter(u);
        }
}

/*
 * A failed call's transfers must not outlive it: cancel what can be, wait a little for the rest, then cut the
 * connection.  UCX promises that this ends all requests on it, so there is no limit to the second wait: to return with
 * one under way would let it write to memory that is not ours any more.
 */
static void drain(ux_t *u, ux_call_t *c)
{
    for (int which = REPLY; which <= BULK_RECEIVE; which++)
        if (c->pending & 1u << which)
            ucp_request_cancel(u->worker, c->part[which].request);
    if (!c->pending)
        return;
    if (!c->p->failed)
        progress(u, c, ux_now_ns() + (u->shut ? SHUT_NS : GRACE_NS));
    if (c->pending) {
        ux_peer_fail(c->p);
        ux_cut(c->p);
        progress(u, c, INT64_MAX);
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
    ux_free_if_unused(p);
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

/* --- waiting ------------------------------------------------------------------------------------------------------ */

/* Sleep until woken as done or as the next to spin.  Lock held before and after. */
static void follow(ux_t *u, struct waiter *w, int64_t deadline)
{
    atomic_store(&w->word, 0);
    w->following = 1;
    w->next = u->followers;
    u->followers = w;
    ux_leave(u);
    int64_t begun = ux_now_ns();
    while (!atomic_load(&w->word) && ux_now_ns() - begun < u->spin_ns)
        sched_yield();
    int64_t left = deadline - ux_now_ns();
    if (left > FOLLOW_NS)
        left = FOLLOW_NS;
    struct timespec timeout = {0, left > 0 ? left : 0};
    if (!atomic_load(&w->word))
        syscall(SYS_futex, &w->word, FUTEX_WAIT_PRIVATE, 0, &timeout, NULL, 0);
    ux_enter(u);
    w->following = 0;
    for (struct waiter **link = &u->followers; *link; link = &(*link)->next)
        if (*link == w) {
            *link = w->next;
            break;
        }
}

/* Nothing came for a while: sleep until something does, SLEEP_MS at most.  Lock held before and after. */
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
    ux_leave(u);
    int64_t left_ms = (deadline - ux_now_ns()) / 1000000 + 1;
    struct epoll_event events[4];
    epoll_wait(u->epoll, events, 4, left_ms < 0 ? 0 : left_ms > SLEEP_MS ? SLEEP_MS : (int)left_ms);
    ux_enter(u);
    u->poller = NULL;
    uint64_t count;
    if (read(u->wake, &count, sizeof count) < 0)
        count = 0; /* it was not what woke us */
    ux_look_around(u, ux_now_ns());
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
            ux_wake(u, u->followers);
        return;
    }
    for (int i = 0; i < PROGRESS_MAX; i++) { /* the poller armed before we progressed */
        if (ucp_worker_arm(u->worker) != UCS_ERR_BUSY)
            return;
        ucp_worker_progress(u->worker);
    }
    ux_wake(u, u->poller);
}

/* The time.  While this process was stopped (Ctrl-Z, a batch system) nobody could answer it: that does not count. */
static int64_t look(int64_t last, int64_t *deadline)
{
    int64_t now = ux_now_ns();
    if (now - last > STOPPED_NS)
        *deadline += now - last;
    return now;
}

/* Until all calls of `w` are settled or time is over.  Lock held before and after. */
static void await(ux_t *u, struct waiter *w, int64_t begun, int64_t deadline)
{
    int64_t quiet = begun, now = begun;
    unsigned turn = 0;
    while (w->open) {
        if (u->spinner && u->spinner != w) {
            follow(u, w, deadline);
            if (w->open && (now = look(now, &deadline)) > deadline)
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
        now = look(now, &deadline);
        if (!quiet)
            quiet = now;
        if (now > deadline || !w->open)
            break;
        if (now - u->looked_ns > LOOK_NS)
            ux_look_around(u, now);
        if (now - quiet >= u->spin_ns) {
            doze(u, w, deadline);
            quiet = 0;
        } else if (now - quiet >= u->pure_ns || atomic_load(&u->wanted)) {
            ux_leave(u);
            sched_yield();
            ux_enter(u);
        }
    }
    hand_over(u, w);
}

static void run(ux_t *u, ux_call_t **calls, int count, int64_t timeout_us)
{
    struct waiter w = {.open = count};
    int64_t begun = ux_now_ns(), deadline = begun + timeout_us * 1000;
    ux_enter(u);
    u->users++;
    if (!u->shut && begun - u->looked_ns > LOOK_NS)
        ux_look_around(u, begun);
    for (int i = 0; i < count; i++)
        post(u, calls[i], &w);
    if (w.open)
        await(u, &w, begun, deadline);
    for (int i = 0; i < count; i++)
        ux_fail_call(u, calls[i], -ETIMEDOUT);
    for (int i = 0; i < count; i++)
        calls[i]->result = conclude(u, calls[i]);
    u->users--;
    ux_leave(u);
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

/* SPDX-License-Identifier: Apache-2.0 */
/* The serving side of the UCX binding: requests come in batches, replies are copied and sent, bulk is tracked. */
#include "_ucx_inner.h"

/* --- serving: messages -------------------------------------------------------------------------------------------- */

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
    ux_enter(u);
    int status = u->arena ? 0 : make_arena(u);
    ux_leave(u);
    return status ? NULL : u->arena;
}

static void on_message(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info, void *arg)
{
    struct message *m = arg;
    m->status = ux_errno(status);
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
    m->status = request ? ux_errno(UCS_PTR_STATUS(request)) : 0;
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
        events[count++] = (ux_event_t){
            .tag = token_of(t), .length = t->length, .status = t->status, .what = UX_TRANSFER};
        release_transfer(t);
    }
    while (u->ready_count < limit - count && take_message(u) >= 0)
        ;
    int taken = 0;
    for (; count < limit && taken < u->ready_count; taken++) {
        struct message *m = &u->messages[u->ready[taken]];
        events[count++] = (ux_event_t){
            .tag = m->tag, .offset = (uint64_t)m->slot * UX_MESSAGE_MAX, .length = m->length, .status = m->status,
            .what = UX_MESSAGE};
        u->handed[u->handed_count++] = m->slot;
    }
    u->ready_count -= taken;
    memmove(u->ready, u->ready + taken, u->ready_count * sizeof u->ready[0]);
    return count;
}

int ux_poll(ux_t *u, uint64_t tag_mask, ux_event_t *events, int limit, int64_t spin_us)
{
    int count = 0;
    int64_t begun = ux_now_ns(), now = begun;
    ux_enter(u);
    if (begun - u->looked_ns > LOOK_SOON_NS)
        ux_look_around(u, begun);
    u->tag_mask = tag_mask;
    if (!u->arena && make_arena(u) < 0) {
        ux_leave(u);
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
        now = ux_now_ns();
        if (now - begun >= spin_us * 1000)
            break;
        if (now - begun >= u->pure_ns) {
            ux_leave(u);
            sched_yield();
            ux_enter(u);
        }
    }
    ux_leave(u);
    return count;
}

int ux_fd(ux_t *u)
{
    return u->epoll;
}

int ux_arm(ux_t *u)
{
    ucp_tag_recv_info_t info;
    ux_enter(u);
    int safe = !u->ended && !u->ready_count && !ucp_tag_probe_nb(u->worker, 0, u->tag_mask, 0, &info) &&
               ucp_worker_arm(u->worker) != UCS_ERR_BUSY;
    ux_leave(u);
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
    struct peer *p = ux_find(u, peer);
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
    return request ? ux_errno(UCS_PTR_STATUS(request)) : 0;
}

int ux_send(ux_t *u, int peer, uint64_t tag, const char *head, size_t head_length, const char *tail, size_t tail_length)
{
    ux_enter(u);
    int status = send_locked(u, peer, tag, head, head_length, tail, tail_length);
    ux_leave(u);
    return status;
}

/* --- serving: bulk ------------------------------------------------------------------------------------------------ */

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
    t->status = ux_errno(status);
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
    return request ? ux_errno(UCS_PTR_STATUS(request)) : 0;
}

int64_t ux_transfer_send(ux_t *u, int peer, uint64_t tag, uintptr_t data, size_t length)
{
    int64_t result = -ENOTCONN;
    ux_enter(u);
    struct peer *p = ux_find(u, peer);
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
    ux_leave(u);
    return result;
}

int64_t ux_transfer_receive(ux_t *u, uint64_t tag, uintptr_t data, size_t length)
{
    int64_t result = -ENOMEM;
    ux_enter(u);
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
    ux_leave(u);
    return result;
}

void ux_transfer_cancel(ux_t *u, int64_t token)
{
    uint32_t index = (uint32_t)token - 1;
    ux_enter(u);
    if (index < u->transfer_count && u->transfers[index]->live && token_of(u->transfers[index]) == token &&
        u->transfers[index]->request)
        ucp_request_cancel(u->worker, u->transfers[index]->request);
    ux_leave(u);
}

void ux_purge(ux_t *u, uint64_t tag, uint64_t mask)
{
    ucp_tag_recv_info_t info;
    ucp_tag_message_h handle;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE, .memory_type = UCS_MEMORY_TYPE_HOST};
    ux_enter(u);
    while ((handle = ucp_tag_probe_nb(u->worker, tag, mask, 1, &info))) {
        void *request = ucp_tag_msg_recv_nbx(u->worker, NULL, 0, handle, &param);
        if (UCS_PTR_IS_PTR(request))
            ucp_request_free(request);
    }
    ux_leave(u);
}

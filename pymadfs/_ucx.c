/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thin layer over libucp that _ucx.h declares: settings, opening and closing, peers.  Calls are in _ucx_call.c, the
 * serving side in _ucx_serve.c.
 */
#include "_ucx_inner.h"

/* --- what UCX must not see ---------------------------------------------------------------------------------------- */

char *Getenv(const char *name);
FILE *Fopen(const char *path, const char *mode);
int Scandir(const char *path, struct dirent ***names, int (*filter)(const struct dirent *),
            int (*compare)(const struct dirent **, const struct dirent **));
ucs_status_t Uct_iface_open(uct_md_h md, uct_worker_h worker, const uct_iface_params_t *params,
                            const uct_iface_config_t *config, uct_iface_h *iface);

/* No hooks in the application's memory functions, no signal handlers, no words of its own. */
static const char *const settings[][2] = {
    {"UCX_MEM_EVENTS", "n"},        {"UCX_ERROR_SIGNALS", ""}, {"UCX_HANDLE_ERRORS", "none"},
    {"UCX_DEBUG_SIGNO", "0"},       {"UCX_VFS_ENABLE", "n"},   {"UCX_WARN_UNUSED_ENV_VARS", "n"},
    {"UCX_LOG_FILE", "stderr"},     {"UCX_LOG_LEVEL", "fatal"},
    /* Its modules are linked in; those it finds elsewhere would bring another UCX with them. */
    {"UCX_MODULES", "^*"}, {"UCX_MODULE_DIR", ""},
};

/* What our copy of UCX calls instead of getenv (_ucx_private.py): UCX_* variables are for the application's own. */
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

/*
 * And instead of uct_iface_open, with which it opens shared memory among others.  A connection that is cut is flushed,
 * so that nothing of it is under way any more, and only then do receives that wait for its data end.  But shared memory
 * takes no flush while the other side's queue is full, also when that is to cancel what it holds: with a killed server
 * that never ends (uct_mm_ep_flush of UCX 1.22).  Nothing is under way by itself there: a message is in the queue, or
 * waits in a list that was emptied before the flush.
 */
static uct_ep_flush_func_t flush_of_shared_memory;

static ucs_status_t flush(uct_ep_h ep, unsigned flags, uct_completion_t *done)
{
    ucs_status_t status = flush_of_shared_memory(ep, flags, done);
    return status == UCS_ERR_NO_RESOURCE && flags & UCT_FLUSH_FLAG_CANCEL ? UCS_OK : status;
}

ucs_status_t Uct_iface_open(uct_md_h md, uct_worker_h worker, const uct_iface_params_t *params,
                            const uct_iface_config_t *config, uct_iface_h *iface)
{
    ucs_status_t status = uct_iface_open(md, worker, params, config, iface);
    if (status == UCS_OK && params->field_mask & UCT_IFACE_PARAM_FIELD_DEVICE &&
        (strcmp(params->mode.device.tl_name, "sysv") == 0 || strcmp(params->mode.device.tl_name, "posix") == 0)) {
        flush_of_shared_memory = (*iface)->ops.ep_flush; /* the same of both */
        (*iface)->ops.ep_flush = flush;
    }
    return status;
}

static int devices_wanted; /* by the ux_open() that is under way */

/*
 * And instead of scandir, with which it looks for network devices: it asks the kernel for everything about each of
 * them, also when it is told to use none.
 */
int Scandir(const char *path, struct dirent ***names, int (*filter)(const struct dirent *),
            int (*compare)(const struct dirent **, const struct dirent **))
{
    if (devices_wanted)
        return scandir(path, names, filter, compare);
    *names = NULL;
    return 0;
}

/* Whether a list of transports (UCX_TLS) has others than those within one machine. */
static int needs_devices(const char *transports)
{
    static const char *const within[] = {"self", "sysv", "posix", "cma"};

    for (size_t length; *transports; transports += length + (transports[length] == ',')) {
        int found = 0;
        length = strcspn(transports, ",");
        for (size_t i = 0; i < sizeof within / sizeof *within; i++)
            found |= strlen(within[i]) == length && strncmp(transports, within[i], length) == 0;
        if (!found)
            return 1;
    }
    return 0;
}

/* --- locking and waking ------------------------------------------------------------------------------------------- */

int64_t ux_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int ux_errno(ucs_status_t status)
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
void ux_enter(ux_t *u)
{
    if (pthread_mutex_trylock(&u->lock) == 0)
        return;
    atomic_fetch_add(&u->wanted, 1);
    pthread_mutex_lock(&u->lock);
    atomic_fetch_sub(&u->wanted, 1);
}

void ux_leave(ux_t *u)
{
    pthread_mutex_unlock(&u->lock);
}

void ux_wake(ux_t *u, struct waiter *w)
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

void ux_settle(ux_t *u, ux_call_t *c)
{
    if (c->settled)
        return;
    c->settled = 1;
    if (atomic_fetch_sub(&c->waiter->open, 1) == 1)
        ux_wake(u, c->waiter);
}

void ux_fail_call(ux_t *u, ux_call_t *c, int status)
{
    if (c->settled)
        return;
    c->status = status;
    ux_settle(u, c);
}

/* --- peers -------------------------------------------------------------------------------------------------------- */

struct peer *ux_find(ux_t *u, int handle)
{
    int index = handle & ((1 << PEER_BITS) - 1);
    if (handle < 0 || index >= u->peer_count || !u->peers[index] || u->peers[index]->handle != handle)
        return NULL;
    return u->peers[index];
}

void ux_peer_fail(struct peer *p)
{
    if (p->failed)
        return;
    p->failed = 1;
    if (p->door >= 0)
        epoll_ctl(p->u->doors, EPOLL_CTL_DEL, p->door, NULL);
    for (ux_call_t *c = p->calls; c; c = c->after)
        ux_fail_call(p->u, c, -ECONNRESET);
}

static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    (void)ep, (void)status;
    ux_peer_fail(arg);
}

static void on_closed(void *request, ucs_status_t status, void *arg)
{
    (void)status;
    ((ux_t *)arg)->closing--;
    ucp_request_free(request);
}

/* Cut the connection: what is under way on it ends with an error. */
void ux_cut(struct peer *p)
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

void ux_free_if_unused(struct peer *p)
{
    if (!p->gone || p->calls)
        return;
    ux_cut(p);
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
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
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
        return ux_errno(status);
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.u64 = p->handle};
    if (door >= 0 && epoll_ctl(u->doors, EPOLL_CTL_ADD, door, &event) < 0) {
        int error = errno;
        ux_cut(p);
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
    ux_enter(u);
    int handle = u->shut ? -ESHUTDOWN : connect_locked(u, address, door);
    ux_leave(u);
    return handle;
}

void ux_disconnect(ux_t *u, int handle)
{
    ux_enter(u);
    struct peer *p = ux_find(u, handle);
    if (p) {
        int index = handle & ((1 << PEER_BITS) - 1);
        ux_peer_fail(p);
        p->gone = 1;
        u->peers[index] = NULL;
        u->generations[index]++;
        ux_free_if_unused(p);
    }
    ux_leave(u);
}

int ux_alive(ux_t *u, int handle)
{
    ux_enter(u);
    struct peer *p = ux_find(u, handle);
    int alive = p && !p->failed;
    ux_leave(u);
    return alive;
}

void ux_look_around(ux_t *u, int64_t now)
{
    u->looked_ns = now;
    ux_run_events(u);
    struct epoll_event events[16];
    int count = epoll_wait(u->doors, events, 16, 0);
    for (int i = 0; i < count; i++) {
        struct peer *p = ux_find(u, (int)events[i].data.u64);
        char byte[64];
        if (!p)
            continue;
        ssize_t got = recv(p->door, byte, sizeof byte, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            ux_peer_fail(p);
    }
}

/* --- opening and closing ------------------------------------------------------------------------------------------ */

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
    ux_enter(u);
    ucs_status_t status = ucp_worker_get_address(u->worker, &address, &length);
    if (status == UCS_OK) {
        if (length <= (size_t)room)
            memcpy(out, address, length);
        ucp_worker_release_address(u->worker, address);
    }
    ux_leave(u);
    return status != UCS_OK ? ux_errno(status) : length > (size_t)room ? -EMSGSIZE : (int)length;
}

static ucs_status_t open_worker(ux_t *u, const char *const *pairs, int count, const char **what)
{
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    *what = "reading the settings";
    if (status != UCS_OK)
        return status;
    devices_wanted = 1;
    for (int i = 0; i < count && status == UCS_OK; i++) {
        *what = pairs[2 * i];
        if (strcmp(pairs[2 * i], "TLS") == 0)
            devices_wanted = needs_devices(pairs[2 * i + 1]);
        status = ucp_config_modify(config, pairs[2 * i], pairs[2 * i + 1]);
    }
    if (status == UCS_OK) {
        ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                               .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP};
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
        epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->doors, &event) < 0 ||
        epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->efd, &event) < 0 ||
        epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->events, &event) < 0)
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
    u->owner = getpid();
    u->events = u->wake = u->doors = u->epoll = u->efd = -1;
    u->ended_tail = &u->ended;
    const char *what = "";
    int error_number = ux_events_open(u);
    if (error_number == 0) {
        ux_life_begin();
        ucs_status_t status = open_worker(u, pairs, count, &what);
        ux_life_end();
        if (status == UCS_OK && (error_number = open_descriptors(u)) == 0)
            return u;
        if (status != UCS_OK)
            snprintf(error, room, "%s: %s", what, ucs_status_string(status));
    }
    if (error_number)
        snprintf(error, room, "descriptors: %s", strerror(-error_number));
    ux_close(u);
    ux_free(u);
    return NULL;
}

void ux_abandon(ux_t *u)
{
    close(u->wake);
    close(u->doors);
    close(u->epoll);
    ux_events_close(u);
}

/* Nobody is in a call any more, and nobody gets in.  -> whether it was so already. */
static int shut(ux_t *u)
{
    ux_enter(u);
    int before = u->shut;
    u->shut = 1;
    for (int i = 0; i < u->peer_count; i++)
        for (ux_call_t *c = u->peers[i] ? u->peers[i]->calls : NULL; c; c = c->after)
            ux_fail_call(u, c, -ESHUTDOWN);
    while (u->users) {
        ux_leave(u);
        sched_yield();
        ux_enter(u);
    }
    ux_leave(u);
    return before;
}

void ux_close(ux_t *u)
{
    if (shut(u))
        return;
    for (int i = 0; i < u->peer_count; i++)
        if (u->peers[i])
            ux_disconnect(u, u->peers[i]->handle);
    int64_t deadline = ux_now_ns() + GRACE_NS;
    while (u->closing && ux_now_ns() < deadline)
        ucp_worker_progress(u->worker);
    ux_life_begin();
    if (u->worker)
        ucp_worker_destroy(u->worker);
    if (u->context)
        ucp_cleanup(u->context);
    ux_life_end();
    ux_events_close(u);
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
    u->peer_count = 0;
}

void ux_free(ux_t *u)
{
    if (!u->shut && u->owner != getpid()) { /* the parent's: what UCX shares with others must not be touched here */
        ux_abandon(u);
        return;
    }
    ux_close(u); /* unless it was */
    pthread_mutex_destroy(&u->lock);
    free(u);
}

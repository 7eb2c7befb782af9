/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UCX's asynchronous events (a connection at its TCP listener, a device's event, a timer) without UCX's thread.
 *
 * The four ucs_async_ functions below come before those of UCX's own library in the order in which the dynamic linker
 * looks for them.  Handlers run within our progress, under the worker's lock.  A thread would cost every process of a
 * job; and at fork it may hold a lock of UCX that the child then waits for in vain, and the child would share
 * its epoll set with the parent.
 */
#include "_ucx_inner.h"

#include <sys/timerfd.h>
#include <ucs/async/async_fwd.h>

double ucs_arch_get_clocks_per_sec(void); /* of libucs: ticks of ucs_time_t in a second */

struct handler {
    struct handler *next;
    ux_t *u;
    int id; /* the descriptor */
    int timer;
    ucs_async_event_cb_t call;
    void *arg;
};

static pthread_mutex_t life = PTHREAD_MUTEX_INITIALIZER; /* held while UCX is initialised or ended */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the three below */
static struct handler *handlers;
static ux_t *all;    /* what is open, linked by `other` */
static ux_t *opened; /* the latest: to it belongs what is registered */

static struct handler **find_handler(int id)
{
    struct handler **link = &handlers;
    while (*link && (*link)->id != id)
        link = &(*link)->next;
    return link;
}

static uint32_t epoll_bits(ucs_event_set_types_t events)
{
    return (events & UCS_EVENT_SET_EVREAD ? EPOLLIN : 0u) | (events & UCS_EVENT_SET_EVWRITE ? EPOLLOUT : 0u) |
           (events & UCS_EVENT_SET_EVERR ? EPOLLERR : 0u) | (events & UCS_EVENT_SET_EDGE_TRIGGERED ? EPOLLET : 0u);
}

static ucs_status_t add(int fd, ucs_event_set_types_t events, int timer, ucs_async_event_cb_t call, void *arg)
{
    struct handler *h = malloc(sizeof *h);
    ucs_status_t status = UCS_OK;
    if (!h)
        return UCS_ERR_NO_MEMORY;
    pthread_mutex_lock(&lock);
    *h = (struct handler){.next = handlers, .u = opened, .id = fd, .timer = timer, .call = call, .arg = arg};
    struct epoll_event event = {.events = epoll_bits(events), .data.fd = fd};
    if (*find_handler(fd))
        status = UCS_ERR_ALREADY_EXISTS;
    else if (!opened || epoll_ctl(opened->events, EPOLL_CTL_ADD, fd, &event) < 0)
        status = UCS_ERR_IO_ERROR;
    if (status == UCS_OK)
        handlers = h;
    pthread_mutex_unlock(&lock);
    if (status != UCS_OK)
        free(h);
    return status;
}

ucs_status_t ucs_async_set_event_handler(ucs_async_mode_t mode, int event_fd, ucs_event_set_types_t events,
                                         ucs_async_event_cb_t cb, void *arg, ucs_async_context_t *async)
{
    (void)mode, (void)async;
    return add(event_fd, events, 0, cb, arg);
}

ucs_status_t ucs_async_add_timer(ucs_async_mode_t mode, ucs_time_t interval, ucs_async_event_cb_t cb, void *arg,
                                 ucs_async_context_t *async, int *timer_id_p)
{
    (void)mode, (void)async;
    double seconds = (double)interval / ucs_arch_get_clocks_per_sec();
    struct timespec each = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd < 0)
        return UCS_ERR_IO_ERROR;
    timerfd_settime(fd, 0, &(struct itimerspec){each, each}, NULL);
    ucs_status_t status = add(fd, UCS_EVENT_SET_EVREAD, 1, cb, arg);
    if (status != UCS_OK)
        close(fd);
    else
        *timer_id_p = fd;
    return status;
}

ucs_status_t ucs_async_modify_handler(int fd, ucs_event_set_types_t events)
{
    struct epoll_event event = {.events = epoll_bits(events), .data.fd = fd};
    ucs_status_t status = UCS_ERR_NO_ELEM;
    pthread_mutex_lock(&lock);
    struct handler *h = *find_handler(fd);
    if (h)
        status = epoll_ctl(h->u->events, EPOLL_CTL_MOD, fd, &event) < 0 ? UCS_ERR_IO_ERROR : UCS_OK;
    pthread_mutex_unlock(&lock);
    return status;
}

/* `sync` asks that the handler is not running any more: handlers run on the thread that progresses, as does this. */
ucs_status_t ucs_async_remove_handler(int id, int sync)
{
    (void)sync;
    pthread_mutex_lock(&lock);
    struct handler **link = find_handler(id), *h = *link;
    if (h) {
        epoll_ctl(h->u->events, EPOLL_CTL_DEL, id, NULL);
        *link = h->next;
        if (h->timer)
            close(id);
    }
    pthread_mutex_unlock(&lock);
    free(h);
    return h ? UCS_OK : UCS_ERR_NO_ELEM;
}

/* Run the handlers whose descriptors are ready.  The worker's lock is held. */
void ux_run_events(ux_t *u)
{
    struct epoll_event ready[16];
    int count = epoll_wait(u->events, ready, 16, 0);
    for (int i = 0; i < count; i++) {
        pthread_mutex_lock(&lock);
        struct handler *found = *find_handler(ready[i].data.fd), h = found ? *found : (struct handler){.call = NULL};
        pthread_mutex_unlock(&lock);
        uint64_t ticks;
        if (!h.call || h.u != u || (h.timer && read(h.id, &ticks, sizeof ticks) < 0))
            continue; /* an earlier handler of this round has removed it */
        uint32_t bits = ready[i].events;
        ucs_event_set_types_t events = (bits & EPOLLIN ? UCS_EVENT_SET_EVREAD : 0) |
                                       (bits & EPOLLOUT ? UCS_EVENT_SET_EVWRITE : 0) |
                                       (bits & (EPOLLERR | EPOLLHUP) ? UCS_EVENT_SET_EVERR : 0);
        h.call(h.id, h.timer ? 0 : events, h.arg);
    }
}

/* --- fork --------------------------------------------------------------------------------------------------------- */

/* No thread may be inside UCX when the process is copied: the child would find its locks taken. */
void ux_fork_begins(void)
{
    pthread_mutex_lock(&life);
    pthread_mutex_lock(&lock);
    for (ux_t *u = all; u; u = u->other) {
        pthread_mutex_unlock(&lock); /* who holds a worker's lock may want this one */
        ux_enter(u);
        pthread_mutex_lock(&lock);
    }
}

void ux_fork_ends(void)
{
    for (ux_t *u = all; u; u = u->other)
        ux_leave(u);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&life);
}

void ux_life_begin(void)
{
    pthread_mutex_lock(&life);
}

void ux_life_end(void)
{
    pthread_mutex_unlock(&life);
}

/* Where nobody else sees to it: the embedded client's host calls the two itself. */
__attribute__((weak)) int ux_embedded(void)
{
    return 0;
}

/* At load, so that these come before other handlers in the child: Python's abandons the worker there. */
__attribute__((constructor)) static void at_load(void)
{
    if (!ux_embedded())
        pthread_atfork(ux_fork_begins, ux_fork_ends, ux_fork_ends);
}

/* From now on what UCX registers belongs to `u`.  -> 0 or -errno. */
int ux_events_open(ux_t *u)
{
    u->events = epoll_create1(EPOLL_CLOEXEC);
    if (u->events < 0)
        return -errno;
    pthread_mutex_lock(&lock);
    u->other = all;
    all = opened = u;
    pthread_mutex_unlock(&lock);
    return 0;
}

/* Forget `u` and what is left of its handlers. */
void ux_events_close(ux_t *u)
{
    pthread_mutex_lock(&lock);
    for (struct handler **link = &handlers, *h; (h = *link);) {
        if (h->u == u) {
            *link = h->next;
            free(h);
        } else {
            link = &h->next;
        }
    }
    for (ux_t **link = &all; *link; link = &(*link)->other)
        if (*link == u) {
            *link = u->other;
            break;
        }
    if (opened == u)
        opened = all;
    pthread_mutex_unlock(&lock);
    if (u->events >= 0)
        close(u->events);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UCX in the child of a fork.  UCX keeps one thread per process for its asynchronous events.  The child inherits what
 * is known of that thread but not the thread: a lock that it held stays locked for ever, its epoll instance is the
 * parent's too, and nobody accepts connections.  UCX has no call to begin anew, so the variables that describe the
 * thread and its handlers are put back to what they were when the library was loaded; what they pointed to is lost to
 * the child.  setup.py finds where they lie (ASYNC_STATE): {offset in libmfs.so.0, size} of each, in bytes.
 */
#include "_ucx_inner.h"

#include <link.h>

static const struct {
    size_t offset, size;
} state[] = {ASYNC_STATE};
enum { REGIONS = sizeof state / sizeof *state };

static char *base, *copy[REGIONS + 1]; /* copy[REGIONS] is there once all are */

static int find(struct dl_phdr_info *object, size_t size, void *unused)
{
    (void)size, (void)unused;
    const char *name = strrchr(object->dlpi_name, '/');
    if (!name || strcmp(name, "/libmfs.so.0") != 0)
        return 0;
    base = (char *)object->dlpi_addr;
    return 1;
}

int ux_keep_pristine(void)
{
    if (REGIONS == 0 || copy[REGIONS] || !dl_iterate_phdr(find, NULL))
        return 0;
    for (int i = 0; i < REGIONS; i++) {
        if (!copy[i] && !(copy[i] = malloc(state[i].size)))
            return -1;
        memcpy(copy[i], base + state[i].offset, state[i].size);
    }
    copy[REGIONS] = base;
    return 0;
}

void ux_make_pristine(void)
{
    for (int i = 0; i < REGIONS && copy[REGIONS]; i++)
        memcpy(base + state[i].offset, copy[i], state[i].size);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Thread-local variables of the runtime and of the libraries that it has loaded. */
#define _GNU_SOURCE
#include <link.h>
#include <stdbool.h>

#include "bridge.h"

#define MODULES_MAX 32

struct tls_modules {
    int count;
    struct {
        unsigned long module, offset; /* what __tls_get_addr() takes */
    } at[MODULES_MAX];
};
extern void *__tls_get_addr(void *);

/* Not by functions of libc: those of ThreadSanitizer would take the loader's strings for ones that threads race for. */
static bool begins(const char *text, const char *with)
{
    while (*with && *text == *with) {
        text++;
        with++;
    }
    return !*with;
}

static int note_module(struct dl_phdr_info *info, size_t size, void *found)
{
    struct tls_modules *modules = found;
    const char *name = "";

    (void)size;
    for (const char *at = info->dlpi_name; *at; at++)
        if (*at == '/')
            name = at;
    bool ours = begins(name, "/libmf") || begins(name, "/libmadfs_");
    if (ours && info->dlpi_tls_modid && modules->count < MODULES_MAX)
        modules->at[modules->count++].module = info->dlpi_tls_modid;
    return 0;
}

/*
 * A thread's first use of a thread-local variable of UCX or cffi takes a lock of the loader's.  Whoever loads a library
 * that lies on the mount has that lock and may wait for one of ours, so it is taken before any of those.
 */
void make_thread_locals(void)
{
    struct tls_modules modules = {0};

    dl_iterate_phdr(note_module, &modules);
    for (int i = 0; i < modules.count; i++)
        (void)__tls_get_addr(&modules.at[i]);
}

// SPDX-License-Identifier: Apache-2.0
// Internal types of the shim, in the order of the story: a site is found (scan), rewritten (patch), entered (entry.S),
// judged (dispatch) and answered (fds, path, process, runtime) with nothing but raw system calls (raw).
//
// Everything here is compiled for general registers only, so the application's vector registers stay as they are;
// what may touch them (the runtime, the dynamic loader) is called through arch_preserve().
#ifndef MADFS_INTERCEPT_H
#define MADFS_INTERCEPT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "host.h"

#define MADFS_UNLIKELY(condition) __builtin_expect(!!(condition), 0)

enum {
  MADFS_ROWS = 512,                    // system call numbers with a row; higher ones go to the kernel
  MADFS_CLASSES = 1 << 16,             // what the stubs index with 16 bits of the number
  MADFS_HOOK_STACK_BYTES = 320 << 10,  // stack of a call that is ours
  MADFS_ALTERNATE_BYTES = 128 << 10,   // stack for the signals of a crash
  MADFS_POINTER_MIN = 64 << 10,        // lower addresses are never mapped: the kernel says EFAULT
  MADFS_VFORK_DEPTH = 4,               // vfork in a child of vfork in ...
};

// --- a rewritten system call instruction ----------------------------------------------------------------------------

// The entry code reads the first two by offset.
struct madfs_site {
  const void *pass;     // where the intact system call instruction is: jump there and the kernel does it
  const void *after;    // what follows it: jump there with the result in place
  const void *address;  // where the instruction was in the object
};

// The registers at a site, saved by entry.S on the application's stack.
struct madfs_frame {
  long number;  // of the system call; the result when the call was answered
  unsigned long argument[6];
  const struct madfs_site *site;
};

// --- what each system call means ------------------------------------------------------------------------------------

enum madfs_verdict { MADFS_PASS, MADFS_DONE };

// KERNEL: left to the kernel for a reason that ops.py gives; only counted, and only when somebody traces.
enum { ROW_NONE, ROW_KERNEL, ROW_CALL, ROW_REFUSE, ROW_SHIM };
enum { ROUTE_NAMES, ROUTE_FD };  // FD: parameter 0 is the only one that can make the call ours
enum { PARAMETER_NONE, PARAMETER_AT, PARAMETER_FD, PARAMETER_STR, PARAMETER_INT, PARAMETER_NARROW, PARAMETER_CONSTANT };

struct madfs_parameter {
  uint8_t kind;
  int8_t directory;  // AT: argument with the directory's descriptor, -1 for AT_FDCWD
  int8_t argument;
  int32_t value;  // CONSTANT
};

// A call that C answers.  `concerns` runs on the application's stack and must be quick; `work` on the hook stack.
// Without `work`, what concerns us is answered when `concerns` returns.
struct madfs_shim {
  bool (*concerns)(struct madfs_frame *);
  enum madfs_verdict (*work)(struct madfs_frame *);
};

struct madfs_row {
  uint8_t kind, route, count, empty_count;
  uint8_t flags;  // 1 + argument that may hold AT_EMPTY_PATH
  uint8_t null;   // a NULL path alone means the empty call
  int16_t refuse, call, empty_call;
  const struct madfs_shim *shim;
  struct madfs_parameter parameter[6], empty_parameter[6];
};

enum {
#define CALL(name, number) CALL_##name = number,
#include "syscalls.def"
#undef CALL
  CALL_EXITING = -1,  // for an agent (tables.c): the process ends
};

#define SHIM(name) extern const struct madfs_shim madfs_shim_##name;
#include "syscalls.def"
#undef SHIM

extern const struct madfs_row madfs_rows[MADFS_ROWS];
// NONE: the stubs leave the call to the kernel.  FD: only its first argument, a descriptor, can make it ours.
extern uint8_t madfs_classes[MADFS_CLASSES];
enum { CLASS_NONE, CLASS_FD, CLASS_ASK };

// --- threads --------------------------------------------------------------------------------------------------------

// Lives at the top of the thread's hook stack.
struct madfs_thread {
  struct madfs_thread *self;
  int vfork_parent[MADFS_VFORK_DEPTH];
  bool registered;   // the thread-exit destructor knows this stack
  bool cwd_virtual;  // in a child of vfork: its own working directory, because memory is the parent's
  bool cwd_changed;
  size_t cwd_length;
  uint64_t cwd_inode;
  bool by_inode;  // directories that relative paths begin in are meant by their numbers
  int table_fd;         // where a child of vfork has the table now; 0: where its parent has it
  unsigned taken_count; // numbers of internal descriptors that it has taken
  int taken[32];
  // What is to be done once the application's stack and signals are back.  False: the call must be answered once more.
  bool (*later)(struct madfs_thread *);
  struct madfs_frame *later_frame;
  char *later_buffer;
  long later_size;
  uint64_t signals;  // the mask of the application
  char *exec_area;   // lists of the next execve, whose path is given[1]
  size_t exec_size;
  int exec_busy;                   // the process that is executing them
  long exec_number;
  char **exec_list[2];  // arguments, environment
  const char *exec_stage;  // MADFS_STAGE in it, or NULL
  int exec_directory, exec_memory, exec_loaded;
  unsigned long exec_flags;
  bool exec_again;  // the second attempt
  bool cancels_at_once;  // the thread's cancellation was asynchronous before it came in
  bool cancellation_point;  // this call is one, and waits
  int cluster, cluster_owner;       // identity.c: 1 + a descriptor, of the child of vfork that opened it
  const struct madfs_frame *frame;  // the call that is being answered
  long number;                      // and which it is
  char given[2][MADFS_PATH_MAX];    // texts of the application's
  char path[2][MADFS_PATH_MAX];
  char escaped[MADFS_PATH_MAX];
  char through[2][MADFS_PATH_MAX];  // where links of the host's led
  unsigned crossings;               // of the mount's border in this call, by links that lead out and back
  char scratch[MADFS_PATH_MAX];
  char cwd[MADFS_PATH_MAX];
};

enum { FORKS_NOT, FORKS, FORKS_IN_PLACE };  // IN_PLACE: over when this thread is heard of again
enum { INSIDE_FORK = 2 };  // a bit of madfs_local.inside: this thread has begun a fork that may not be over

// Initial-exec, because this library is there when the program starts; one instruction to read.
struct madfs_local {
  // The entry code reads these two at once: when both are 0, this is an ordinary call of the application's.
  int inside;       // in the runtime, or in our own work: system calls go to the kernel; or INSIDE_FORK
  int vfork_depth;  // children of vfork that this thread runs as, or has run as
  struct madfs_thread *thread;
  int forking;  // it has told the runtime that it forks
  unsigned identity;  // identity.c: what the runtime knows of this thread's user
  int inside_task;    // which of two tasks with the same thread-local memory is inside
  bool parting;       // it makes a task with a table of its own
  bool fork_made;     // process.c: the fork that was told of has come
  bool filtered;      // filters.c: a filter of system calls leaves the client no way to end
  int fork_pair;      // which of our handlers began it
  uint64_t fork_signals;  // the mask before
};
extern __thread struct madfs_local madfs_local __attribute__((tls_model("initial-exec")));

// The thread's hook stack, made on first use; NULL when there is no memory.  REQUIRES: signals are blocked.
struct madfs_thread *madfs_thread(void);
unsigned long madfs_thread_guard(const struct madfs_thread *t);      // the page below its stack
unsigned long madfs_thread_alternate(const struct madfs_thread *t);  // the stack for signals, below that

// --- init.c ---------------------------------------------------------------------------------------------------------

extern const char madfs_version[];

struct madfs_settings {
  char mount[MADFS_PATH_MAX];  // absolute, no trailing slash
  size_t mount_length;
  char library[MADFS_PATH_MAX];  // this library's own file
  char program[MADFS_PATH_MAX];  // what this process executes, when it lies on the mount; else empty
  char cluster[MADFS_PATH_MAX];  // MADFS_CLUSTER as it was, for programs that are executed
  char trace[MADFS_PATH_MAX];    // MADFS_TRACE, when it can be used; else empty
  char stage[256];               // where copies of the libraries were that this program started with; else empty
  size_t stage_length;
  bool debug, strict;
  bool in_cluster, in_version;  // the variables were there
  unsigned long text_start, text_end;  // where this library's code is
};
extern struct madfs_settings madfs_settings;

// --- scan.c ---------------------------------------------------------------------------------------------------------

struct madfs_census {
  unsigned sites, patched, idle, left, objects;  // idle: need no rewriting; left: could not be rewritten
};
extern struct madfs_census madfs_census;

void madfs_scan_process(const char *sites);  // every object mapped now; `sites`: where to write down what was found
void madfs_scan_mapping(unsigned long start, size_t length, int fd, unsigned long offset, int protection);
// The name of the file that is mapped at `address`, without its directory, and where its first mapping begins; its
// length, 0 when nothing is known.  Slow.
size_t madfs_scan_name(unsigned long address, char *out, size_t room, unsigned long *start);
// Part of an object of which `file` is the whole.
void madfs_scan_part(unsigned long start, size_t length, unsigned long offset, int protection, const void *file,
                     size_t size);

// What [start, end) has of files becomes executable by mprotect().  False: nothing, and nothing up to *nothing_until.
bool madfs_scan_range(unsigned long start, unsigned long end, int protection, unsigned long *nothing_until);

// --- sites.c: what is known of libraries without scanning them
// --------------------------------------------------------

enum { MADFS_BUILD_ID = 20 };

struct madfs_plan;  // arch.h
struct madfs_code;

void madfs_sites_open(bool writes);
int madfs_sites_find(const uint8_t *build_id, uint64_t offset, const struct madfs_code *code, struct madfs_plan *plans,
                     unsigned room, unsigned *idle);
void madfs_sites_note(const uint8_t *build_id, uint64_t offset, const struct madfs_code *code,
                      const struct madfs_plan *plans, unsigned count);
void madfs_sites_write(const char *path);  // REQUIRES: madfs_sites_open(true)

// --- debugger.c: breakpoints that stand in the text before it is rewritten -------------------------------------------

enum { MADFS_BREAKPOINTS = 64 };

struct madfs_breakpoint {
  uint8_t *at, byte;
};

// Puts the file's own bytes back; how many breakpoints there were.
unsigned madfs_debugger_lift(const uint8_t *text, size_t length, unsigned long offset, const char *path,
                             struct madfs_breakpoint *found);
void madfs_debugger_restore(const uint8_t *text, size_t length, int protection, const struct madfs_breakpoint *found,
                            unsigned count);

// --- patch.c --------------------------------------------------------------------------------------------------------

// Rewrites the planned sites of one mapping.  Number of sites rewritten: all or none.
unsigned madfs_patch(const struct madfs_code *code, struct madfs_plan *plans, unsigned count, int protection);
void madfs_patch_forget(unsigned long start, size_t length);  // another text is there: stubs of the old one can go

// --- trace.c --------------------------------------------------------------------------------------------------------

// FAILED: answered by us, with an error.  PASSED: looked at, and left to the kernel.
enum madfs_outcome { TRACE_EMULATED, TRACE_FAILED, TRACE_PASSED, TRACE_REFUSED, TRACE_OUTCOMES };

void madfs_trace_start(const char *path);  // `path`: MADFS_TRACE, or NULL
bool madfs_tracing(void);
void madfs_trace_count(long number, enum madfs_outcome outcome);
void madfs_trace_left(unsigned sites);
const char *madfs_call_name(long number);  // of a call that has a row; else ""

// --- dispatch.c -----------------------------------------------------------------------------------------------------

enum madfs_verdict madfs_filter(struct madfs_frame *frame);  // called by entry.S
void madfs_classes_fill(void);
bool madfs_never_ours(long number);  // its system call instructions need no rewriting
bool madfs_creates_descriptor(long number);

// --- fds.c: descriptors and the table of open files -----------------------------------------------------------------

enum { FD_HOST = -1, FD_INTERNAL = -2 };

extern _Atomic int madfs_fds_top;  // no descriptor above it was ever ours or internal; -1: none at all

bool madfs_fd_concerns(int fd);  // quick: ours or internal, perhaps
int madfs_fd_slot(int fd);       // its slot, FD_HOST or FD_INTERNAL
uint64_t madfs_fd_handle(int slot);
uint32_t madfs_slot_flags(int slot);
void madfs_slot_set_flags(int slot, uint32_t flags);
int madfs_slot_next(int slot);  // the next one in use, or -1
void madfs_slot_rename(int slot, const char *path, size_t length);
struct madfs_moves *madfs_fds_moves(void);  // in the table; NULL without one
void madfs_slot_lock(int slot);     // remembers that it was locked
bool madfs_slot_locked(int slot);
uint32_t madfs_slot_hint(int slot);  // RWH_* of its file
void madfs_slot_set_hint(int slot, uint32_t hint);
uint64_t madfs_slot_inode(int slot);  // perhaps with MADFS_GONE
void madfs_slot_gone(int slot);
size_t madfs_slot_path(int slot, char path[MADFS_PATH_MAX]);  // its length; the path is terminated
uint64_t madfs_pipe_inode(int fd);  // of the FIFO in the mount that a descriptor of the kernel's stands for, or 0
bool madfs_pipe_named(const char *path);  // whether it is where such a FIFO is
bool madfs_pipe_answers(int call);  // whether the call is about attributes, which the kernel's pipe does not have
bool madfs_pipe_seen(int call, const void *status);  // whether the kernel said that it is a FIFO's status
long madfs_slot_seek(int slot, long offset, int whence);      // SEEK_SET and SEEK_CUR

int madfs_fds_open(uint32_t flags, const void *record, size_t record_length, const char *path, size_t path_length,
                   int cloexec);
int madfs_fds_slot_read(uint64_t handle, uint32_t *flags, void *record, size_t *record_length, char *path,
                        size_t *path_length);
int64_t madfs_fds_offset_get(uint64_t handle);
void madfs_fds_offset_set(uint64_t handle, int64_t value);
int madfs_fds_offset_cas(uint64_t handle, int64_t old, int64_t new_);
int64_t madfs_fds_offset_add(uint64_t handle, int64_t n);

bool madfs_fds_any(void);                        // there is a table
long madfs_fds_need(void);                      // makes the table; 0 or -errno
void madfs_fds_shared(void);                        // descriptors may be going to another process
void madfs_fds_fork_begins(void);                   // before a child is made; until this thread is heard of again:
void madfs_fds_fork_ended(void);
long madfs_fds_borrow(int slot, int cloexec);   // a descriptor of a slot that another process holds
void madfs_fds_done(int fd, int slot);          // closes it; the open file may end with it
extern _Atomic bool madfs_tables_many;
void madfs_fds_distrust(void);                  // what is remembered is not true of every thread's table
void madfs_fds_adopt(const char *state);        // MADFS_STATE of the program that executed this one
void madfs_fds_exec(void);
void madfs_fds_exit(void);
bool madfs_fds_state(char *text, size_t size);  // MADFS_STATE for a program to be executed
void madfs_fds_meet(int fd);                    // a descriptor that came from another process
long madfs_fds_hide(long fd);                   // moves a descriptor of the runtime out of the way; its new number
void madfs_fds_forget(int fd);                  // the runtime closed it
void madfs_fds_internal(int fd);                // it was inherited, and is the runtime's
enum madfs_verdict madfs_fds_inside(struct madfs_frame *frame);  // calls made inside the runtime
int madfs_fds_move(int fd);                     // a copy of an internal descriptor elsewhere; its number or -errno
void madfs_fds_free(int fd);                    // the number is nobody's
void madfs_fds_follow(void);                    // this copy of a child of vfork has the child's descriptors

bool madfs_fds_say_once(uint64_t what);  // whether no process of the tree asked about `what` before
void madfs_fds_note_pipe(void);  // a FIFO of the mount will be opened
bool madfs_fds_pipes(void);      // whether one was, by this tree of processes

// --- numbers.c: internal descriptors whose numbers the program has taken ---------------------------------------------

bool madfs_numbers_any(void);
bool madfs_numbers_dormant(long number);  // a call that concerns us only when there are any
int madfs_number_real(int fd);            // where what the runtime knows by this number is now
bool madfs_number_given(int fd);          // the runtime knows something by it that is elsewhere now
// The runtime's descriptor goes elsewhere; false: there is no room.  REQUIRES: on the hook stack, not in a vfork.
bool madfs_number_give(int fd);
// A call of the runtime's that names one of them: true, with its result in `real`.
bool madfs_numbers_translate(struct madfs_frame *frame, struct madfs_frame *real);
bool madfs_number_taken(int fd);       // by this child of vfork, or in this task's table, which is not the runtime's
bool madfs_number_take(int fd);        // by this child of vfork; false: it has taken too many
bool madfs_number_take_apart(int fd);  // the same of a task with another table

// --- tables.c: tasks with this memory and a table of descriptors of their own ----------------------------------------

bool madfs_table_own(void);  // this task's is not the one that the runtime's descriptors are in
// madfs_runtime_call() for such a task.  REQUIRES: on the hook stack.
long madfs_table_call(const struct madfs_call *call, int *escaped_argument);
void madfs_agent_need(void);  // before a vfork.  REQUIRES: the thread has a hook stack, signals are blocked
bool madfs_agent_there(void);
long madfs_tables_unshare(unsigned long flags);  // unshare().  REQUIRES: on the hook stack
void madfs_tables_clone(void);    // this thread makes a task with a table of its own
void madfs_tables_twins(void);    // it makes a task that has its thread-local memory
void madfs_tables_cloned(void);   // it is heard of again
void madfs_tables_forget(void);   // in the child of a fork
bool madfs_alone(void);           // no other task has this table
bool madfs_twin_waits(void);      // false: this task is the one that is inside
void madfs_twin_enters(void);

// --- unreached.c ----------------------------------------------------------------------------------------------------

// Says so when the program that is about to be executed will not be preloaded, although it is given something of ours.
// `memory`: a copy of the program, or -1.  REQUIRES: on the hook stack; the arguments can be read.
void madfs_unreached_warn(int directory, const char *path, int memory, char *const *arguments);

// --- startup.c: libraries on the mount that a program starts with ----------------------------------------------------

struct madfs_startup {
  char *pages;                               // NULL: there are none; else "STAGE:NAMES" for MADFS_STAGE
  const char *library_path, *preload;  // what the variables are to be; `preload` empty: as it is
  int lock;                                  // a descriptor that the program inherits, or -1
};

// Copies them for the program `path` in `directory`, or that at `name` of which `memory` is a copy; 0 or -errno.
// REQUIRES: on the hook stack; the variables can be read.
long madfs_startup_prepare(struct madfs_startup *s, int directory, const char *path, int memory, const char *name,
                           const char *library_path, const char *preload);
void madfs_startup_free(struct madfs_startup *s);                // its strings were copied
void madfs_startup_failed(const char *stage);                    // MADFS_STAGE of a program that was not executed
void madfs_startup_done(const char *stage, char **environment);  // in the program: `stage` is MADFS_STAGE, or NULL
bool madfs_startup_loader(int fd);  // whether the loader of a program of the host's lies on the mount

// --- exec.c ----------------------------------------------------------------------------------------------------------

void madfs_loaded(const char *text);  // in a program that the loader was told to execute: MADFS_LOADED, or NULL

// --- locks.c ---------------------------------------------------------------------------------------------------------

enum madfs_verdict madfs_locks_fcntl(struct madfs_frame *frame, int slot);
void madfs_locks_closing(int slot);                // a descriptor of it is about to be closed
void madfs_locks_end(int slot);                    // the last descriptor anywhere of one that was locked is closed
void madfs_locks_keep(int fd);                     // a connection that says that this process lives
void madfs_locks_forget(int fd);                   // it was closed
void madfs_locks_state(char *text, size_t size);   // the connections as a part of MADFS_STATE; they stay open
void madfs_locks_adopt(const char *text);          // that part, in the program that was executed

// --- hints.c ---------------------------------------------------------------------------------------------------------

enum madfs_verdict madfs_hints_fcntl(struct madfs_frame *frame, int slot);  // F_GET_RW_HINT, F_SET_RW_HINT

// --- fault.c: memory of the application's, which may not be there ---------------------------------------------------

void madfs_fault_start(void);
void madfs_alternate_install(const struct madfs_thread *t);  // unless the thread has a stack for signals
void madfs_alternate_remove(const struct madfs_thread *t);
bool madfs_user_in(void *out, const void *in, size_t size);
bool madfs_user_out(void *out, const void *in, size_t size);
long madfs_user_text(char *out, size_t room, const char *in);              // its length, -EFAULT or -ENAMETOOLONG
size_t madfs_user_probe(const void *at, size_t length, bool write);        // how many bytes from `at` on are there

// --- path.c: which paths are ours, and the working directory --------------------------------------------------------

enum { PATH_HOST, PATH_OURS };

bool madfs_path_concerns(int directory, const char *path);  // quick: perhaps ours; any address
// PATH_OURS with the absolute path in `out`, PATH_HOST, or -errno.
int madfs_path_locate(int directory, const char *path, char out[MADFS_PATH_MAX], size_t *length);
bool madfs_path_link(const char *path);     // one of the following, not what is below it
bool madfs_path_cwd(const char *path);      // "/proc/self/cwd", when that is in the mount
bool madfs_path_program(const char *path);  // "/proc/self/exe", when the program lies on the mount
int madfs_path_magic(const char *path);  // "/proc/self/fd/N", "/dev/fd/N", "/dev/stdin", ...: N when it is ours, or -1

// links.c: after the kernel has said ENOENT.  Quick: whether a link may be the reason; REQUIRES for the other: on the
// hook stack.  PATH_OURS with the path in `out`, PATH_HOST or -errno; `last`: a link at the end is followed, too.
bool madfs_links_suspect(int directory, const char *path);
int madfs_links_follow(int directory, const char *path, bool last, char out[MADFS_PATH_MAX], size_t *length);

// moves.c: directories that were renamed.  madfs_moves_follow changes a path by the renames number `from` to `to`.
#define MADFS_MOVES_BYTES (256 << 10)
uint64_t madfs_moves_count(void);
void madfs_moves_follow(uint64_t from, uint64_t to, char path[MADFS_PATH_MAX], size_t *length, uint64_t *inode);
void madfs_moves_add(const char *old, size_t old_length, const char *new_, size_t new_length, int exchange);
size_t madfs_moves_at(const char *path, size_t length, uint64_t *inodes, size_t room);  // what is open there
void madfs_moves_gone(uint64_t inode);  // a directory was removed

#define MADFS_GONE (1UL << 63)  // with the number of a directory: it was removed
enum { MADFS_ROOT = 1 };        // the number of the mount's

bool madfs_cwd_virtual(void);
size_t madfs_cwd_get(char out[MADFS_PATH_MAX]);  // its length; 0 when the working directory is the kernel's
void madfs_cwd_set(const char *path, size_t length, uint64_t inode);
uint64_t madfs_cwd_inode(void);           // its number, perhaps with MADFS_GONE
void madfs_cwd_gone(uint64_t inode);      // it was removed, if it is this one
bool madfs_path_is_step(int directory, const char *path);
void madfs_cwd_clear(void);
void madfs_cwd_hold(bool hold);  // no other thread is changing it

// --- maps.c: where files of ours are mapped to be shared ------------------------------------------------------------

void madfs_maps_start(void);  // once everything is rewritten: until something is mapped, nothing is asked
bool madfs_maps_dormant(long number);  // a call that is ours only while something is mapped
bool madfs_maps_any(void);
bool madfs_maps_overlap(unsigned long start, unsigned long length);
void madfs_maps_replaced(unsigned long start, unsigned long length);  // the kernel put something else there
void madfs_maps_settle(void);                                         // tells the runtime what is not mapped any more
void madfs_maps_sync(void);                                           // carries all stores to the servers
int madfs_maps_add(unsigned long start, unsigned long length, uint64_t file, unsigned long offset);
int madfs_maps_has(uint64_t file);

// --- late.c: text that mprotect() makes executable -------------------------------------------------------------------

void madfs_late_mapped(void);  // something of a file is being mapped

// --- process.c ------------------------------------------------------------------------------------------------------

extern const uint64_t madfs_asynchronous;  // the signals that wait while a thread is in the runtime

void madfs_clone_inside(const struct madfs_frame *f);  // the runtime makes a thread or process, or some other call
void madfs_clone_filtered(const struct madfs_frame *f);  // one of a thread under a filter (filters.c)
bool madfs_fork_can_be_told(void);  // false: this is not the GNU libc
void madfs_fork_start(void);    // libc's fork() shall tell us
void madfs_fork_again(bool thread);  // and after allocators: called before a thread is made, or the runtime
// A handler of the program's makes a call on the mount, between ours.  True: to be resumed after it: the fork is
// still to come.  REQUIRES: signals are blocked.
bool madfs_fork_interrupt(void);
void madfs_fork_resume(void);
void madfs_fork_finish(void);   // the fork that this thread has made in place is over
bool madfs_in_vfork(void);     // this is a child that runs on its parent's memory
int madfs_memory_owner(void);    // the process whose memory this is
bool madfs_shares_memory(void);  // another process may have this memory, too
void madfs_exit_waits(void);   // for ever, in a process that another thread is ending
unsigned madfs_umask(void);

// --- limits.c: the limit of descriptors ------------------------------------------------------------------------------

// Internal descriptors go where no program looks for one: at or above its limit, which is raised for that moment.
struct madfs_height {
  int from;
  struct rlimit limit;
  bool raised;
};

struct madfs_height madfs_rise(void);
struct madfs_height madfs_rise_above(void);  // when all numbers below the limit are used up
void madfs_fall(const struct madfs_height *height);
int madfs_spares_from(void);
// Far above, by F_DUPFD or F_DUPFD_CLOEXEC; or -errno.  What lies there already may `stay`, which gives its own number;
// else it goes further up: who wants one number may want the next as well.
long madfs_copy_up(int fd, int command, bool stay);
long madfs_open(const char *path, int flags);  // for our own use, also when the program's numbers are used up

enum { LIMIT_NOFILE, LIMIT_FSIZE, MADFS_LIMITS };
long madfs_limits_grow(int fd, size_t size, size_t least);  // a file of memory
bool madfs_limits_state(unsigned which, char *text, size_t size);  // MADFS_NOFILE... for a program to be executed
void madfs_limits_adopt(unsigned which, const char *state);

// --- filters.c ------------------------------------------------------------------------------------------------------

extern _Atomic bool madfs_filtered_everywhere;  // it holds for threads whose own memory does not say so
// A filter of system calls leaves this thread's client nothing: what it does at the end of a process would end it.
static inline bool madfs_filtered(void) {
  return madfs_local.filtered || atomic_load_explicit(&madfs_filtered_everywhere, memory_order_relaxed);
}
void madfs_filter_inherited(void);  // by a thread that this one makes
// The verdict on a call of such a thread, or -1: it is judged as any other.
int madfs_filter_answers(struct madfs_frame *f);

// --- identity.c -----------------------------------------------------------------------------------------------------

bool madfs_identity_changed(unsigned *now);  // the runtime does not know who this thread is
void madfs_identity_get(unsigned *user, unsigned *group);
void madfs_identity_keep(void);                      // the cluster file, which may soon be out of reach
int madfs_identity_cluster(void);                    // the cluster file kept open, or -1
void madfs_identity_move(int fd);  // another table of descriptors shall have something else there
bool madfs_identity_state(char *text, size_t size);  // MADFS_CLUSTER_FD for a program to be executed
void madfs_identity_adopt(const char *state);

// --- runtime.c ------------------------------------------------------------------------------------------------------

bool madfs_runtime_loaded(void);
// Around a fork: nobody loads the runtime meanwhile, nor is inside it.  REQUIRES: signals are blocked.
void madfs_runtime_fork_begins(void);
void madfs_runtime_fork_ends(bool child);
void madfs_runtime_leave(void);  // this child has the parent's descriptors: it must not close them, nor use them
// Result of a canonical call; starts the runtime when it does not run yet.  REQUIRES: on the hook stack.
long madfs_runtime_call(const struct madfs_call *call, int *escaped_argument);
// Cancels the thread when that was asked for meanwhile.  REQUIRES: on the application's stack, with its signals.
void madfs_runtime_left(struct madfs_thread *t);
void madfs_runtime_exiting(void);
void madfs_thread_register(struct madfs_thread *t);
void madfs_thread_key(void);

// --- raw.c: what stands in for libc ---------------------------------------------------------------------------------

void madfs_say(const char *first, ...) __attribute__((sentinel));  // one line to standard error
void madfs_die(int status, const char *first, ...) __attribute__((sentinel, noreturn));
char *madfs_decimal(char buffer[24], unsigned long value);                   // the digits, inside `buffer`
char *madfs_hexadecimal(char buffer[24], unsigned long value);               // "0x" and the digits
const char *madfs_number(const char *text, int base, unsigned long *value);  // the first character after it, or NULL
bool madfs_starts(const char *text, const char *prefix);
size_t madfs_copy(char *out, size_t room, const char *text);  // its length; text that does not fit is cut

struct madfs_lock {
  _Atomic int owner;  // the holding process: a copy made by fork that shows another one is nobody's
};
void madfs_lock(struct madfs_lock *lock);
void madfs_unlock(struct madfs_lock *lock);

size_t strlen(const char *text);
int strcmp(const char *a, const char *b);
void *memcpy(void *restrict out, const void *restrict in, size_t size);
void *memmove(void *out, const void *in, size_t size);
void *memset(void *out, int byte, size_t size);
int memcmp(const void *a, const void *b, size_t size);

#include "arch.h"

#define RAW(...) RAW_CHOOSE(__VA_ARGS__, RAW6, RAW5, RAW4, RAW3, RAW2, RAW1, RAW0)(__VA_ARGS__)
#define RAW_CHOOSE(n, a, b, c, d, e, f, name, ...) name
#define RAW0(n) arch_syscall(n, 0, 0, 0, 0, 0, 0)
#define RAW1(n, a) arch_syscall(n, (long)(a), 0, 0, 0, 0, 0)
#define RAW2(n, a, b) arch_syscall(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define RAW3(n, a, b, c) arch_syscall(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define RAW4(n, a, b, c, d) arch_syscall(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define RAW5(n, a, b, c, d, e) arch_syscall(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define RAW6(n, a, b, c, d, e, f) arch_syscall(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static inline bool madfs_failed(long result) { return (unsigned long)result > -4096UL; }

#endif

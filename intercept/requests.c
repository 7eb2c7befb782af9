// SPDX-License-Identifier: Apache-2.0
// Asynchronous requests.  Those of libaio (io_submit) for a file of ours are done at once; their completion goes
// through the kernel's own queue, so that io_getevents, event descriptors and programs that read the queue in memory
// find it there: what the kernel is given instead is a write of as many bytes to /dev/null.  What fails, fails in
// io_submit.  Rings (io_uring) are refused: what is asked through them passes by the shim.
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/uio.h>

#include "intercept.h"

enum { COUNT_MAX = 0x7ffff000 };

static enum madfs_verdict answer(struct madfs_frame *f, long result) {
  f->number = result;
  return MADFS_DONE;
}

static bool is_ours(const struct iocb *request) {
  if (!arch_touch((const char *)request, false)) return false;
  int operation = (int)(arch_peek(&request->aio_lio_opcode) & 0xffff);
  if (operation == IOCB_CMD_POLL || operation == IOCB_CMD_NOOP) return false;  // EINVAL, as for any file
  return madfs_fd_concerns((int)(arch_peek(&request->aio_lio_opcode) >> 32));
}

static bool submit_concerns(struct madfs_frame *f) {
  struct iocb *const *list = (struct iocb *const *)f->argument[2];
  long count = (long)f->argument[1];
  if (atomic_load(&madfs_fds_top) < 0) return false;
  for (long i = 0; i < count && arch_touch((const char *)&list[i], false); i++)
    if (is_ours((const struct iocb *)arch_peek(&list[i]))) return true;
  return false;
}

// --- one request ----------------------------------------------------------------------------------------------------

// The call that the request stands for, as the runtime has it.  -errno when it stands for none.
static long call_of(const struct iocb *request, struct iovec *one, struct madfs_call *call) {
  static const int numbers[] = {[IOCB_CMD_PREAD] = CALL_preadv2,
                                [IOCB_CMD_PWRITE] = CALL_pwritev2,
                                [IOCB_CMD_PREADV] = CALL_preadv2,
                                [IOCB_CMD_PWRITEV] = CALL_pwritev2};
  int operation = request->aio_lio_opcode;
  int slot = madfs_fd_slot((int)request->aio_fildes);
  if (slot < 0) return -EBADF;
  call->arg[0] = (struct madfs_arg){.kind = MADFS_ARG_FD, .value = (long)madfs_fd_handle(slot)};
  call->count = 1;
  call->number = CALL_fsync;
  if (operation == IOCB_CMD_FSYNC || operation == IOCB_CMD_FDSYNC)
    return request->aio_buf || request->aio_offset || request->aio_nbytes || request->aio_rw_flags ? -EINVAL : 0;
  if (operation != IOCB_CMD_PREAD && operation != IOCB_CMD_PWRITE && operation != IOCB_CMD_PREADV &&
      operation != IOCB_CMD_PWRITEV)
    return -EINVAL;
  if ((long)request->aio_nbytes < 0 || request->aio_offset < 0) return -EINVAL;
  long values[] = {(long)request->aio_buf, (long)request->aio_nbytes, (long)request->aio_offset,
                   request->aio_rw_flags};
  if (operation == IOCB_CMD_PREAD || operation == IOCB_CMD_PWRITE) {
    *one = (struct iovec){(void *)request->aio_buf, request->aio_nbytes};
    if (one->iov_len > COUNT_MAX) one->iov_len = COUNT_MAX;
    values[0] = (long)one;
    values[1] = 1;
  }
  call->number = numbers[operation];
  for (int i = 0; i < 4; i++)
    call->arg[call->count++] = (struct madfs_arg){.kind = MADFS_ARG_INT, .value = values[i]};
  return 0;
}

// Bytes, or -errno.
static long perform(const struct iocb *request) {
  struct iovec one;
  struct madfs_call call;
  int ignored;
  if (request->aio_reserved2) return -EINVAL;
  long result = call_of(request, &one, &call);
  return result ? result : madfs_runtime_call(&call, &ignored);
}

// Has the kernel say that `request` is done with `bytes`: 1, or -errno.
static long complete(unsigned long context, struct iocb *const *place, struct iocb *request, long bytes) {
  struct iocb original, instead;
  long null = RAW(SYS_openat, AT_FDCWD, "/dev/null", O_WRONLY | O_CLOEXEC, 0);
  if (madfs_failed(null)) return null;
  long result = -EFAULT;
  if (madfs_user_in(&original, request, sizeof original)) {
    instead = original;
    instead.aio_lio_opcode = IOCB_CMD_PWRITE;
    instead.aio_fildes = (uint32_t)null;
    instead.aio_nbytes = (uint64_t)bytes;
    instead.aio_offset = 0;
    instead.aio_rw_flags = 0;
    if (madfs_user_out(request, &instead, sizeof instead)) result = RAW(SYS_io_submit, context, 1, place);
    original.aio_key = 0;  // the kernel's own, the same for all
    madfs_user_out(request, &original, sizeof original);
  }
  RAW(SYS_close, null);
  return result;
}

// --- the list -------------------------------------------------------------------------------------------------------

// 1, or -errno.
static long submit_one(unsigned long context, struct iocb *const *place) {
  struct iocb *request, copy;
  if (!madfs_user_in(&request, place, sizeof request)) return -EFAULT;
  if (!is_ours(request)) return RAW(SYS_io_submit, context, 1, place);
  if (!madfs_user_in(&copy, request, sizeof copy) || !arch_touch((const char *)request, true)) return -EFAULT;
  long result = perform(&copy);
  return result < 0 ? result : complete(context, place, request, result);
}

static enum madfs_verdict submit_work(struct madfs_frame *f) {
  unsigned long context = f->argument[0];
  struct iocb *const *list = (struct iocb *const *)f->argument[2];
  long result = RAW(SYS_io_submit, context, 0, list), done = 0;  // whether there is such a queue
  while (result >= 0 && done < (long)f->argument[1]) {
    result = submit_one(context, list + done);
    done += result > 0;
  }
  return answer(f, done ? done : result);
}

const struct madfs_shim madfs_shim_io_submit = {.concerns = submit_concerns, .work = submit_work};

static bool ring_concerns(struct madfs_frame *f) { return (void)f, true; }
static enum madfs_verdict ring_work(struct madfs_frame *f) { return answer(f, -ENOSYS); }

const struct madfs_shim madfs_shim_io_uring_setup = {.concerns = ring_concerns, .work = ring_work};

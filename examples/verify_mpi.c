/* SPDX-License-Identifier: Apache-2.0
 *
 * An ordinary MPI program that knows nothing of MadFS: ranks write, other ranks read back and compare each byte.
 *
 *   verify_mpi DIRECTORY [MiB per rank]
 *
 * Three stages, as jobs do them: a file per process in 1 MiB transfers, one shared file in interleaved transfers of
 * 47008 bytes (which straddle any power of two), and many small files.  Rank 0 prints what happened; the exit status
 * is 0 only when every byte was right.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MIB = 1 << 20, STRIDE = 47008, SMALL_FILES = 200, SMALL_SIZE = 3901, SHARED_ID = 1 << 20, SMALL_ID = 1 << 21 };

static int rank, ranks;
static const char *directory;

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void fail(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "rank %d: ", rank);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  MPI_Abort(MPI_COMM_WORLD, 1);
  abort();
}

/* What belongs at `offset` (a multiple of 8) of file number `file`: no two places of the job hold the same words. */
static void fill(char *buffer, size_t length, uint64_t file, uint64_t offset)
{
  for (size_t done = 0; done < length; done += 8) {
    uint64_t word = (file << 40) + offset + done + 0x9e3779b97f4a7c15u;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
    word = (word ^ word >> 27) * 0x94d049bb133111ebu;
    memcpy(buffer + done, &word, length - done < 8 ? length - done : 8);
  }
}

static int open_file(const char *path, int flags)
{
  int fd = open(path, flags, 0644);
  if (fd < 0)
    fail("open %s: %s", path, strerror(errno));
  return fd;
}

static void write_at(int fd, const char *path, uint64_t file, uint64_t offset, size_t length)
{
  static char buffer[MIB];
  fill(buffer, length, file, offset);
  for (size_t done = 0; done < length;) {
    ssize_t count = pwrite(fd, buffer + done, length - done, (off_t)(offset + done));
    if (count <= 0)
      fail("write %s at %llu: %s", path, (unsigned long long)(offset + done), strerror(errno));
    done += (size_t)count;
  }
}

static void verify_at(int fd, const char *path, uint64_t file, uint64_t offset, size_t length)
{
  static char buffer[MIB], expected[MIB];
  for (size_t done = 0; done < length;) {
    ssize_t count = pread(fd, buffer + done, length - done, (off_t)(offset + done));
    if (count <= 0)
      fail("read %s at %llu: %s", path, (unsigned long long)(offset + done), count ? strerror(errno) : "end of file");
    done += (size_t)count;
  }
  fill(expected, length, file, offset);
  for (size_t i = 0; i < length; i++)
    if (buffer[i] != expected[i])
      fail("%s: byte %llu is %#x, not %#x", path, (unsigned long long)(offset + i), buffer[i] & 255, expected[i] & 255);
}

static void finish(int fd, const char *path, int writing)
{
  if ((writing && fsync(fd)) || close(fd))
    fail("fsync or close %s: %s", path, strerror(errno));
}

/* Seconds since the last call, the same on all ranks. */
static double lap(void)
{
  static double before;
  MPI_Barrier(MPI_COMM_WORLD);
  double now = MPI_Wtime(), elapsed = now - before;
  before = now;
  MPI_Bcast(&elapsed, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  return elapsed;
}

static void file_per_process(uint64_t size)
{
  char path[4096];
  int other = (rank + 1) % ranks;
  lap();
  snprintf(path, sizeof path, "%s/rank-%d", directory, rank);
  int fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
  for (uint64_t offset = 0; offset < size; offset += MIB)
    write_at(fd, path, (uint64_t)rank, offset, MIB);
  finish(fd, path, 1);
  double writing = lap();
  snprintf(path, sizeof path, "%s/rank-%d", directory, other);
  fd = open_file(path, O_RDONLY);
  for (uint64_t offset = 0; offset < size; offset += MIB)
    verify_at(fd, path, (uint64_t)other, offset, MIB);
  finish(fd, path, 0);
  double reading = lap(), total = (double)size / MIB * ranks;
  if (!rank)
    printf("  file per process: %d files, %.0f MiB, write %.0f MiB/s, read %.0f MiB/s\n", ranks, total, total / writing,
           total / reading);
}

static void shared_file(uint64_t size)
{
  char path[4096];
  uint64_t blocks = size / STRIDE, other = (uint64_t)(rank + 1) % (uint64_t)ranks;
  snprintf(path, sizeof path, "%s/shared", directory);
  lap();
  int fd = open_file(path, O_RDWR | O_CREAT);
  for (uint64_t i = 0; i < blocks; i++)
    write_at(fd, path, SHARED_ID, (i * (uint64_t)ranks + (uint64_t)rank) * STRIDE, STRIDE);
  finish(fd, path, 1);
  double writing = lap();
  fd = open_file(path, O_RDONLY);
  for (uint64_t i = 0; i < blocks; i++)
    verify_at(fd, path, SHARED_ID, (i * (uint64_t)ranks + other) * STRIDE, STRIDE);
  struct stat info;
  if (fstat(fd, &info) || (uint64_t)info.st_size != blocks * (uint64_t)ranks * STRIDE)
    fail("%s: %lld bytes are not what was written", path, (long long)info.st_size);
  finish(fd, path, 0);
  double reading = lap(), total = (double)blocks * STRIDE / MIB * ranks;
  if (!rank)
    printf("  one shared file: %.0f MiB, write %.0f MiB/s, read %.0f MiB/s\n", total, total / writing, total / reading);
}

static void small_files(void)
{
  char path[4096];
  int other = (rank + 1) % ranks;
  double seconds[4];
  lap();
  for (int i = 0; i < SMALL_FILES; i++) {
    snprintf(path, sizeof path, "%s/small-%d.%d", directory, rank, i);
    int fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL);
    write_at(fd, path, (uint64_t)(SMALL_ID + rank * SMALL_FILES + i), 0, SMALL_SIZE);
    finish(fd, path, 0);
  }
  seconds[0] = lap();
  for (int i = 0; i < SMALL_FILES; i++) {
    struct stat info;
    snprintf(path, sizeof path, "%s/small-%d.%d", directory, other, i);
    if (stat(path, &info) || info.st_size != SMALL_SIZE)
      fail("stat %s: %s", path, strerror(errno));
  }
  seconds[1] = lap();
  for (int i = 0; i < SMALL_FILES; i++) {
    snprintf(path, sizeof path, "%s/small-%d.%d", directory, other, i);
    int fd = open_file(path, O_RDONLY);
    verify_at(fd, path, (uint64_t)(SMALL_ID + other * SMALL_FILES + i), 0, SMALL_SIZE);
    finish(fd, path, 0);
  }
  seconds[2] = lap();
  for (int i = 0; i < SMALL_FILES; i++) {
    snprintf(path, sizeof path, "%s/small-%d.%d", directory, rank, i);
    if (unlink(path))
      fail("unlink %s: %s", path, strerror(errno));
  }
  seconds[3] = lap();
  double count = (double)SMALL_FILES * ranks;
  if (!rank)
    printf("  small files: %.0f of %d bytes, create+write %.0f/s, stat %.0f/s, open+read %.0f/s, unlink %.0f/s\n",
           count, SMALL_SIZE, count / seconds[0], count / seconds[1], count / seconds[2], count / seconds[3]);
}

int main(int argc, char **argv)
{
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  uint64_t size = (argc > 2 ? strtoull(argv[2], NULL, 10) : 16) * MIB;
  if (argc < 2 || argc > 3 || !size)
    fail("usage: verify_mpi DIRECTORY [MiB per rank]");
  directory = argv[1];
  if (!rank && mkdir(directory, 0755) && errno != EEXIST)
    fail("mkdir %s: %s", directory, strerror(errno));
  if (!rank)
    printf("%d ranks in %s\n", ranks, directory);
  file_per_process(size);
  shared_file(size);
  small_files();
  uint64_t shared = size / STRIDE * STRIDE;
  if (!rank)
    printf("  verified: every byte of %.1f MiB in %d files, each read by another rank than wrote it\n",
           ((double)(size + shared) + SMALL_FILES * SMALL_SIZE) / MIB * ranks, ranks + 1 + ranks * SMALL_FILES);
  MPI_Finalize();
  return 0;
}

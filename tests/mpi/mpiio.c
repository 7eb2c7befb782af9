// SPDX-License-Identifier: Apache-2.0
// MPI-IO on one shared file, every byte verified: contiguous, collective, strided (a file view), and file size calls.
// usage: mpirun -n N mpiio FILE
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { BLOCK = 47008, BLOCKS = 40, CELL = 100, CELLS = 500 };

static int rank, size;

static void must(int code, const char *what)
{
    if (code == MPI_SUCCESS)
        return;
    char text[MPI_MAX_ERROR_STRING];
    int length;
    MPI_Error_string(code, text, &length);
    fprintf(stderr, "rank %d: %s: %s\n", rank, what, text);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static unsigned char pattern(MPI_Offset offset) { return (unsigned char)(offset * 31 + (offset >> 9)); }

static void verify(const unsigned char *data, MPI_Offset offset, int count, const char *what)
{
    for (int i = 0; i < count; i++)
        if (data[i] != pattern(offset + i)) {
            fprintf(stderr, "rank %d: %s: byte %lld is %d, not %d\n", rank, what, (long long)offset + i, data[i],
                    pattern(offset + i));
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
}

static void fill(unsigned char *data, MPI_Offset offset, int count)
{
    for (int i = 0; i < count; i++)
        data[i] = pattern(offset + i);
}

static void segments(MPI_File file, int collective)
{
    unsigned char *data = malloc(BLOCK);
    for (int b = 0; b < BLOCKS; b++) {
        MPI_Offset at = ((MPI_Offset)b * size + rank) * BLOCK;
        fill(data, at, BLOCK);
        must(collective ? MPI_File_write_at_all(file, at, data, BLOCK, MPI_BYTE, MPI_STATUS_IGNORE)
                        : MPI_File_write_at(file, at, data, BLOCK, MPI_BYTE, MPI_STATUS_IGNORE), "write");
    }
    must(MPI_File_sync(file), "sync");
    MPI_Barrier(MPI_COMM_WORLD);
    must(MPI_File_sync(file), "sync");
    for (int b = 0; b < BLOCKS; b++) {
        MPI_Offset at = ((MPI_Offset)b * size + (rank + 1) % size) * BLOCK;
        must(collective ? MPI_File_read_at_all(file, at, data, BLOCK, MPI_BYTE, MPI_STATUS_IGNORE)
                        : MPI_File_read_at(file, at, data, BLOCK, MPI_BYTE, MPI_STATUS_IGNORE), "read");
        verify(data, at, BLOCK, collective ? "collective" : "independent");
    }
    free(data);
}

// Rank r owns cells r, r + size, r + 2 size, ...: for this pattern ROMIO sieves (and locks) or aggregates.
static void strided(MPI_File file, int collective)
{
    MPI_Datatype cells;
    MPI_Type_vector(CELLS, CELL, CELL * size, MPI_BYTE, &cells);
    MPI_Type_commit(&cells);
    must(MPI_File_set_view(file, (MPI_Offset)rank * CELL, MPI_BYTE, cells, "native", MPI_INFO_NULL), "view");
    unsigned char *data = malloc(CELL * CELLS);
    for (int c = 0; c < CELLS; c++)
        fill(data + c * CELL, ((MPI_Offset)c * size + rank) * CELL, CELL);
    must(collective ? MPI_File_write_at_all(file, 0, data, CELL * CELLS, MPI_BYTE, MPI_STATUS_IGNORE)
                    : MPI_File_write_at(file, 0, data, CELL * CELLS, MPI_BYTE, MPI_STATUS_IGNORE), "strided write");
    must(MPI_File_sync(file), "sync");
    MPI_Barrier(MPI_COMM_WORLD);
    must(MPI_File_sync(file), "sync");
    must(MPI_File_set_view(file, 0, MPI_BYTE, MPI_BYTE, "native", MPI_INFO_NULL), "view");
    unsigned char *all = malloc(CELL * CELLS * (size_t)size);
    must(MPI_File_read_at_all(file, 0, all, CELL * CELLS * size, MPI_BYTE, MPI_STATUS_IGNORE), "read back");
    verify(all, 0, CELL * CELLS * size, "strided");
    free(all);
    free(data);
    MPI_Type_free(&cells);
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (argc != 2)
        MPI_Abort(MPI_COMM_WORLD, 2);
    for (int step = 0; step < 4; step++) {
        MPI_File file;
        const int mode = MPI_MODE_CREATE | MPI_MODE_RDWR | MPI_MODE_DELETE_ON_CLOSE;
        must(MPI_File_open(MPI_COMM_WORLD, argv[1], mode, MPI_INFO_NULL, &file), "open");
        (step < 2 ? segments : strided)(file, step % 2);
        MPI_Offset length;
        must(MPI_File_get_size(file, &length), "size");
        MPI_Offset expected = step < 2 ? (MPI_Offset)BLOCK * BLOCKS * size : (MPI_Offset)CELL * CELLS * size;
        if (length != expected) {
            fprintf(stderr, "rank %d: size %lld, not %lld\n", rank, (long long)length, (long long)expected);
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
        MPI_Barrier(MPI_COMM_WORLD);
        must(MPI_File_set_size(file, 1000), "set size");
        must(MPI_File_get_size(file, &length), "size");
        if (length != 1000)
            MPI_Abort(MPI_COMM_WORLD, 1);
        must(MPI_File_close(&file), "close");
    }
    if (rank == 0)
        printf("verified\n");
    MPI_Finalize();
    return 0;
}

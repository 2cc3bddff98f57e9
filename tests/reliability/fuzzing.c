/* For fuzzer.py: which code was reached, and messages whose last byte is the last of their memory.

   Compiled into the compiled path, with -fsanitize-coverage=trace-pc. */

#include <stdlib.h>

#include "native.h"

#define UNSEEN __attribute__((no_sanitize_coverage))

static uint8_t seen[1 << 16];
static uintptr_t before;
static int fresh;

/* Called at each branch. */
UNSEEN void __sanitizer_cov_trace_pc(void);
UNSEEN void __sanitizer_cov_trace_pc(void)
{
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    uint8_t *one = &seen[(here ^ before) % sizeof seen];
    before = here >> 1;
    fresh += !*one;
    *one = 1;
}

/* How many ways from one branch to another were taken for the first time since the last call. */
UNSEEN int fresh_ways(void);
UNSEEN int fresh_ways(void)
{
    int found = fresh;
    fresh = 0;
    before = 0;
    return found;
}

/* Unpack `length` bytes, of which `missing` do not exist. None if they are not usual. */
PyObject *unpack_exactly(const uint8_t *data, size_t length, size_t missing);
PyObject *unpack_exactly(const uint8_t *data, size_t length, size_t missing)
{
    static Key keys[KEYS];
    uint8_t *copy = malloc(length - missing);
    if (copy == NULL)
        return PyErr_NoMemory();
    memcpy(copy, data, length - missing);
    PyObject *message = unpack_message(copy, length, keys);
    free(copy);
    if (message == NULL) {
        Py_INCREF(Py_None);
        message = Py_None;
    }
    return message;
}

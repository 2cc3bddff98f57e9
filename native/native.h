/* The compiled path of asgi_ipc: what its files share.

   It does the usual case of send and receive, and nothing else. Loads check every condition of that
   case. If one does not hold, the lock is released before the first store, and the Python code does
   the whole call. So there is no recovery here, no error and no log line: every exception of a call
   comes from the Python code.

   The Python code is the reference. asgi_ipc/store/queues.py says what `put` and `take` do,
   asgi_ipc/store/wakes.py which waiters they ring, and asgi_ipc/codec.py which messages may be
   sent. The words are written in the order in which the Python code writes them. */

#ifndef ASGI_IPC_NATIVE_H
#define ASGI_IPC_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "layout.h"

/* References are counted by functions of the interpreter, not by the headers. The headers up to
   Python 3.11 also count references to objects that are immortal in later versions, which never
   count them back. In Py_RETURN_NONE and similar macros, some headers of 3.12 and 3.13 count none,
   not even for the stable ABI of 3.11, which needs it. */
#undef Py_INCREF
#undef Py_XINCREF
#undef Py_DECREF
#undef Py_XDECREF
#undef Py_NewRef /* which is a function as well */
#define Py_INCREF(object) Py_IncRef((PyObject *)(object))
#define Py_XINCREF(object) Py_IncRef((PyObject *)(object))
#define Py_DECREF(object) Py_DecRef((PyObject *)(object))
#define Py_XDECREF(object) Py_DecRef((PyObject *)(object))

/* -- messages (message.c) ----------------------------------------------------------------------- */

#define KEYS 512     /* keys of messages that are kept, so that each is created once */
#define KEY_BYTES 32 /* of the longest of them */

typedef struct {
    PyObject *text;
    uint8_t length;
    uint8_t bytes[KEY_BYTES];
} Key;

/* Writes `message` as msgpack does. Returns its length, or -1 if it is not usual: Python has to
   look at it. Runs no Python code. */
Py_ssize_t pack_message(PyObject *message, uint8_t *to, size_t room);

/* Reads what `pack_message` writes. Returns a new dict, or NULL without an exception if the message
   is not usual. `keys`: an array of KEYS. */
PyObject *unpack_message(const uint8_t *from, size_t length, Key *keys);

/* -- the memory --------------------------------------------------------------------------------- */

/* An attached segment. `words` is NULL once this process has left it. */
typedef struct {
    uint64_t *words;
    size_t count;          /* of the words */
    uint64_t queues;       /* the first row of a queue, */
    uint64_t queues_end;   /* and the word after the last */
    uint64_t log_start;
    uint64_t log_last;     /* where the last record could begin */
    uint64_t max_live;
    uint64_t log_empty;    /* the value of S_ENDS when nothing is stored */
    pthread_mutex_t *mutex;
    uint64_t *turn;        /* the waiter whose turn is next: in this process, not in the segment */
} Memory;

/* Each word is read and written by one instruction, which the compiler neither leaves out, nor joins
   with another, nor moves. */
#define LOAD(word) __atomic_load_n(&(word), __ATOMIC_RELAXED)

#define STORE(word, value)                                    \
    do {                                                      \
        __atomic_signal_fence(__ATOMIC_SEQ_CST);              \
        __atomic_store_n(&(word), (value), __ATOMIC_RELEASE); \
        __atomic_signal_fence(__ATOMIC_SEQ_CST);              \
    } while (0)

/* The proof (tests/reliability/test_native_death.py) has to fail for each of these mistakes. */
#ifndef MISTAKE
#define MISTAKE 0
#endif
enum {
    NO_DIRTY_IN_PUT = 1,
    NO_DIRTY_IN_TAKE,
    HEAD_BEFORE_BODY,
    CLEAN_BEFORE_LINK,
    DEAD_BEFORE_DIRTY,
    WAITER_BEFORE_SUMMARY,
    SUMMARY_BEFORE_WAITER,
};

/* -- wakes (wakes.c) ---------------------------------------------------------------------------- */

/* A receiver: its waiter id, or 0 if it does not wait; whether it was parked; whether this is its
   last try; and when it took its last message here, 0.0 if it has found the queue empty since. */
typedef struct {
    uint64_t waiter_id;
    bool woken, leaving;
    double taken;
} Receiver;

/* With the lock held, and `queue` the row of a queue. In this order: a message came to a queue with
   waiters; a receiver has taken one; a receiver finds none, and parks or leaves. The first two return
   the id of the waiter to ring, or 0. */
uint64_t ring_one(const Memory *memory, uint64_t *queue, double now);
uint64_t note_take(const Memory *memory, uint64_t *queue, double now, const Receiver *receiver);
void park_receiver(uint64_t *queue, double now, const Receiver *receiver);

/* -- queues (queue.c) --------------------------------------------------------------------------- */

/* A target, read before the lock is taken. */
typedef struct {
    uint64_t row, generation, limit, seed;
    double expiry;
    const char *local_parts;
    uint64_t local_length;
} Place;

/* The parts of an Adler-32 that begins with 0: sums over bytes, to be joined with any beginning. */
typedef struct {
    uint32_t low, high;
} Sums;

/* What is taken: a message, which is copied to `room`, or to `bytes` if it is longer. */
typedef struct {
    uint8_t *room;
    size_t size;
    size_t length;    /* of the message */
    PyObject *bytes;  /* a new reference, or NULL */
    uint64_t to_ring; /* a waiter whose ring was owed, or 0 */
} Copy;

/* How a call ended. If it is not usual, nothing has changed, and Python has to do it. */
typedef enum { NOT_USUAL, DONE, PARKED } Outcome;

Sums sums_of(const uint8_t *data, size_t length);

/* Glances, without the lock: whether messages are pending at a row; whether none is, and the row is
   still that of its queue. */
bool is_pending(const Memory *memory, uint64_t row);
bool is_quiet(const Memory *memory, const Place *place);

/* Put a message into a queue; `to_ring` is the waiter to ring, or 0. Take one out of it, or park
   the receiver if there is none and it has a waiter id; or, where that leaves, take it out of the
   waiter set. */
Outcome put(const Memory *memory, const Place *place, const uint8_t *body, size_t length,
            double now, uint64_t *to_ring);
Outcome take(const Memory *memory, const Place *place, const Receiver *receiver, double now,
             Copy *copy);

/* -- what is known (known.c) -------------------------------------------------------------------- */

typedef struct {
    const uint8_t *data;
    size_t length;
} Bytes;

/* Whether open files, or words of the memory, are those that `known` describes. */
bool are_files(Bytes known);
bool are_words(const Memory *memory, Bytes known);

/* What the look of a sleeping thread compares: asgi_ipc/attachment/unchanged.py (`dozing`). */
typedef struct {
    Bytes files, bell, words;
    uint64_t user;
    double until;
    int members;      /* the file of byte locks, */
    Bytes others;     /* the bytes in it that other processes hold, */
    uint64_t counter; /* S_COUNTER when these were listed, */
    double tidy_at;   /* and when somebody has to do more than ask for them */
} Known;

/* Whether a look at `now` would find nothing new, as `Unchanged.holds` says, as far as that does not
   need the interpreter. It may postpone the next look for processes that died. */
bool is_unchanged(const Memory *memory, const Known *known, double now);

#endif

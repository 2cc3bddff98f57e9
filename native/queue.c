/* Put and take under the lock of the segment: asgi_ipc/store/queues.py, for the usual case.

   A process may be killed between any two instructions. asgi_ipc/store/recovery.py repairs what it
   leaves. It can do so because STORE writes the words one by one, in the order in which queues.py
   writes them. Only the record of a message is copied in one go. Nobody reads it before the store
   of HALF_HEAD publishes it.

   Nothing here calls Python while the lock is held, except to allocate bytes, which starts no
   garbage collection. Every word is read once, checked, and used as it was read, because another
   process may be writing where it should not. */

#include <errno.h>
#include <time.h>

#include "native.h"

/* Tries for the lock before Python waits for it: about two microseconds. The interpreter is not
   released meanwhile. A holder needs the lock for less time than that. */
#define TRIES 60

#define SIZE_OF_RECORD (RECORD_WORDS * WORD)

/* A record as layout.py has it (RECORD). */
typedef struct {
    uint32_t size, state;
    uint64_t seq, next, previous;
    uint32_t queue, length;
    double expires, sent;
    uint32_t locals, check;
} Record;

_Static_assert(sizeof(Record) == SIZE_OF_RECORD, "a record has no gaps");
_Static_assert(offsetof(Record, size) == 4 * L_SIZE && offsetof(Record, state) == 4 * L_STATE &&
                   offsetof(Record, seq) == WORD * L_SEQ &&
                   offsetof(Record, next) == WORD * L_NEXT &&
                   offsetof(Record, previous) == WORD * L_PREV &&
                   offsetof(Record, queue) == 4 * L_QUEUE &&
                   offsetof(Record, length) == 4 * L_LENGTH &&
                   offsetof(Record, expires) == WORD * L_EXPIRES &&
                   offsetof(Record, sent) == WORD * L_SENT &&
                   offsetof(Record, locals) == 4 * L_LOCALS &&
                   offsetof(Record, check) == 4 * L_CHECK,
               "the fields of a record are where layout.py has them");
_Static_assert(sizeof(pthread_mutex_t) <= LOCK_BYTES, "the lock has room");

/* -- checksums ---------------------------------------------------------------------------------- */

#define BASE 65521    /* of Adler-32: the largest prime below 2**16 */
#define BLOCK 32      /* bytes that are summed at a time, which the compiler makes vectors of */
#define BLOCKS 160    /* blocks whose sums fit into 32 bits */

Sums sums_of(const uint8_t *data, size_t length)
{
    uint32_t low = 0, high = 0;
    while (length >= BLOCK) {
        size_t blocks = length / BLOCK < BLOCKS ? length / BLOCK : BLOCKS;
        /* Of the blocks so far: their bytes; these, summed block by block; bytes by their place. */
        uint32_t sum = 0, prefix = 0, placed = 0;
        for (size_t block = 0; block < blocks; block++, data += BLOCK) {
            uint16_t bytes = 0;
            uint32_t weighted = 0;
            for (int i = 0; i < BLOCK; i++)
                bytes = (uint16_t)(bytes + data[i]);
            for (int i = 0; i < BLOCK; i++)
                weighted += (uint32_t)((BLOCK - i) * data[i]);
            prefix += sum;
            sum += bytes;
            placed += weighted;
        }
        uint64_t far = (uint64_t)low * (blocks * BLOCK) + (uint64_t)prefix * BLOCK + placed;
        high = (uint32_t)((high + far) % BASE);
        low = (low + sum) % BASE;
        length -= blocks * BLOCK;
    }
    for (; length > 0; length--) {
        low += *data++;
        high += low;
    }
    return (Sums){low % BASE, high % BASE};
}

/* The Adler-32 of `length` bytes with these sums, that begins with `begin`. It equals the result of
   zlib, except for a single byte, where zlib does not reduce one of the sums. */
static uint32_t joined(uint32_t begin, Sums sums, uint64_t length)
{
    uint64_t low = begin & 0xFFFF, high = begin >> 16;
    high = (high + length * low + sums.high) % BASE;
    low = (low + sums.low) % BASE;
    return (uint32_t)(high << 16 | low);
}

/* -- the lock ----------------------------------------------------------------------------------- */

static inline void pause_a_little(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whether the lock is held now, and the segment clean. If not, it is not held. */
static bool locked(const Memory *memory)
{
    int code = pthread_mutex_trylock(memory->mutex);
    for (int tries = 0; code == EBUSY && tries < TRIES; tries++) {
        pause_a_little();
        code = pthread_mutex_trylock(memory->mutex);
    }
    if (code == EOWNERDEAD)
        pthread_mutex_consistent(memory->mutex); /* the dirty word says what its holder left */
    else if (code != 0)
        return false;
    if (LOAD(memory->words[S_DIRTY]) == CLEAN)
        return true;
    pthread_mutex_unlock(memory->mutex);
    return false;
}

static inline Outcome unlocked(const Memory *memory, Outcome outcome)
{
    pthread_mutex_unlock(memory->mutex);
    return outcome;
}

/* -- queues ------------------------------------------------------------------------------------- */

/* The row of a place, or NULL if it cannot be one. */
static inline uint64_t *row_of(const Memory *memory, uint64_t row)
{
    bool inside = row >= memory->queues && row < memory->queues_end &&
                  memory->queues_end - row >= QUEUE_WORDS;
    return inside ? memory->words + row : NULL;
}

bool is_pending(const Memory *memory, uint64_t row)
{
    uint64_t *queue = row_of(memory, row);
    return queue != NULL && LOAD(queue[Q_PENDING]) != 0;
}

bool is_quiet(const Memory *memory, const Place *place)
{
    uint64_t *queue = row_of(memory, place->row);
    return queue != NULL && (uint32_t)LOAD(queue[Q_PENDING]) == 0 &&
           LOAD(queue[R_GENERATION]) == place->generation;
}

static inline bool in_log(const Memory *memory, uint64_t at)
{
    return at >= memory->log_start && at <= memory->log_last;
}

Outcome put(const Memory *memory, const Place *place, const uint8_t *body, size_t length,
            double now, uint64_t *to_ring)
{
    uint64_t *words = memory->words, *queue = row_of(memory, place->row);
    if (queue == NULL || length < 2 || length > CHECKED)
        return NOT_USUAL;
    uint64_t size = RECORD_WORDS + ((length + place->local_length + 15) >> 4 << 1);
    Sums sums = sums_of(body, length);
    Record record = {
        .size = (uint32_t)size,
        .state = LIVE,
        .queue = (uint32_t)place->row,
        .length = (uint32_t)length,
        .expires = now + place->expiry,
        .sent = now,
        .locals = (uint32_t)place->local_length,
    };
    if (!locked(memory))
        return NOT_USUAL;

    uint32_t *halves = (uint32_t *)words;
    uint64_t pending = LOAD(queue[Q_PENDING]), sent = LOAD(queue[Q_SENT]);
    uint64_t live = LOAD(words[S_LIVE]), seq = LOAD(words[S_SEQ]);
    uint64_t at = LOAD(halves[HALF_HEAD]), end = at + size, last = LOAD(queue[Q_LAST]);
    if (LOAD(queue[R_GENERATION]) != place->generation || pending >= place->limit ||
        live > memory->max_live || live + size > memory->max_live ||
        end > LOAD(words[S_LIMIT]) || end > memory->count || at < memory->log_start ||
        size > LOAD(words[S_BIGGEST]) || (last && !in_log(memory, last)) || seq >> 62 || sent >> 62)
        return unlocked(memory, NOT_USUAL);

    seq++;
    record.seq = seq;
    record.previous = last;
    record.check = joined((uint32_t)(seq ^ place->seed), sums, length);
    if (MISTAKE != NO_DIRTY_IN_PUT)
        STORE(words[S_DIRTY], DIRTY);
    uint8_t *to = (uint8_t *)(words + at);
    if (MISTAKE == HEAD_BEFORE_BODY)
        STORE(halves[HALF_HEAD], (uint32_t)end);
    memcpy(to + sizeof record, place->local_parts, place->local_length);
    memcpy(to + sizeof record + place->local_length, body, length);
    memcpy(to, &record, sizeof record);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    STORE(words[S_SEQ], seq);
    STORE(halves[HALF_HEAD], (uint32_t)end); /* published: from now on the message exists */
    if (MISTAKE == CLEAN_BEFORE_LINK)
        STORE(words[S_DIRTY], CLEAN);
    if (last)
        STORE(words[last + L_NEXT], at);
    else
        STORE(queue[Q_FIRST], at);
    STORE(queue[Q_LAST], at);
    STORE(queue[Q_PENDING], pending + 1);
    STORE(queue[Q_SENT], sent + 1);
    STORE(words[S_LIVE], live + size);
    STORE(words[S_DIRTY], CLEAN);
    *to_ring = LOAD(queue[Q_WAITING]) ? ring_one(memory, queue, now) : 0;
    return unlocked(memory, DONE);
}

Outcome take(const Memory *memory, const Place *place, const Receiver *receiver, double now,
             Copy *copy)
{
    uint64_t *words = memory->words, *queue = row_of(memory, place->row);
    if (queue == NULL || !locked(memory))
        return NOT_USUAL;
    uint32_t *halves = (uint32_t *)words;
    uint64_t at = LOAD(queue[Q_FIRST]);
    if (LOAD(queue[R_GENERATION]) != place->generation)
        return unlocked(memory, NOT_USUAL);
    if (!at && receiver->waiter_id) {
        park_receiver(queue, now, receiver);
        return unlocked(memory, PARKED);
    }
    if (!in_log(memory, at))
        return unlocked(memory, NOT_USUAL);
    Record record;
    memcpy(&record, words + at, sizeof record);
    uint64_t length = record.length, following = record.next, size = record.size;
    uint64_t pending = LOAD(queue[Q_PENDING]), live = LOAD(words[S_LIVE]);
    if (record.queue != place->row || record.state != LIVE || record.locals != 0 || length < 2 ||
        length > CHECKED || length > (memory->count - at - RECORD_WORDS) * WORD ||
        !(record.expires > now) || (following && !in_log(memory, following)) || pending == 0 ||
        pending > UINT32_MAX || size > live || live > UINT32_MAX || at + size > UINT32_MAX)
        return unlocked(memory, NOT_USUAL);
    uint8_t *to = copy->room;
    if (length > copy->size) {
        copy->bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (copy->bytes == NULL) {
            PyErr_Clear();
            return unlocked(memory, NOT_USUAL);
        }
        to = (uint8_t *)PyBytes_AsString(copy->bytes);
    }
    memcpy(to, (uint8_t *)(words + at) + sizeof record, length);
    copy->length = length;
    if (record.check != joined((uint32_t)record.seq, sums_of(to, length), length)) {
        Py_CLEAR(copy->bytes);
        return unlocked(memory, NOT_USUAL);
    }

    if (MISTAKE != NO_DIRTY_IN_TAKE && MISTAKE != DEAD_BEFORE_DIRTY)
        STORE(words[S_DIRTY], DIRTY);
    STORE(halves[2 * at + L_STATE], DEAD);
    if (MISTAKE == DEAD_BEFORE_DIRTY)
        STORE(words[S_DIRTY], DIRTY);
    STORE(queue[Q_FIRST], following);
    if (following)
        STORE(words[following + L_PREV], 0);
    else
        STORE(queue[Q_LAST], 0);
    STORE(queue[Q_PENDING], pending - 1);
    live -= size;
    STORE(words[S_LIVE], live);
    if (!live)
        STORE(words[S_ENDS], memory->log_empty); /* the next messages use the same pages again */
    else if (LOAD(halves[HALF_HEAD]) == at + size)
        STORE(halves[HALF_HEAD], (uint32_t)at); /* the newest record: the next goes in its place */
    else if (LOAD(halves[HALF_TAIL]) == at)
        STORE(halves[HALF_TAIL], (uint32_t)(at + size));
    STORE(words[S_DIRTY], CLEAN);
    copy->to_ring = receiver->waiter_id || LOAD(queue[Q_OWED])
                        ? note_take(memory, queue, now, receiver)
                        : 0;
    return unlocked(memory, DONE);
}

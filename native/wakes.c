/* Whom to ring: asgi_ipc/store/wakes.py, and the waiter sets of asgi_ipc/store/waiters.py.

   All of it is done with the lock held, and the dirty word clear. A process that is killed here may
   leave any values, with one exception: a waiter whose summary bit is missing, because no process
   would see it. */

#include "native.h"

/* A waiter id is the number of a bit in a set, which has 64 bits in each word. The summary has one
   bit for each word. */
#define WORD_OF(waiter_id) ((waiter_id) >> 6)
#define BIT_OF(waiter_id) (UINT64_C(1) << ((waiter_id) & 63))

static inline unsigned lowest(uint64_t bits)
{
    return (unsigned)__builtin_ctzll(bits);
}

/* -- waiter sets -------------------------------------------------------------------------------- */

static void park(uint64_t *queue, uint64_t waiter_id)
{
    uint64_t *summary = &queue[Q_WAITING], *set = &queue[Q_WAITERS + WORD_OF(waiter_id)];
    if (MISTAKE == WAITER_BEFORE_SUMMARY)
        STORE(*set, LOAD(*set) | BIT_OF(waiter_id));
    STORE(*summary, LOAD(*summary) | UINT64_C(1) << WORD_OF(waiter_id));
    STORE(*set, LOAD(*set) | BIT_OF(waiter_id));
}

static void unpark(uint64_t *queue, uint64_t waiter_id)
{
    uint64_t *summary = &queue[Q_WAITING], *set = &queue[Q_WAITERS + WORD_OF(waiter_id)];
    uint64_t bits = LOAD(*set), bit = BIT_OF(waiter_id);
    if (!(bits & bit))
        return;
    STORE(*set, bits & ~bit);
    if (bits == bit)
        STORE(*summary, LOAD(*summary) & ~(UINT64_C(1) << WORD_OF(waiter_id)));
}

/* Take a waiter id out of the set, in turn; 0 if the set is empty. */
static uint64_t pick(const Memory *memory, uint64_t *queue)
{
    uint64_t waiting = LOAD(queue[Q_WAITING]), turn = *memory->turn;
    while (waiting) {
        uint64_t first = WORD_OF(turn), later = waiting >> first << first;
        unsigned word = lowest(later ? later : waiting);
        uint64_t bits = word < WAITER_SET_WORDS ? LOAD(queue[Q_WAITERS + word]) : 0;
        if (!bits) {
            waiting &= ~(UINT64_C(1) << word); /* left by a process that was killed */
            STORE(queue[Q_WAITING], waiting);
            continue;
        }
        uint64_t due = word == first ? bits >> (turn & 63) << (turn & 63) : bits;
        if (!due) {
            turn = (first + 1) << 6; /* all in this word have had their turn */
            continue;
        }
        uint64_t waiter_id = (uint64_t)word << 6 | lowest(due), bit = BIT_OF(waiter_id);
        if (MISTAKE == SUMMARY_BEFORE_WAITER && bits == bit)
            STORE(queue[Q_WAITING], waiting ^ UINT64_C(1) << word);
        STORE(queue[Q_WAITERS + word], bits ^ bit);
        if (bits == bit)
            STORE(queue[Q_WAITING], waiting ^ UINT64_C(1) << word);
        *memory->turn = waiter_id + 1;
        return waiter_id;
    }
    return 0;
}

/* -- hints -------------------------------------------------------------------------------------- */

static void set_rung(uint64_t *queue, double time)
{
    uint64_t bits;
    memcpy(&bits, &time, sizeof bits);
    STORE(queue[Q_RUNG], bits);
}

/* Whether receivers here are quick, and a ring is under way. NaN and future times do not count. */
static bool is_coming(const uint64_t *queue, double now)
{
    uint64_t bits = LOAD(queue[Q_RUNG]);
    double rung;
    memcpy(&rung, &bits, sizeof rung);
    return LOAD(queue[Q_QUICK]) && 0 <= now - rung && now - rung < UNDER_WAY;
}

static void note_quick(uint64_t *queue, double now, double taken)
{
    if (taken != 0)
        STORE(queue[Q_QUICK], (uint64_t)(0 <= now - taken && now - taken < QUICK));
}

static uint64_t ring_next(const Memory *memory, uint64_t *queue, double now)
{
    uint64_t waiter_id = pick(memory, queue);
    set_rung(queue, waiter_id ? now : 0.0);
    return waiter_id;
}

uint64_t ring_one(const Memory *memory, uint64_t *queue, double now)
{
    if (!is_coming(queue, now))
        return ring_next(memory, queue, now);
    STORE(queue[Q_OWED], 1);
    return 0;
}

uint64_t note_take(const Memory *memory, uint64_t *queue, double now, const Receiver *receiver)
{
    if (receiver->woken)
        unpark(queue, receiver->waiter_id);
    note_quick(queue, now, receiver->taken);
    if (LOAD(queue[Q_OWED])) {
        if (!receiver->woken && is_coming(queue, now))
            return 0; /* the waiter that was rung will answer it */
        /* Senders that wait for room do not matter here: their bit is not part of the count. */
        if ((uint32_t)LOAD(queue[Q_PENDING]) && LOAD(queue[Q_WAITING]))
            return ring_next(memory, queue, now); /* more may be owed: the next one answers it */
        STORE(queue[Q_OWED], 0);
    }
    if (receiver->woken)
        set_rung(queue, 0.0);
    return 0;
}

void park_receiver(uint64_t *queue, double now, const Receiver *receiver)
{
    note_quick(queue, now, receiver->taken);
    STORE(queue[Q_OWED], 0);
    if (receiver->woken)
        set_rung(queue, 0.0);
    if (receiver->leaving)
        unpark(queue, receiver->waiter_id);
    else
        park(queue, receiver->waiter_id);
}

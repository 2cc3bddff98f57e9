/* The module asgi_ipc._native: the objects by which Python uses the compiled path.

   Memory   an attached segment, for all layers of the process
   Usual    the usual send and receive of a layer, as long as it is attached
   Target   asgi_ipc.store.queues.Target inherits its attributes from this, and
   Source   asgi_ipc.aio.source.Source from this: C reads them in place, without a copy */

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "native.h"

#include <structmember.h> /* after Python.h */

#define ON_THE_STACK 2048 /* bytes of a message that is taken without creating a bytes object */

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

typedef struct {
    PyTypeObject *memory, *usual, *target, *source;
    PyObject *monotonic; /* a name */
    Key keys[KEYS];
    uint8_t packed[CHECKED]; /* the message that is being sent */
} State;

/* -- Target and Source: attributes that C reads, too --------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *row, *generation, *limit, *expiry, *seed, *local_parts;
    double taken;
} TargetObject;

typedef struct {
    PyObject_HEAD
    PyObject *channel, *inbox, *target;
} SourceObject;

static void delete_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Both begin with a series of references, which the collector and the deallocator need. */
#define REFERENCES(name, count)                                             \
    static int name##_clear(PyObject *self)                                 \
    {                                                                       \
        PyObject **first = (PyObject **)((char *)self + sizeof(PyObject));  \
        for (int i = 0; i < (count); i++)                                   \
            Py_CLEAR(first[i]);                                             \
        return 0;                                                           \
    }                                                                       \
    static int name##_traverse(PyObject *self, visitproc visit, void *arg)  \
    {                                                                       \
        PyObject **first = (PyObject **)((char *)self + sizeof(PyObject));  \
        Py_VISIT(Py_TYPE(self));                                            \
        for (int i = 0; i < (count); i++)                                   \
            Py_VISIT(first[i]);                                             \
        return 0;                                                           \
    }                                                                       \
    static void name##_dealloc(PyObject *self)                              \
    {                                                                       \
        PyObject_GC_UnTrack(self);                                          \
        name##_clear(self);                                                 \
        delete_object(self);                                                \
    }

REFERENCES(target, 6)
REFERENCES(source, 3)

#define ATTRIBUTE(type, name) {#name, T_OBJECT_EX, offsetof(type, name), 0, NULL}

static PyMemberDef target_members[] = {
    ATTRIBUTE(TargetObject, row),    ATTRIBUTE(TargetObject, generation),
    ATTRIBUTE(TargetObject, limit),  ATTRIBUTE(TargetObject, expiry),
    ATTRIBUTE(TargetObject, seed),   ATTRIBUTE(TargetObject, local_parts),
    {"taken", T_DOUBLE, offsetof(TargetObject, taken), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMemberDef source_members[] = {
    ATTRIBUTE(SourceObject, channel),
    ATTRIBUTE(SourceObject, inbox),
    ATTRIBUTE(SourceObject, target),
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot target_slots[] = {
    {Py_tp_doc, "What of a target the compiled path reads."},
    {Py_tp_members, target_members},
    {Py_tp_traverse, target_traverse},
    {Py_tp_clear, target_clear},
    {Py_tp_dealloc, target_dealloc},
    {0, NULL},
};

static PyType_Slot source_slots[] = {
    {Py_tp_doc, "What of a source the compiled path reads."},
    {Py_tp_members, source_members},
    {Py_tp_traverse, source_traverse},
    {Py_tp_clear, source_clear},
    {Py_tp_dealloc, source_dealloc},
    {0, NULL},
};

#define BASE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC)

static PyType_Spec target_spec = {
    "asgi_ipc._native.Target", sizeof(TargetObject), 0, BASE_FLAGS, target_slots,
};

static PyType_Spec source_spec = {
    "asgi_ipc._native.Source", sizeof(SourceObject), 0, BASE_FLAGS, source_slots,
};

static bool number_of(PyObject *object, uint64_t *number)
{
    if (object == NULL || !PyLong_CheckExact(object))
        return false;
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    *number = (uint64_t)value;
    return !overflow && value >= 0;
}

static bool bytes_of(PyObject *object, Bytes *bytes)
{
    if (!PyBytes_CheckExact(object))
        return false;
    *bytes = (Bytes){(uint8_t *)PyBytes_AsString(object), (size_t)PyBytes_Size(object)};
    return true;
}

/* Read where a target is. False if that is not known yet. */
static bool find_place(State *state, PyObject *object, Place *place)
{
    if (object == NULL || !PyObject_TypeCheck(object, state->target))
        return false;
    TargetObject *target = (TargetObject *)object;
    return number_of(target->row, &place->row) && number_of(target->generation, &place->generation);
}

/* Read what is sent there. */
static bool fill_place(PyObject *object, Place *place)
{
    TargetObject *target = (TargetObject *)object;
    PyObject *expiry = target->expiry, *locals = target->local_parts;
    if (!number_of(target->limit, &place->limit) || !number_of(target->seed, &place->seed) ||
        expiry == NULL || !PyFloat_CheckExact(expiry) || locals == NULL ||
        !PyBytes_CheckExact(locals))
        return false;
    place->expiry = PyFloat_AsDouble(expiry);
    place->local_parts = PyBytes_AsString(locals);
    place->local_length = (uint64_t)PyBytes_Size(locals);
    return place->local_length <= CHECKED;
}

/* -- Memory -------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Memory memory;
    Py_buffer view, turn;
    Py_buffer due;             /* a double, which is 0 in the child of every fork */
    PyObject *clock, *monotonic; /* the names of asgi_ipc.clock, and what one of them meant at first */
    State *state;
} MemoryObject;

static bool get_buffer(PyObject *object, Py_buffer *buffer)
{
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) == 0)
        return true;
    buffer->obj = NULL;
    return false;
}

static PyObject *memory_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    State *state = PyType_GetModuleState(type);
    PyObject *buffer, *turn, *due, *clock;
    unsigned long long queues, queues_end, start, end, max_live;
    if (!PyArg_ParseTuple(args, "OOOO!KKKKK", &buffer, &turn, &due, &PyDict_Type, &clock, &queues,
                          &queues_end, &start, &end, &max_live))
        return NULL;
    PyObject *monotonic = PyDict_GetItemWithError(clock, state->monotonic);
    if (monotonic == NULL)
        return PyErr_Format(PyExc_KeyError, "monotonic");
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    MemoryObject *self = (MemoryObject *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    self->state = state;
    Py_INCREF(clock), self->clock = clock;
    Py_INCREF(monotonic), self->monotonic = monotonic;
    if (!get_buffer(buffer, &self->view) || !get_buffer(turn, &self->turn) ||
        !get_buffer(due, &self->due)) {
        Py_DECREF(self);
        return NULL;
    }
    uint64_t count = (uint64_t)self->view.len / WORD;
    bool in_order = queues <= queues_end && queues_end <= start && start + RECORD_WORDS <= end &&
                    end <= count && end <= UINT32_MAX && H_LOCK * WORD + LOCK_BYTES <= queues * WORD;
    if (!in_order || (uintptr_t)self->view.buf % WORD || self->turn.len != WORD ||
        self->due.len != sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "no segment has such a layout");
        Py_DECREF(self);
        return NULL;
    }
    uint64_t *words = self->view.buf;
    self->memory = (Memory){
        .words = words,
        .count = end,
        .queues = queues,
        .queues_end = queues_end,
        .log_start = start,
        .log_last = end - RECORD_WORDS,
        .max_live = max_live,
        .log_empty = start << 32 | start,
        .mutex = (pthread_mutex_t *)(words + H_LOCK),
        .turn = self->turn.buf,
    };
    return (PyObject *)self;
}

static PyObject *memory_close(PyObject *object, PyObject *unused)
{
    MemoryObject *self = (MemoryObject *)object;
    self->memory.words = NULL;
    PyBuffer_Release(&self->view); /* a second time does nothing */
    return Py_NewRef(Py_None);
}

static void memory_dealloc(PyObject *self)
{
    MemoryObject *memory = (MemoryObject *)self;
    PyBuffer_Release(&memory->view);
    PyBuffer_Release(&memory->turn);
    PyBuffer_Release(&memory->due);
    Py_CLEAR(memory->clock);
    Py_CLEAR(memory->monotonic);
    delete_object(self);
}

static double monotonic_time(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)((int64_t)time.tv_sec * 1000000000 + time.tv_nsec) / 1e9;
}

/* The time, by `clock.monotonic` if a test has replaced that; NaN if that fails. */
static double time_by(MemoryObject *self)
{
    PyObject *monotonic = PyDict_GetItemWithError(self->clock, self->state->monotonic);
    if (monotonic == self->monotonic)
        return monotonic_time();
    PyObject *time = monotonic == NULL ? NULL : PyObject_CallNoArgs(monotonic);
    double now = time == NULL ? NAN : PyFloat_AsDouble(time);
    Py_XDECREF(time);
    if (!PyErr_Occurred())
        return now;
    PyErr_Clear();
    return NAN;
}

/* Of the usual look, what asks the kernel and the memory: asgi_ipc/attachment/unchanged.py. */
static PyObject *memory_holds(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    const Memory *memory = &((MemoryObject *)object)->memory;
    Bytes files, bell, words;
    uint64_t user;
    if (count != 4 || !bytes_of(args[0], &files) || !bytes_of(args[1], &bell) ||
        !bytes_of(args[2], &words) || !number_of(args[3], &user))
        return PyErr_Format(PyExc_TypeError, "holds(files, bell, words, user)");
    if (memory->words == NULL)
        return PyErr_Format(PyExc_ValueError, "the segment was left");
    return PyBool_FromLong(are_files(files) && are_files(bell) && are_words(memory, words) &&
                           geteuid() == user);
}

/* Sleep until a doorbell rings or `seconds` are over. Returns whether it rang; -1 with an exception
   if a signal handler raised one. */
static int nap(int bell, double seconds)
{
    double left = seconds, end = monotonic_time() + seconds;
    do {
        struct pollfd asked = {.fd = bell, .events = POLLIN};
        PyThreadState *thread = PyEval_SaveThread();
        int ready = poll(&asked, 1, left > 0 ? (int)ceil(left * 1000) : 0); /* below 0: for ever */
        int error = errno;
        PyEval_RestoreThread(thread);
        /* Also after a whole nap: a signal may have come just before it. */
        if (PyErr_CheckSignals() < 0)
            return -1;
        if (ready >= 0)
            return ready > 0;
        if (error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        left = end - monotonic_time();
    } while (left > 0);
    return 0;
}

/* Whether nothing has come to queues that are not process-specific. */
static bool are_quiet(MemoryObject *self, PyObject *sources)
{
    State *state = self->state;
    Place place;
    for (Py_ssize_t at = 0; at < PyList_Size(sources); at++) {
        PyObject *object = PyList_GetItem(sources, at);
        if (!PyObject_TypeCheck(object, state->source))
            return false;
        SourceObject *source = (SourceObject *)object;
        if (source->inbox != Py_None || !find_place(state, source->target, &place) ||
            !is_quiet(&self->memory, &place))
            return false;
    }
    return true;
}

static bool are_empty(PyObject *containers)
{
    for (Py_ssize_t at = 0; at < PyTuple_Size(containers); at++)
        if (PyObject_Size(PyTuple_GetItem(containers, at)) != 0)
            return false;
    return true;
}

/* How a thread sleeps: `Unchanged.dozing`. The looks hold the GIL, so they see what
   other threads have changed. */
static PyObject *memory_doze(PyObject *object, PyObject *args)
{
    MemoryObject *self = (MemoryObject *)object;
    Known known;
    Py_buffer looks;
    PyObject *sources, *files, *bell, *words, *others, *containers;
    double left;
    unsigned long long user, counter;
    int number;
    if (!PyArg_ParseTuple(args, "O!iSSw*O!SKdiSKdd", &PyList_Type, &sources, &number, &bell, &words,
                          &looks, &PyTuple_Type, &containers, &files, &user, &known.until,
                          &known.members, &others, &counter, &known.tidy_at, &left))
        return NULL;
    bytes_of(files, &known.files), bytes_of(bell, &known.bell);
    bytes_of(words, &known.words), bytes_of(others, &known.others);
    known.user = user, known.counter = counter;
    volatile double *due = self->due.buf, *last = looks.buf;
    double now = monotonic_time(), end = now + left;
    PyObject *answer = NULL;
    while (answer == NULL) {
        double seconds = left < CHECK_EVERY ? left : CHECK_EVERY;
        int rung = nap(number, seconds);
        if (rung) {
            answer = rung < 0 ? NULL : Py_NewRef(Py_None);
            break;
        }
        now = monotonic_time();
        double since = now - *last;
        if (PyDict_GetItemWithError(self->clock, self->state->monotonic) != self->monotonic ||
            self->memory.words == NULL || !*due || !(0 <= since && since < 2 * CHECK_EVERY) ||
            !are_empty(containers) || !is_unchanged(&self->memory, &known, now) ||
            !are_quiet(self, sources)) {
            PyErr_Clear();
            answer = PyFloat_FromDouble(left);
            break;
        }
        last[0] = now;
        last[1] = now + CHECK_EVERY;
        *due = now + SWEEP_SOON;
        left -= seconds;
        if (end - now < left) /* else the clock stands still: the time slept counts */
            left = end - now;
        if (left <= 0)
            answer = PyFloat_FromDouble(0.0);
    }
    PyBuffer_Release(&looks);
    return answer;
}

static PyMethodDef memory_methods[] = {
    {"holds", FAST(memory_holds), METH_FASTCALL,
     "holds(files, bell, words, user)\n\nWhether the open files, the words of the memory and the "
     "user are those that are known."},
    {"doze", memory_doze, METH_VARARGS,
     "doze(sources, number, bell, words, looks, empty, files, user, until, members, others, "
     "counter, tidy_at,\nseconds)\n\nWhat Unchanged.dozing calls."},
    {"close", memory_close, METH_NOARGS, "Touch the memory no more: no call is usual then."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot memory_slots[] = {
    {Py_tp_doc, "Memory(buffer, turn, due, clock, queues, queues_end, log, log_end, max_live)\n\n"
                "An attached segment with a mutex. `turn`: that of its Waiters. `due`: when upkeep "
                "is due, a\ndouble. `clock`: the names of asgi_ipc.clock. The others are words, as "
                "in Layout."},
    {Py_tp_new, memory_new},
    {Py_tp_dealloc, memory_dealloc},
    {Py_tp_methods, memory_methods},
    {0, NULL},
};

static PyType_Spec memory_spec = {
    "asgi_ipc._native.Memory", sizeof(MemoryObject), 0, Py_TPFLAGS_DEFAULT, memory_slots,
};

/* -- Usual --------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    MemoryObject *memory;
    PyObject *targets, *sources, *exact_sources;
    State *state;
    size_t limit;  /* bytes of the largest message */
} UsualObject;

static PyObject *usual_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    State *state = PyType_GetModuleState(type);
    MemoryObject *memory;
    PyObject *targets, *sources, *exact_sources;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "O!O!O!O!n", state->memory, &memory, &PyDict_Type, &targets,
                          &PyDict_Type, &sources, &PyDict_Type, &exact_sources, &limit))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    UsualObject *self = (UsualObject *)allocate(type, 0);
    if (self == NULL)
        return NULL;
#define KEEP(name) (Py_INCREF(name), self->name = name)
    KEEP(memory), KEEP(targets), KEEP(sources), KEEP(exact_sources);
    self->state = state;
    self->limit = limit < 0 ? 0 : limit > CHECKED ? CHECKED : (size_t)limit;
    return (PyObject *)self;
}

static int usual_traverse(PyObject *object, visitproc visit, void *arg)
{
    UsualObject *self = (UsualObject *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->memory);
    Py_VISIT(self->targets);
    Py_VISIT(self->sources);
    Py_VISIT(self->exact_sources);
    return 0;
}

static void usual_dealloc(PyObject *object)
{
    UsualObject *self = (UsualObject *)object;
    PyObject_GC_UnTrack(object);
    Py_CLEAR(self->memory);
    Py_CLEAR(self->targets);
    Py_CLEAR(self->sources);
    Py_CLEAR(self->exact_sources);
    delete_object(object);
}

/* The memory, if the process is still attached, no upkeep is due, and no fork was missed; else
   NULL. Also the time. */
static const Memory *ready(UsualObject *self, double *now)
{
    *now = time_by(self->memory);
    const Memory *memory = &self->memory->memory;
    double due = *(volatile double *)self->memory->due.buf;
    return memory->words == NULL || !(*now < due) ? NULL : memory;
}

/* What Python has to do after a call: ring a waiter. A tuple of the row and the waiter's id. */
static PyObject *ring_due(uint64_t row, uint64_t waiter_id)
{
    return Py_BuildValue("KK", (unsigned long long)row, (unsigned long long)waiter_id);
}

static PyObject *usual_send(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    UsualObject *self = (UsualObject *)object;
    State *state = self->state;
    double now;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "send(channel, message)");
    PyObject *channel = args[0];
    const Memory *memory = ready(self, &now);
    if (memory == NULL || !PyUnicode_CheckExact(channel))
        return Py_NewRef(Py_False);
    PyObject *target = PyDict_GetItemWithError(self->targets, channel);
    Place place;
    if (!find_place(state, target, &place) || !fill_place(target, &place))
        return Py_NewRef(Py_False);
    Py_ssize_t length = pack_message(args[1], state->packed, self->limit);
    if (length < 0)
        return Py_NewRef(Py_False);
    uint64_t to_ring;
    if (put(memory, &place, state->packed, (size_t)length, now, &to_ring) != DONE)
        return Py_NewRef(Py_False);
    if (to_ring)
        return ring_due(place.row, to_ring);
    return Py_NewRef(Py_True);
}

/* What was taken from a source. */
typedef struct {
    PyObject *message; /* a dict; or bytes, if Python has to unpack them; NULL without memory */
    uint64_t row, to_ring;
} Found;

/* Take from a source, or park. Without a waiter id, only if a glance shows a message. */
static Outcome receive_from(UsualObject *self, PyObject *object, Receiver receiver, Found *found)
{
    State *state = self->state;
    Place place;
    double now;
    if (!PyObject_TypeCheck(object, state->source))
        return NOT_USUAL;
    SourceObject *source = (SourceObject *)object;
    if (source->inbox != Py_None || source->channel == NULL)
        return NOT_USUAL;
    const Memory *memory = ready(self, &now);
    if (memory == NULL || !find_place(state, source->target, &place) ||
        (!receiver.waiter_id && !is_pending(memory, place.row)))
        return NOT_USUAL;
    TargetObject *target = (TargetObject *)source->target;
    receiver.taken = target->taken;
    uint8_t room[ON_THE_STACK];
    Copy copy = {room, sizeof room, 0, NULL, 0};
    Outcome outcome = take(memory, &place, &receiver, now, &copy);
    if (outcome == PARKED)
        target->taken = 0.0;
    if (outcome != DONE)
        return outcome;
    target->taken = now;
    const uint8_t *data = copy.bytes == NULL ? room : (uint8_t *)PyBytes_AsString(copy.bytes);
    PyObject *message = unpack_message(data, copy.length, state->keys);
    if (message == NULL) {
        if (copy.bytes == NULL)
            copy.bytes = PyBytes_FromStringAndSize((char *)room, (Py_ssize_t)copy.length);
        message = copy.bytes;
    } else {
        Py_XDECREF(copy.bytes);
    }
    *found = (Found){message, place.row, copy.to_ring};
    return DONE;
}

/* What was received from a source, as a new reference: a tuple of the channel and the message. If
   there is more to do, a list of the source, the message or its bytes, and the ring that is due, or
   None. */
static PyObject *received(PyObject *source, Found found)
{
    if (found.message == NULL)
        return NULL;
    PyObject *answer;
    if (PyDict_CheckExact(found.message) && !found.to_ring) {
        answer = PyTuple_Pack(2, ((SourceObject *)source)->channel, found.message);
        Py_DECREF(found.message);
        return answer;
    }
    PyObject *ring = found.to_ring ? ring_due(found.row, found.to_ring) : Py_NewRef(Py_None);
    answer = ring == NULL ? NULL : PyList_New(3);
    if (answer == NULL) {
        Py_XDECREF(ring);
        Py_DECREF(found.message);
        return NULL;
    }
    Py_INCREF(source);
    PyList_SetItem(answer, 0, source);
    PyList_SetItem(answer, 1, found.message);
    PyList_SetItem(answer, 2, ring);
    return answer;
}

/* The one source that a channel stands for in `known`: a new reference, or NULL. */
static PyObject *source_of(UsualObject *self, PyObject *known, PyObject *channel)
{
    if (channel == NULL || !PyUnicode_CheckExact(channel))
        return NULL;
    PyObject *sources = PyDict_GetItemWithError(known, channel);
    if (sources == NULL || !PyList_CheckExact(sources) || PyList_Size(sources) != 1)
        return NULL;
    PyObject *source = PyList_GetItem(sources, 0);
    Py_XINCREF(source);
    return source;
}

static const Receiver at_once = {0, false, false, 0.0};

static PyObject *usual_receive(PyObject *object, PyObject *channels)
{
    UsualObject *self = (UsualObject *)object;
    PyObject *source = NULL, *answer;
    Found found;
    if (PyList_CheckExact(channels) && PyList_Size(channels) == 1)
        source = source_of(self, self->sources, PyList_GetItem(channels, 0));
    else if (PyTuple_CheckExact(channels) && PyTuple_Size(channels) == 1)
        source = source_of(self, self->sources, PyTuple_GetItem(channels, 0));
    if (source == NULL)
        return Py_NewRef(Py_None);
    if (receive_from(self, source, at_once, &found) == DONE)
        answer = received(source, found);
    else
        answer = Py_NewRef(Py_None);
    Py_DECREF(source);
    return answer;
}

static PyObject *usual_receive_exact(PyObject *object, PyObject *channel)
{
    UsualObject *self = (UsualObject *)object;
    PyObject *answer, *source = source_of(self, self->exact_sources, channel);
    Found found;
    if (source == NULL)
        return Py_NewRef(Py_None);
    if (receive_from(self, source, at_once, &found) != DONE)
        answer = Py_NewRef(Py_None);
    else if (found.message != NULL && PyDict_CheckExact(found.message) && !found.to_ring)
        answer = found.message;
    else
        answer = received(source, found);
    Py_DECREF(source);
    return answer;
}

static PyObject *usual_take(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    uint64_t waiter_id;
    Found found;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "take(source, waiter_id)");
    if (!number_of(args[1], &waiter_id))
        return Py_NewRef(Py_None);
    Receiver receiver = {waiter_id % WOKEN, waiter_id >= WOKEN, waiter_id >= LEAVING, 0.0};
    if (waiter_id >= 2 * LEAVING || !receiver.waiter_id ||
        receiver.waiter_id >= 64 * WAITER_SET_WORDS)
        return Py_NewRef(Py_None);
    switch (receive_from((UsualObject *)object, args[0], receiver, &found)) {
    case DONE:
        return received(args[0], found);
    case PARKED:
        return Py_NewRef(Py_False);
    default:
        return Py_NewRef(Py_None);
    }
}

static PyMethodDef usual_methods[] = {
    {"send", FAST(usual_send), METH_FASTCALL,
     "send(channel, message)\n\nReturn True if it was sent; if a waiter is to be rung for it, (row, "
     "waiter id); False if\nnothing was done."},
    {"receive", usual_receive, METH_O,
     "receive(channels)\n\nReturn (channel, message) if a glance shows one; None if nothing was "
     "done. If there is more to\ndo, [source, message, ring]: the message is bytes that have to be "
     "unpacked still, or the ring is\ndue, a (row, waiter id)."},
    {"receive_exact", usual_receive_exact, METH_O,
     "receive_exact(channel)\n\nThe same for one full name; returns only the message, or the list."},
    {"take", FAST(usual_take), METH_FASTCALL,
     "take(source, waiter_id)\n\nWhat `receive` does, for a receiver that waits, as Queues.take: "
     "False if it is parked now, or has left."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot usual_slots[] = {
    {Py_tp_doc, "Usual(memory, targets, sources, exact_sources, limit)\n\n"
                "The usual send and receive of a layer."},
    {Py_tp_new, usual_new},
    {Py_tp_traverse, usual_traverse},
    {Py_tp_dealloc, usual_dealloc},
    {Py_tp_methods, usual_methods},
    {0, NULL},
};

static PyType_Spec usual_spec = {
    "asgi_ipc._native.Usual", sizeof(UsualObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    usual_slots,
};

/* -- the module ---------------------------------------------------------------------------------- */

static PyObject *native_pack(PyObject *module, PyObject *message)
{
    State *state = PyModule_GetState(module);
    Py_ssize_t length = pack_message(message, state->packed, sizeof state->packed);
    if (length < 0)
        return Py_NewRef(Py_None);
    return PyBytes_FromStringAndSize((char *)state->packed, length);
}

static PyObject *native_unpack(PyObject *module, PyObject *body)
{
    State *state = PyModule_GetState(module);
    if (!PyBytes_CheckExact(body))
        return PyErr_Format(PyExc_TypeError, "unpack takes bytes");
    PyObject *message = unpack_message((uint8_t *)PyBytes_AsString(body),
                                       (size_t)PyBytes_Size(body), state->keys);
    if (message == NULL)
        return Py_NewRef(Py_None);
    return message;
}

static PyObject *native_sums(PyObject *module, PyObject *body)
{
    if (!PyBytes_CheckExact(body))
        return PyErr_Format(PyExc_TypeError, "sums takes bytes");
    Sums sums = sums_of((uint8_t *)PyBytes_AsString(body), (size_t)PyBytes_Size(body));
    return Py_BuildValue("II", sums.low, sums.high);
}

static PyObject *native_are_files(PyObject *module, PyObject *known)
{
    Bytes files;
    if (!bytes_of(known, &files))
        return PyErr_Format(PyExc_TypeError, "are_files takes bytes");
    return PyBool_FromLong(are_files(files));
}

static PyMethodDef native_methods[] = {
    {"pack", native_pack, METH_O, "The message as bytes; None if Python has to look at it."},
    {"unpack", native_unpack, METH_O, "The message in bytes; None if Python has to look at it."},
    {"sums", native_sums, METH_O, "The two sums of an Adler-32 that begins with 0."},
    {"are_files", native_are_files, METH_O, "Whether open files are what they were."},
    {NULL, NULL, 0, NULL},
};

static int native_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->monotonic = PyUnicode_InternFromString("monotonic");
    state->memory = (PyTypeObject *)PyType_FromModuleAndSpec(module, &memory_spec, NULL);
    state->usual = (PyTypeObject *)PyType_FromModuleAndSpec(module, &usual_spec, NULL);
    state->target = (PyTypeObject *)PyType_FromModuleAndSpec(module, &target_spec, NULL);
    state->source = (PyTypeObject *)PyType_FromModuleAndSpec(module, &source_spec, NULL);
    if (!state->monotonic || !state->memory || !state->usual || !state->target || !state->source)
        return -1;
    if (PyModule_AddType(module, state->memory) < 0 || PyModule_AddType(module, state->usual) < 0 ||
        PyModule_AddType(module, state->target) < 0 || PyModule_AddType(module, state->source) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "FINGERPRINT", FINGERPRINT);
}

static int native_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->memory);
    Py_VISIT(state->usual);
    Py_VISIT(state->target);
    Py_VISIT(state->source);
    return 0;
}

static int native_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->memory);
    Py_CLEAR(state->usual);
    Py_CLEAR(state->target);
    Py_CLEAR(state->source);
    Py_CLEAR(state->monotonic);
    for (int i = 0; i < KEYS; i++)
        Py_CLEAR(state->keys[i].text);
    return 0;
}

static void native_free(void *module)
{
    native_clear(module);
}

static PyModuleDef_Slot native_module_slots[] = {
    {Py_mod_exec, native_exec},
    {0, NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "asgi_ipc._native",
    .m_doc = "The usual send and receive, compiled.",
    .m_size = sizeof(State),
    .m_methods = native_methods,
    .m_slots = native_module_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
    .m_free = native_free,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}

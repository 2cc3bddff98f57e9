/* Messages, packed and unpacked as msgpack does it, byte by byte.

   It handles only messages of the exact types that may be sent, not nested too deeply and not too
   large. All others are left to codec.py, which says what is wrong with them. Packing runs no
   Python code. Unpacking may run some, because new dicts may start the garbage collector, so it
   must not be done under the lock. */

#include "native.h"

#define DEPTH 64 /* codec.py allows 200 */

/* -- packing ------------------------------------------------------------------------------------ */

typedef struct {
    uint8_t *at, *end;
} Out;

/* `bytes` of a number, the most significant first, after the byte `kind`. */
static inline bool put_number(Out *out, uint8_t kind, uint64_t number, int bytes)
{
    if (out->end - out->at <= bytes)
        return false;
    *out->at++ = kind;
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
        *out->at++ = (uint8_t)(number >> shift);
    return true;
}

static inline bool put_byte(Out *out, uint8_t byte)
{
    if (out->at == out->end)
        return false;
    *out->at++ = byte;
    return true;
}

/* The head of a list or a dict: up to 15 in the byte `small`, else `kind` and 2 or 4 bytes. */
static inline bool put_count(Out *out, uint8_t small, uint8_t kind, size_t count)
{
    if (count < 16)
        return put_byte(out, (uint8_t)(small | count));
    if (count < 1 << 16)
        return put_number(out, kind, count, 2);
    return put_number(out, kind + 1, count, 4);
}

static inline bool put_copy(Out *out, const char *data, size_t length)
{
    if ((size_t)(out->end - out->at) < length)
        return false;
    memcpy(out->at, data, length);
    out->at += length;
    return true;
}

static inline bool put_length(Out *out, uint8_t kind, size_t length)
{
    if (length < 1 << 8)
        return put_number(out, kind, length, 1);
    if (length < 1 << 16)
        return put_number(out, kind + 1, length, 2);
    return put_number(out, kind + 2, length, 4);
}

static bool pack_text(Out *out, PyObject *text)
{
    Py_ssize_t length;
    const char *data = PyUnicode_AsUTF8AndSize(text, &length);
    if (data == NULL) /* a lone surrogate */
        return false;
    bool headed = length < 32 ? put_byte(out, (uint8_t)(0xA0 | length))
                              : put_length(out, 0xD9, (size_t)length);
    return headed && put_copy(out, data, (size_t)length);
}

static bool pack_int(Out *out, PyObject *number)
{
    int overflow;
    int64_t value = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (overflow)
        return false;
    if (value >= 0) {
        if (value < 1 << 7)
            return put_byte(out, (uint8_t)value);
        if (value < 1 << 8)
            return put_number(out, 0xCC, (uint64_t)value, 1);
        if (value < 1 << 16)
            return put_number(out, 0xCD, (uint64_t)value, 2);
        if (value < (int64_t)1 << 32)
            return put_number(out, 0xCE, (uint64_t)value, 4);
        return put_number(out, 0xCF, (uint64_t)value, 8);
    }
    if (value >= -(1 << 5))
        return put_byte(out, (uint8_t)value);
    if (value >= -(1 << 7))
        return put_number(out, 0xD0, (uint64_t)value, 1);
    if (value >= -(1 << 15))
        return put_number(out, 0xD1, (uint64_t)value, 2);
    if (value >= -((int64_t)1 << 31))
        return put_number(out, 0xD2, (uint64_t)value, 4);
    return put_number(out, 0xD3, (uint64_t)value, 8);
}

static bool pack_value(Out *out, PyObject *value, int depth);

static bool pack_dict(Out *out, PyObject *dict, int depth)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    if (depth == 0 || !put_count(out, 0x80, 0xDE, (size_t)PyDict_Size(dict)))
        return false;
    while (PyDict_Next(dict, &at, &key, &value)) {
        if (!PyUnicode_CheckExact(key) || !pack_text(out, key))
            return false;
        if (!pack_value(out, value, depth))
            return false;
    }
    return true;
}

static bool pack_value(Out *out, PyObject *value, int depth)
{
    if (PyUnicode_CheckExact(value))
        return pack_text(out, value);
    if (PyLong_CheckExact(value))
        return pack_int(out, value);
    if (PyDict_CheckExact(value))
        return pack_dict(out, value, depth - 1);
    if (value == Py_None)
        return put_byte(out, 0xC0);
    if (value == Py_False)
        return put_byte(out, 0xC2);
    if (value == Py_True)
        return put_byte(out, 0xC3);
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AsDouble(value);
        uint64_t bits;
        memcpy(&bits, &number, sizeof bits);
        return put_number(out, 0xCB, bits, 8);
    }
    if (PyBytes_CheckExact(value)) {
        size_t length = (size_t)PyBytes_Size(value);
        return put_length(out, 0xC4, length) && put_copy(out, PyBytes_AsString(value), length);
    }
    if (PyList_CheckExact(value)) {
        Py_ssize_t count = PyList_Size(value);
        if (depth == 1 || !put_count(out, 0x90, 0xDC, (size_t)count))
            return false;
        for (Py_ssize_t i = 0; i < count; i++)
            if (!pack_value(out, PyList_GetItem(value, i), depth - 1))
                return false;
        return true;
    }
    if (PyTuple_CheckExact(value)) {
        Py_ssize_t count = PyTuple_Size(value);
        if (depth == 1 || !put_count(out, 0x90, 0xDC, (size_t)count))
            return false;
        for (Py_ssize_t i = 0; i < count; i++)
            if (!pack_value(out, PyTuple_GetItem(value, i), depth - 1))
                return false;
        return true;
    }
    return false;
}

Py_ssize_t pack_message(PyObject *message, uint8_t *to, size_t room)
{
    Out out = {to, to + room};
    if (!PyDict_CheckExact(message) || !pack_dict(&out, message, DEPTH)) {
        PyErr_Clear();
        return -1;
    }
    return out.at - to;
}

/* -- unpacking ---------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *at, *end;
    Key *keys;
} In;

static inline bool get_number(In *in, int bytes, uint64_t *number)
{
    if (in->end - in->at < bytes)
        return false;
    *number = 0;
    while (bytes--)
        *number = *number << 8 | *in->at++;
    return true;
}

/* The next `length` bytes, or NULL if fewer are left. */
static inline const char *get_bytes(In *in, uint64_t length)
{
    if ((uint64_t)(in->end - in->at) < length)
        return NULL;
    const char *found = (const char *)in->at;
    in->at += length;
    return found;
}

static PyObject *new_text(In *in, uint64_t length)
{
    const char *data = get_bytes(in, length);
    return data == NULL ? NULL : PyUnicode_DecodeUTF8(data, (Py_ssize_t)length, NULL);
}

/* The key of a dict: a new reference. Most keys are repeated in many messages. */
static PyObject *unpack_key(In *in)
{
    if (in->at == in->end)
        return NULL;
    uint64_t length;
    uint8_t kind = *in->at++;
    if (kind >= 0xA0 && kind < 0xC0)
        length = kind & 0x1F;
    else if (kind < 0xD9 || kind > 0xDB || !get_number(in, 1 << (kind - 0xD9), &length))
        return NULL;
    if (length > KEY_BYTES)
        return new_text(in, length);
    const uint8_t *data = (const uint8_t *)get_bytes(in, length);
    if (data == NULL)
        return NULL;
    uint32_t hash = (uint32_t)length;
    for (uint64_t i = 0; i < length; i++)
        hash = hash * 31 + data[i];
    hash ^= hash >> 15;
    Key *known = &in->keys[hash % KEYS];
    if (known->text == NULL || known->length != length || memcmp(known->bytes, data, length)) {
        PyObject *text = PyUnicode_DecodeUTF8((const char *)data, (Py_ssize_t)length, NULL);
        if (text == NULL)
            return NULL;
        PyUnicode_InternInPlace(&text);
        PyObject *before = known->text;
        known->text = text;
        known->length = (uint8_t)length;
        memcpy(known->bytes, data, length);
        Py_XDECREF(before); /* a str: this runs no Python code */
    }
    Py_INCREF(known->text);
    return known->text;
}

static PyObject *unpack_value(In *in, int depth);

static PyObject *unpack_dict(In *in, uint64_t count, int depth)
{
    if (depth == 0 || count > (uint64_t)(in->end - in->at))
        return NULL;
    PyObject *dict = PyDict_New();
    for (; dict != NULL && count > 0; count--) {
        PyObject *key = unpack_key(in);
        PyObject *value = key == NULL ? NULL : unpack_value(in, depth);
        bool failed = value == NULL || PyDict_SetItem(dict, key, value) < 0;
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (failed)
            Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *unpack_list(In *in, uint64_t count, int depth)
{
    if (depth == 0 || count > (uint64_t)(in->end - in->at))
        return NULL;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (uint64_t i = 0; list != NULL && i < count; i++) {
        PyObject *item = unpack_value(in, depth);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *unpack_value(In *in, int depth)
{
    uint64_t number;
    const char *data;
    if (in->at == in->end)
        return NULL;
    uint8_t kind = *in->at++;
    if (kind < 0x80)
        return PyLong_FromLong(kind);
    if (kind < 0x90)
        return unpack_dict(in, kind & 0x0F, depth - 1);
    if (kind < 0xA0)
        return unpack_list(in, kind & 0x0F, depth - 1);
    if (kind < 0xC0)
        return new_text(in, kind & 0x1F);
    if (kind >= 0xE0)
        return PyLong_FromLong((int8_t)kind);
    switch (kind) {
    case 0xC0:
        return Py_NewRef(Py_None);
    case 0xC2:
        return Py_NewRef(Py_False);
    case 0xC3:
        return Py_NewRef(Py_True);
    case 0xC4:
    case 0xC5:
    case 0xC6:
        if (!get_number(in, 1 << (kind - 0xC4), &number))
            return NULL;
        data = get_bytes(in, number);
        return data == NULL ? NULL : PyBytes_FromStringAndSize(data, (Py_ssize_t)number);
    case 0xCB: {
        double real;
        if (!get_number(in, 8, &number))
            return NULL;
        memcpy(&real, &number, sizeof real);
        return PyFloat_FromDouble(real);
    }
    case 0xCC:
    case 0xCD:
    case 0xCE:
    case 0xCF:
        return get_number(in, 1 << (kind - 0xCC), &number) ? PyLong_FromUnsignedLongLong(number)
                                                           : NULL;
    case 0xD0:
        return get_number(in, 1, &number) ? PyLong_FromLong((int8_t)number) : NULL;
    case 0xD1:
        return get_number(in, 2, &number) ? PyLong_FromLong((int16_t)number) : NULL;
    case 0xD2:
        return get_number(in, 4, &number) ? PyLong_FromLong((int32_t)number) : NULL;
    case 0xD3:
        return get_number(in, 8, &number) ? PyLong_FromLongLong((int64_t)number) : NULL;
    case 0xD9:
    case 0xDA:
    case 0xDB:
        return get_number(in, 1 << (kind - 0xD9), &number) ? new_text(in, number) : NULL;
    case 0xDC:
    case 0xDD:
        return get_number(in, 2 << (kind - 0xDC), &number) ? unpack_list(in, number, depth - 1)
                                                           : NULL;
    case 0xDE:
    case 0xDF:
        return get_number(in, 2 << (kind - 0xDE), &number) ? unpack_dict(in, number, depth - 1)
                                                           : NULL;
    default: /* extensions, short floats, and what no message begins with */
        return NULL;
    }
}

PyObject *unpack_message(const uint8_t *from, size_t length, Key *keys)
{
    In in = {from, from + length, keys};
    PyObject *message = unpack_value(&in, DEPTH + 1);
    if (message != NULL && (in.at != in.end || !PyDict_CheckExact(message)))
        Py_CLEAR(message);
    if (message == NULL)
        PyErr_Clear();
    return message;
}

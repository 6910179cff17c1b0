/* Rounding under dither and back, compiled: the same numbers, to the bit, as spatl/wire/dithered.py has of NumPy.

   Optional, as spatl/wire/rans.c is. Each operation on floats is rounded by itself, as IEEE 754 says. */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#else
#pragma STDC FP_CONTRACT OFF
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>

#if FLT_EVAL_METHOD != 0
#error "intermediate results are not rounded to their type"
#endif

#define GOLDEN 0x9E3779B97F4A7C15u
#define BLOCK 512 /* numbers at a time, an even number */
#define DITHER_BITS 24
#define LEVEL_SHIFT (DITHER_BITS - 3)
#define LEVELS 8
#define ESCAPE 128
#define LARGEST_INTEGER 8388607.0f

static PyObject *refuse(const char *reason) {
    PyErr_SetString(PyExc_ValueError, reason);
    return NULL;
}

/* Write BLOCK numbers of the dither, SplitMix64's outputs two by two, of which the first comes of the state after `state`. */
static void draw(uint64_t state, uint32_t *restrict numbers) {
    for (uint64_t pair = 0; pair < BLOCK / 2; pair++) {
        uint64_t mixed = state + (pair + 1) * GOLDEN;
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9u;
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBu;
        mixed ^= mixed >> 31;
        numbers[2 * pair] = (uint32_t)mixed >> (32 - DITHER_BITS);
        numbers[2 * pair + 1] = (uint32_t)(mixed >> 32) >> (32 - DITHER_BITS);
    }
}

static PyObject *labelled(Py_buffer *labels, uint64_t state, size_t skipped) {
    uint32_t numbers[BLOCK];
    uint8_t *own = labels->buf;
    const size_t length = (size_t)labels->len;
    if (skipped > 1) return refuse("an output is two numbers");
    for (size_t first = 0; first < length; state += BLOCK / 2 * GOLDEN) {
        draw(state, numbers);
        for (size_t each = skipped; each < BLOCK && first < length; each++, first++)
            own[first] = (uint8_t)(own[first] + (numbers[each] >> LEVEL_SHIFT));
        skipped = 0;
    }
    Py_RETURN_NONE;
}

static inline float undone(int32_t integer, uint32_t number, float share, float step) {
    float taken_off = (float)(int32_t)number - 8388608.0f;
    taken_off *= share;
    taken_off = (float)integer - taken_off;
    return taken_off * step;
}

static void undo(const int8_t *restrict integers, const uint32_t *restrict numbers, size_t length, float share, float step,
                 float *restrict values) {
    for (size_t each = 0; each < length; each++) values[each] = undone(integers[each], numbers[each], share, step);
}

static PyObject *undithered(Py_buffer *out, const Py_buffer *symbols, const Py_buffer *escapes, const Py_buffer *shares,
                            const Py_buffer *ends, uint64_t state, size_t skipped, float step) {
    uint32_t numbers[BLOCK];
    const size_t length = (size_t)out->len / 4, runs = (size_t)ends->len / 8, escaped = (size_t)escapes->len / 4;
    const int8_t *integers = symbols->buf;
    const int32_t *large = escapes->buf;
    const float *share_of = shares->buf;
    const int64_t *end_of = ends->buf;
    float *values = out->buf;
    if (skipped > 1 || (size_t)symbols->len != length || (size_t)shares->len / 4 != runs)
        return refuse("integers, shares and values do not fit");
    size_t run = 0, escape = 0;
    for (size_t first = 0; first < length; state += BLOCK / 2 * GOLDEN) {
        draw(state, numbers);
        const size_t some = BLOCK - skipped < length - first ? BLOCK - skipped : length - first;
        for (size_t each = 0; each < some;) {
            while (run < runs && end_of[run] <= (int64_t)(first + each)) run++;
            if (run == runs) return refuse("a value is of no tensor");
            const size_t end = (size_t)end_of[run] - first < some ? (size_t)end_of[run] - first : some;
            undo(integers + first + each, numbers + skipped + each, end - each, share_of[run], step, values + first + each);
            for (const int8_t *at = integers + first + each, *stop = integers + first + end;
                 at < stop && (at = memchr(at, ESCAPE, (size_t)(stop - at))) != NULL; at++) {
                const size_t place = (size_t)(at - integers);
                if (escape == escaped) return refuse("an escape has no integer");
                values[place] = undone(large[escape++], numbers[skipped + place - first], share_of[run], step);
            }
            each = end;
        }
        first += some;
        skipped = 0;
    }
    Py_RETURN_NONE;
}

static PyObject *dithered(Py_buffer *out, Py_buffer *labels, Py_buffer *counts, const Py_buffer *exact, uint64_t state,
                          size_t skipped, float step, size_t stride) {
    uint32_t numbers[BLOCK];
    const size_t length = (size_t)exact->len / 4, num_counts = (size_t)counts->len / 8;
    const float *values = exact->buf;
    uint8_t *own = labels->buf;
    int32_t *integers = out->buf;
    int64_t *found = counts->buf;
    const size_t cells = LEVELS * ESCAPE; /* of one density */
    if (skipped > 1 || stride == 0 || (size_t)out->len / 4 != length || (size_t)labels->len != length)
        return refuse("labels, integers and values do not fit");
    float steps[BLOCK];
    size_t next = 0; /* the next value that is counted */
    for (size_t first = 0; first < length; state += BLOCK / 2 * GOLDEN) {
        draw(state, numbers);
        const size_t some = BLOCK - skipped < length - first ? BLOCK - skipped : length - first;
        const uint32_t *drawn = numbers + skipped;
        for (size_t each = 0; each < some; each++) steps[each] = values[first + each] / step;
        for (; next < first + some; next += stride) {
            float cell = fabsf(steps[next - first]) * (float)LEVELS;
            cell = cell < (float)(cells - 1) ? cell : (float)(cells - 1);
            const size_t at = (size_t)(int32_t)cell + own[next] * (cells / LEVELS);
            if (at >= num_counts) return refuse("a label is of no density");
            found[at]++;
        }
        for (size_t each = 0; each < some; each++) own[first + each] += (uint8_t)(drawn[each] >> LEVEL_SHIFT);
        for (size_t each = 0; each < some; each++) steps[each] += (float)(int32_t)drawn[each] * 0x1p-24f;
        for (size_t each = 0; each < some; each++) {
            if (steps[each] < -LARGEST_INTEGER) steps[each] = -LARGEST_INTEGER;
            if (steps[each] > LARGEST_INTEGER) steps[each] = LARGEST_INTEGER;
        }
        for (size_t each = 0; each < some; each++) {
            const int32_t whole = (int32_t)steps[each];
            const float left = (steps[each] - (float)whole) + 0.0f; /* exact, and no negative zero */
            uint32_t bits;
            memcpy(&bits, &left, sizeof bits);
            integers[first + each] = whole - (int32_t)(bits >> 31); /* its sign says, without a branch, what floor does */
        }
        first += some;
        skipped = 0;
    }
    Py_RETURN_NONE;
}

static PyObject *label(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer labels;
    unsigned long long state;
    Py_ssize_t skipped;
    if (!PyArg_ParseTuple(arguments, "w*Kn:label", &labels, &state, &skipped)) return NULL;
    PyObject *found = labelled(&labels, state, (size_t)skipped);
    PyBuffer_Release(&labels);
    return found;
}

static PyObject *undither(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer out, symbols, escapes, shares, ends;
    unsigned long long state;
    Py_ssize_t skipped;
    float step;
    if (!PyArg_ParseTuple(arguments, "w*y*y*y*y*Knf:undither", &out, &symbols, &escapes, &shares, &ends, &state, &skipped,
                          &step))
        return NULL;
    PyObject *found = undithered(&out, &symbols, &escapes, &shares, &ends, state, (size_t)skipped, step);
    Py_buffer *all[] = {&out, &symbols, &escapes, &shares, &ends};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) PyBuffer_Release(all[each]);
    return found;
}

static PyObject *dither(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer out, labels, counts, exact;
    unsigned long long state;
    Py_ssize_t skipped, stride;
    float step;
    if (!PyArg_ParseTuple(arguments, "w*w*w*y*Knfn:dither", &out, &labels, &counts, &exact, &state, &skipped, &step,
                          &stride))
        return NULL;
    PyObject *found = dithered(&out, &labels, &counts, &exact, state, (size_t)skipped, step, (size_t)stride);
    Py_buffer *all[] = {&out, &labels, &counts, &exact};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) PyBuffer_Release(all[each]);
    return found;
}

static PyMethodDef methods[] = {
    {"label", label, METH_VARARGS, "label(labels, state, skipped): add the eighths that the dither lies in."},
    {"undither", undither, METH_VARARGS,
     "undither(out, symbols, escapes, shares, ends, state, skipped, step): values of integers."},
    {"dither", dither, METH_VARARGS,
     "dither(out, labels, counts, exact, state, skipped, step, stride): integers of values, labels and counts of cells."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "dithers", .m_doc = "Rounding under dither and back, compiled.", .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit_dithers(void) { return PyModuleDef_Init(&definition); }

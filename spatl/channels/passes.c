/* Passes over the entries of a vector, compiled: the same numbers, to the bit, as what NumPy and PyTorch do in ten.

   Optional: an installation without a compiler lacks it, and who calls it then does the steps one after the other. Each
   step is rounded as IEEE 754 says, so that none may be contracted with the next. Rows come from a selection that was
   checked; all the same each is compared with the length of what it reads or writes before it is used. */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#else
#pragma STDC FP_CONTRACT OFF
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <stdint.h>

#if FLT_EVAL_METHOD != 0
#error "intermediate results are not rounded to their type"
#endif

static PyObject *refuse(const char *reason) {
    PyErr_SetString(PyExc_ValueError, reason);
    return NULL;
}

/* Rows of a stretch that travel: `number` of `inner` entries each, the i-th at `at[i]`, or at i where `at` is NULL. */
struct rows {
    const int64_t *at;
    size_t number, inner;
};

/* Read which rows travel; return 0, or -1 where they do not fit so many entries and values. */
static int read_rows(const Py_buffer *at, Py_ssize_t inner, size_t entries, size_t values, struct rows *found) {
    if (inner < 1) return -1;
    found->at = at->buf;
    found->inner = (size_t)inner;
    found->number = at->buf == NULL ? entries / found->inner : (size_t)at->len / 8;
    if (found->number * found->inner != values) return -1;
    const int64_t last = (int64_t)(entries / found->inner);
    for (size_t row = 0; found->at != NULL && row < found->number; row++)
        if (found->at[row] < 0 || found->at[row] >= last) return -1;
    return 0;
}

static inline size_t begin_of(const struct rows *rows, size_t row) {
    return (rows->at == NULL ? row : (size_t)rows->at[row]) * rows->inner;
}

#define BLOCK 256 /* values at a time, whose parts stay in the nearest cache */
#define ROUNDER 0x1.8p52 /* what is added to a number of at most 2^51, is a whole number, the nearest, half to even */

#define BITS_OF_ROUNDER ((int64_t)0x4338000000000000)

union numbers { /* whole numbers, as doubles that ROUNDER was added to and as their bits */
    double rounded[BLOCK];
    int64_t bits[BLOCK];
};

/* Split terms, of at most 2^42 in magnitude, into whole numbers of 2^-8 and, of what is left, the nearest ones of 2^-58.

   Whether the nearest whole number is above a term is read off the sign of what is left, without a branch. */
static void split(const double *restrict terms, size_t number, double *restrict whole, double *restrict rest) {
    const double one = 0x1p-8;
    uint64_t unit;
    memcpy(&unit, &one, sizeof unit);
    for (size_t each = 0; each < number; each++) {
        const double nearest = (terms[each] * 0x1p8 + ROUNDER) - ROUNDER;
        const double left = terms[each] - nearest * 0x1p-8; /* exact */
        uint64_t bits;
        double more;
        memcpy(&bits, &left, sizeof bits);
        bits = (0 - (bits >> 63)) & unit;
        memcpy(&more, &bits, sizeof more);
        whole[each] = (nearest - more * 0x1p8) + ROUNDER;
        rest[each] = (left + more) * 0x1p58 + ROUNDER; /* from 0 to 2^50 */
    }
}

/* Make terms of values: times `before` over `divisor` times `after`. */
static void make_terms(const void *values, int exact, size_t first, size_t number, double before, double divisor,
                       double after, double *restrict terms) {
    const double *doubles = (const double *)values + (exact ? first : 0);
    const float *floats = (const float *)values + (exact ? 0 : first);
    for (size_t each = 0; each < number && exact; each++) terms[each] = doubles[each] * before;
    for (size_t each = 0; each < number && !exact; each++) terms[each] = (double)floats[each] * before;
    for (size_t each = 0; each < number && divisor != 1.0; each++) terms[each] /= divisor;
    for (size_t each = 0; each < number && after != 1.0; each++) terms[each] *= after;
}

static PyObject *summed(Py_buffer *high, Py_buffer *low, const Py_buffer *values, const Py_buffer *at, Py_ssize_t inner,
                        int exact, double before, double divisor, double after) {
    struct rows rows;
    const size_t entries = (size_t)high->len / 8;
    if (high->len != low->len || read_rows(at, inner, entries, (size_t)values->len / (exact ? 8 : 4), &rows))
        return refuse("rows, values and sums do not fit");
    int64_t *highs = high->buf, *lows = low->buf;
    union numbers whole, rest;
    double terms[BLOCK];
    const size_t number = rows.number * rows.inner;
    size_t row = 0, entry = 0; /* where the next value goes */
    for (size_t first = 0; first < number; first += BLOCK) {
        const size_t length = number - first < BLOCK ? number - first : BLOCK;
        make_terms(values->buf, exact, first, length, before, divisor, after, terms);
        split(terms, length, whole.rounded, rest.rounded);
        for (size_t value = 0; value < length && rows.inner == 1 && rows.at != NULL; value++) {
            highs[rows.at[first + value]] += whole.bits[value] - BITS_OF_ROUNDER;
            lows[rows.at[first + value]] += rest.bits[value] - BITS_OF_ROUNDER;
        }
        for (size_t value = 0; value < length && !(rows.inner == 1 && rows.at != NULL);) {
            const size_t begin = begin_of(&rows, row) + entry;
            const size_t left = rows.inner - entry, some = left < length - value ? left : length - value;
            for (size_t each = 0; each < some; each++) {
                highs[begin + each] += whole.bits[value + each] - BITS_OF_ROUNDER;
                lows[begin + each] += rest.bits[value + each] - BITS_OF_ROUNDER;
            }
            value += some;
            entry = some == left ? 0 : entry + some;
            row += some == left;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *totalled(const Py_buffer *high, const Py_buffer *low, Py_buffer *out) {
    if (high->len != low->len || out->len != high->len) return refuse("sums and totals do not fit");
    const int64_t *highs = high->buf, *lows = low->buf;
    double *totals = out->buf;
    for (size_t entry = 0; entry < (size_t)high->len / 8; entry++) {
        const int64_t rest = lows[entry] & (((int64_t)1 << 50) - 1);
        const int64_t carry = (lows[entry] - rest) / ((int64_t)1 << 50); /* exact, so that it is rounded to nowhere */
        totals[entry] = (double)(highs[entry] + carry) * 0x1p-8 + (double)rest * 0x1p-58;
    }
    Py_RETURN_NONE;
}

static PyObject *refreshed(Py_buffer *own, const Py_buffer *common, const Py_buffer *values, const Py_buffer *at,
                           Py_ssize_t inner, double step_weight, double damping) {
    struct rows rows;
    if (own->len != common->len || read_rows(at, inner, (size_t)own->len / 4, (size_t)values->len / 4, &rows))
        return refuse("rows, values and control variates do not fit");
    const float *sent = values->buf;
    for (size_t row = 0, value = 0; row < rows.number; row++) {
        float *control = (float *)own->buf + begin_of(&rows, row);
        const float *held = (const float *)common->buf + begin_of(&rows, row);
        for (size_t entry = 0; entry < rows.inner; entry++, value++) {
            const double estimate = (double)-sent[value] / step_weight;
            control[entry] = (float)((double)control[entry] + damping * (estimate - (double)held[entry]));
        }
    }
    Py_RETURN_NONE;
}

static PyObject *sketched(Py_buffer *sketch, const Py_buffer *values, const Py_buffer *at, Py_ssize_t inner,
                          Py_ssize_t length, Py_ssize_t first, const Py_buffer *signs, const Py_buffer *shifts) {
    struct rows rows;
    const size_t numbers = (size_t)sketch->len / 8, drawn = (size_t)signs->len / 4;
    if (numbers == 0 || length < 0 || first < 0 || (size_t)(first + length) > drawn ||
        drawn > (size_t)shifts->len / 8 * numbers || read_rows(at, inner, (size_t)length, (size_t)values->len / 4, &rows))
        return refuse("rows, values and signs do not fit");
    double *sums = sketch->buf;
    const float *sent = values->buf, *sign_of = signs->buf;
    const int64_t *shift_of = shifts->buf;
    size_t begin = 0, end = 0, shift = 0; /* of the row of the sketch's length that the last place was in */
    for (size_t row = 0, value = 0; row < rows.number; row++) {
        size_t place = (size_t)first + begin_of(&rows, row);
        for (size_t entry = 0; entry < rows.inner; entry++, value++, place++) {
            if (place < begin || place >= end) {
                begin = place / numbers * numbers;
                end = begin + numbers;
                shift = (size_t)((uint64_t)shift_of[place / numbers] % numbers);
            }
            const size_t cell = place - begin + shift;
            sums[cell < numbers ? cell : cell - numbers] += (double)(sent[value] * sign_of[place]);
        }
    }
    Py_RETURN_NONE;
}

static PyObject *add(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer high, low, values, at;
    Py_ssize_t inner;
    int exact;
    double before, divisor, after;
    if (!PyArg_ParseTuple(arguments, "w*w*y*z*npddd:add", &high, &low, &values, &at, &inner, &exact, &before, &divisor,
                          &after))
        return NULL;
    PyObject *found = summed(&high, &low, &values, &at, inner, exact, before, divisor, after);
    Py_buffer *all[] = {&high, &low, &values, &at};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) PyBuffer_Release(all[each]);
    return found;
}

static PyObject *total(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer high, low, out;
    if (!PyArg_ParseTuple(arguments, "y*y*w*:total", &high, &low, &out)) return NULL;
    PyObject *found = totalled(&high, &low, &out);
    Py_buffer *all[] = {&high, &low, &out};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) PyBuffer_Release(all[each]);
    return found;
}

static PyObject *refresh(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer own, common, values, at;
    Py_ssize_t inner;
    double step_weight, damping;
    if (!PyArg_ParseTuple(arguments, "w*y*y*z*ndd:refresh", &own, &common, &values, &at, &inner, &step_weight, &damping))
        return NULL;
    PyObject *found = refreshed(&own, &common, &values, &at, inner, step_weight, damping);
    Py_buffer *all[] = {&own, &common, &values, &at};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) PyBuffer_Release(all[each]);
    return found;
}

static PyObject *sketch(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer numbers, values, at, signs, shifts;
    Py_ssize_t inner, length, first;
    if (!PyArg_ParseTuple(arguments, "w*y*z*nnny*y*:sketch", &numbers, &values, &at, &inner, &length, &first, &signs,
                          &shifts))
        return NULL;
    PyObject *found = sketched(&numbers, &values, &at, inner, length, first, &signs, &shifts);
    Py_buffer *all[] = {&numbers, &values, &at, &signs, &shifts};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) PyBuffer_Release(all[each]);
    return found;
}

static PyMethodDef methods[] = {
    {"add", add, METH_VARARGS, "add(high, low, values, at, inner, exact, before, divisor, after): exact sums in place."},
    {"total", total, METH_VARARGS, "total(high, low, out): what exact sums come to."},
    {"refresh", refresh, METH_VARARGS, "refresh(own, common, values, at, inner, step_weight, damping): c_i in place."},
    {"sketch", sketch, METH_VARARGS, "sketch(numbers, values, at, inner, length, first, signs, shifts): in place."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "passes", .m_doc = "Passes over the entries of a vector, compiled.", .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit_passes(void) { return PyModuleDef_Init(&definition); }

/* Lanes of rANS, compiled: the same words, bits and refusals as spatl/wire/lanes.py, whose docstrings say what they are.

   Optional: an installation without a compiler lacks it, and spatl/wire/coder.py then takes NumPy. What is decoded comes
   from a peer, so that every index is compared with the length of what it reads or writes before it is used, and the
   words, which may begin at any byte, are put together from bytes. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#define TOTAL_BITS 14
#define TOTAL (1u << TOTAL_BITS)
#define SYMBOLS 256u
#define LOWEST_STATE (1u << 16)
#define CUT_OFF (-1)
#define ENDS_OTHERWISE (-2)

/* Write the first slot of each cell; return 0, or -1 where the frequencies of a context do not make TOTAL. */
static int read_starts(const uint32_t *frequencies, size_t contexts, uint32_t *starts) {
    for (size_t context = 0; context < contexts; context++) {
        uint64_t sum = 0;
        for (size_t cell = context * SYMBOLS; cell < (context + 1) * SYMBOLS; cell++) {
            starts[cell] = (uint32_t)sum;
            sum += frequencies[cell];
        }
        if (sum != TOTAL) return -1;
    }
    return 0;
}

static PyObject *refuse(const char *reason) {
    PyErr_SetString(PyExc_ValueError, reason);
    return NULL;
}

static PyObject *encoded(const Py_buffer *cells, const Py_buffer *frequencies, Py_buffer *states, Py_buffer *words) {
    const size_t contexts = (size_t)frequencies->len / (4 * SYMBOLS), lanes = (size_t)states->len / 4;
    const size_t values = (size_t)cells->len / 2, last_cell = contexts * SYMBOLS;
    const uint16_t *cell_of = cells->buf;
    const uint32_t *frequency = frequencies->buf;
    uint32_t *state = states->buf;
    uint16_t *shed = words->buf;
    if (lanes == 0 || words->len < cells->len) return refuse("there is no room for the coded integers");
    uint32_t *starts = PyMem_Malloc((last_cell + 1) * sizeof *starts);
    if (starts == NULL) return PyErr_NoMemory();
    const char *wrong = read_starts(frequency, contexts, starts) ? "the frequencies of a context do not make one" : NULL;
    for (size_t lane = 0; lane < lanes; lane++) state[lane] = LOWEST_STATE;
    size_t position = values, lane = values % lanes;
    for (size_t value = values; value-- > 0 && wrong == NULL;) {
        lane = (lane == 0 ? lanes : lane) - 1;
        const uint32_t cell = cell_of[value];
        if (cell >= last_cell || frequency[cell] == 0 || frequency[cell] == TOTAL) {
            wrong = "a symbol has no frequency";
            break;
        }
        uint32_t own = frequency[cell], current = state[lane];
        if (current >= own << (32 - TOTAL_BITS)) { /* own < TOTAL, so that this fits */
            shed[--position] = (uint16_t)current;
            current >>= 16;
        }
        state[lane] = ((current / own) << TOTAL_BITS) + starts[cell] + current % own;
    }
    PyMem_Free(starts);
    return wrong ? refuse(wrong) : PyLong_FromSize_t(position);
}

static PyObject *decoded(const Py_buffer *states, const Py_buffer *words, const Py_buffer *ranks,
                         const Py_buffer *frequencies, Py_buffer *symbols) {
    const size_t contexts = (size_t)frequencies->len / (4 * SYMBOLS), lanes = (size_t)states->len / 4;
    const size_t values = (size_t)ranks->len / 2, num_words = (size_t)words->len / 2;
    const uint32_t *frequency = frequencies->buf;
    const uint16_t *rank_of = ranks->buf;
    const uint8_t *word = words->buf;
    uint32_t *state = states->buf;
    uint8_t *symbol_of = symbols->buf;
    if (lanes == 0 || (size_t)symbols->len < values) return refuse("there is no room for the integers");
    uint32_t *starts = PyMem_Malloc((contexts * SYMBOLS + 1) * sizeof *starts);
    uint8_t *symbol_of_slot = PyMem_Malloc(contexts * TOTAL + 1);
    const char *wrong = NULL;
    Py_ssize_t taken = 0;
    if (starts == NULL || symbol_of_slot == NULL) {
        PyMem_Free(starts);
        PyMem_Free(symbol_of_slot);
        return PyErr_NoMemory();
    }
    if (read_starts(frequency, contexts, starts)) wrong = "the frequencies of a context do not make one";
    for (size_t cell = 0; cell < contexts * SYMBOLS && wrong == NULL; cell++)
        memset(symbol_of_slot + (cell / SYMBOLS) * TOTAL + starts[cell], (int)(cell % SYMBOLS), frequency[cell]);
    size_t position = 0, lane = 0;
    for (size_t value = 0; value < values && wrong == NULL; value++) {
        const size_t rank = rank_of[value];
        if (rank >= contexts) {
            wrong = "there is no such context";
            break;
        }
        uint32_t current = state[lane];
        const uint32_t slot = current & (TOTAL - 1);
        const uint8_t symbol = symbol_of_slot[rank * TOTAL + slot];
        const size_t cell = rank * SYMBOLS + symbol;
        symbol_of[value] = symbol;
        current = frequency[cell] * (current >> TOTAL_BITS) + slot - starts[cell]; /* no bytes make it leave 32 bits */
        if (current < LOWEST_STATE) {
            if (position == num_words) {
                taken = CUT_OFF;
                break;
            }
            current = current << 16 | word[2 * position] | (uint32_t)word[2 * position + 1] << 8;
            position++;
        }
        state[lane] = current;
        lane = lane + 1 == lanes ? 0 : lane + 1;
    }
    for (size_t each = 0; each < lanes && taken == 0; each++)
        if (state[each] != LOWEST_STATE) taken = ENDS_OTHERWISE;
    PyMem_Free(starts);
    PyMem_Free(symbol_of_slot);
    return wrong ? refuse(wrong) : PyLong_FromSsize_t(taken ? taken : (Py_ssize_t)position);
}

static PyObject *encode(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer cells, frequencies, states, words;
    if (!PyArg_ParseTuple(arguments, "y*y*w*w*:encode", &cells, &frequencies, &states, &words)) return NULL;
    PyObject *position = encoded(&cells, &frequencies, &states, &words);
    Py_buffer *all[] = {&cells, &frequencies, &states, &words};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) PyBuffer_Release(all[each]);
    return position;
}

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *arguments) {
    Py_buffer states, words, ranks, frequencies, symbols;
    if (!PyArg_ParseTuple(arguments, "w*y*y*y*w*:decode", &states, &words, &ranks, &frequencies, &symbols)) return NULL;
    PyObject *taken = decoded(&states, &words, &ranks, &frequencies, &symbols);
    Py_buffer *all[] = {&states, &words, &ranks, &frequencies, &symbols};
    for (size_t each = 0; each < sizeof all / sizeof *all; each++) PyBuffer_Release(all[each]);
    return taken;
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS,
     "encode(cells, frequencies, states, words) -> position: of uint16 cells and uint32 frequencies, the lanes' states and "
     "the words they shed, from a position to the end."},
    {"decode", decode, METH_VARARGS,
     "decode(states, words, ranks, frequencies, symbols) -> the number of words that were read; -1 where they are cut off, "
     "-2 where a lane does not end as it began."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "rans", .m_doc = "Lanes of rANS, compiled.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit_rans(void) { return PyModuleDef_Init(&definition); }

# The fields of a hash as columns of a row, for the compiled module that reads them.
from libc.math cimport NAN
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

from copyrisk._index cimport TextIndex
from copyrisk._text cimport read_decimal, read_epoch_ms

cdef enum:
    MAX_WORDS = 16
    MAX_WORD = 24
    MAX_COLUMNS = 32

cdef enum Kind:                   # of a column
    DECIMAL, EPOCH_MS, NAME, WORD, TEXT


ctypedef struct Column:
    int kind
    Py_ssize_t offset
    int size                      # of a text
    int n_words
    uint8_t[MAX_WORDS] word_sizes
    char[MAX_WORDS][MAX_WORD] words

ctypedef struct Schema:
    int n
    Py_ssize_t itemsize, absent_at, invalid_at, reply_at
    Column[MAX_COLUMNS] columns


cdef class Columns:
    cdef Schema schema
    cdef readonly object dtype
    cdef readonly tuple fields


cdef inline bint is_name(const char* text, int n) noexcept nogil:
    """Whether any grammar of names (symbols, groups, currencies) could take it; junk must not use their rows up."""
    cdef int i
    cdef char c
    if n > 32:
        return False
    for i in range(n):
        c = text[i]
        if not (48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c == 32 or c == 35 or c == 45 or c == 46 or c == 95):
            return False
    return True


cdef inline bint take_field(const Column* c, TextIndex names, const char* text, int n, char* out) noexcept nogil:
    """Write one value; false if it is not of the column's grammar."""
    cdef int k
    if c.kind == DECIMAL:
        return read_decimal(text, n, <double*>out)
    if c.kind == EPOCH_MS:
        return read_epoch_ms(text, n, <int64_t*>out)
    if c.kind == NAME:
        if not is_name(text, n):
            return False
        (<int32_t*>out)[0] = names.put_text(0, text, n)
        return (<int32_t*>out)[0] >= 0
    if c.kind == WORD:
        for k in range(c.n_words):
            if c.word_sizes[k] == n and memcmp(c.words[k], text, n) == 0:
                (<uint8_t*>out)[0] = k + 1
                return True
        return False
    if n > c.size:
        return False
    memset(out + n, 0, c.size - n)
    memcpy(out, text, n)
    return True


cdef inline void clear_field(const Column* c, char* out) noexcept nogil:
    if c.kind == DECIMAL:
        (<double*>out)[0] = NAN
    elif c.kind == EPOCH_MS:
        (<int64_t*>out)[0] = -1
    elif c.kind == NAME:
        (<int32_t*>out)[0] = -1
    else:
        memset(out, 0, c.size)

# Texts with row numbers, for compiled modules that look them up or copy them without the GIL.
from libc.stdint cimport int32_t, uint8_t, uint64_t


cdef class TextIndex:
    cdef readonly int width       # the longest text
    cdef readonly int32_t high    # rows used so far
    cdef readonly int32_t count   # rows in use
    cdef readonly int32_t limit   # no more rows than this
    cdef char* texts              # (room, width)
    cdef uint8_t* sizes           # (room,) bytes of each text; 0 for a free row
    cdef int32_t* owners          # (room,) the row of what it belongs to; the next free row where it is free
    cdef int32_t* slots           # (n_slots,) row + 1, or 0
    cdef int32_t room
    cdef int32_t free_row
    cdef uint64_t n_slots
    cdef uint64_t seed

    cdef int32_t find(self, int32_t owner, const char* text, int n) noexcept nogil
    cdef int32_t put_text(self, int32_t owner, const char* text, int n) noexcept nogil
    cdef bint grow(self) noexcept nogil
    cdef uint64_t hashed(self, int32_t owner, const char* text, int n) noexcept nogil
    cdef uint64_t slot_of(self, int32_t row) noexcept nogil

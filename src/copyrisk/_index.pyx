"""Short texts with row numbers: accounts by `T:U`, orders by account and id, symbols, groups and currencies by name.

Design
------
(a) One open-addressed table of row numbers (linear probing, at most half full) over columns of fixed-width cells: no
    Python object a text, and look-ups need no GIL.
(b) A row keeps its number while its text is in the index; freed rows are used again, last freed first.
(c) Ids come from outside, so the hash has a seed that nobody can know.
"""
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

import os

import numpy as np

cdef enum:
    FIRST_ROOM = 64


cdef inline uint64_t mix(uint64_t value) noexcept nogil:
    value ^= value >> 32
    value *= <uint64_t>0xD6E8FEB86659FD93
    value ^= value >> 32
    value *= <uint64_t>0xD6E8FEB86659FD93
    return value ^ (value >> 32)


cdef class TextIndex:
    """See `_index.pyi`."""

    def __cinit__(self, int width, int32_t limit=0x3FFFFFFF):
        if not 1 <= width <= 255:
            raise ValueError("width: expected 1 to 255")
        self.width, self.limit, self.free_row = width, limit, -1
        self.seed = int.from_bytes(os.urandom(8), "little")
        if not self.grow():
            raise MemoryError

    def __dealloc__(self):
        free(self.texts)
        free(self.sizes)
        free(self.owners)
        free(self.slots)

    def __len__(self):
        return self.count

    # ---- without the GIL

    cdef uint64_t hashed(self, int32_t owner, const char* text, int n) noexcept nogil:
        cdef uint64_t h = mix(self.seed ^ (<uint64_t>n << 32) ^ <uint64_t>owner), word
        while n > 0:
            word = 0
            memcpy(&word, text, n if n < 8 else 8)
            h = mix(h ^ word) + self.seed
            text += 8
            n -= 8
        return h & (self.n_slots - 1)

    cdef int32_t find(self, int32_t owner, const char* text, int n) noexcept nogil:
        """The row of a text, or -1."""
        cdef uint64_t slot
        cdef int32_t row
        if not 1 <= n <= self.width:
            return -1
        slot = self.hashed(owner, text, n)
        while self.slots[slot]:
            row = self.slots[slot] - 1
            if self.sizes[row] == n and self.owners[row] == owner and memcmp(self.texts + <size_t>row * self.width, text, n) == 0:
                return row
            slot = (slot + 1) & (self.n_slots - 1)
        return -1

    cdef int32_t put_text(self, int32_t owner, const char* text, int n) noexcept nogil:
        """The row of a text, a new one if need be; -1 if it does not fit or there are too many."""
        cdef int32_t row = self.find(owner, text, n)
        cdef uint64_t slot
        if row >= 0 or not 1 <= n <= self.width or self.count >= self.limit:
            return row
        if self.free_row < 0 and self.high == self.room and not self.grow():
            return -1
        if self.free_row >= 0:
            row = self.free_row
            self.free_row = self.owners[row]
        else:
            row = self.high
            self.high += 1
        memcpy(self.texts + <size_t>row * self.width, text, n)
        self.sizes[row] = n
        self.owners[row] = owner
        self.count += 1
        slot = self.hashed(owner, text, n)
        while self.slots[slot]:
            slot = (slot + 1) & (self.n_slots - 1)
        self.slots[slot] = row + 1
        return row

    cdef bint grow(self) noexcept nogil:
        """Double the room; false, and nothing changed, without memory."""
        cdef int32_t room = 2 * self.room if self.room else FIRST_ROOM, row
        cdef uint64_t slot
        cdef int32_t* slots = <int32_t*>calloc(2 * room, sizeof(int32_t))
        cdef void* texts = realloc(self.texts, <size_t>room * self.width)
        cdef void* sizes
        cdef void* owners
        if texts != NULL:
            self.texts = <char*>texts
        sizes = realloc(self.sizes, room)
        if sizes != NULL:
            self.sizes = <uint8_t*>sizes
        owners = realloc(self.owners, room * sizeof(int32_t))
        if owners != NULL:
            self.owners = <int32_t*>owners
        if slots == NULL or texts == NULL or sizes == NULL or owners == NULL:
            free(slots)
            return False
        memset(self.sizes + self.room, 0, room - self.room)
        free(self.slots)
        self.slots, self.n_slots, self.room = slots, 2 * room, room
        for row in range(self.high):  # all in use: it grows when none is free
            slot = self.hashed(self.owners[row], self.texts + <size_t>row * self.width, self.sizes[row])
            while self.slots[slot]:
                slot = (slot + 1) & (self.n_slots - 1)
            self.slots[slot] = row + 1
        return True

    cdef uint64_t slot_of(self, int32_t row) noexcept nogil:
        cdef uint64_t slot = self.hashed(self.owners[row], self.texts + <size_t>row * self.width, self.sizes[row])
        while self.slots[slot] != row + 1:
            slot = (slot + 1) & (self.n_slots - 1)
        return slot

    # ---- with it

    def row_of(self, bytes text, int32_t owner=0):
        """See `_index.pyi`."""
        return self.find(owner, text, len(text)) if len(text) <= self.width else -1

    def put(self, bytes text, int32_t owner=0):
        """See `_index.pyi`."""
        return self.put_text(owner, text, len(text)) if len(text) <= self.width else -1

    def drop(self, int32_t row):
        """See `_index.pyi`."""
        cdef uint64_t hole, slot, home
        if not self.is_used(row):
            raise KeyError(row)
        hole = slot = self.slot_of(row)
        # Close the gap: what was pushed past it by an earlier text moves back.
        while True:
            slot = (slot + 1) & (self.n_slots - 1)
            if self.slots[slot] == 0:
                break
            home = self.hashed(self.owners[self.slots[slot] - 1],
                               self.texts + <size_t>(self.slots[slot] - 1) * self.width, self.sizes[self.slots[slot] - 1])
            if (slot - home) & (self.n_slots - 1) >= (slot - hole) & (self.n_slots - 1):
                self.slots[hole] = self.slots[slot]
                hole = slot
        self.slots[hole] = 0
        self.sizes[row] = 0
        self.owners[row] = self.free_row
        self.free_row = row
        self.count -= 1

    def is_used(self, int32_t row):
        """See `_index.pyi`."""
        return 0 <= row < self.high and self.sizes[row] > 0

    def text(self, int32_t row):
        """See `_index.pyi`."""
        if not self.is_used(row):
            raise KeyError(row)
        return (self.texts + <size_t>row * self.width)[:self.sizes[row]]

    def rows(self):
        """See `_index.pyi`."""
        if self.high == 0:
            return np.zeros(0, np.int32)
        return np.flatnonzero(np.asarray(<uint8_t[:self.high]>self.sizes) != 0).astype(np.int32)

    def put_cells(self, const int32_t[::1] owners, const uint8_t[:, ::1] cells):
        """See `_index.pyi`."""
        cdef Py_ssize_t i, n = owners.shape[0]
        cdef int size
        cdef int32_t before
        rows_made = np.empty(n, np.int32)
        fresh_made = np.zeros(n, np.uint8)
        cdef int32_t[::1] rows = rows_made
        cdef uint8_t[::1] fresh = fresh_made
        if cells.shape[0] != n or cells.shape[1] < 1:
            raise ValueError("owners and cells differ in length")
        with nogil:
            for i in range(n):
                size = min(<int>cells[i, 0], <int>cells.shape[1] - 1)
                before = self.count
                rows[i] = self.put_text(owners[i], <const char*>&cells[i, 0] + 1, size)
                fresh[i] = self.count != before
        return rows_made, fresh_made.view(np.bool_)

    def find_cells(self, const int32_t[::1] owners, const uint8_t[:, ::1] cells):
        """See `_index.pyi`."""
        cdef Py_ssize_t i, n = owners.shape[0]
        rows_found = np.empty(n, np.int32)
        cdef int32_t[::1] rows = rows_found
        if cells.shape[0] != n or cells.shape[1] < 1:
            raise ValueError("owners and cells differ in length")
        with nogil:
            for i in range(n):
                rows[i] = self.find(owners[i], <const char*>&cells[i, 0] + 1, min(<int>cells[i, 0], <int>cells.shape[1] - 1))
        return rows_found

    def cells(self, const int32_t[::1] rows):
        """See `_index.pyi`."""
        cdef Py_ssize_t i
        made = np.zeros((rows.shape[0], 1 + self.width), np.uint8)
        cdef uint8_t[:, ::1] out = made
        for i in range(rows.shape[0]):
            if not self.is_used(rows[i]):
                raise KeyError(rows[i])
            out[i, 0] = self.sizes[rows[i]]
            memcpy(&out[i, 1], self.texts + <size_t>rows[i] * self.width, self.sizes[rows[i]])
        return made


def made_of(const uint8_t[:, ::1] cells, bytes allowed):
    """See `_index.pyi`."""
    cdef Py_ssize_t i, k, size
    cdef bint good
    cdef const uint8_t* is_allowed = allowed
    made = np.zeros(cells.shape[0], np.uint8)
    cdef uint8_t[::1] out = made
    if len(allowed) != 256:
        raise ValueError("allowed: expected a byte for each of 256 characters")
    with nogil:
        for i in range(cells.shape[0]):
            size = cells[i, 0]
            good = 1 <= size < cells.shape[1]
            k = 1
            while good and k <= size:
                good = is_allowed[cells[i, k]] != 0
                k += 1
            out[i] = good
    return made.view(np.bool_)

"""Arrays straight into requests of the server's protocol: keys of rows, and the portfolios of accounts.

Design
------
(a) A figure has two decimals, correctly rounded; unrounded ones have fifteen significant digits (`_text.pxd`).
(b) What an account's portfolio says is remembered as integers (`layout.WRITTEN`); equal integers are equal texts, so
    that a field which would say the same again is found without writing it. Only fields that differ are sent, with
    the two times; of a portfolio that nothing is known of, all.
(c) The server looks a field of a small hash up from the front, so those that move most are created first.
(d) Keys are laid out by copying cells of a `TextIndex` between constant texts, in one buffer used again.
A number outside what (a) can do is left to the caller; nothing is written for its account.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free

import numpy as np

from copyrisk._core cimport Account, Figures
from copyrisk._index cimport TextIndex
from copyrisk._text cimport Bytes, LONGEST_NUMBER, cents_of, put_bulk, put_cents, put_exact, put_head, put_integer, put_raw, reserve

cdef enum:
    CELL_TEXT = 64
    CENTS = 7                     # fields with two decimals that may move each tick, then
    EXACT = 2                     # unrounded ones, then
    FIELDS = 13                   # two times, the balance, status and reasons

cdef enum Outcome:                # see `_pack.pyi`
    SAME = 0
    WHOLE = 1
    LEFT = 2
    PART = 3


ctypedef struct Written:          # 80 bytes: what a portfolio says
    int64_t[CENTS] cents          # equity, free margin, level, open and total profit, used margin; balance
    double[EXACT] exact           # used margin executed and all
    int64_t is_known              # 0: nothing here is what the server holds


ctypedef struct Name:
    const char* at
    Py_ssize_t size


def fixed_text(double value):
    """See `_pack.pyi`."""
    cdef char[LONGEST_NUMBER] out
    cdef int64_t cents
    if not cents_of(value, &cents):
        return None
    return out[:put_cents(out, cents)].decode("ascii")


def exact_text(double value):
    """See `_pack.pyi`."""
    cdef char[LONGEST_NUMBER] out
    cdef int n = put_exact(out, value)
    return out[:n].decode("ascii") if n else None


cdef inline bint says(const Account* a, const Figures* f, Written* w) noexcept nogil:
    """What a portfolio of these figures says; false if that cannot be told here."""
    cdef char[LONGEST_NUMBER] unused
    w.exact[0] = f.used_margin_executed
    w.exact[1] = f.used_margin_all
    w.is_known = 1
    if not (cents_of(f.equity, &w.cents[0]) and cents_of(f.free_margin, &w.cents[1])
            and cents_of(f.margin_level_pct, &w.cents[2]) and cents_of(f.open_pnl, &w.cents[3])
            and cents_of(f.used_margin_executed, &w.cents[5]) and cents_of(a.balance, &w.cents[6])):
        return False
    w.cents[4] = w.cents[3]
    return put_exact(unused, w.exact[0]) > 0 and put_exact(unused, w.exact[1]) > 0


cdef class PortfolioPacker:
    """See `_pack.pyi`."""

    cdef bytes _bulks
    cdef Name[FIELDS] _names
    cdef bytes _key_before, _key_after, _publish, _status
    cdef Py_ssize_t _longest
    cdef Bytes _laid

    def __init__(self, tuple names, str ok, tuple key, str channel):
        cdef Py_ssize_t at = 0
        if len(names) != FIELDS:
            raise ValueError(f"names: expected {FIELDS}")
        bulks = [b"$%d\r\n%b\r\n" % (len(name), name.encode()) for name in names]
        self._bulks = b"".join(bulks)
        for i, bulk in enumerate(bulks):
            self._names[i].at, self._names[i].size = <const char*>self._bulks + at, len(bulk)
            at += len(bulk)
        self._key_before, self._key_after = key[0].encode(), key[1].encode()
        self._publish = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n" % (len(channel), channel.encode())
        self._status = bulks[11] + b"$%d\r\n%b\r\n" % (len(ok), ok.encode()) + bulks[12] + b"$0\r\n\r\n"
        self._longest = (len(self._bulks) + FIELDS * (LONGEST_NUMBER + 8) + len(self._status) + len(self._key_before)
                         + len(self._key_after) + len(self._publish) + 2 * 255 + 80)

    def __dealloc__(self):
        free(self._laid.at)

    def pack(self, const int32_t[::1] rows, TextIndex index not None, const Account[::1] accounts,
             const Figures[::1] figures, Written[::1] written, int64_t now_ms):
        """See `_pack.pyi`."""
        cdef Py_ssize_t k, n = rows.shape[0]
        cdef int32_t row
        cdef Written now
        cdef char* at
        made = np.zeros(n, np.uint8)
        cdef uint8_t[::1] outcome = made
        if not (accounts.shape[0] == figures.shape[0] == written.shape[0]):
            raise ValueError("accounts, figures and written differ in length")
        for k in range(n):
            if not (0 <= rows[k] < accounts.shape[0] and rows[k] < index.high and index.sizes[rows[k]]):
                raise ValueError(f"rows: expected account rows in use, found {rows[k]}")
        cdef const char* key_before = self._key_before
        cdef const char* key_after = self._key_after
        cdef const char* publish = self._publish
        cdef const char* status = self._status
        cdef Py_ssize_t[4] sizes = [len(self._key_before), len(self._key_after), len(self._publish), len(self._status)]
        at = room_for(&self._laid, n * self._longest)
        with nogil:
            for k in range(n):
                row = rows[k]
                if not says(&accounts[row], &figures[row], &now):
                    outcome[k] = LEFT
                elif not same(&written[row], &now):
                    outcome[k] = PART if written[row].is_known else WHOLE
                    at = put_hset(at, index.texts + <size_t>row * index.width, index.sizes[row], key_before, sizes[0],
                                  key_after, sizes[1], &written[row], &now, self._names, status, sizes[3], now_ms)
                    at = put_raw(at, publish, sizes[2])
                    at = put_bulk(at, index.texts + <size_t>row * index.width, index.sizes[row])
                    written[row] = now
        return self._laid.at[:at - self._laid.at], made


cdef inline bint same(const Written* a, const Written* b) noexcept nogil:
    cdef int i
    cdef bint equal = a.is_known == b.is_known and a.exact[0] == b.exact[0] and a.exact[1] == b.exact[1]
    for i in range(CENTS):
        equal = equal and a.cents[i] == b.cents[i]
    return equal


cdef inline char* put_number(char* at, const Name* name, const char* number, int n) noexcept nogil:
    return put_bulk(put_raw(at, name.at, name.size), number, n)


cdef char* put_hset(char* at, const char* tag, int tag_size, const char* before, Py_ssize_t before_size,
                    const char* after, Py_ssize_t after_size, const Written* was, const Written* now, const Name* names,
                    const char* status, Py_ssize_t status_size, int64_t now_ms) noexcept nogil:
    """One HSET of the fields that differ, and of the times."""
    cdef char[LONGEST_NUMBER] number
    cdef bint whole = was.is_known == 0
    cdef int i, n, n_fields = 4 if whole else 2
    for i in range(CENTS):
        n_fields += whole or now.cents[i] != was.cents[i]
    for i in range(EXACT):
        n_fields += whole or now.exact[i] != was.exact[i]
    at = put_raw(put_head(at, 42, 2 + 2 * n_fields), b"$4\r\nHSET\r\n", 10)
    at = put_raw(put_raw(put_head(at, 36, before_size + tag_size + after_size), before, before_size), tag, tag_size)
    at = put_raw(put_raw(at, after, after_size), b"\r\n", 2)
    for i in range(CENTS - 1):
        if whole or now.cents[i] != was.cents[i]:
            n = put_cents(number, now.cents[i])
            at = put_number(at, &names[i], number, n)
    for i in range(EXACT):
        if whole or now.exact[i] != was.exact[i]:
            n = put_exact(number, now.exact[i])
            at = put_number(at, &names[CENTS - 1 + i], number, n)
    n = put_integer(number, now_ms)
    at = put_number(put_number(at, &names[8], number, n), &names[9], number, n)
    if whole or now.cents[CENTS - 1] != was.cents[CENTS - 1]:
        n = put_cents(number, now.cents[CENTS - 1])
        at = put_number(at, &names[10], number, n)
    return put_raw(at, status, status_size) if whole else at


cdef char* room_for(Bytes* b, Py_ssize_t size) except NULL:
    """The start of a buffer that is used again, with room for so much."""
    b.size = 0
    cdef char* at = reserve(b, size + 1)
    if at == NULL:
        raise MemoryError
    return at


cdef class Requests:
    """See `_pack.pyi`."""

    cdef Bytes _laid

    def __dealloc__(self):
        free(self._laid.at)

    def by_row(self, bytes head, bytes before, bytes after, bytes tail, TextIndex index not None, const int32_t[::1] rows):
        """See `_pack.pyi`."""
        cdef Py_ssize_t i, each = len(head) + len(before) + index.width + len(after) + len(tail) + 32
        cdef char* at = room_for(&self._laid, each * rows.shape[0])
        for i in range(rows.shape[0]):
            if not (0 <= rows[i] < index.high and index.sizes[rows[i]]):
                raise KeyError(rows[i])
            at = put_raw(at, <const char*>head, len(head))
            at = put_head(at, 36, len(before) + index.sizes[rows[i]] + len(after))
            at = put_raw(at, <const char*>before, len(before))
            at = put_raw(at, index.texts + <size_t>rows[i] * index.width, index.sizes[rows[i]])
            at = put_raw(put_raw(at, <const char*>after, len(after)), b"\r\n", 2)
            at = put_raw(at, <const char*>tail, len(tail))
        return self._laid.at[:at - self._laid.at]

    def by_cell(self, bytes head, bytes before, bytes between, bytes tail, TextIndex index not None,
                const int32_t[::1] rows, const uint8_t[:, ::1] cells):
        """See `_pack.pyi`."""
        cdef Py_ssize_t i, each = len(head) + len(before) + index.width + len(between) + len(tail) + CELL_TEXT + 32
        cdef char* at = room_for(&self._laid, each * rows.shape[0])
        if cells.shape[0] != rows.shape[0] or cells.shape[1] != CELL_TEXT + 1:
            raise ValueError("cells: expected one for each row")
        for i in range(rows.shape[0]):
            if not (0 <= rows[i] < index.high and index.sizes[rows[i]]) or cells[i, 0] > CELL_TEXT:
                raise KeyError(rows[i])
            at = put_raw(at, <const char*>head, len(head))
            at = put_head(at, 36, len(before) + index.sizes[rows[i]] + len(between) + cells[i, 0])
            at = put_raw(at, <const char*>before, len(before))
            at = put_raw(at, index.texts + <size_t>rows[i] * index.width, index.sizes[rows[i]])
            at = put_raw(at, <const char*>between, len(between))
            at = put_raw(put_raw(at, <const char*>&cells[i, 0] + 1, cells[i, 0]), b"\r\n", 2)
            at = put_raw(at, <const char*>tail, len(tail))
        return self._laid.at[:at - self._laid.at]

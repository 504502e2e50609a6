"""The server's protocol (RESP2 and RESP3) straight into arrays, in whatever pieces it comes.

Design
------
(a) `Replies` is told what it will get, in order: rows of columns, sets of short texts, a page of `SCAN`, or plain
    statuses. It reads into one buffer of fixed size and takes token by token what is complete, so that the bytes may
    come in any pieces; of a reply no more is kept than the token in hand.
(b) What answers something else than was asked (another type, another count, an aggregate in place of a value) is out
    of step, and then every later reply would be taken for another's: that is a fault, as broken bytes are, after which
    the parser takes nothing any more. Its connection must be dropped; nothing is resynchronised by guess.
(c) A length is a claim. It decides how far to skip, never how much to allocate: texts above `MAX_TEXT` are skipped as
    they come, and sets grow by the members that have arrived.
(d) Messages that the server pushes between replies (changed keys, published texts) are collected apart.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

import numpy as np

from copyrisk._columns cimport Column, Columns, Schema, clear_field, take_field
from copyrisk._index cimport TextIndex
from copyrisk._text cimport Bytes, reserve

cdef enum:
    BUFFER = 1 << 19
    MAX_TEXT = 1 << 16            # of a longer one only the fact is kept
    MAX_LINE = 1 << 12
    MAX_DEPTH = 8
    MAX_ERROR = 200
    MAX_PUSHED = 1 << 23          # bytes of changed keys and messages between two looks at them
    CELL_TEXT = 64

cdef enum Due:                    # what a section of replies is read as
    DUE_ROWS, DUE_MEMBERS, DUE_PAGE, DUE_STATUSES

cdef enum Told:                   # what is known of a reply; 0 is nothing
    TOLD = 1
    REFUSED = 2
    COUNTED = 3                   # a status: a number above 0

cdef enum Token:
    TOKEN_TEXT, TOKEN_NULL, TOKEN_ERROR, TOKEN_TOO_LONG

cdef enum Fault:                  # `FAULTS` has the words
    BAD_TYPE = 1, BAD_LENGTH, BAD_LINE, TOO_DEEP, NOT_ASKED, OUT_OF_STEP, NO_MEMORY

FAULTS = ("", "unknown_type", "bad_length", "bad_line", "too_deep", "not_asked", "out_of_step", "no_memory")
NOT_READ, READ, REFUSED_REPLY, READ_COUNT = 0, <int>TOLD, <int>REFUSED, <int>COUNTED


NO_ROWS, NO_CELLS = np.zeros(0, np.int32), np.zeros((0, CELL_TEXT + 1), np.uint8)


ctypedef struct Section:
    int due
    char* out
    Py_ssize_t count, done
    const Schema* schema

ctypedef struct Members:          # 16 bytes: the members of one set are `count` cells from `first`
    int64_t first
    int32_t count
    uint8_t reply
    uint8_t[3] _pad


cdef inline bint keep_text(Bytes* b, const char* text, int n) noexcept nogil:
    """Append a text with its length before it."""
    cdef char* at = reserve(b, n + 4)
    if at == NULL:
        return False
    memcpy(at, &n, 4)
    if n > 0:
        memcpy(at + 4, text, n)
    b.size += n + 4
    return True


cdef inline bint is_of_one_key(const char* error, Py_ssize_t n) noexcept nogil:
    return n >= 9 and memcmp(error, b"WRONGTYPE", 9) == 0


cdef inline bint read_integer(const char* text, Py_ssize_t n, int64_t* value) noexcept nogil:
    cdef Py_ssize_t i, first = 1 if n > 0 and text[0] == 45 else 0
    if not 1 <= n - first <= 18:
        return False
    value[0] = 0
    for i in range(first, n):
        if not 48 <= text[i] <= 57:
            return False
        value[0] = 10 * value[0] + (text[i] - 48)
    if first:
        value[0] = -value[0]
    return True


cdef class Replies:
    """See `_wire.pyi`."""

    cdef readonly int fault       # 0, or why nothing is taken any more
    cdef readonly Py_ssize_t due  # replies that are still to come
    cdef bint _flushed            # the server told that everything has changed
    cdef bint _overflowed         # more was pushed than is kept
    cdef TextIndex _names
    cdef bytearray _buffer
    cdef char* _bytes
    cdef Py_ssize_t _start, _end, _skip
    cdef bint _skips_error
    cdef list _kept               # what the pointers of sections point into
    cdef Bytes _sections
    cdef Py_ssize_t _section
    cdef Bytes _members, _keys, _changed, _messages
    cdef char[CELL_TEXT] _cursor
    cdef int _cursor_size
    cdef char[MAX_ERROR] _error
    cdef int _error_size
    cdef int _depth
    cdef int64_t[MAX_DEPTH] _left
    cdef int64_t _position        # among the elements of the outermost aggregate
    cdef bint _pushed, _invalidates, _messaged, _is_attribute, _counts
    cdef Py_ssize_t _messages_end, _n_parts, _n_changed

    def __cinit__(self, TextIndex names not None):
        self._names, self._kept = names, []
        self._buffer = bytearray(BUFFER)
        self._bytes = <char*>self._buffer

    def __dealloc__(self):
        free(self._sections.at)
        free(self._members.at)
        free(self._keys.at)
        free(self._changed.at)
        free(self._messages.at)

    # ---- what is expected

    def expect_rows(self, Columns columns, out):
        """See `_wire.pyi`."""
        if out.dtype != columns.dtype or not out.flags.c_contiguous:
            raise ValueError("out: expected a contiguous array of the columns' dtype")
        self._expect(DUE_ROWS, out, &columns.schema)
        self._kept.append(columns)

    def expect_members(self, out):
        """See `_wire.pyi`."""
        if out.itemsize != sizeof(Members) or not out.flags.c_contiguous:
            raise ValueError("out: expected a contiguous array of layout.MEMBERS")
        self._expect(DUE_MEMBERS, out, NULL)

    def expect_statuses(self, out):
        """See `_wire.pyi`."""
        if out.itemsize != 1 or not out.flags.c_contiguous:
            raise ValueError("out: expected a contiguous array of uint8")
        self._expect(DUE_STATUSES, out, NULL)

    def expect_page(self):
        """See `_wire.pyi`."""
        self._expect(DUE_PAGE, np.zeros(1, np.uint8), NULL)

    cdef int _expect(self, int due, out, const Schema* schema) except -1:
        cdef uint8_t[::1] view
        cdef Section* section
        if len(out) == 0:
            return 0
        if self.due == 0:
            self._sections.size, self._section = 0, 0
            self._kept.clear()
        view = out.view(np.uint8)
        section = <Section*>reserve(&self._sections, sizeof(Section))
        if section == NULL:
            raise MemoryError
        section.due, section.out, section.schema = due, <char*>&view[0], schema
        section.count, section.done = len(out), 0
        self._sections.size += sizeof(Section)
        self._kept.append(out)
        self.due += len(out)
        return 0

    # ---- bytes in

    def room(self):
        """See `_wire.pyi`."""
        if self._start > 0:
            memmove(self._bytes, self._bytes + self._start, self._end - self._start)
            self._end -= self._start
            self._start = 0
        return memoryview(self._buffer)[self._end:]

    def fed(self, Py_ssize_t n):
        """See `_wire.pyi`."""
        if not 0 <= n <= BUFFER - self._end:
            raise ValueError("more bytes than there was room for")
        self._end += n
        with nogil:
            if self.fault == 0:
                self.fault = self._parse()
        if self.fault:
            raise ValueError(FAULTS[self.fault])

    cdef int _parse(self) noexcept nogil:
        """Take every token that is complete; 0, or a fault."""
        cdef const char* at
        cdef const char* line_end
        cdef Py_ssize_t available
        cdef int fault
        while True:
            if self._skip > 0 and not self._skipped(&fault):
                return fault
            at, available = self._bytes + self._start, self._end - self._start
            if available == 0:
                return 0
            line_end = <const char*>memchr(at, 13, available if available < MAX_LINE else MAX_LINE)
            if line_end == NULL:
                return BAD_LINE if available >= MAX_LINE else 0
            if line_end + 1 == at + available:
                return 0
            if line_end[1] != 10:
                return BAD_LINE
            fault = self._line(at, line_end - at, available)
            if fault < 0:
                return 0
            if fault:
                return fault

    cdef bint _skipped(self, int* fault) noexcept nogil:
        """Go on over a text that is not kept; false if it goes on beyond the bytes there are, or does not end."""
        cdef Py_ssize_t over = min(self._skip - 2, self._end - self._start)
        fault[0] = 0
        if over > 0:
            self._start += over
            self._skip -= over
        if self._skip > 2 or self._end - self._start < 2:
            return False
        if self._bytes[self._start] != 13 or self._bytes[self._start + 1] != 10:
            fault[0] = BAD_LENGTH
            return False
        self._start += 2
        self._skip = 0
        fault[0] = self._scalar(TOKEN_ERROR if self._skips_error else TOKEN_TOO_LONG, NULL, 0)
        return fault[0] == 0

    cdef int _line(self, const char* at, Py_ssize_t size, Py_ssize_t available) noexcept nogil:
        """One token, its first line complete; -1 if the rest of it is not there yet."""
        cdef char mark = at[0]
        cdef int64_t n
        self._counts = mark == b":" and size > 1 and at[1] != b"0" and at[1] != b"-"
        if mark == b"+" or mark == b":" or mark == b"," or mark == b"#" or mark == b"(":
            self._start += size + 2
            return self._scalar(TOKEN_TEXT, at + 1, size - 1)
        if mark == b"-":
            self._start += size + 2
            return self._scalar(TOKEN_ERROR, at + 1, size - 1)
        if mark == b"_":
            self._start += size + 2
            return self._scalar(TOKEN_NULL, NULL, 0) if size == 1 else BAD_LENGTH
        if not (mark == b"$" or mark == b"*" or mark == b"~" or mark == b"%" or mark == b">" or mark == b"=" or mark == b"!" or mark == b"|"):
            return BAD_TYPE
        if not read_integer(at + 1, size - 1, &n) or n > 0x7FFFFFFF:
            return BAD_LENGTH
        if n == -1 and (mark == b"$" or mark == b"*"):
            self._start += size + 2
            return self._scalar(TOKEN_NULL, NULL, 0)
        if n < 0:
            return BAD_LENGTH
        if mark == b"$" or mark == b"=" or mark == b"!":
            return self._bulk(mark, at + size + 2, n, available - size - 2, size + 2)
        self._start += size + 2
        return self._aggregate(mark, 2 * n if mark == b"%" or mark == b"|" else n)

    cdef int _bulk(self, char mark, const char* text, Py_ssize_t n, Py_ssize_t available, Py_ssize_t head) noexcept nogil:
        if n > MAX_TEXT:
            self._start += head
            self._skip = n + 2
            self._skips_error = mark == b"!"
            return 0
        if available < n + 2:
            return -1
        if text[n] != 13 or text[n + 1] != 10:
            return BAD_LENGTH
        self._start += head + n + 2
        if mark == b"!":
            return self._scalar(TOKEN_ERROR, text, n)
        if mark == b"=":
            return self._scalar(TOKEN_TEXT, text + 4, n - 4) if n >= 4 else BAD_LENGTH
        return self._scalar(TOKEN_TEXT, text, n)

    # ---- tokens in

    cdef int _aggregate(self, char mark, int64_t n) noexcept nogil:
        cdef int fault
        if self._depth == MAX_DEPTH:
            return TOO_DEEP
        if self._depth == 0:
            self._position = 0
            self._pushed = mark == b">" or mark == b"|"
            self._invalidates = self._messaged = False
            self._is_attribute = mark == b"|"
            self._n_parts = 0
            fault = 0 if self._pushed else self._begin(mark, n)
        elif mark == b">" or mark == b"|":
            fault = OUT_OF_STEP  # only between replies
        else:
            fault = self._inner_aggregate()
        if fault:
            return fault
        self._left[self._depth] = n
        self._depth += 1
        return self._close_full() if n == 0 else 0

    cdef int _scalar(self, int token, const char* text, Py_ssize_t n) noexcept nogil:
        cdef int fault
        if self._depth == 0:
            self._pushed = False
            fault = self._whole(token, text, n)
            if fault:
                return fault
            if token == TOKEN_ERROR:
                return self._end_reply(REFUSED)
            return self._end_reply(COUNTED if self._counts and self._now().due == DUE_STATUSES else TOLD)
        fault = self._push_element(token, text, n) if self._pushed else self._element(token, text, n)
        if fault:
            return fault
        self._left[self._depth - 1] -= 1
        if self._depth == 1:
            self._position += 1
        return self._close_full() if self._left[self._depth - 1] == 0 else 0

    cdef int _close_full(self) noexcept nogil:
        """An aggregate has all its elements: it is an element of the one around it."""
        while self._depth > 0 and self._left[self._depth - 1] == 0:
            self._depth -= 1
            if self._depth > 0:
                self._left[self._depth - 1] -= 1
            if self._depth == 1:
                self._position += 1
        if self._depth > 0:
            return 0
        if self._pushed:
            # A message is two texts; what has another shape must not shift the next one.
            if self._messaged and self._n_parts == 2:
                self._messages_end = self._messages.size
            self._messages.size = self._messages_end
            return 0
        return self._end_reply(TOLD)

    # ---- replies

    cdef inline Section* _now(self) noexcept nogil:
        return <Section*>(self._sections.at + self._section)

    cdef int _end_reply(self, uint8_t told) noexcept nogil:
        cdef Section* section = self._now()
        if section.due == DUE_ROWS:
            section.out[section.done * section.schema.itemsize + section.schema.reply_at] = told
        elif section.due == DUE_MEMBERS:
            (<Members*>section.out)[section.done].reply = told
        else:
            section.out[section.done] = told
        section.done += 1
        self.due -= 1
        if section.done == section.count:
            self._section += sizeof(Section)
        return 0

    cdef int _begin(self, char mark, int64_t n) noexcept nogil:
        """A reply that is an aggregate."""
        cdef Section* section
        cdef char* row
        cdef Members* members
        if self.due == 0:
            return NOT_ASKED
        section = self._now()
        if section.due == DUE_ROWS:
            if mark != b"*" or n != section.schema.n:
                return OUT_OF_STEP
            row = section.out + section.done * section.schema.itemsize
            (<uint32_t*>(row + section.schema.absent_at))[0] = (<uint32_t*>(row + section.schema.invalid_at))[0] = 0
        elif section.due == DUE_MEMBERS:
            if mark != b"*" and mark != b"~":
                return OUT_OF_STEP
            members = <Members*>section.out + section.done
            members.first, members.count = self._members.size // (CELL_TEXT + 1), <int32_t>n
        elif section.due == DUE_PAGE:
            if mark != b"*" or n != 2:
                return OUT_OF_STEP
        return 0

    cdef int _whole(self, int token, const char* text, Py_ssize_t n) noexcept nogil:
        """A reply that is no aggregate: a status, or an error in place of any other."""
        cdef Section* section
        cdef int i
        cdef char* row
        if self.due == 0:
            return NOT_ASKED
        section = self._now()
        if token != TOKEN_ERROR and section.due != DUE_STATUSES:
            return OUT_OF_STEP
        # The first error, but one that concerns more than its own key rather than one that does not.
        if token == TOKEN_ERROR and n > 0 and (self._error_size == 0 or (
                is_of_one_key(self._error, self._error_size) and not is_of_one_key(text, n))):
            self._error_size = min(n, <Py_ssize_t>MAX_ERROR)
            memcpy(self._error, text, self._error_size)
        if section.due == DUE_ROWS:
            row = section.out + section.done * section.schema.itemsize
            for i in range(section.schema.n):
                clear_field(&section.schema.columns[i], row + section.schema.columns[i].offset)
            (<uint32_t*>(row + section.schema.absent_at))[0] = (<uint32_t*>(row + section.schema.invalid_at))[0] = 0
        elif section.due == DUE_MEMBERS:
            (<Members*>section.out)[section.done].first = (<Members*>section.out)[section.done].count = 0
        elif section.due == DUE_PAGE:
            self._cursor_size = 0
        return 0

    cdef int _inner_aggregate(self) noexcept nogil:
        if self._pushed or self._now().due == DUE_STATUSES or (
                self._now().due == DUE_PAGE and self._depth == 1 and self._position == 1):
            return 0
        return OUT_OF_STEP

    cdef int _element(self, int token, const char* text, Py_ssize_t n) noexcept nogil:
        """A value inside a reply."""
        cdef Section* section = self._now()
        if section.due == DUE_ROWS:
            self._field(section, token, text, n)
            return 0
        if section.due == DUE_MEMBERS:
            return OUT_OF_STEP if token == TOKEN_NULL or token == TOKEN_ERROR else self._member(text, n, token)
        if section.due == DUE_PAGE:
            if token != TOKEN_TEXT:
                return 0 if token == TOKEN_TOO_LONG and self._depth == 2 else OUT_OF_STEP
            if self._depth == 2:
                return 0 if keep_text(&self._keys, text, n) else NO_MEMORY
            if self._position != 0 or n > CELL_TEXT:
                return OUT_OF_STEP
            memcpy(self._cursor, text, n)
            self._cursor_size = <int>n
        return 0

    cdef void _field(self, Section* section, int token, const char* text, Py_ssize_t n) noexcept nogil:
        cdef const Schema* schema = section.schema
        cdef char* row = section.out + section.done * schema.itemsize
        cdef const Column* column = &schema.columns[self._position]
        cdef uint32_t bit = <uint32_t>1 << self._position
        if token == TOKEN_TEXT and n < MAX_TEXT and take_field(column, self._names, text, n, row + column.offset):
            return
        clear_field(column, row + column.offset)
        if token == TOKEN_NULL:
            (<uint32_t*>(row + schema.absent_at))[0] |= bit
        else:
            (<uint32_t*>(row + schema.invalid_at))[0] |= bit

    cdef int _member(self, const char* text, Py_ssize_t n, int token) noexcept nogil:
        """A cell: the size of the text (255: it is longer than the cell) and as much of it as fits."""
        cdef char* cell = reserve(&self._members, CELL_TEXT + 1)
        if cell == NULL:
            return NO_MEMORY
        memset(cell, 0, CELL_TEXT + 1)
        cell[0] = <char>(n if token == TOKEN_TEXT and n <= CELL_TEXT else 255)
        if n > 0:
            memcpy(cell + 1, text, min(n, <Py_ssize_t>CELL_TEXT))
        self._members.size += CELL_TEXT + 1
        return 0

    # ---- pushed messages

    cdef int _push_element(self, int token, const char* text, Py_ssize_t n) noexcept nogil:
        if self._is_attribute:
            return 0
        if self._depth == 1 and self._position == 0:
            self._invalidates = token == TOKEN_TEXT and n == 10 and memcmp(text, b"invalidate", 10) == 0
            self._messaged = token == TOKEN_TEXT and n == 7 and memcmp(text, b"message", 7) == 0
        elif self._invalidates and self._depth == 1 and token == TOKEN_NULL:
            self._flushed = True
        elif (self._invalidates and self._depth == 2) or (self._messaged and self._depth == 1):
            if token != TOKEN_TEXT:
                n = 0  # a key that long is none of ours, but a message keeps its place
            if self._changed.size + self._messages.size > MAX_PUSHED:
                self._overflowed = True
                return 0
            if not keep_text(&self._changed if self._invalidates else &self._messages, text, n):
                return NO_MEMORY
            self._n_changed += self._invalidates
            self._n_parts += 1
        return 0

    # ---- what came

    def take_error(self):
        """See `_wire.pyi`."""
        text = self._error[:self._error_size]
        self._error_size = 0
        return text

    def take_members(self):
        """See `_wire.pyi`."""
        n = self._members.size // (CELL_TEXT + 1)
        cells = np.empty((n, CELL_TEXT + 1), np.uint8)
        cdef uint8_t[:, ::1] view = cells
        if n:
            memcpy(&view[0, 0], self._members.at, self._members.size)
        self._members.size = 0
        return cells

    def take_page(self):
        """See `_wire.pyi`."""
        return self._cursor[:self._cursor_size], texts_of(&self._keys)

    def take_messages(self):
        """See `_wire.pyi`."""
        cdef Py_ssize_t rest = self._messages.size - self._messages_end
        self._messages.size = self._messages_end
        texts = texts_of(&self._messages)
        if rest > 0:
            memmove(self._messages.at, self._messages.at + self._messages_end, rest)
        self._messages.size, self._messages_end = rest, 0
        return list(zip(texts[::2], texts[1::2]))

    def take_changed(self, TextIndex accounts not None, config, index, holding):
        """See `_wire.pyi`."""
        cdef Bytes* b = &self._changed
        cdef Shape[3] shapes
        cdef Py_ssize_t at = 0, k = 0
        cdef int n, shape, rest
        cdef int32_t row
        cdef const char* key
        for shape, given in enumerate((config, index, holding)):
            set_shape(&shapes[shape], given)
        if self._n_changed == 0:
            return NO_ROWS, NO_ROWS, NO_ROWS, NO_CELLS, []
        kinds_made, rows_made = np.zeros(self._n_changed, np.uint8), np.zeros(self._n_changed, np.int32)
        cells_made = np.zeros((self._n_changed, CELL_TEXT + 1), np.uint8)
        cdef uint8_t[::1] kinds = kinds_made
        cdef int32_t[::1] rows = rows_made
        cdef uint8_t[:, ::1] cells = cells_made
        others = []
        while at < b.size:
            memcpy(&n, b.at + at, 4)
            key, at, row, rest = b.at + at + 4, at + 4 + n, -1, 0
            for shape in range(3):
                row = owner_in(key, n, &shapes[shape], accounts, &rest)
                # Only the last shape goes on after the account: with the order's id.
                if row >= 0 and (rest > 0) == (shape == 2) and rest <= CELL_TEXT:
                    break
                row = -1
            if row < 0:
                others.append(key[:n])
                continue
            kinds[k], rows[k], cells[k, 0] = shape, row, rest
            memcpy(&cells[k, 1], key + n - rest, rest)
            k += 1
        b.size = self._n_changed = 0
        kinds_made, rows_made, cells_made = kinds_made[:k], rows_made[:k], cells_made[:k]
        orders = kinds_made == 2
        return rows_made[kinds_made == 0], rows_made[kinds_made == 1], rows_made[orders], cells_made[orders], others

    def take_flags(self):
        """See `_wire.pyi`."""
        flags = bool(self._flushed), bool(self._overflowed)
        self._flushed = self._overflowed = False
        return flags


ctypedef struct Shape:            # a key of an account: before its `T:U`, after it
    const char* before
    int before_size
    const char* after
    int after_size


cdef int set_shape(Shape* out, shape) except -1:
    cdef bytes before = shape[0], after = shape[1]  # which the tuple keeps
    out.before, out.before_size, out.after, out.after_size = before, len(before), after, len(after)
    return 0


cdef int32_t owner_in(const char* key, int n, const Shape* shape, TextIndex accounts, int* rest) noexcept nogil:
    """The row of the account that a key of this shape names, and how much follows; -1 if there is none."""
    cdef int i, size = n - shape.before_size
    cdef const char* tag = key + shape.before_size
    if size <= 0 or memcmp(key, shape.before, shape.before_size) != 0:
        return -1
    for i in range(size - shape.after_size + 1):
        if memcmp(tag + i, shape.after, shape.after_size) == 0:
            rest[0] = size - shape.after_size - i
            return accounts.find(0, tag, i)
    return -1


cdef list texts_of(Bytes* b):
    """All texts kept in a piece of memory, which is empty then."""
    cdef Py_ssize_t at = 0
    cdef int n
    texts = []
    while at < b.size:
        memcpy(&n, b.at + at, 4)
        texts.append(b.at[at + 4:at + 4 + n])
        at += n + 4
    b.size = 0
    return texts

"""Commands with blanks: what is the same for thousands of accounts is packed once, the rest is filled in."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy

cdef enum:
    PLACES = 32       # the most blanks
    DIGITS = 20

cdef enum Kind:
    FIXED             # `size` bytes of the template from `start`
    BLANK             # the text of place `start`
    SIZE              # how long the word is: `size`, and the texts of the `n_blanks` blanks from `start` of `word_blanks`

ctypedef struct Piece:
    Kind kind
    Py_ssize_t start
    Py_ssize_t size
    Py_ssize_t n_blanks


cdef class Template:
    """See `_templates.pyi`."""

    cdef bytes _packed
    cdef const char* _text  # of `_packed`
    cdef dict _places
    cdef Piece* _pieces
    cdef Py_ssize_t _n_pieces, _room
    cdef list _word_blanks
    cdef int* _blanks
    cdef readonly Py_ssize_t commands

    def __cinit__(self, bytes packed, places):
        self._packed = packed
        self._text = PyBytes_AS_STRING(packed)
        self._places = {name.encode(): place for name, place in places.items()}
        self._word_blanks = []
        if len(self._places) > PLACES or set(self._places.values()) != set(range(len(self._places))):
            raise ValueError(f"places: expected 0 to at most {PLACES - 1}, each once")
        self._parse()
        self._blanks = <int*>malloc(max(len(self._word_blanks), 1) * sizeof(int))
        if self._blanks == NULL:
            raise MemoryError
        for i, place in enumerate(self._word_blanks):
            self._blanks[i] = place

    def __dealloc__(self):
        free(self._pieces)
        free(self._blanks)

    cdef int _add(self, Kind kind, Py_ssize_t start, Py_ssize_t size, Py_ssize_t n_blanks=0) except -1:
        cdef Piece* last = &self._pieces[self._n_pieces - 1] if self._n_pieces else NULL
        cdef Piece* grown
        if kind == FIXED and last != NULL and last.kind == FIXED and last.start + last.size == start:
            last.size += size
            return 0
        if self._n_pieces == self._room:
            self._room = 2 * self._room + 64
            grown = <Piece*>realloc(self._pieces, self._room * sizeof(Piece))
            if grown == NULL:
                raise MemoryError
            self._pieces = grown
        self._pieces[self._n_pieces].kind = kind
        self._pieces[self._n_pieces].start = start
        self._pieces[self._n_pieces].size = size
        self._pieces[self._n_pieces].n_blanks = n_blanks
        self._n_pieces += 1
        return 0

    cdef Py_ssize_t _number(self, Py_ssize_t at, char mark, Py_ssize_t* behind) except -1:
        """The number behind a mark, and where its line ends."""
        cdef const char* text = self._text
        cdef Py_ssize_t end = PyBytes_GET_SIZE(self._packed), value = 0, first = at + 1
        if at >= end or text[at] != mark:
            raise ValueError("packed: expected whole commands")
        at += 1
        while at < end and c"0" <= text[at] <= c"9" and value < 1 << 40:
            value = 10 * value + text[at] - c"0"
            at += 1
        if at == first or not self._ends_line(at):
            raise ValueError("packed: expected whole commands")
        behind[0] = at + 2
        return value

    cdef bint _ends_line(self, Py_ssize_t at):
        return at + 2 <= PyBytes_GET_SIZE(self._packed) and self._text[at] == c"\r" and self._text[at + 1] == c"\n"

    cdef int _parse(self) except -1:
        cdef const char* text = self._text
        cdef Py_ssize_t at = 0, end = PyBytes_GET_SIZE(self._packed), words, size, line, head
        while at < end:
            words = self._number(at, c"*", &line)
            self._add(FIXED, at, line - at)
            at = line
            for _ in range(words):
                head = at
                size = self._number(at, c"$", &line)
                if not self._ends_line(line + size):
                    raise ValueError("packed: expected whole commands")
                if memchr(text + line, c"@", size) == NULL:
                    self._add(FIXED, head, line + size + 2 - head)
                else:
                    self._add_word(head, line, size)
                at = line + size + 2
            self.commands += 1
        return 0

    cdef int _add_word(self, Py_ssize_t head, Py_ssize_t start, Py_ssize_t size) except -1:
        """A word that may have blanks in it."""
        cdef bytes word = self._packed[start : start + size]
        cdef Py_ssize_t done = 0, at = 0, stop, first = len(self._word_blanks), fixed = size
        cdef list found = []
        while True:
            at = word.find(b"@", at)
            stop = word.find(b"@", at + 1) + 1 if at >= 0 else 0
            if stop <= 0:
                break
            place = self._places.get(word[at:stop])
            if place is None:
                at += 1
                continue
            found.append((at, stop, place))
            fixed -= stop - at
            at = stop
        if not found:
            return self._add(FIXED, head, start + size + 2 - head)
        self._word_blanks += [place for _, _, place in found]
        self._add(FIXED, head, 1)
        self._add(SIZE, first, fixed, len(found))
        done = -2  # with the end of the line of the size
        for at, stop, place in found:
            if at > done:
                self._add(FIXED, start + done, at - done)
            self._add(BLANK, place, 0)
            done = stop
        return self._add(FIXED, start + done, size + 2 - done)

    def fill(self, columns, Py_ssize_t start, Py_ssize_t stop):
        """See `_templates.pyi`."""
        cdef const char* texts[PLACES]
        cdef Py_ssize_t sizes[PLACES]
        cdef Py_ssize_t i, used = 0, room = (PyBytes_GET_SIZE(self._packed) + 256) * max(stop - start, 1)
        cdef int place, count = len(self._places)
        cdef list values = list(columns)
        cdef char* out
        if len(values) != count or any(len(column) < stop for column in values if type(column) is list):
            raise ValueError(f"columns: expected {count} with {stop} texts each")
        out = <char*>malloc(room)
        if out == NULL:
            raise MemoryError
        try:
            for i in range(start, stop):
                for place in range(count):
                    column = values[place]
                    value = (<list>column)[i] if type(column) is list else column
                    if type(value) is not bytes:
                        raise TypeError(f"columns: expected bytes, found {type(value).__name__}")
                    texts[place] = PyBytes_AS_STRING(value)
                    sizes[place] = PyBytes_GET_SIZE(value)
                while used + self._needed(sizes) > room:
                    room *= 2
                    grown = <char*>realloc(out, room)
                    if grown == NULL:
                        raise MemoryError
                    out = grown
                used += self._write(out + used, texts, sizes)
            return PyBytes_FromStringAndSize(out, used)
        finally:
            free(out)

    cdef Py_ssize_t _needed(self, const Py_ssize_t* sizes) noexcept nogil:
        """At most so many bytes."""
        cdef Py_ssize_t k, total = 0
        for k in range(self._n_pieces):
            if self._pieces[k].kind == FIXED:
                total += self._pieces[k].size
            elif self._pieces[k].kind == BLANK:
                total += sizes[self._pieces[k].start]
            else:
                total += DIGITS
        return total

    cdef Py_ssize_t _write(self, char* out, const char** texts, const Py_ssize_t* sizes) noexcept nogil:
        cdef Py_ssize_t k, i, used = 0, size
        cdef Piece* piece
        for k in range(self._n_pieces):
            piece = &self._pieces[k]
            if piece.kind == FIXED:
                memcpy(out + used, self._text + piece.start, piece.size)
                used += piece.size
            elif piece.kind == BLANK:
                memcpy(out + used, texts[piece.start], sizes[piece.start])
                used += sizes[piece.start]
            else:
                size = piece.size
                for i in range(piece.n_blanks):
                    size += sizes[self._blanks[piece.start + i]]
                used += write_number(out + used, size)
        return used


cdef inline Py_ssize_t write_number(char* out, Py_ssize_t value) noexcept nogil:
    cdef char digits[DIGITS]
    cdef Py_ssize_t n = 0, i
    while True:
        digits[n] = <char>(c"0" + value % 10)
        n += 1
        value //= 10
        if value == 0:
            break
    for i in range(n):
        out[i] = digits[n - 1 - i]
    return n

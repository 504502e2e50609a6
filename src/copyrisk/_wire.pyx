"""Figures straight into requests: portfolios as the server's protocol wants them, without a Python object a figure.

Design
------
(a) A figure has two decimals, correctly rounded: the double is taken apart into an integer and a power of two, so
    that the rounding (to even at an exact half) is integer arithmetic and exact.
(b) Unrounded figures have fifteen significant digits, by the same arithmetic in 128 bits.
(c) What an account's portfolio says is remembered as integers (`layout.WRITTEN`); equal integers are equal texts, so
    that a portfolio which would say the same again is found without writing it.
(d) Keys are ready-made protocol bytes, one object an account, made once.
A number outside what (a) and (b) can do is left to the caller; nothing is written for its account.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from copyrisk._core cimport Account, Figures

cdef extern from *:
    """
    typedef unsigned __int128 copyrisk_u128;
    """
    ctypedef unsigned long long u128 "copyrisk_u128"

cdef enum:
    LONGEST_NUMBER = 40           # bytes of the longest number written
    LONGEST_BULK = 48             # the same with its length and line ends
    NUMBERS = 11                  # in one portfolio

# Below this a double still tells cents apart; between these two, fifteen digits are at most eighteen decimals.
cdef double HIGHEST = 4e13
cdef double LOWEST_EXACT = 1e-4
cdef double HIGHEST_EXACT = 1e13

cdef uint64_t[20] POWERS_OF_TEN
cdef int _power
POWERS_OF_TEN[0] = 1
for _power in range(1, 20):
    POWERS_OF_TEN[_power] = 10 * POWERS_OF_TEN[_power - 1]


ctypedef struct Written:          # 72 bytes: what a portfolio says
    int64_t equity_cents
    int64_t balance_cents
    int64_t free_margin_cents
    int64_t used_margin_cents
    int64_t margin_level_cents
    int64_t open_pnl_cents
    double used_margin_executed
    double used_margin_all
    int64_t is_known              # 0: nothing here is what the server holds


# ------------------------------------------------------------------------------------------------ numbers

cdef inline uint64_t take_apart(double value, int* exponent) noexcept nogil:
    """Integer m and exponent e with abs(value) = m x 2**e, exactly."""
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    cdef int biased = <int>((bits >> 52) & 0x7FF)
    cdef uint64_t fraction = bits & ((<uint64_t>1 << 52) - 1)
    if biased == 0:
        exponent[0] = -1074
        return fraction
    exponent[0] = biased - 1075
    return fraction | (<uint64_t>1 << 52)


cdef inline u128 shift_rounded(u128 value, int bits) noexcept nogil:
    """value / 2**bits, rounded to nearest and to even at an exact half."""
    if bits <= 0:
        return value << -bits
    if bits >= 127:
        return 0
    cdef u128 quotient = value >> bits
    cdef u128 rest = value - (quotient << bits)
    cdef u128 half = <u128>1 << (bits - 1)
    return quotient + (rest > half or (rest == half and (quotient & 1) == 1))


cdef inline bint cents_of(double value, int64_t* cents) noexcept nogil:
    """The value in hundredths, correctly rounded; false where that cannot be told (NaN included)."""
    cdef int exponent
    cdef uint64_t integer
    if not (-HIGHEST < value < HIGHEST):
        return False
    integer = take_apart(value, &exponent)
    cents[0] = <int64_t>shift_rounded(<u128>integer * 100, -exponent)
    if value < 0.0:
        cents[0] = -cents[0]
    return True


cdef inline int put_integer(char* out, uint64_t value) noexcept nogil:
    cdef char[20] digits
    cdef int n = 0, i
    while True:
        digits[n] = <char>(48 + value % 10)
        value //= 10
        n += 1
        if value == 0:
            break
    for i in range(n):
        out[i] = digits[n - 1 - i]
    return n


cdef inline int put_decimal(char* out, bint negative, uint64_t scaled, int decimals) noexcept nogil:
    """`scaled / 10**decimals` without needless zeros, but for the one after the point."""
    cdef int n = 0, kept, i
    cdef uint64_t fraction = scaled % POWERS_OF_TEN[decimals]
    if negative and scaled:
        out[0] = 45
        n = 1
    n += put_integer(out + n, scaled // POWERS_OF_TEN[decimals])
    out[n] = 46
    kept = decimals
    while kept > 1 and fraction % 10 == 0:
        fraction //= 10
        kept -= 1
    for i in range(kept):
        out[n + kept - i] = <char>(48 + fraction % 10)
        fraction //= 10
    return n + 1 + kept


cdef inline int put_exact(char* out, double value) noexcept nogil:
    """Fifteen significant digits of a number that is not negative; 0 where that cannot be done."""
    cdef int exponent, decimals = 14
    cdef uint64_t integer
    cdef double bound = 10.0
    if value == 0.0:
        return put_decimal(out, False, 0, 1)
    if not LOWEST_EXACT <= value < HIGHEST_EXACT:
        return 0
    while value >= bound:
        bound *= 10.0
        decimals -= 1
    bound = 1.0
    while value < bound:
        bound /= 10.0
        decimals += 1
    integer = take_apart(value, &exponent)
    return put_decimal(out, False, <uint64_t>shift_rounded(<u128>integer * POWERS_OF_TEN[decimals], -exponent), decimals)


def fixed_text(double value):
    """The value with two decimals as a portfolio has it, or None where `PortfolioPacker` leaves it to its caller."""
    cdef char[LONGEST_NUMBER] out
    cdef int64_t cents
    if not cents_of(value, &cents):
        return None
    return out[:put_decimal(out, cents < 0, <uint64_t>(-cents if cents < 0 else cents), 2)].decode("ascii")


def exact_text(double value):
    """The value with fifteen significant digits, or None where `PortfolioPacker` leaves it to its caller."""
    cdef char[LONGEST_NUMBER] out
    cdef int n = put_exact(out, value)
    return out[:n].decode("ascii") if n else None


# --------------------------------------------------------------------------------------------- portfolios

cdef inline char* put_bulk(char* at, const char* text, int n) noexcept nogil:
    """`$n\r\n` text `\r\n`."""
    at[0] = 36
    at += 1
    at += put_integer(at, n)
    memcpy(at, b"\r\n", 2)
    memcpy(at + 2, text, n)
    memcpy(at + 2 + n, b"\r\n", 2)
    return at + 4 + n


cdef inline char* put_cents(char* at, const char* name, Py_ssize_t name_size, int64_t cents) noexcept nogil:
    cdef char[LONGEST_NUMBER] number
    memcpy(at, name, name_size)
    cdef int n = put_decimal(number, cents < 0, <uint64_t>(-cents if cents < 0 else cents), 2)
    return put_bulk(at + name_size, number, n)


cdef inline bint says(const Account* a, const Figures* f, Written* w) noexcept nogil:
    """What a portfolio of these figures says; false if that cannot be told here."""
    w.used_margin_executed = f.used_margin_executed
    w.used_margin_all = f.used_margin_all
    w.is_known = 1
    return (cents_of(f.equity, &w.equity_cents) and cents_of(a.balance, &w.balance_cents)
            and cents_of(f.free_margin, &w.free_margin_cents)
            and cents_of(f.used_margin_executed, &w.used_margin_cents)
            and cents_of(f.margin_level_pct, &w.margin_level_cents)
            and cents_of(f.open_pnl, &w.open_pnl_cents))


cdef class PortfolioPacker:
    """See `_wire.pyi`."""

    cdef bytes _start             # *28, HSET
    cdef bytes _status            # calc_status ok, degraded_fields empty
    cdef list _names              # nine names, ready made
    cdef bytes _ts, _valued_ts
    cdef Py_ssize_t _longest      # bytes of a portfolio without its key
    cdef char* _buffer
    cdef Py_ssize_t _size

    def __init__(self, tuple names, str ok):
        if len(names) != 13:
            raise ValueError("names: expected 13")
        bulks = [b"$%d\r\n%b\r\n" % (len(name), name.encode()) for name in names]
        self._start = b"*28\r\n$4\r\nHSET\r\n"
        self._status = bulks[0] + b"$%d\r\n%b\r\n" % (len(ok), ok.encode()) + bulks[1] + b"$0\r\n\r\n"
        self._names = bulks[2:11]
        self._ts, self._valued_ts = bulks[11], bulks[12]
        self._longest = len(self._start) + len(self._status) + sum(map(len, bulks)) + NUMBERS * LONGEST_BULK

    def __dealloc__(self):
        free(self._buffer)

    cdef int _reserve(self, Py_ssize_t size) except -1:
        cdef void* grown
        if size > self._size:
            grown = realloc(self._buffer, 2 * size)
            if grown == NULL:
                raise MemoryError
            self._buffer = <char*>grown
            self._size = 2 * size
        return 0

    def pack(self, const int32_t[::1] rows, list keys, list notices, const Account[::1] accounts,
             const Figures[::1] figures, Written[::1] written, int64_t now_ms):
        """See `_wire.pyi`."""
        cdef Py_ssize_t k, used = 0
        cdef int32_t row
        cdef Written now
        cdef bytes key, notice
        cdef list packed = [], left = []
        cdef char* at
        if not (accounts.shape[0] == figures.shape[0] == written.shape[0] == len(keys) == len(notices)):
            raise ValueError("accounts, figures, written, keys and notices differ in length")
        for k in range(rows.shape[0]):
            row = rows[k]
            if not 0 <= row < accounts.shape[0]:
                raise ValueError(f"rows: expected account rows below {accounts.shape[0]}, found {row}")
            if not says(&accounts[row], &figures[row], &now):
                left.append(row)
                continue
            if same(&written[row], &now):
                continue
            key, notice = keys[row], notices[row]
            self._reserve(used + self._longest + PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(notice))
            at = self._put_portfolio(self._buffer + used, key, &now, now_ms)
            if at == NULL:
                left.append(row)
                continue
            memcpy(at, PyBytes_AS_STRING(notice), PyBytes_GET_SIZE(notice))
            used = at + PyBytes_GET_SIZE(notice) - self._buffer
            written[row] = now
            packed.append(row)
        return PyBytes_FromStringAndSize(self._buffer, used), packed, left

    cdef char* _put_portfolio(self, char* at, bytes key, const Written* w, int64_t now_ms):
        """One HSET; NULL if an unrounded figure cannot be written here."""
        cdef int64_t[7] cents = [w.equity_cents, w.balance_cents, w.free_margin_cents, w.used_margin_cents,
                                 w.margin_level_cents, w.open_pnl_cents, w.open_pnl_cents]
        cdef double[2] exact = [w.used_margin_executed, w.used_margin_all]
        cdef char[LONGEST_NUMBER] number
        cdef int i, n
        at = put_bytes(put_bytes(put_bytes(at, self._start), key), self._status)
        for i in range(7):
            at = put_cents(at, PyBytes_AS_STRING(self._names[i]), PyBytes_GET_SIZE(self._names[i]), cents[i])
        for i in range(2):
            n = put_exact(number, exact[i])
            if n == 0:
                return NULL
            at = put_bulk(put_bytes(at, self._names[7 + i]), number, n)
        n = put_integer(number, <uint64_t>now_ms)
        at = put_bulk(put_bytes(at, self._ts), number, n)
        return put_bulk(put_bytes(at, self._valued_ts), number, n)


cdef inline char* put_bytes(char* at, bytes text):
    memcpy(at, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    return at + PyBytes_GET_SIZE(text)


cdef inline bint same(const Written* a, const Written* b) noexcept nogil:
    return (a.is_known == b.is_known and a.equity_cents == b.equity_cents and a.balance_cents == b.balance_cents
            and a.free_margin_cents == b.free_margin_cents and a.used_margin_cents == b.used_margin_cents
            and a.margin_level_cents == b.margin_level_cents and a.open_pnl_cents == b.open_pnl_cents
            and a.used_margin_executed == b.used_margin_executed and a.used_margin_all == b.used_margin_all)

# Numbers <-> text, exactly, and the memory that texts are laid out in: inline functions of the compiled modules.
#
# Reading: the grammar is a plain decimal, `-?` 1 to 18 digits, and after a point 1 to 18 more. Up to 2**53 the digits
# are one exact double and one division by an exact power of ten, which rounds correctly; above, 128-bit integers do.
# Writing: a double is taken apart into an integer and a power of two, so that rounding is integer arithmetic, too.
from libc.math cimport ldexp
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

cdef extern from *:
    """
    typedef unsigned __int128 copyrisk_u128;
    static const uint64_t COPYRISK_POWERS[20] = {
        1ULL, 10ULL, 100ULL, 1000ULL, 10000ULL, 100000ULL, 1000000ULL, 10000000ULL, 100000000ULL, 1000000000ULL,
        10000000000ULL, 100000000000ULL, 1000000000000ULL, 10000000000000ULL, 100000000000000ULL,
        1000000000000000ULL, 10000000000000000ULL, 100000000000000000ULL, 1000000000000000000ULL,
        10000000000000000000ULL};
    """
    ctypedef unsigned long long u128 "copyrisk_u128"
    const uint64_t[20] POWERS_OF_TEN "COPYRISK_POWERS"

cdef enum:
    LONGEST_NUMBER = 40           # bytes of the longest number written
    _MOST_DIGITS = 18             # on each side of the point of a number that is read

cdef struct Bytes:                # a growing piece of memory
    char* at
    Py_ssize_t size, room


cdef inline char* reserve(Bytes* b, Py_ssize_t more) noexcept nogil:
    """Where `more` bytes fit, or NULL."""
    cdef void* grown
    if b.size + more > b.room:
        grown = realloc(b.at, 2 * (b.size + more))
        if grown == NULL:
            return NULL
        b.at = <char*>grown
        b.room = 2 * (b.size + more)
    return b.at + b.size

# ---------------------------------------------------------------------------------------------- text to number

cdef inline int count_digits(const char* text, int n) noexcept nogil:
    """How many of the first `n` characters are digits before one is not."""
    cdef int i = 0
    while i < n and 48 <= text[i] <= 57:
        i += 1
    return i


cdef inline double ratio_of(u128 digits, uint64_t scale) noexcept nogil:
    """digits / scale, correctly rounded (to even at an exact half); digits >= 2**53."""
    cdef int exponent = 0, dropped = 0
    cdef u128 quotient, kept
    while digits < (<u128>scale << 55):
        digits <<= 1
        exponent -= 1
    quotient = digits // scale
    while (quotient >> dropped) >= (<u128>1 << 53):
        dropped += 1
    kept = quotient >> dropped
    # What is below the kept bits: more than half, exactly half, or less.
    digits = (digits - quotient * scale != 0) | ((quotient - (kept << dropped)) << 1)
    if digits > (<u128>1 << dropped) or (digits == (<u128>1 << dropped) and (kept & 1)):
        kept += 1
    return ldexp(<double><uint64_t>kept, exponent + dropped)


cdef inline bint read_decimal(const char* text, int n, double* value) noexcept nogil:
    """A plain decimal, correctly rounded; false if it is none."""
    cdef int i, whole, decimals = 0
    cdef bint negative = n > 0 and text[0] == 45
    cdef u128 digits = 0
    if negative:
        text += 1
        n -= 1
    whole = count_digits(text, n)
    if not 1 <= whole <= _MOST_DIGITS:
        return False
    if whole < n:
        decimals = count_digits(text + whole + 1, n - whole - 1)
        if text[whole] != 46 or not 1 <= decimals <= _MOST_DIGITS or whole + 1 + decimals != n:
            return False
    for i in range(whole):
        digits = 10 * digits + (text[i] - 48)
    for i in range(decimals):
        digits = 10 * digits + (text[whole + 1 + i] - 48)
    if digits < <u128>1 << 53:
        value[0] = <double><uint64_t>digits / <double>POWERS_OF_TEN[decimals]
    else:
        value[0] = ratio_of(digits, POWERS_OF_TEN[decimals])
    if negative:
        value[0] = -value[0]
    return True


cdef inline bint read_epoch_ms(const char* text, int n, int64_t* value) noexcept nogil:
    """Milliseconds since 1970, up to 15 digits; feeds write a fraction now and then, the millisecond is what counts."""
    cdef int i, whole = count_digits(text, n)
    if not 1 <= whole <= 15:
        return False
    if whole < n and (text[whole] != 46 or whole + 1 == n or count_digits(text + whole + 1, n - whole - 1) != n - whole - 1):
        return False
    value[0] = 0
    for i in range(whole):
        value[0] = 10 * value[0] + (text[i] - 48)
    return True

# ---------------------------------------------------------------------------------------------- number to text

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
    """The value in hundredths, correctly rounded; false where a double does not tell cents apart (NaN included)."""
    cdef int exponent
    cdef uint64_t integer
    if not (-4e13 < value < 4e13):
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


cdef inline int put_cents(char* out, int64_t cents) noexcept nogil:
    return put_decimal(out, cents < 0, <uint64_t>(-cents if cents < 0 else cents), 2)


cdef inline int put_exact(char* out, double value) noexcept nogil:
    """Fifteen significant digits of a number that is not negative; 0 where that cannot be done (at most 18 decimals)."""
    cdef int exponent, decimals = 14
    cdef uint64_t integer
    cdef double bound = 10.0
    if value == 0.0:
        return put_decimal(out, False, 0, 1)
    if not 1e-4 <= value < 1e13:
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

# ------------------------------------------------------------------------------------------------- protocol

cdef inline char* put_raw(char* at, const char* text, Py_ssize_t n) noexcept nogil:
    memcpy(at, text, n)
    return at + n


cdef inline char* put_head(char* at, char mark, uint64_t value) noexcept nogil:
    """`*n` or `$n` and the end of the line."""
    at[0] = mark
    at += 1 + put_integer(at + 1, value)
    return put_raw(at, b"\r\n", 2)


cdef inline char* put_bulk(char* at, const char* text, Py_ssize_t n) noexcept nogil:
    return put_raw(put_raw(put_head(at, 36, n), text, n), b"\r\n", 2)

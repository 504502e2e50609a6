"""Lot sizing: what a follower's copy of a master's order is, in whole lot steps, and why not if it is not.

Design
------
(a) A size is the floor of a quotient of integers: lots are whole steps, money whole cents, the multiplier whole
    millionths. A double decides nothing, it only guesses the quotient: the guess is off by less than one, so
    ``numerator - guess x denominator`` lies within two denominators and is right even where the numerator itself wraps
    around at 128 bits (`divide`). That remainder puts the guess right and is the fraction for the rounding.
(b) `size_ratio` is the plain rule for many followers. Where numerator and denominator are below 2**52, both are exact
    doubles and the floor of their rounded quotient is the floor of the quotient: a fraction below an integer k is below
    it by at least 1 / denominator, which is more than the spacing of doubles at k. This is arithmetic that compilers
    vectorise, in blocks that stay in the L1 cache; rows it does not settle (bad input, great numbers, halves of a cent)
    keep code 0 and go through `size_row`, like all rows of `size_steps`.
(c) Limits come after the rounding, and the carry takes up what rounding took, not what limits took.
(d) A user's policy is a C function by its address; what it says is checked like anything from outside.
"""
from libc.math cimport INFINITY, NAN, fabs, floor
from libc.stdint cimport INT64_MIN, int64_t, uint8_t
from libc.string cimport memchr

from copyrisk._text cimport cents_of, u128

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GLIBC__) && defined(__OPTIMIZE__) && !defined(__clang__) && \\
        !defined(__SANITIZE_ADDRESS__)
    #define COPYRISK_CLONES __attribute__((target_clones("avx2", "default")))
    #else
    #define COPYRISK_CLONES
    #endif
    #define COPYRISK_EXACT 4503599627370496.0  /* 2**52: up to here sums of integers are exact doubles */

    /* The nearest integers to factor x value; NaN where that is not so near, or not from 1 to `most`. */
    COPYRISK_CLONES static void copyrisk_load(const double* restrict values, double* restrict block, int n,
                                              double factor, double most, double noise) {
        for (int j = 0; j < n; j++) {
            double value = values[j] * factor, whole = (value + 1.5 * COPYRISK_EXACT) - 1.5 * COPYRISK_EXACT;
            block[j] = (__builtin_fabs(value - whole) <= noise) & (1.0 <= whole) & (whole <= most) ? whole : NAN;
        }
    }

    /* The fewest whole steps not below `lots`, if they are positive and not above `bound`; else NaN. */
    COPYRISK_CLONES static void copyrisk_load_least(const double* restrict lots, double* restrict block, int n,
                                                    double factor, double bound, double noise) {
        for (int j = 0; j < n; j++) {
            double steps = lots[j] * factor, least = steps - noise, whole = (least + COPYRISK_EXACT) - COPYRISK_EXACT;
            whole += whole < least ? 1.0 : 0.0;
            whole = whole < 1.0 ? 1.0 : whole;
            block[j] = (0.0 < lots[j]) & (steps <= bound) ? whole : NAN;
        }
    }

    /* The most whole steps not above `lots`, at most `bound`; NaN if there are none. */
    COPYRISK_CLONES static void copyrisk_load_most(const double* restrict lots, double* restrict block, int n,
                                                   double factor, double bound, double noise) {
        for (int j = 0; j < n; j++) {
            double steps = lots[j] * factor, most, whole;
            steps = steps > bound ? bound : steps;
            most = steps + noise;
            whole = (most + COPYRISK_EXACT) - COPYRISK_EXACT;
            whole -= whole > most ? 1.0 : 0.0;
            block[j] = 1.0 <= whole ? whole : NAN;
        }
    }

    /* Floors of steps x follower x multiplier / master (+ half): NaN where doubles would not be exact. */
    COPYRISK_CLONES static void copyrisk_divide(
            const double* restrict steps, const double* restrict follower, const double* restrict multiplier,
            const double* restrict master, double above, double below, double half, double* restrict sizes, int n) {
        for (int j = 0; j < n; j++) {
            double bottom = master[j] * below;
            double top = steps[j] * follower[j] * (multiplier[j] * above) + half * bottom;
            double quotient = top / bottom, size = (quotient + COPYRISK_EXACT) - COPYRISK_EXACT;
            size -= size > quotient ? 1.0 : 0.0;
            size = top < COPYRISK_EXACT ? size : NAN;
            sizes[j] = bottom < COPYRISK_EXACT ? size : NAN;
        }
    }

    /* Sizes inside the limits in lots, and their codes: [unsettled, too small, too large, inside]. */
    COPYRISK_CLONES static void copyrisk_limit(
            const double* restrict sizes, const double* restrict least, const double* restrict most, double low,
            double high, double num, double den, const unsigned char* restrict words, double* restrict lots,
            unsigned char* restrict codes, int n) {
        for (int j = 0; j < n; j++) {
            double size = sizes[j] < least[j] ? low * least[j] : sizes[j];
            size = sizes[j] > most[j] ? high * most[j] : size;
            lots[j] = size * num / den;
        }
        for (int j = 0; j < n; j++)
            codes[j] = words[(sizes[j] <= most[j]) + 2 * (sizes[j] >= least[j])];
    }
    """
    void copyrisk_load(const double*, double*, int, double, double, double) noexcept nogil
    void copyrisk_load_least(const double*, double*, int, double, double, double) noexcept nogil
    void copyrisk_load_most(const double*, double*, int, double, double, double) noexcept nogil
    void copyrisk_divide(const double* steps, const double* follower, const double* multiplier, const double* master,
                         double above, double below, double half, double* sizes, int n) noexcept nogil
    void copyrisk_limit(const double* sizes, const double* least, const double* most, double low, double high,
                        double num, double den, const uint8_t* words, double* lots, uint8_t* codes, int n) noexcept nogil
    const double EXACT "COPYRISK_EXACT"

cdef enum:
    CODE_OF_NONE = 0
    BLOCK = 512                   # rows: nine columns of them fit into the L1 cache
    STEP_UNITS = 100_000_000      # a lot step is told in 1e-8 lots
    MICRO = 1_000_000

cdef int64_t UNKNOWN_NUMBER = INT64_MIN
cdef int64_t BETWEEN_STEPS = INT64_MIN + 1
cdef int64_t MAX_STEPS = 1_000_000_000_000
cdef int64_t MAX_MASTER_STEPS = 1_000_000_000
cdef int64_t MAX_MICRO = 1_000_000_000_000
cdef double MAX_USD = 1e13        # as in `_core`: above, an amount is an error somewhere
# Lots arrive as doubles and may be sums of such: within a millionth of a step they are on it.
cdef double STEP_NOISE = 1e-6
# Carries are sums of doubles: so close below a step, or half of one, it counts as reached.
cdef double CARRY_NOISE = 1e-9
cdef double MAX_DENOMINATOR = 4e37      # 2**125
cdef double FAST_CENTS = 1e11           # up to here 100 x USD is off by less than 1e-5 cents:
cdef double FAST_HALF = 0.4999          # then it is no half so near its integer

UNKNOWN_AMOUNT = UNKNOWN_NUMBER
OFF_STEP = BETWEEN_STEPS


cdef struct Raw:                  # an unrounded size: whole steps and a part of one
    int64_t whole
    double part
    bint reaches_half


# ------------------------------------------------------------------------------------------------ conversions

cdef inline double nearest(double number) noexcept nogil:
    """The nearest integer, the even one at a half, of a number below 2**51."""
    return (number + 1.5 * EXACT) - 1.5 * EXACT  # `rint` is a call, where there is no SSE 4.1


cdef inline int64_t cents(double usd) noexcept nogil:
    """Whole cents as portfolios are written: the nearest, the even one at an exact half."""
    cdef int64_t value
    if fabs(usd) <= 0.01 * FAST_CENTS and fabs(100.0 * usd - nearest(100.0 * usd)) <= FAST_HALF:
        return <int64_t>nearest(100.0 * usd)
    if not fabs(usd) <= MAX_USD or not cents_of(usd, &value):
        return UNKNOWN_NUMBER
    return value


cdef inline int64_t steps_on(double lots, double steps_per_lot) noexcept nogil:
    """Lots in whole steps, BETWEEN_STEPS, or UNKNOWN_NUMBER for what is no size."""
    cdef double steps = lots * steps_per_lot
    if not fabs(steps) <= <double>MAX_MASTER_STEPS:
        return UNKNOWN_NUMBER
    return <int64_t>nearest(steps) if fabs(steps - nearest(steps)) <= STEP_NOISE else BETWEEN_STEPS


cdef inline int64_t micro(double number) noexcept nogil:
    """Whole millionths; 0 for what is not positive or out of range."""
    return <int64_t>nearest(number * 1e6) if 0.0 < number <= <double>(MAX_MICRO // MICRO) else 0


cdef inline int64_t steps_at_least(double lots, double steps_per_lot) noexcept nogil:
    """The fewest whole steps that are not below these lots; 0 for what is no limit."""
    cdef double steps = lots * steps_per_lot
    return <int64_t>max(-floor(STEP_NOISE - steps), 1.0) if 0.0 < lots and steps <= <double>MAX_STEPS else 0


cdef inline int64_t steps_at_most(double lots, double steps_per_lot) noexcept nogil:
    """The most whole steps that are not above these lots, which may be infinite; 0 for what is no limit."""
    cdef double steps = lots * steps_per_lot
    if steps > <double>MAX_STEPS:
        return MAX_STEPS
    return <int64_t>floor(steps + STEP_NOISE) if 0.0 < lots else 0


def whole_cents(const double[:] usd, int64_t[::1] out):
    """See `_sizing.pyi`."""
    cdef Py_ssize_t i
    check_length("out", out.shape[0], usd.shape[0])
    with nogil:
        for i in range(usd.shape[0]):
            out[i] = cents(usd[i])


def whole_steps(const double[:] lots, const double[:] steps_per_lot, int64_t[::1] out):
    """See `_sizing.pyi`."""
    cdef Py_ssize_t i
    check_length("steps_per_lot", steps_per_lot.shape[0], lots.shape[0])
    check_length("out", out.shape[0], lots.shape[0])
    with nogil:
        for i in range(lots.shape[0]):
            out[i] = steps_on(lots[i], steps_per_lot[i])


def whole_micro(const double[:] numbers, int64_t[::1] out):
    """See `_sizing.pyi`."""
    cdef Py_ssize_t i
    check_length("out", out.shape[0], numbers.shape[0])
    with nogil:
        for i in range(numbers.shape[0]):
            out[i] = micro(numbers[i])


def step_limits(const double[:] min_lot, const double[:] max_lot, const double[:] steps_per_lot,
                int64_t[::1] min_steps, int64_t[::1] max_steps):
    """See `_sizing.pyi`."""
    cdef Py_ssize_t i, n = min_lot.shape[0]
    check_length("max_lot", max_lot.shape[0], n)
    check_length("steps_per_lot", steps_per_lot.shape[0], n)
    check_length("min_steps", min_steps.shape[0], n)
    check_length("max_steps", max_steps.shape[0], n)
    with nogil:
        for i in range(n):
            min_steps[i] = steps_at_least(min_lot[i], steps_per_lot[i])
            max_steps[i] = steps_at_most(max_lot[i], steps_per_lot[i])


# --------------------------------------------------------------------------------------------------- one row

cdef inline void divide(u128 numerator, u128 denominator, double guess, int64_t* whole, u128* rest) noexcept nogil:
    """The exact quotient and remainder; of more than MAX_STEPS, which no limit allows, just that it is more.

    `numerator` may have wrapped around; `guess` must be its true value over `denominator`, within 1e-14 of itself.
    """
    cdef u128 left
    if guess > <double>MAX_STEPS + 1.0:
        whole[0], rest[0] = MAX_STEPS + 1, 0
        return
    whole[0] = <int64_t>guess
    left = numerator - <u128>whole[0] * denominator
    if left >> 127:  # below zero: one less
        whole[0] -= 1
        left += denominator
    elif left >= denominator:
        whole[0] += 1
        left -= denominator
    rest[0] = left


cdef inline int64_t ladder(int64_t pct) noexcept nogil:
    """Whole percent down to the rungs: every one up to 10, every fifth up to 100, every tenth above; at least 1."""
    if pct < 10:
        return pct if pct >= 1 else 1
    return pct - pct % (5 if pct < 100 else 10)


cdef inline bint raw_of_quotient(const SizingIn* r, Raw* raw) noexcept nogil:
    """Exact size of the rules that are quotients; false where it is out of range."""
    cdef u128 top = <u128>r.multiplier_micro * <u128>r.ratio_num, bottom = <u128>r.ratio_den, rest
    cdef double over = <double>r.multiplier_micro * <double>r.ratio_num, under = <double>r.ratio_den
    cdef int64_t pct
    if r.mode != MULTIPLE:
        top *= <u128>r.follower_cents
        over *= <double>r.follower_cents
    if r.mode == BY_VALUE:  # cents x micro against 1e-9 USD
        top *= 10
        over *= 10.0
        bottom *= <u128>r.lot_usd_nano
        under *= <double>r.lot_usd_nano
    else:
        bottom *= MICRO
        under *= 1e6
        if r.mode == RATIO:
            bottom *= <u128>r.master_cents
            under *= <double>r.master_cents
    if r.rounding == ROUND_LADDER:
        if not under < MAX_DENOMINATOR:
            return False
        divide(100 * top, bottom, 100.0 * over / under, &pct, &rest)
        if pct > MAX_STEPS:
            return False
        top, bottom = <u128>ladder(pct), 100
        over, under = <double>ladder(pct), 100.0
    if r.mode != BY_VALUE:
        top *= <u128>r.master_steps
        over *= <double>r.master_steps
    top *= <u128>r.lots_num
    bottom *= <u128>r.lots_den
    over *= <double>r.lots_num
    under *= <double>r.lots_den
    if not under < MAX_DENOMINATOR:
        return False
    divide(top, bottom, over / under, &raw.whole, &rest)
    raw.part = <double>rest / under
    raw.reaches_half = rest >= bottom - rest
    return True


cdef inline bint raw_of_wanted(double steps, Raw* raw) noexcept nogil:
    """A size that is a double: within a millionth of a step, or half of one, it is there."""
    if not 0.0 <= steps < <double>MAX_STEPS:
        return False
    raw.whole = <int64_t>floor(steps + STEP_NOISE)
    raw.part = steps - <double>raw.whole
    if raw.part < STEP_NOISE:
        raw.part = 0.0
    raw.reaches_half = raw.part >= 0.5 - STEP_NOISE
    return True


cdef inline uint8_t bad_input(const SizingIn* r) noexcept nogil:
    """Why a row cannot be sized; 0 if it can. What the master or the rules lack comes before what the follower does."""
    if not (1 <= r.mode <= <int>POLICY and 1 <= r.rounding <= <int>ROUND_LADDER and 1 <= r.below_min <= <int>LIMIT_ADJUST
            and 1 <= r.above_max <= <int>LIMIT_ADJUST and r.lift_risk_limit > 0.0):
        return RULES_INVALID
    if r.rounding == ROUND_LADDER and r.mode != RATIO and r.mode != MULTIPLE:
        return RULES_INVALID  # without a ratio there are no percent of it
    if not 1 <= r.min_steps <= r.max_steps <= MAX_STEPS:
        return LIMITS_INVALID
    if not 1 <= r.master_steps <= MAX_MASTER_STEPS:
        return LOTS_OFF_STEP if r.master_steps == BETWEEN_STEPS else MASTER_LOTS_INVALID
    if r.master_cents <= 0:
        return MASTER_EQUITY_UNKNOWN if r.master_cents == UNKNOWN_NUMBER else MASTER_EQUITY_NOT_POSITIVE
    if r.follower_cents <= 0:
        return FOLLOWER_EQUITY_UNKNOWN if r.follower_cents == UNKNOWN_NUMBER else FOLLOWER_EQUITY_NOT_POSITIVE
    if r.mode != FIXED and r.mode != POLICY and not 1 <= r.multiplier_micro <= MAX_MICRO:
        return MULTIPLIER_INVALID
    if r.ratio_num < 1 or r.ratio_den < 1 or r.lots_num < 1 or r.lots_den < 1:
        return CORRECTION_INVALID
    if r.mode == BY_VALUE and r.lot_usd_nano < 1:
        return LOT_VALUE_INVALID
    return CODE_OF_NONE if fabs(r.carry_steps) <= 1.0 else CARRY_INVALID


cdef inline int64_t round_steps(const SizingIn* r, const Raw* raw, double* carry) noexcept nogil:
    """Whole steps of a size and what was owed; what is owed from now on goes to `carry`."""
    cdef bint nearest = r.rounding == ROUND_NEAREST
    cdef double part = raw.part, whole
    if r.carry_steps == 0.0:
        carry[0] = part - 1.0 if nearest and raw.reaches_half else part
        return raw.whole + (nearest and raw.reaches_half)
    part += r.carry_steps
    whole = floor(part + (0.5 if nearest else 0.0) + CARRY_NOISE)
    if raw.whole + <int64_t>whole < 0:
        whole = 0.0
    carry[0] = part - whole
    return raw.whole + <int64_t>whole


cdef inline uint8_t limit_steps(const SizingIn* r, double raw_steps, int64_t* steps) noexcept nogil:
    if steps[0] > r.max_steps:
        steps[0] = r.max_steps if r.above_max == LIMIT_ADJUST else 0
        return CLIPPED if r.above_max == LIMIT_ADJUST else ABOVE_MAX
    if steps[0] >= r.min_steps:
        return OK
    steps[0] = 0
    if r.below_min != LIMIT_ADJUST or not raw_steps + r.carry_steps > 0.0:
        return BELOW_MIN
    if <double>r.min_steps > raw_steps * r.lift_risk_limit * (1.0 + CARRY_NOISE):
        return LIFT_TOO_RISKY
    steps[0] = r.min_steps
    return LIFTED


cdef void size_row(const SizingIn* r, Sized* s) noexcept nogil:
    """The size of one row, or the reason that it has none."""
    cdef Raw raw
    cdef bint known
    s.steps = 0
    s.raw_steps = NAN
    s.carry_steps = r.carry_steps
    s._pad = [0, 0, 0, 0, 0, 0, 0]
    s.code = bad_input(r)
    if s.code != CODE_OF_NONE:
        return
    if r.mode == FIXED or r.mode == POLICY:
        known = raw_of_wanted(r.wanted_steps, &raw)
        if not known or (r.mode == FIXED and r.wanted_steps == 0.0):
            s.code = FIXED_LOTS_INVALID if r.mode == FIXED else POLICY_INVALID
            return
    elif not raw_of_quotient(r, &raw):
        s.code = OUT_OF_RANGE
        return
    s.raw_steps = <double>raw.whole + raw.part
    s.steps = round_steps(r, &raw, &s.carry_steps)
    s.code = limit_steps(r, s.raw_steps, &s.steps)


def size_steps(const SizingIn[::1] rows, Sized[::1] sized):
    """See `_sizing.pyi`."""
    cdef Py_ssize_t i
    check_length("sized", sized.shape[0], rows.shape[0])
    with nogil:
        for i in range(rows.shape[0]):
            size_row(&rows[i], &sized[i])


def ask_policy(size_t address, const PolicyIn[::1] inputs, double[::1] raw_lots):
    """See `_sizing.pyi`."""
    cdef Py_ssize_t i
    cdef policy_t policy = <policy_t>address
    if address == 0:
        raise_shape("address", "a C function", "none")
    check_length("raw_lots", raw_lots.shape[0], inputs.shape[0])
    with nogil:
        for i in range(inputs.shape[0]):
            raw_lots[i] = policy(&inputs[i])


# ------------------------------------------------------------------------------------------- the plain rule

cdef struct Column:               # one argument of `size_ratio`
    const double* at
    bint is_one                   # one number for all rows
    double[BLOCK] block           # of this block: NaN where the row has to go through `size_row`


cdef struct Plain:                # `size_ratio`'s arguments
    Column lots, master, follower, multiplier, least, most
    double[BLOCK] sizes
    double steps_per_lot, master_steps_per_lot
    double step_num, step_den     # a step in lots
    double multiplier_den, multiplier_noise
    double above, below, half     # what numerator and denominator are multiplied with, and what half of one adds
    double low, high              # 1 where a size is lifted, or clipped, else 0
    uint8_t[4] words              # the codes: unsettled, too small, too large, inside
    SizingIn row                  # what all rows have in common


ctypedef void (*load_t)(const double*, double*, int, double, double, double) noexcept nogil


cdef inline double nth(const Column* c, Py_ssize_t i) noexcept nogil:
    return c.at[0] if c.is_one else c.at[i]


cdef void load(load_t read, Column* c, Py_ssize_t start, int n, double factor, double bound,
               double noise) noexcept nogil:
    """A block of a column; of one number for all rows just once."""
    cdef int j
    if not c.is_one:
        read(c.at + start, c.block, n, factor, bound, noise)
    elif start == 0:
        read(c.at, c.block, 1, factor, bound, noise)
        for j in range(1, <int>BLOCK):
            c.block[j] = c.block[0]


cdef void load_block(Plain* p, Py_ssize_t start, int n) noexcept nogil:
    load(copyrisk_load, &p.lots, start, n, p.master_steps_per_lot, <double>MAX_MASTER_STEPS, STEP_NOISE)
    load(copyrisk_load, &p.master, start, n, 100.0, FAST_CENTS, FAST_HALF)
    load(copyrisk_load, &p.follower, start, n, 100.0, FAST_CENTS, FAST_HALF)
    load(copyrisk_load, &p.multiplier, start, n, p.multiplier_den, 1e6 * p.multiplier_den, p.multiplier_noise)
    load(copyrisk_load_least, &p.least, start, n, p.steps_per_lot, <double>MAX_STEPS, STEP_NOISE)
    load(copyrisk_load_most, &p.most, start, n, p.steps_per_lot, <double>MAX_STEPS, STEP_NOISE)


cdef void void_contradictions(Plain* p, int n) noexcept nogil:
    """No size is inside limits that contradict each other, or are none."""
    cdef int j
    if p.least.is_one and p.most.is_one and p.least.block[0] <= p.most.block[0]:
        return
    for j in range(n):
        p.sizes[j] = p.sizes[j] if p.least.block[j] <= p.most.block[j] else NAN


cdef void size_slowly(const Plain* p, Py_ssize_t i, double* lots, uint8_t* code) noexcept nogil:
    """Any row: `size_row` of it."""
    cdef SizingIn row = p.row
    cdef Sized sized
    row.master_steps = steps_on(nth(&p.lots, i), p.master_steps_per_lot)
    row.master_cents = cents(nth(&p.master, i))
    row.follower_cents = cents(nth(&p.follower, i))
    row.multiplier_micro = micro(nth(&p.multiplier, i))
    row.min_steps = steps_at_least(nth(&p.least, i), p.steps_per_lot)
    row.max_steps = steps_at_most(nth(&p.most, i), p.steps_per_lot)
    size_row(&row, &sized)
    lots[0] = <double>sized.steps * p.step_num / p.step_den
    code[0] = sized.code


cdef void size_rows(Plain* p, Py_ssize_t n, double* lots, uint8_t* codes) noexcept nogil:
    cdef Py_ssize_t start = 0
    cdef int j, size
    cdef const uint8_t* at
    while start < n:
        size = <int>min(<Py_ssize_t>BLOCK, n - start)
        load_block(p, start, size)
        copyrisk_divide(p.lots.block, p.follower.block, p.multiplier.block, p.master.block, p.above, p.below, p.half,
                        p.sizes, size)
        void_contradictions(p, size)
        copyrisk_limit(p.sizes, p.least.block, p.most.block, p.low, p.high, p.step_num, p.step_den, p.words,
                       lots + start, codes + start, size)
        at = <const uint8_t*>memchr(codes + start, CODE_OF_NONE, size)
        while at != NULL:
            j = <int>(at - (codes + start))
            size_slowly(p, start + j, &lots[start + j], &codes[start + j])
            at = <const uint8_t*>memchr(at + 1, CODE_OF_NONE, size - j - 1)
        start += size


cdef int take_column(Column* c, const double[:] values, str name, Py_ssize_t n) except -1:
    check_length(name, values.shape[0], n)
    if n and values.strides[0] != 0 and values.strides[0] != <Py_ssize_t>sizeof(double):
        raise_shape(name, "consecutive numbers, or one for all", f"one every {values.strides[0]} bytes")
    c.at = &values[0] if n else NULL
    c.is_one = n == 0 or values.strides[0] == 0
    return 0


def size_ratio(const double[:] master_lots, const double[:] master_equity, const double[:] follower_equity,
               const double[:] multiplier, const double[:] min_lot, const double[:] max_lot, const SizingIn[::1] rules,
               int64_t step, int64_t master_step, double[::1] lots, uint8_t[::1] codes):
    """See `_sizing.pyi`."""
    cdef Py_ssize_t n = lots.shape[0]
    cdef Plain p
    check_length("codes", codes.shape[0], n)
    check_length("rules", rules.shape[0], 1)
    take_column(&p.lots, master_lots, "master_lots", n)
    take_column(&p.master, master_equity, "master_equity", n)
    take_column(&p.follower, follower_equity, "follower_equity", n)
    take_column(&p.multiplier, multiplier, "multiplier", n)
    take_column(&p.least, min_lot, "min_lot", n)
    take_column(&p.most, max_lot, "max_lot", n)
    if step < 1 or master_step < 1:
        raise_shape("step", "steps from 1", min(step, master_step))
    p.row = rules[0]
    if (p.row.mode != RATIO or not 1 <= p.row.rounding <= <int>ROUND_NEAREST or p.row.ratio_num != p.row.ratio_den
            or not p.row.lift_risk_limit > 0.0):
        raise_shape("rules", "the plain ratio, rounded down or to the nearest", "others")
    if n == 0:
        return
    prepare(&p, step, master_step)
    with nogil:
        size_rows(&p, n, &lots[0], &codes[0])


cdef void prepare(Plain* p, int64_t step, int64_t master_step) noexcept nogil:
    """What all rows have in common, from the rules and the steps in 1e-8 lots."""
    cdef int64_t common = gcd(step, STEP_UNITS)
    cdef int64_t scale = scale_of(&p.multiplier)
    p.steps_per_lot = <double>STEP_UNITS / <double>step
    p.master_steps_per_lot = <double>STEP_UNITS / <double>master_step
    p.step_num = <double>(step // common)
    p.step_den = <double>(STEP_UNITS // common)
    p.multiplier_den = <double>scale
    p.multiplier_noise = FAST_HALF if p.multiplier.is_one else 1e-7
    p.above, p.below, p.half = <double>p.row.lots_num, <double>p.row.lots_den * <double>scale, 0.0
    if p.row.rounding == ROUND_NEAREST:  # floor((2 numerator + denominator) / (2 denominator))
        p.above, p.below, p.half = 2.0 * p.above, 2.0 * p.below, 0.5
    p.low, p.high = <double>(p.row.below_min == LIMIT_ADJUST), <double>(p.row.above_max == LIMIT_ADJUST)
    p.words = [CODE_OF_NONE, BELOW_MIN, CLIPPED if p.row.above_max == LIMIT_ADJUST else ABOVE_MAX, OK]
    if p.row.below_min == LIMIT_ADJUST:
        # With a limit of the risk each such row is looked at on its own.
        p.words[1] = LIFTED if p.row.lift_risk_limit == INFINITY else CODE_OF_NONE


cdef int64_t scale_of(const Column* multiplier) noexcept nogil:
    """What makes multipliers whole numbers: of a single one its denominator, of many hundredths."""
    cdef int64_t value
    if not multiplier.is_one:
        return 100
    value = micro(nth(multiplier, 0))
    return MICRO // gcd(value, MICRO)


cdef int64_t gcd(int64_t a, int64_t b) noexcept nogil:
    while b:
        a, b = b, a % b
    return a


cdef int check_length(str name, Py_ssize_t found, Py_ssize_t expected) except -1:
    if found != expected:
        raise_shape(name, expected, found)
    return 0


cdef int raise_shape(str name, object expected, object found) except -1:
    from copyrisk.errors import ShapeError  # not at the top, as in `_core`
    raise ShapeError(f"{name}: expected {expected}, found {found}")

# The rows and words of autocutoff's kernels.
#
#     from copyrisk cimport _cutoff
#
# `layout.py` holds the same rows as NumPy dtypes; a mismatch raises at the first call.
from libc.stdint cimport int32_t, uint8_t

from copyrisk._core cimport Account, Exposure, Instrument, Leg, LegRate, Order


# What happened to an account between two ticks; several may come together.
cpdef enum Edge:
    WARNED = 1                    # a warning episode begins
    BREACHED = 2                  # became critical
    RECOVERED = 4                 # the warning episode ended
    SAFE = 8                      # no longer critical
    LOST = 16                     # became unknown
    FOUND = 32                    # known again

# In which order, and how far, a critical account is closed; 0 is none of them.
cpdef enum StopOut:
    LARGEST_LOSS = 1              # the largest loss first, until the level is above critical
    LARGEST_MARGIN = 2            # what frees most margin first, until the level is above critical
    SMALLEST_PARTIAL = 3          # the fewest lots, in part where a part is enough
    FLATTEN = 4                   # everything, the largest loss first


cdef enum:                        # an order's mark in `closing`; another one: it cannot be closed now
    UNDER_WAY = 1


ctypedef struct Ladder:           # 4 bytes, what is remembered of an account between ticks
    uint8_t rung                  # LadderState as last known, with hysteresis; 0: never judged
    uint8_t state                 # LadderState as of now; 0: unknown
    uint8_t is_latched            # stays critical until its positions are gone
    uint8_t is_lost               # was known, and is not now


ctypedef struct LotLimits:        # 16 bytes, by instrument; NaN or not above 0: only whole closes
    double step                   # lots
    double smallest               # lots that a close must have at least, and what stays open, too


ctypedef struct Close:            # 24 bytes, an order to close or cancel
    double lots                   # 0 for a cancel
    int32_t order                 # row
    int32_t account               # row
    uint8_t is_cancel
    uint8_t _pad0[7]


# ---- scratch of `plan_closes`

cdef enum Way:                    # how a lot of a position frees most margin
    WHOLE
    PART                          # up to where its side is no longer the larger one
    PAIR                          # together with as many lots of the other side


cdef struct Holding:              # a position that may be closed
    double pnl
    double original_lots
    double rate                   # what closing it frees: margin, or margin a lot
    int32_t place                 # of its copy, whose lots are what is left open
    int32_t row
    int32_t group
    int32_t close                 # its place in the plan, or -1
    double taken                  # whole steps of it that the plan closes in part
    double most                   # steps in all that still free as much a lot; NaN if no part may be closed
    Way way
    bint pairs_whole              # as a pair, as a whole


cdef struct Group:                # an account's positions in one instrument
    Exposure sums
    double base                   # what is under margin
    double second_price           # highest price but one
    double used_margin
    int32_t instrument
    int32_t head
    int32_t tail


cdef struct Plan:                 # one account's, and scratch for the largest
    const Instrument* instruments
    const LegRate* rates
    const LotLimits* limits
    bint nets_orders
    Order* orders                 # copies
    Leg* legs
    Exposure* exposures
    Holding* holdings
    Group* groups
    int32_t n_orders
    int32_t n_holdings
    int32_t n_groups
    int32_t n_closes
    Account account
    int32_t row
    Close* closes
    double equity

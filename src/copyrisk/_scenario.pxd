# The rows and words of the liquidation ladder's kernel.
#
#     from copyrisk cimport _scenario
#
# `scenario.py` holds the same row as a NumPy dtype; a mismatch raises at the first call.
from libc.stdint cimport int32_t, uint8_t


# Where an account stands with respect to its levels when one symbol moves. 0 is "never judged".
cpdef enum Reach:
    NOT_KNOWN = 0                 # the account is unknown: so is what a move would make of it
    AHEAD = 1                     # it stands above both levels; a move that is NaN reaches them nowhere
    AT_WARNING = 2                # it stands at the warning level or below; the critical one is ahead
    AT_CRITICAL = 3               # it stands at the critical level or below
    MARKET_SHUT = 4               # it rests on another symbol whose market is closed: nothing is done about it


ctypedef struct Crossing:         # 56 bytes, an account and a symbol that it holds
    double lots                   # of both sides
    double warning_down           # relative move of the symbol, -0.99 to 0, that brings it to its warning level
    double warning_up             # 0 to 10; NaN: none does
    double critical_down
    double critical_up
    int32_t account               # row
    int32_t quote                 # row of the symbol's quote
    uint8_t code                  # Reach
    uint8_t _pad0[7]


# ---- scratch of `find_crossings`

cdef struct Term:                 # what of an instrument moves with which quote
    int32_t quote                 # its own
    int32_t pair                  # the one that converts it, or -1
    int32_t power                 # the rate is proportional to the pair's quote (1), or to its inverse (-1)
    bint margin_moves             # margin is taken at the current price


cdef struct Kink:                 # where a position turns from loss to profit, and converts at another rate from there on
    double at                     # factor of the symbol's quote
    double slope                  # change of the curve: of the power `power + 1`
    double fixed                  # and of `power`
    int32_t power
    bint is_above                 # ahead when the quote rises


cdef struct Curve:                # coefficients of s^-1, 1, s and s^2, where s is the factor of the symbol's quote
    double of_power[4]


cdef struct Walk:                 # one account and symbol
    Curve equity
    Curve margin                  # before leverage
    Kink* kinks
    int32_t n_kinks
    double lots

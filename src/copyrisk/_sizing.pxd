# The rows, codes and words of lot sizing, and its kernel for other compiled modules.
#
#     from copyrisk cimport _sizing
#
# `sizing.py` holds the same rows as NumPy dtypes; a mismatch raises at the first call.
from libc.stdint cimport int64_t, uint8_t


# What became of a row; 0 is "never judged". Lots are 0 unless the code is OK, CLIPPED or LIFTED.
cpdef enum SizeCode:
    UNKNOWN = 0
    OK = 1
    CLIPPED = 2                   # to the most lots allowed
    LIFTED = 3                    # to the fewest lots allowed

    BELOW_MIN = 10
    ABOVE_MAX = 11
    LIFT_TOO_RISKY = 12           # the fewest lots allowed are too many times what the ratio gives

    MASTER_EQUITY_UNKNOWN = 20    # equity, balance or free margin: the figure that the mode takes
    MASTER_EQUITY_NOT_POSITIVE = 21
    FOLLOWER_EQUITY_UNKNOWN = 22
    FOLLOWER_EQUITY_NOT_POSITIVE = 23

    MASTER_LOTS_INVALID = 30
    LOTS_OFF_STEP = 31            # the master's lots are no whole steps
    MULTIPLIER_INVALID = 32
    LIMITS_INVALID = 33           # step, fewest or most lots
    CORRECTION_INVALID = 34       # leverage, contract size, commission, units
    LOT_VALUE_INVALID = 35        # value, or loss at the stop, of a lot
    FIXED_LOTS_INVALID = 36
    RULES_INVALID = 37
    CARRY_INVALID = 38
    POLICY_INVALID = 40           # a user's policy gave no number that could be lots
    OUT_OF_RANGE = 41

cpdef enum SizingRule:
    RATIO = 1                     # master's lots x multiplier x follower's figure / master's figure
    MULTIPLE = 2                  # master's lots x multiplier
    FIXED = 3                     # lots that are given
    BY_VALUE = 4                  # a share or multiple of the follower's figure / USD of a lot
    POLICY = 5                    # lots that a user's policy gave

cpdef enum RoundingRule:
    ROUND_DOWN = 1
    ROUND_NEAREST = 2             # half up
    ROUND_LADDER = 3              # the ratio down to 1, 5 or 10 percent, then the lots down

cpdef enum LimitRule:
    LIMIT_SKIP = 1                # no copy
    LIMIT_ADJUST = 2              # lift to the fewest, clip to the most lots


ctypedef struct SizingIn:         # 136 bytes, a follower of a master's order
    int64_t follower_cents        # equity, balance or free margin; UNKNOWN_AMOUNT when not known
    int64_t master_cents
    int64_t multiplier_micro      # BY_VALUE: the share or multiple of the follower's figure
    int64_t master_steps          # of the master's own step; UNKNOWN_AMOUNT, or OFF_STEP between two steps
    int64_t ratio_num             # correction of the ratio: leverage, commission
    int64_t ratio_den
    int64_t lots_num              # correction of the lots: lot steps, contract sizes
    int64_t lots_den
    int64_t lot_usd_nano          # BY_VALUE: 1e-9 USD that a lot is worth, or loses
    double wanted_steps           # FIXED, POLICY: unrounded
    double carry_steps            # steps owed to the follower from before
    double lift_risk_limit        # lift to at most so many times what the ratio gives
    int64_t min_steps
    int64_t max_steps
    uint8_t mode                  # SizingRule
    uint8_t rounding              # RoundingRule
    uint8_t below_min             # LimitRule
    uint8_t above_max             # LimitRule
    uint8_t[4] _pad


ctypedef struct Sized:            # 32 bytes
    int64_t steps
    double raw_steps              # unrounded, without the carry; NaN when there is no such number
    double carry_steps            # owed from now on
    uint8_t code                  # SizeCode
    uint8_t[7] _pad


ctypedef struct PolicyIn:         # 96 bytes: what a user's policy is told, in the order of its parameters
    double master_lots
    double master_equity
    double master_balance
    double master_free_margin
    double master_leverage
    double follower_equity
    double follower_balance
    double follower_free_margin
    double follower_leverage
    double multiplier
    double price
    double lot_value_usd


ctypedef double (*policy_t)(const PolicyIn* row) noexcept nogil


cdef void size_row(const SizingIn* row, Sized* sized) noexcept nogil

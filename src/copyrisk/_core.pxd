# The packed rows and codes of copyrisk, and the kernels that other compiled modules may call.
#
#     from copyrisk cimport _core
#
# `layout.py` holds the same rows as NumPy dtypes; a mismatch raises at the first call.
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t


# What is known of a row. 0 is "never judged": a forgotten row can never pass for a healthy one.
# OK and MARKET_CLOSED have figures; only on OK may anything be decided.
cpdef enum RowCode:
    UNKNOWN = 0
    OK = 1
    MARKET_CLOSED = 2             # valued at the last quote of a closed market

    QUOTE_MISSING = 10
    QUOTE_UNREADABLE = 11
    QUOTE_ONE_SIDED = 12
    QUOTE_NOT_POSITIVE = 13
    QUOTE_NOT_FINITE = 14
    QUOTE_CROSSED = 15
    QUOTE_WITHOUT_TIME = 16
    QUOTE_STALE = 17
    QUOTE_FROM_FUTURE = 18

    INSTRUMENT_MISSING = 30
    INSTRUMENT_UNREADABLE = 31
    CONTRACT_SIZE_INVALID = 32
    PROFIT_CURRENCY_INVALID = 33
    INSTRUMENT_TYPE_INVALID = 34
    CRYPTO_MARGIN_FACTOR_INVALID = 35
    CONVERSION_RATE_MISSING = 36

    ORDER_MISSING = 50
    ORDER_UNREADABLE = 51
    ORDER_ID_INVALID = 52
    ORDER_SYMBOL_INVALID = 53
    ORDER_TYPE_INVALID = 54
    ORDER_STATUS_INVALID = 55
    ORDER_PRICE_INVALID = 56
    ORDER_QUANTITY_INVALID = 57
    ORDER_SWAP_INVALID = 58
    ORDER_COMMISSION_INVALID = 59

    ACCOUNT_MISSING = 70
    ACCOUNT_UNREADABLE = 71
    WALLET_BALANCE_INVALID = 72
    LEVERAGE_INVALID = 73
    GROUP_INVALID = 74
    ORDERS_INDEX_UNREADABLE = 75
    FIGURES_OUT_OF_RANGE = 76
    FIGURES_INCONSISTENT = 77     # not what valuing from scratch gives
    ACCOUNT_CHANGING = 78         # something of it changed while it was read


# Where an account stands on the margin ladder.
cpdef enum LadderState:
    STATE_UNKNOWN = 0
    NO_MARGIN = 1
    HEALTHY = 2
    WARNING = 3
    CRITICAL = 4


# What an order does to its account's figures.
cpdef enum OrderEffect:
    EFFECT_UNKNOWN = 0
    IDLE = 1                      # pending or finished: neither profit nor margin
    EXECUTED = 2                  # a position: profit and margin
    RESERVED = 3                  # queued: margin in `used_margin_all` only


cpdef enum ConversionSide:
    CONVERT_ASK = 0
    CONVERT_WORSE = 1
    CONVERT_MID = 2


ctypedef struct Quote:            # 48 bytes, one symbol
    double bid                    # NaN when absent
    double ask
    int64_t ts_ms                 # epoch; negative when absent
    int64_t max_age_ms            # 0: age is not checked
    uint8_t market                # instrument type 1 to 4: whose opening hours hold
    uint8_t read_code             # OK, or why the hash could not be read
    uint8_t code                  # out: the verdict of `judge_quotes`
    uint8_t _pad0
    int32_t _pad1
    int64_t _pad2


ctypedef struct Instrument:       # 48 bytes, one symbol under one group's terms
    double contract_size          # units per lot
    double margin_factor          # 1.0, or crypto_margin_factor of type 4
    double cover                  # larger side + cover x smaller side is the volume under margin
    int32_t quote                 # row of its quote
    int32_t direct                # row of CUSD, or -1
    int32_t inverse               # row of USDC, or -1
    uint8_t profit_is_usd
    uint8_t margin_at_open        # margin at the order's price instead of the current ask
    uint8_t highest_price         # charge the highest price of the exposure (hedging `max`), not the average
    uint8_t read_code             # OK, or why its terms could not be read
    uint8_t code                  # out: the verdict of `price_legs`
    uint8_t _pad0
    uint16_t _pad1
    int32_t _pad2


ctypedef struct Order:            # 48 bytes
    double lots
    double price
    double fees_usd               # swap - commission
    int32_t account               # row
    int32_t instrument            # row, or -1 when the order is not readable
    int32_t next                  # next order of the same account, or -1
    int32_t prev
    uint8_t effect                # OrderEffect
    uint8_t is_buy
    uint8_t code                  # OK, or why the order could not be read
    uint8_t _pad0
    int32_t _pad1


ctypedef struct Leg:              # 32 bytes: one side of an account's exposure in one symbol
    double units                  # lots x contract size, negative when sold
    double cost                   # units x price, summed: units x quote - cost is the profit
    double margin_base            # units, or units x open price, under margin
    int32_t rate                  # row of its LegRate: 2 x instrument + (1 when sold)
    int32_t _pad0


ctypedef struct LegRate:          # 32 bytes: what a quote makes of a leg
    double price                  # bid of a bought leg, ask of a sold one; NaN when unknown
    double gain                   # profit currency to USD for a profit
    double loss                   # and for a loss
    double margin                 # USD of margin per unit of margin_base, before leverage


ctypedef struct Account:          # 64 bytes, one cache line
    double balance                # wallet_balance, USD; NaN when unknown
    double fees_usd               # swap - commission over executed orders; NaN when it or an order is not readable
    double leverage
    double warning_level_pct
    double critical_level_pct
    int32_t first                 # its legs: executed from `first`, then reserved ones
    int32_t n_executed
    int32_t n_legs
    int32_t capacity              # legs that fit before the segment must move
    int32_t culprit               # order row that made fold_code, or -1
    uint8_t read_code             # OK, or why the account could not be read
    uint8_t fold_code             # OK, or why one of its orders could not
    uint16_t _pad0


ctypedef struct Exposure:         # scratch of `fold_accounts`
    double bought_units
    double sold_units
    double value                  # units x price, summed over both sides
    double highest_price
    double bought_units_all
    double sold_units_all
    double value_all
    double highest_price_all
    int32_t instrument
    int32_t leg                   # its first executed leg, or -1
    int32_t n_reserved            # queued orders in it
    int32_t _pad0


ctypedef struct Figures:          # 56 bytes, one account
    double open_pnl
    double equity
    double used_margin_executed
    double used_margin_all        # NaN when a queued order cannot be priced: the level does not rest on it
    double free_margin
    double margin_level_pct
    int32_t culprit               # row that made `code`: an instrument (30s, quotes) or an order (50s); else -1
    uint8_t state                 # LadderState
    uint8_t code                  # RowCode
    uint16_t _pad0


cdef double leg_pnl_usd(double units, double cost, double price, double gain, double loss) noexcept nogil
cdef double margin_volume(double bought, double sold, double cover) noexcept nogil
cdef double margin_level_pct(double equity, double used_margin) noexcept nogil
cdef uint8_t ladder_state(double equity, double used_margin, double level_pct, double warning_pct,
                          double critical_pct) noexcept nogil
cdef double margin_base_of(const Instrument* s, double bought, double sold, double value,
                           double highest_price) noexcept nogil
cdef void fold_accounts_c(const int32_t* rows, Py_ssize_t n, Account* accounts, const int32_t* order_head,
                          const Order* orders, const Instrument* instruments, Leg* legs, uint64_t* marks,
                          Exposure* exposures, bint net_orders) noexcept nogil
cdef Py_ssize_t value_accounts_c(const Account* accounts, Py_ssize_t n, const Leg* legs, Py_ssize_t n_legs,
                                 const LegRate* rates, const Instrument* instruments, Py_ssize_t n_instruments,
                                 Figures* figures) noexcept nogil

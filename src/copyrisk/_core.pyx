"""Kernels: one pass each over packed arrays, calling scalar formulas that are written once.

Design
------
(a) Profit is linear in the quote: ``(quote - price) x lots x contract_size`` summed over the orders of one
    side is ``units x quote - cost``. So all orders of an account on one side of one symbol fold to a *leg* of
    three numbers (`fold_accounts`), and a tick touches legs, never orders.
(b) What a quote makes of a leg (price, conversion, margin) is the same for all accounts of a group, so it is
    worked out once per instrument and side (`price_legs`): a table of a few KB that stays in the L1 cache.
(c) An account reads one cache line of its own, its legs (32 bytes each, consecutive) and writes 56 bytes.
    Rows are structs and not columns, because a pass is bound by memory: one stream, no partial lines.
(d) Unknown is NaN inside, and NaN fails every comparison towards a known state; no branch per leg. Which row
    caused it is searched for afterwards, only in accounts that are unknown (`explain`).
(e) One portable build. The loop is scalar and bound by memory: clones of it for AVX2 and AVX-512, picked at
    load time, measured 1.03x and were left out. Contraction to fused multiply-add is off, so that every
    machine gives the same bits.
(f) With conversion `side` a profit and a loss convert at different rates, which does not add up over orders;
    then every executed order stays a leg of its own (`net_orders` false) and the same loop serves.

Rows get codes (`RowCode`), calls get exceptions: wrong lengths raise `ShapeError` before anything is written.
"""
from libc.math cimport NAN, fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

# Above this a figure in USD is an error somewhere, and below it two decimals are still exact in a double.
cdef double MAX_USD = 1e13
# Sums in doubles carry noise near 1e-12; it must not lift an account off its threshold.
cdef double LEVEL_NOISE_PCT = 1e-9
# Two sides that are equal, added up from different lots, differ by less than this part of themselves.
cdef double VOLUME_NOISE = 1e-12


# ---------------------------------------------------------------------------------------------- formulas

cdef double leg_pnl_usd(double units, double cost, double price, double gain, double loss) noexcept nogil:
    """Profit of a leg in USD; of two conversion rates the one that is worse for the account."""
    cdef double pnl = units * price - cost
    cdef double as_gain = pnl * gain
    cdef double as_loss = pnl * loss
    return as_gain if as_gain < as_loss else as_loss


cdef double margin_volume(double bought, double sold, double cover) noexcept nogil:
    """Volume under margin: the larger side plus `cover` times the smaller one."""
    cdef double larger = bought if bought >= sold else sold
    cdef double volume = larger + cover * (sold if bought >= sold else bought)
    return 0.0 if volume < VOLUME_NOISE * larger else volume


cdef double margin_level_pct(double equity, double used_margin) noexcept nogil:
    """Equity in percent of the used margin; 0.0 when no margin is used."""
    return 100.0 * equity / used_margin if used_margin > 0.0 else 0.0


cdef uint8_t ladder_state(double equity, double used_margin, double level_pct, double warning_pct,
                          double critical_pct) noexcept nogil:
    """Rung of the margin ladder; a threshold belongs to the worse side, NaN to none."""
    if not (fabs(equity) < MAX_USD and 0.0 <= used_margin < MAX_USD):
        return STATE_UNKNOWN
    if used_margin == 0.0:
        return NO_MARGIN
    if level_pct <= critical_pct + LEVEL_NOISE_PCT:
        return CRITICAL
    return WARNING if level_pct <= warning_pct + LEVEL_NOISE_PCT else HEALTHY


cdef inline bint has_figures(uint8_t code) noexcept nogil:
    return code == OK or code == MARKET_CLOSED


# ------------------------------------------------------------------------------------------------ quotes

cdef inline uint8_t side_code(double value) noexcept nogil:
    if not isfinite(value):
        return QUOTE_NOT_FINITE
    return OK if value > 0.0 else QUOTE_NOT_POSITIVE


cdef inline uint8_t quote_code(const Quote* q, int64_t now_ms, bint is_open) noexcept nogil:
    cdef uint8_t code
    if q.read_code != OK:
        return q.read_code
    if q.bid != q.bid or q.ask != q.ask:
        return QUOTE_MISSING if q.bid != q.bid and q.ask != q.ask else QUOTE_ONE_SIDED
    code = side_code(q.bid)
    if code == OK:
        code = side_code(q.ask)
    if code != OK:
        return code
    if q.bid > q.ask:
        return QUOTE_CROSSED
    if not is_open:
        return MARKET_CLOSED
    if q.max_age_ms == 0:
        return OK
    if q.ts_ms < 0:
        return QUOTE_WITHOUT_TIME
    if now_ms - q.ts_ms > q.max_age_ms:
        return QUOTE_STALE
    if q.ts_ms - now_ms > q.max_age_ms:
        return QUOTE_FROM_FUTURE
    return OK


def judge_quotes(Quote[::1] quotes, int64_t now_ms, const uint8_t[::1] market_is_open):
    """See `_core.pyi`."""
    cdef Py_ssize_t i
    if market_is_open.shape[0] != 5:
        raise_shape("market_is_open", "5 (one for each instrument type, [0] unused)", market_is_open.shape[0])
    with nogil:
        for i in range(quotes.shape[0]):
            quotes[i].code = quote_code(&quotes[i], now_ms, quotes[i].market > 4
                                        or market_is_open[quotes[i].market] != 0)


# ------------------------------------------------------------------------------------------------- rates

cdef struct Conversion:
    double gain
    double loss
    double margin
    uint8_t code


cdef inline Conversion conversion(const Instrument* s, const Quote* quotes, int side) noexcept nogil:
    """Rates from the profit currency to USD; the worse side gives less for a profit, more for a loss or margin."""
    cdef Conversion c
    cdef const Quote* q
    cdef double mid
    c.gain = c.loss = c.margin = 1.0
    c.code = OK
    if s.profit_is_usd:
        return c
    if s.direct >= 0 and has_figures(quotes[s.direct].code):
        q = &quotes[s.direct]
        mid = 0.5 * (q.bid + q.ask)
        c.gain = q.bid if side == CONVERT_WORSE else (q.ask if side == CONVERT_ASK else mid)
        c.loss = q.ask if side != CONVERT_MID else mid
    elif s.inverse >= 0 and has_figures(quotes[s.inverse].code):
        q = &quotes[s.inverse]
        mid = 0.5 * (q.bid + q.ask)
        c.gain = 1.0 / (q.ask if side != CONVERT_MID else mid)
        c.loss = 1.0 / (q.bid if side == CONVERT_WORSE else (q.ask if side == CONVERT_ASK else mid))
    else:
        c.gain = c.loss = c.margin = NAN
        c.code = CONVERSION_RATE_MISSING
        return c
    c.margin = c.loss
    c.code = q.code
    return c


cdef inline void price_instrument(Instrument* s, const Quote* quotes, int side, LegRate* pair) noexcept nogil:
    cdef const Quote* q = &quotes[s.quote]
    cdef Conversion c = conversion(s, quotes, side)
    if s.read_code != OK:
        s.code = s.read_code
    elif not has_figures(q.code):
        s.code = q.code
    elif q.code == MARKET_CLOSED and has_figures(c.code):
        s.code = MARKET_CLOSED
    else:
        s.code = c.code
    if not has_figures(s.code):
        pair[0].price = pair[0].gain = pair[0].loss = pair[0].margin = NAN
        pair[1] = pair[0]
        return
    pair[0].price = q.bid
    pair[0].gain = c.gain
    pair[0].loss = c.loss
    pair[0].margin = s.margin_factor * c.margin * (1.0 if s.margin_at_open else q.ask)
    pair[1] = pair[0]
    pair[1].price = q.ask


def price_legs(Instrument[::1] instruments, const Quote[::1] quotes, int conversion_side, LegRate[::1] leg_rates):
    """See `_core.pyi`."""
    cdef Py_ssize_t i, n = instruments.shape[0], m = quotes.shape[0]
    if leg_rates.shape[0] != 2 * n:
        raise_shape("leg_rates", f"{2 * n} (two for each instrument)", leg_rates.shape[0])
    if conversion_side < 0 or conversion_side > <int>CONVERT_MID:
        raise_shape("conversion_side", "a ConversionSide", conversion_side)
    for i in range(n):
        if not (0 <= instruments[i].quote < m and -1 <= instruments[i].direct < m
                and -1 <= instruments[i].inverse < m):
            raise_shape("instruments", f"quote rows below {m}", f"row {i} that points outside")
    if n == 0:
        return
    with nogil:
        for i in range(n):
            price_instrument(&instruments[i], &quotes[0], conversion_side, &leg_rates[2 * i])


# --------------------------------------------------------------------------------------------------- fold

cdef inline int32_t exposure_of(Exposure* exposures, int32_t* n, int32_t instrument) noexcept nogil:
    cdef int32_t i
    cdef Exposure* x
    for i in range(n[0]):
        if exposures[i].instrument == instrument:
            return i
    x = &exposures[n[0]]
    x.bought_units = x.sold_units = x.value = x.highest_price = 0.0
    x.bought_units_all = x.sold_units_all = x.value_all = x.highest_price_all = 0.0
    x.instrument = instrument
    x.leg = -1
    x.n_reserved = 0
    n[0] += 1
    return n[0] - 1


cdef inline uint64_t symbol_bit(const Instrument* s) noexcept nogil:
    """One bit of 64 for a symbol, the same under all groups; accounts without it need not look at its quote."""
    return <uint64_t>1 << (<uint32_t>s.quote & 63)


cdef inline void add_to_exposure(Exposure* x, const Order* o, double units) noexcept nogil:
    if o.is_buy:
        x.bought_units_all += units
    else:
        x.sold_units_all += units
    x.value_all += units * o.price
    x.highest_price_all = max(x.highest_price_all, o.price)
    if o.effect != EXECUTED:
        x.n_reserved += 1
        return
    if o.is_buy:
        x.bought_units += units
    else:
        x.sold_units += units
    x.value += units * o.price
    x.highest_price = max(x.highest_price, o.price)


cdef inline void add_to_leg(Leg* legs, int32_t* n_legs, Exposure* x, const Order* o, double units,
                            bint net_orders) noexcept nogil:
    cdef int32_t i, rate = 2 * o.instrument + (not o.is_buy)
    cdef double signed_units = units if o.is_buy else -units
    i = n_legs[0]
    if net_orders and x.leg >= 0:
        for i in range(x.leg, n_legs[0] + 1):
            if i == n_legs[0] or legs[i].rate == rate:
                break
    if i == n_legs[0]:
        legs[i].units = legs[i].cost = legs[i].margin_base = 0.0
        legs[i].rate = rate
        legs[i]._pad0 = 0
        n_legs[0] += 1
        if x.leg < 0:
            x.leg = i
    legs[i].units += signed_units
    legs[i].cost += signed_units * o.price


cdef inline double margin_base(const Instrument* s, double bought, double sold, double value,
                               double highest_price) noexcept nogil:
    cdef double volume = margin_volume(bought, sold, s.cover)
    if not s.margin_at_open:
        return volume
    return volume * (highest_price if s.highest_price or bought + sold <= 0.0 else value / (bought + sold))


cdef double margin_base_of(const Instrument* s, double bought, double sold, double value,
                           double highest_price) noexcept nogil:
    """What is under margin of an exposure: its volume, or what the volume costs at the price of its orders."""
    return margin_base(s, bought, sold, value, highest_price)


cdef void fold_accounts_c(const int32_t* rows, Py_ssize_t n, Account* accounts, const int32_t* order_head,
                          const Order* orders, const Instrument* instruments, Leg* all_legs, uint64_t* marks,
                          Exposure* exposures, bint net_orders) noexcept nogil:
    """`fold_accounts` for compiled callers, over arrays that fit; the last account's exposures stay in the scratch.

    One function and not one for each account: that would not be inlined any more, which costs 3 %.
    """
    cdef Py_ssize_t row
    cdef int32_t i, n_exposures, n_legs
    cdef uint64_t mark
    cdef double units, base
    cdef const Order* o
    cdef Exposure* x
    cdef Account* a
    cdef Leg* legs
    for row in range(n):
        a = &accounts[rows[row]]
        legs = all_legs + a.first
        i = order_head[rows[row]]
        n_exposures = n_legs = 0
        mark = 0
        a.fold_code = OK
        a.culprit = -1
        a.fees_usd = 0.0
        while i >= 0:
            o = &orders[i]
            if o.code == OK and (o.effect == EXECUTED or o.effect == RESERVED):
                units = o.lots * instruments[o.instrument].contract_size
                x = &exposures[exposure_of(exposures, &n_exposures, o.instrument)]
                add_to_exposure(x, o, units)
                if o.effect == EXECUTED:
                    a.fees_usd += o.fees_usd
                    add_to_leg(legs, &n_legs, x, o, units, net_orders)
            elif (o.code != OK or o.effect != IDLE) and a.fold_code == OK:
                a.fold_code = o.code if o.code != OK else ORDER_STATUS_INVALID
                a.culprit = i
            i = o.next
        a.n_executed = n_legs
        x = exposures
        while x < exposures + n_exposures:
            mark |= symbol_bit(&instruments[x.instrument])
            base = margin_base(&instruments[x.instrument], x.bought_units, x.sold_units, x.value, x.highest_price)
            if x.leg >= 0:
                legs[x.leg].margin_base = base
            if x.n_reserved > 0:
                legs[n_legs].units = legs[n_legs].cost = 0.0
                legs[n_legs].margin_base = margin_base(&instruments[x.instrument], x.bought_units_all,
                                                       x.sold_units_all, x.value_all, x.highest_price_all)
                if x.leg >= 0:
                    legs[n_legs].margin_base -= base
                legs[n_legs].rate = 2 * x.instrument
                legs[n_legs]._pad0 = 0
                n_legs += 1
            x += 1
        a.n_legs = n_legs
        if a.fold_code != OK or a.read_code != OK:
            a.fees_usd = NAN
        marks[rows[row]] = mark


def fold_accounts(const int32_t[::1] rows, Account[::1] accounts, const int32_t[::1] order_head,
                  const Order[::1] orders, const Instrument[::1] instruments, Leg[::1] legs,
                  uint64_t[::1] marks, Exposure[::1] scratch, bint net_orders=True):
    """See `_core.pyi`."""
    cdef Py_ssize_t k
    if order_head.shape[0] != accounts.shape[0]:
        raise_shape("order_head", f"{accounts.shape[0]} (one for each account)", order_head.shape[0])
    if marks.shape[0] != accounts.shape[0]:
        raise_shape("marks", f"{accounts.shape[0]} (one for each account)", marks.shape[0])
    for k in range(rows.shape[0]):
        check_fold(rows[k], accounts, order_head, orders, instruments.shape[0], legs.shape[0], scratch.shape[0])
    if rows.shape[0] == 0:
        return
    with nogil:
        fold_accounts_c(&rows[0], rows.shape[0], &accounts[0], &order_head[0], first_order(orders),
                        first_instrument(instruments), first_leg(legs), &marks[0], first_exposure(scratch), net_orders)


# An empty memoryview has no element 0 to take the address of.
cdef inline const Order* first_order(const Order[::1] v) noexcept nogil:
    return &v[0] if v.shape[0] else NULL


cdef inline const Instrument* first_instrument(const Instrument[::1] v) noexcept nogil:
    return &v[0] if v.shape[0] else NULL


cdef inline Leg* first_leg(Leg[::1] v) noexcept nogil:
    return &v[0] if v.shape[0] else NULL


cdef inline Exposure* first_exposure(Exposure[::1] v) noexcept nogil:
    return &v[0] if v.shape[0] else NULL


cdef int check_fold(int32_t row, Account[::1] accounts, const int32_t[::1] order_head, const Order[::1] orders,
                    Py_ssize_t n_instruments, Py_ssize_t n_legs, Py_ssize_t n_scratch) except -1:
    """Walk one account's list once, so that the fold itself can trust every index."""
    cdef int32_t i, n = 0
    if not 0 <= row < accounts.shape[0]:
        raise_shape("rows", f"account rows below {accounts.shape[0]}", row)
    i = order_head[row]
    while i >= 0:
        if i >= orders.shape[0] or n > orders.shape[0]:
            raise_shape("orders", "lists that end inside the array", f"account row {row} whose list does not")
        if orders[i].code == OK and orders[i].effect != IDLE and not 0 <= orders[i].instrument < n_instruments:
            raise_shape("orders", f"instrument rows below {n_instruments}", f"order row {i} that points outside")
        n += 1
        i = orders[i].next
    if n > accounts[row].capacity or accounts[row].first < 0 or accounts[row].first + n > n_legs:
        raise_shape("legs", f"room for {n} legs of account row {row}", accounts[row].capacity)
    if n > n_scratch:
        raise_shape("scratch", f"at least {n} (the most orders of one account)", n_scratch)
    return 0


# -------------------------------------------------------------------------------------------------- value

cdef inline uint8_t value_account(const Account* a, const Leg* legs, const LegRate* rates,
                                  Figures* f) noexcept nogil:
    cdef const Leg* leg = legs + a.first
    cdef const Leg* reserved = leg + a.n_executed
    cdef const Leg* end = leg + a.n_legs
    cdef const LegRate* r
    cdef double equity, used, used_all
    cdef double pnl = a.fees_usd
    cdef double margin = 0.0
    while leg < reserved:
        r = rates + leg.rate
        pnl += leg_pnl_usd(leg.units, leg.cost, r.price, r.gain, r.loss)
        margin += leg.margin_base * r.margin
        leg += 1
    equity = a.balance + pnl
    used = used_all = margin / a.leverage
    if leg < end:
        while leg < end:
            margin += leg.margin_base * rates[leg.rate].margin
            leg += 1
        used_all = margin / a.leverage
        if not used_all < MAX_USD:
            used_all = NAN
    f.open_pnl = pnl
    f.equity = equity
    f.used_margin_executed = used
    f.used_margin_all = used_all
    f.free_margin = equity - used
    f.margin_level_pct = margin_level_pct(equity, used)
    f.state = STATE_UNKNOWN
    if a.leverage > 0.0:
        f.state = ladder_state(equity, used, f.margin_level_pct, a.warning_level_pct, a.critical_level_pct)
    f.code = f.state != STATE_UNKNOWN
    f.culprit = -1
    f._pad0 = 0
    return f.code


cdef void explain(const Account* a, const Leg* legs, const Instrument* instruments, Figures* f) noexcept nogil:
    """Give an account its code: why it is unknown, or that a known one rests on a closed market."""
    cdef const Leg* leg = legs + a.first
    cdef int32_t i, instrument
    cdef uint8_t code
    if f.state == STATE_UNKNOWN and a.read_code != OK:
        f.code = a.read_code
        return
    if f.state == STATE_UNKNOWN and a.fold_code != OK:
        f.code = a.fold_code
        f.culprit = a.culprit
        return
    for i in range(a.n_executed):
        instrument = leg[i].rate // 2
        code = instruments[instrument].code
        if not has_figures(code) or (f.code == OK and code == MARKET_CLOSED):
            f.code = code
            f.culprit = instrument
            if code != MARKET_CLOSED:
                return
    if f.state == STATE_UNKNOWN:
        f.code = FIGURES_OUT_OF_RANGE if a.leverage > 0.0 else LEVERAGE_INVALID
        f.culprit = -1


cdef inline int value_checked(const Account* a, const Leg* legs, Py_ssize_t n_legs, const LegRate* rates,
                              const Instrument* instruments, bint closed, Figures* f) noexcept nogil:
    """Whether the account is known; -1, and nothing written, if its segment is not inside the legs."""
    cdef int known
    # As unsigned numbers, negative ones are too large.
    if <uint32_t>a.n_executed > <uint32_t>a.n_legs or <uint64_t><uint32_t>a.first + <uint32_t>a.n_legs > <uint64_t>n_legs:
        return -1
    known = value_account(a, legs, rates, f)
    if known == 0 or closed:
        explain(a, legs, instruments, f)
    return known


cdef bint any_closed(const Instrument* instruments, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if instruments[i].code == MARKET_CLOSED:
            return True
    return False


cdef Py_ssize_t value_accounts_c(const Account* accounts, Py_ssize_t n, const Leg* legs, Py_ssize_t n_legs,
                                 const LegRate* rates, const Instrument* instruments, Py_ssize_t n_instruments,
                                 Figures* figures) noexcept nogil:
    """`value_accounts` for compiled callers, over arrays that fit.

    Returns how many accounts have a state, or -1 - i if the segment of account i is not inside the legs (it would
    be valued on somebody else's money); the rows from i on are not written then.
    """
    cdef Py_ssize_t i, n_known = 0
    cdef int known
    # Only then known accounts need a second look: which of them rest on a closed market?
    cdef bint closed = any_closed(instruments, n_instruments)
    for i in range(n):
        known = value_checked(&accounts[i], legs, n_legs, rates, instruments, closed, &figures[i])
        if known < 0:
            return -1 - i
        n_known += known
    return n_known


cdef int check_lengths(Py_ssize_t n_accounts, Py_ssize_t n_figures, Py_ssize_t n_rates,
                       Py_ssize_t n_instruments) except -1:
    if n_figures != n_accounts:
        raise_shape("figures", f"{n_accounts} (one for each account)", n_figures)
    if n_rates != 2 * n_instruments:
        raise_shape("leg_rates", f"{2 * n_instruments} (two for each instrument)", n_rates)
    return 0


def value_accounts(const Account[::1] accounts, const Leg[::1] legs, const LegRate[::1] leg_rates,
                   const Instrument[::1] instruments, Figures[::1] figures):
    """See `_core.pyi`."""
    cdef Py_ssize_t n = accounts.shape[0], done
    cdef const Leg* first_row = &legs[0] if legs.shape[0] else NULL
    cdef const LegRate* first_rate = &leg_rates[0] if leg_rates.shape[0] else NULL
    check_lengths(n, figures.shape[0], leg_rates.shape[0], instruments.shape[0])
    if n == 0:
        return
    with nogil:
        done = value_accounts_c(&accounts[0], n, first_row, legs.shape[0], first_rate, first_instrument(instruments),
                                instruments.shape[0], &figures[0])
    if done < 0:
        raise_shape("accounts", f"segments inside {legs.shape[0]} legs", f"row {-1 - done} that reaches outside")


def value_rows(const int32_t[::1] rows, const Account[::1] accounts, const Leg[::1] legs, const LegRate[::1] leg_rates,
               const Instrument[::1] instruments, Figures[::1] figures):
    """See `_core.pyi`."""
    cdef Py_ssize_t k, n = accounts.shape[0]
    cdef int done = 0
    cdef bint closed
    cdef const Leg* first_row = &legs[0] if legs.shape[0] else NULL
    cdef const LegRate* first_rate = &leg_rates[0] if leg_rates.shape[0] else NULL
    check_lengths(n, figures.shape[0], leg_rates.shape[0], instruments.shape[0])
    for k in range(rows.shape[0]):
        if not 0 <= rows[k] < n:
            raise_shape("rows", f"account rows below {n}", rows[k])
    with nogil:
        closed = any_closed(first_instrument(instruments), instruments.shape[0])
        for k in range(rows.shape[0]):
            done = value_checked(&accounts[rows[k]], first_row, legs.shape[0], first_rate, first_instrument(instruments),
                                 closed, &figures[rows[k]])
            if done < 0:
                break
    if done < 0:
        raise_shape("accounts", f"segments inside {legs.shape[0]} legs", f"row {rows[k]} that reaches outside")


def moved_marks(const Instrument[::1] instruments, const LegRate[::1] leg_rates, const LegRate[::1] rates_before,
                const uint8_t[::1] codes_before):
    """See `_core.pyi`."""
    cdef Py_ssize_t i, before = codes_before.shape[0]
    cdef uint64_t mark = 0
    if leg_rates.shape[0] != 2 * instruments.shape[0]:
        raise_shape("leg_rates", f"{2 * instruments.shape[0]} (two for each instrument)", leg_rates.shape[0])
    if rates_before.shape[0] != 2 * before:
        raise_shape("rates_before", f"{2 * before} (two for each code)", rates_before.shape[0])
    for i in range(instruments.shape[0]):
        # Bit by bit: what is unknown is NaN, and equal to itself here.
        if (i >= before or instruments[i].code != codes_before[i]
                or memcmp(&leg_rates[2 * i], &rates_before[2 * i], 2 * sizeof(LegRate)) != 0):
            mark |= symbol_bit(&instruments[i])
    return mark


cdef int raise_shape(str name, object expected, object found) except -1:
    from copyrisk.errors import ShapeError  # not at the top: `errors` needs the codes of this module
    raise ShapeError(f"{name}: expected {expected}, found {found}")

"""Autocutoff: where accounts stand on the margin ladder from tick to tick, and what to close of the critical ones.

Design
------
(a) `step_ladder` remembers four bytes an account. One that is unknown, or known from a closed market, keeps its rung.
(b) Closing at the current price moves open profit, swap and commission into the balance, so equity stays and only
    margin goes. A plan values its account once, and after each close only that close's instrument, by the functions
    that value the book: hedging, netting, margin price and conversion are right by construction.
(c) The margin modes choose by the formula of the fold on its sums less the order; whether the account is safe is always
    decided by (b).
(d) An account is planned for if its orders, valued here, say that it is critical, and its figures do not deny it.
"""
from libc.math cimport NAN, ceil, fabs, floor, isfinite, rint
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memset

from copyrisk._core cimport (
    CRITICAL, EXECUTED, HEALTHY, IDLE, MARKET_CLOSED, NO_MARGIN, OK, STATE_UNKNOWN, WARNING, Account, Exposure, Figures,
    Instrument, Leg, LegRate, Order, fold_accounts_c, ladder_state, leg_pnl_usd, margin_base_of, margin_level_pct,
    value_accounts_c,
)

# Lots are decimals with few digits; in doubles, a number of steps is off by less than this.
cdef double STEP_NOISE = 1e-9
# More steps than any position has; above it a step is no step.
cdef double MOST_STEPS = 1e12
# Two rates of freed margin that differ by less than this part of themselves are the same.
cdef double RATE_NOISE = 1e-9
cdef double NOT_WORKED_OUT = -1.0


# ------------------------------------------------------------------------------------------------ ladder

cdef inline uint8_t known_state(const Figures* f) noexcept nogil:
    """The state; unknown unless the code has figures."""
    return f.state if (f.code == OK or f.code == MARKET_CLOSED) and f.state <= CRITICAL else STATE_UNKNOWN


cdef inline uint8_t next_rung(const Account* a, const Figures* f, double recovery_pct,
                              const Ladder* ladder) noexcept nogil:
    """The rung of an account that is known on an open market."""
    if f.state == CRITICAL or ladder.is_latched:
        return CRITICAL
    if ladder.rung < WARNING or f.state != HEALTHY:
        return f.state
    # In an episode: healthy is what is healthy with the threshold at which an episode ends.
    return ladder_state(f.equity, f.used_margin_executed, f.margin_level_pct, a.warning_level_pct + recovery_pct,
                        a.critical_level_pct)


cdef inline uint8_t step_one(const Account* a, const Figures* f, double recovery_pct, bint latches,
                             Ladder* ladder) noexcept nogil:
    cdef uint8_t state = known_state(f), before = ladder.rung, edges = 0, rung
    if state == STATE_UNKNOWN:
        if ladder.state != STATE_UNKNOWN:
            edges = LOST
            ladder.is_lost = True
        ladder.state = STATE_UNKNOWN
        return edges
    if ladder.is_lost:
        edges = FOUND
        ladder.is_lost = False
    ladder.state = state
    if f.code != OK:
        return edges
    if state == CRITICAL and latches:
        ladder.is_latched = True
    elif state == NO_MARGIN and a.n_executed == 0:
        ladder.is_latched = False
    rung = next_rung(a, f, recovery_pct, ladder)
    if rung == STATE_UNKNOWN:
        return edges
    ladder.rung = rung
    if (before >= WARNING) != (rung >= WARNING):
        edges |= WARNED if rung >= WARNING else RECOVERED
    if (before == CRITICAL) != (rung == CRITICAL):
        edges |= BREACHED if rung == CRITICAL else SAFE
    return edges


def step_ladder(const int32_t[::1] rows, const Account[::1] accounts, const Figures[::1] figures, double recovery_pct,
                bint latches, Ladder[::1] ladders, uint8_t[::1] edges):
    """See `_cutoff.pyi`."""
    cdef Py_ssize_t k, n = accounts.shape[0]
    check_length("figures", n, figures.shape[0])
    check_length("ladders", n, ladders.shape[0])
    check_length("edges", rows.shape[0], edges.shape[0])
    check_rows(rows, n)
    if not (isfinite(recovery_pct) and recovery_pct >= 0.0):
        raise_shape("recovery_pct", "percentage points from 0", recovery_pct)
    with nogil:
        for k in range(rows.shape[0]):
            edges[k] = step_one(&accounts[rows[k]], &figures[rows[k]], recovery_pct, latches, &ladders[rows[k]])


cdef inline double order_pnl_usd(const Order* o, const Instrument* instruments, const LegRate* rates) noexcept nogil:
    """Profit of a position as the valuation has it, swap and commission included; NaN of what is none."""
    cdef const LegRate* r
    cdef double units
    if o.code != OK or o.effect != EXECUTED:
        return NAN
    r = rates + 2 * o.instrument + (not o.is_buy)
    units = o.lots * instruments[o.instrument].contract_size
    if not o.is_buy:
        units = -units
    return leg_pnl_usd(units, units * o.price, r.price, r.gain, r.loss) + o.fees_usd


def order_pnls(const int32_t[::1] order_rows, const Order[::1] orders, const Instrument[::1] instruments,
               const LegRate[::1] leg_rates, double[::1] out):
    """See `_cutoff.pyi`."""
    cdef Py_ssize_t k, row, n = instruments.shape[0]
    check_length("leg_rates", 2 * n, leg_rates.shape[0])
    check_length("out", order_rows.shape[0], out.shape[0])
    for k in range(order_rows.shape[0]):
        row = order_rows[k]
        if not 0 <= row < orders.shape[0]:
            raise_shape("order_rows", f"order rows below {orders.shape[0]}", row)
        check_instrument(&orders[row], row, n)
    with nogil:
        for k in range(order_rows.shape[0]):
            out[k] = order_pnl_usd(&orders[order_rows[k]], &instruments[0] if n else NULL, &leg_rates[0] if n else NULL)


# ------------------------------------------------------------------------------------- profits and plans

cdef double value_copies(Plan* p, int32_t head, Figures* f) noexcept nogil:
    """Fold and value a list of copies as an account of its own; returns its used margin."""
    cdef Account a = p.account
    cdef int32_t row = 0
    cdef uint64_t mark
    a.first = 0
    fold_accounts_c(&row, 1, &a, &head, p.orders, p.instruments, p.legs, &mark, p.exposures, p.nets_orders)
    value_accounts_c(&a, 1, p.legs, a.n_legs, p.rates, p.instruments, 0, f)
    return f.used_margin_executed


cdef void copy_orders(Plan* p, int32_t head, const Order* orders, int32_t* rows) noexcept nogil:
    cdef int32_t i = head, n = 0
    while i >= 0:
        p.orders[n] = orders[i]
        rows[n] = i
        i = orders[i].next
        n += 1
        p.orders[n - 1].next = n if i >= 0 else -1
    p.n_orders = n


cdef bint is_to_be_planned(Plan* p, const Figures* said, bint is_latched) noexcept nogil:
    """Whether the account is critical or latched, on open markets, by its figures and by its orders."""
    cdef Figures f
    cdef int32_t i
    if said != NULL and (said.code != OK or not (said.state == CRITICAL or is_latched and said.state != STATE_UNKNOWN)):
        return False
    value_copies(p, 0 if p.n_orders > 0 else -1, &f)
    if f.state == STATE_UNKNOWN:
        return False
    for i in range(p.n_orders):
        if p.orders[i].effect == EXECUTED and p.instruments[p.orders[i].instrument].code != OK:
            return False
    p.equity = f.equity
    return f.state == CRITICAL or is_latched


cdef int32_t group_of(Plan* p, int32_t instrument) noexcept nogil:
    cdef int32_t g
    for g in range(p.n_groups):
        if p.groups[g].instrument == instrument:
            return g
    g = p.n_groups
    p.groups[g].instrument = instrument
    p.groups[g].head = p.groups[g].tail = -1
    p.n_groups += 1
    return g


cdef void hold(Plan* p, const int32_t* rows, const uint8_t* closing) noexcept nogil:
    """Take the positions whose close is not under way, linked by instrument; those that are count as gone."""
    cdef int32_t i, g
    cdef Holding* h
    cdef Group* group
    p.n_holdings = p.n_groups = 0
    for i in range(p.n_orders):
        p.orders[i].next = -1
        if p.orders[i].effect != EXECUTED or closing[rows[i]] == UNDER_WAY:
            continue
        g = group_of(p, p.orders[i].instrument)
        group = &p.groups[g]
        p.orders[i].prev = group.tail
        if group.head < 0:
            group.head = i
        else:
            p.orders[group.tail].next = i
        group.tail = i
        if closing[rows[i]] != 0:  # it cannot be closed now: it has its margin, and is no candidate
            continue
        h = &p.holdings[p.n_holdings]
        memset(h, 0, sizeof(Holding))
        h.pnl = order_pnl_usd(&p.orders[i], p.instruments, p.rates)
        h.original_lots = p.orders[i].lots
        h.place, h.row, h.group, h.close = i, rows[i], g, -1
        p.n_holdings += 1
    for g in range(p.n_groups):
        refold(p, g)


cdef void refold(Plan* p, int32_t g) noexcept nogil:
    """Margin and sums of an instrument, of the lots that are still open."""
    cdef Group* group = &p.groups[g]
    cdef Figures f
    cdef int32_t i = group.head
    cdef double highest = 0.0, price
    memset(&p.exposures[0], 0, sizeof(Exposure))
    group.used_margin = value_copies(p, group.head, &f)
    group.sums = p.exposures[0]
    group.base = margin_base_of(&p.instruments[group.instrument], group.sums.bought_units, group.sums.sold_units,
                                group.sums.value, group.sums.highest_price)
    group.second_price = 0.0
    if not p.instruments[group.instrument].margin_at_open:
        return
    while i >= 0:
        price = p.orders[i].price
        group.second_price = max(group.second_price, min(highest, price))
        highest = max(highest, price)
        i = p.orders[i].next


cdef double used_margin(const Plan* p) noexcept nogil:
    cdef double used = 0.0
    cdef int32_t g
    for g in range(p.n_groups):
        used += p.groups[g].used_margin
    return used


cdef bint is_safe(const Plan* p, double used) noexcept nogil:
    """Whether the level with this margin is above critical."""
    cdef uint8_t state = ladder_state(p.equity, used, margin_level_pct(p.equity, used), p.account.warning_level_pct,
                                      p.account.critical_level_pct)
    return state != CRITICAL and state != STATE_UNKNOWN


cdef void set_open(Plan* p, Holding* h, double lots) noexcept nogil:
    p.orders[h.place].lots = lots
    p.orders[h.place].effect = EXECUTED if lots > 0.0 else IDLE
    refold(p, h.group)


cdef Close* next_close(Plan* p) noexcept nogil:
    cdef Close* close = &p.closes[p.n_closes]
    memset(close, 0, sizeof(Close))
    close.account = p.row
    p.n_closes += 1
    return close


cdef void emit(Plan* p, Holding* h, double lots) noexcept nogil:
    """Let the plan close so many lots of a position in all, where it stands if it is in the plan already."""
    if h.close < 0:
        h.close = p.n_closes
        next_close(p).order = h.row
    p.closes[h.close].lots = lots


cdef void close_whole(Plan* p, Holding* h) noexcept nogil:
    cdef const Order* o = &p.orders[h.place]
    if o.prev >= 0:
        p.orders[o.prev].next = o.next
    else:
        p.groups[h.group].head = o.next
    if o.next >= 0:
        p.orders[o.next].prev = o.prev
    set_open(p, h, 0.0)
    emit(p, h, h.original_lots)


cdef void cancel_orders(Plan* p, const int32_t* rows, const uint8_t* closing) noexcept nogil:
    """First what is no position: it might become one."""
    cdef int32_t i
    cdef Close* close
    for i in range(p.n_orders):
        if p.orders[i].effect != EXECUTED and not closing[rows[i]]:
            close = next_close(p)
            close.order, close.is_cancel = rows[i], True


cdef int by_loss(const void* one, const void* two) noexcept nogil:
    cdef double a = (<const Holding*>one).pnl, b = (<const Holding*>two).pnl
    return (a > b) - (a < b) or by_lots(one, two)


cdef int by_lots(const void* one, const void* two) noexcept nogil:
    cdef const Holding* a = <const Holding*>one
    cdef const Holding* b = <const Holding*>two
    return ((a.original_lots < b.original_lots) - (a.original_lots > b.original_lots)
            or (a.row > b.row) - (a.row < b.row))


cdef void close_in_turn(Plan* p, bint everything) noexcept nogil:
    """The largest loss first, until the account is safe; or everything."""
    cdef int32_t k
    qsort(p.holdings, p.n_holdings, sizeof(Holding), by_loss)
    for k in range(p.n_holdings):
        if everything:  # then no margin decides
            emit(p, &p.holdings[k], p.holdings[k].original_lots)
        elif is_safe(p, used_margin(p)):
            return
        else:
            close_whole(p, &p.holdings[k])


cdef double freed(const Plan* p, const Holding* h, double lots, bint with_other_side) noexcept nogil:
    """Margin that closing these lots would free, before leverage; with as many of the other side, if asked."""
    cdef const Group* group = &p.groups[h.group]
    cdef const Order* o = &p.orders[h.place]
    cdef const Instrument* s = &p.instruments[group.instrument]
    cdef double units = lots * s.contract_size
    cdef double bought = group.sums.bought_units, sold = group.sums.sold_units
    cdef double value = group.sums.value, highest = group.sums.highest_price
    if with_other_side:
        value *= 1.0 - 2.0 * units / (bought + sold)
        bought = max(bought - units, 0.0)
        sold = max(sold - units, 0.0)
    else:
        value -= units * o.price
        if lots >= o.lots and o.price >= highest:
            highest = group.second_price
        if o.is_buy:
            bought = max(bought - units, 0.0)
        else:
            sold = max(sold - units, 0.0)
    return (group.base - margin_base_of(s, bought, sold, value, highest)) * p.rates[2 * group.instrument].margin


cdef double lots_of(double steps, double step) noexcept nogil:
    """Whole steps in lots; if a lot is whole steps, the double nearest to the decimal."""
    cdef double parts = rint(1.0 / step)
    return steps / parts if fabs(parts * step - 1.0) < STEP_NOISE else steps * step


cdef inline const LotLimits* limits_of(const Plan* p, const Holding* h) noexcept nogil:
    return &p.limits[p.groups[h.group].instrument]


cdef double partial_least(const LotLimits* limits, const Holding* h) noexcept nogil:
    """Steps in all of the smallest further close: one more, or the fewest that may be closed."""
    return h.taken + 1.0 if h.taken > 0.0 else max(ceil(limits.smallest / limits.step - STEP_NOISE), 1.0)


cdef double partial_most(const LotLimits* limits, const Holding* h) noexcept nogil:
    """Steps in all that may be closed so that enough stays open; NaN if no (further) part may be closed."""
    cdef double most
    if not (limits.step > 0.0 and limits.smallest > 0.0 and h.original_lots / limits.step <= MOST_STEPS):
        return NAN
    most = floor((h.original_lots - limits.smallest) / limits.step + STEP_NOISE)
    return most if most >= partial_least(limits, h) else NAN


cdef double further_steps(const LotLimits* limits, const Holding* h, double lots) noexcept nogil:
    """Steps in all if these lots, or the next fewer that may be, are closed besides; NaN if that is no part."""
    cdef double most = partial_most(limits, h), steps = h.taken + floor(lots / limits.step + STEP_NOISE)
    if not steps <= most:
        steps = most
    return steps if steps >= partial_least(limits, h) else NAN


cdef inline double further_lots(const LotLimits* limits, const Holding* h, double steps) noexcept nogil:
    return lots_of(steps, limits.step) - lots_of(h.taken, limits.step)


cdef void rate_by_lots(Plan* p, Holding* h) noexcept nogil:
    """What a lot of a position frees at the best: of all of it, of a part, or together with the other side."""
    cdef const LotLimits* limits = limits_of(p, h)
    cdef const Exposure* x = &p.groups[h.group].sums
    cdef double left = p.orders[h.place].lots, size = p.instruments[p.groups[h.group].instrument].contract_size
    cdef double own = x.bought_units / size, other = x.sold_units / size, lots, rate, steps
    if not p.orders[h.place].is_buy:
        own, other = other, own
    h.rate = freed(p, h, left, False) / left
    h.way, h.pairs_whole = WHOLE, False
    h.most = NOT_WORKED_OUT
    if not other > 0.0:
        return
    # Beyond what its side has more than the other, its lots free less.
    h.most = further_steps(limits, h, min(left, own - other) if own > other else left)
    if h.most > 0.0:
        lots = further_lots(limits, h, h.most)
        rate = freed(p, h, lots, False) / lots
        if is_more(rate, h.rate):
            h.rate, h.way = rate, PART
    lots = min(left, other)
    steps = further_steps(limits, h, lots)
    if lots < left and not steps > 0.0:
        return
    rate = freed(p, h, lots, True) / (2.0 * lots)
    if rate > 0.0 and is_more(rate, h.rate):
        h.rate, h.way, h.most, h.pairs_whole = rate, PAIR, steps, lots >= left


cdef inline bint is_more(double rate, double than) noexcept nogil:
    return rate > than + RATE_NOISE * fabs(than)


cdef double used_without(Plan* p, Holding* h, double steps, double used) noexcept nogil:
    """Margin if so many steps of it were closed in all; of a pair, if as many of the other side were, too."""
    cdef double left = p.orders[h.place].lots, lots = further_lots(limits_of(p, h), h, steps)
    cdef double guess = max(used - freed(p, h, lots, h.way == PAIR) / p.account.leverage, 0.0)
    # What the sums say is near enough, unless their noise could decide.
    if h.way == PAIR or not is_safe(p, max(guess - RATE_NOISE * used, 0.0)):
        return guess
    set_open(p, h, h.original_lots - lots_of(steps, limits_of(p, h).step))
    used = used_margin(p)
    set_open(p, h, left)
    return used


cdef double enough_steps(Plan* p, Holding* h) noexcept nogil:
    """The fewest steps in all of a position that make the account safe; NaN if no part does."""
    cdef double low, high = h.most, middle, used = used_margin(p)
    if high == NOT_WORKED_OUT:
        high = further_steps(limits_of(p, h), h, p.orders[h.place].lots)
    if not high > 0.0 or not is_safe(p, used_without(p, h, high, used)):
        return NAN
    low = partial_least(limits_of(p, h), h)
    while low < high:
        middle = floor(0.5 * (low + high))
        if is_safe(p, used_without(p, h, middle, used)):
            high = middle
        else:
            low = middle + 1.0
    return high


cdef void close_some(Plan* p, Holding* h) noexcept nogil:
    """Close as much of a position as is enough; or all that frees so much a lot, if it is not."""
    cdef double steps = enough_steps(p, h)
    # Half of a pair frees nothing yet: the other half follows, as what is best then.
    if not steps > 0.0 and h.way != WHOLE and not h.pairs_whole:
        steps = h.most
    if not steps > 0.0:
        close_whole(p, h)
        return
    h.taken = steps
    emit(p, h, lots_of(steps, limits_of(p, h).step))
    set_open(p, h, h.original_lots - p.closes[h.close].lots)


cdef void rate(Plan* p, Holding* h, bint in_part) noexcept nogil:
    if in_part and p.orders[h.place].effect == EXECUTED:
        rate_by_lots(p, h)
    else:
        h.rate = freed(p, h, p.orders[h.place].lots, False)


cdef void close_best(Plan* p, bint in_part) noexcept nogil:
    """What frees most margin (a lot, if parts may be closed) first, until the account is safe."""
    cdef int32_t k
    cdef Holding* best
    cdef Holding* h
    qsort(p.holdings, p.n_holdings, sizeof(Holding), by_lots)
    for k in range(p.n_holdings):
        rate(p, &p.holdings[k], in_part)
    while not is_safe(p, used_margin(p)):
        best = NULL
        for k in range(p.n_holdings):
            h = &p.holdings[k]
            if p.orders[h.place].effect == EXECUTED and (best == NULL or is_more(h.rate, best.rate)):
                best = h
        if best == NULL:
            return
        if in_part:
            close_some(p, best)
        else:
            close_whole(p, best)
        for k in range(p.n_holdings):
            if p.holdings[k].group == best.group:
                rate(p, &p.holdings[k], in_part)


# ------------------------------------------------------------------------------------------ all accounts

cdef int32_t plan_account(Plan* p, int32_t head, const Order* orders, int32_t* rows, const Figures* said,
                          bint is_latched, const uint8_t* closing, int mode) noexcept nogil:
    """Write one account's closes; returns how many."""
    p.n_closes = 0
    copy_orders(p, head, orders, rows)
    if not is_to_be_planned(p, said, is_latched):
        return 0
    cancel_orders(p, rows, closing)
    hold(p, rows, closing)
    if mode == FLATTEN or is_latched or not p.equity > 0.0:
        close_in_turn(p, True)
    elif mode == LARGEST_LOSS:
        close_in_turn(p, False)
    else:
        close_best(p, mode == SMALLEST_PARTIAL)
    return p.n_closes


def plan_closes(const int32_t[::1] rows, const Account[::1] accounts, const int32_t[::1] order_head,
                const Order[::1] orders, const Instrument[::1] instruments, const LegRate[::1] leg_rates,
                const uint8_t[::1] closing, const LotLimits[::1] lot_limits, int mode, bint net_orders,
                Close[::1] closes, int32_t[::1] counts, const Figures[::1] figures=None,
                const Ladder[::1] ladders=None):
    """See `_cutoff.pyi`."""
    cdef Py_ssize_t k, n = accounts.shape[0], total = 0, longest = 0, length
    cdef int32_t row
    cdef int32_t* order_rows
    cdef const Figures* said = NULL
    cdef bint is_latched = False
    cdef Plan p
    for name, expected, found in (
        ("figures", n, n if figures is None else figures.shape[0]), ("order_head", n, order_head.shape[0]),
        ("ladders", n, n if ladders is None else ladders.shape[0]), ("closing", orders.shape[0], closing.shape[0]),
        ("leg_rates", 2 * instruments.shape[0], leg_rates.shape[0]), ("counts", rows.shape[0], counts.shape[0]),
        ("lot_limits", instruments.shape[0], lot_limits.shape[0]),
    ):
        check_length(name, expected, found)
    if not LARGEST_LOSS <= mode <= FLATTEN:
        raise_shape("mode", "a StopOut", mode)
    check_rows(rows, n)
    for k in range(rows.shape[0]):
        length = check_list(rows[k], order_head[rows[k]], orders, instruments.shape[0])
        total += length
        longest = max(longest, length)
    if closes.shape[0] < total:
        raise_shape("closes", f"room for {total} (all orders of these accounts)", closes.shape[0])
    if total == 0:
        counts[:] = 0
        return 0
    p.instruments, p.rates, p.limits, p.nets_orders = NULL, NULL, NULL, net_orders
    if instruments.shape[0]:
        p.instruments, p.rates, p.limits = &instruments[0], &leg_rates[0], &lot_limits[0]
    p.orders, p.legs = <Order*>malloc(longest * sizeof(Order)), <Leg*>malloc(longest * sizeof(Leg))
    p.exposures = <Exposure*>malloc(longest * sizeof(Exposure))
    p.holdings, p.groups = <Holding*>malloc(longest * sizeof(Holding)), <Group*>malloc(longest * sizeof(Group))
    order_rows = <int32_t*>malloc(longest * sizeof(int32_t))
    try:
        if not (p.orders and p.legs and p.exposures and p.holdings and p.groups and order_rows):
            raise MemoryError
        with nogil:
            total = 0
            for k in range(rows.shape[0]):
                row = rows[k]
                p.row, p.account, p.closes = row, accounts[row], &closes[0] + total
                if figures is not None:
                    said = &figures[row]
                if ladders is not None:
                    is_latched = ladders[row].is_latched
                counts[k] = plan_account(&p, order_head[row], &orders[0], order_rows, said, is_latched, &closing[0],
                                         mode)
                total += counts[k]
    finally:
        free(p.orders)
        free(p.legs)
        free(p.exposures)
        free(p.holdings)
        free(p.groups)
        free(order_rows)
    return total


# ------------------------------------------------------------------------------------------------ checks

cdef int check_rows(const int32_t[::1] rows, Py_ssize_t n) except -1:
    cdef Py_ssize_t k
    for k in range(rows.shape[0]):
        if not 0 <= rows[k] < n:
            raise_shape("rows", f"account rows below {n}", rows[k])
    return 0


cdef int check_length(str name, Py_ssize_t expected, Py_ssize_t found) except -1:
    if found != expected:
        raise_shape(name, expected, found)
    return 0


cdef int check_instrument(const Order* o, Py_ssize_t row, Py_ssize_t n_instruments) except -1:
    if o.code == OK and o.effect != IDLE and not 0 <= o.instrument < n_instruments:
        raise_shape("orders", f"instrument rows below {n_instruments}", f"order row {row} that points outside")
    return 0


cdef Py_ssize_t check_list(int32_t row, int32_t i, const Order[::1] orders, Py_ssize_t n_instruments) except -1:
    """Walk one account's list once, so that its plan can trust every index; returns its length."""
    cdef Py_ssize_t n = 0
    while i >= 0:
        if i >= orders.shape[0] or n > orders.shape[0]:
            raise_shape("orders", "lists that end inside the array", f"account row {row} whose list does not")
        check_instrument(&orders[i], i, n_instruments)
        n += 1
        i = orders[i].next
    return n


cdef int raise_shape(str name, object expected, object found) except -1:
    from copyrisk.errors import ShapeError  # not at the top, as in `_core`
    raise ShapeError(f"{name}: expected {expected}, found {found}")

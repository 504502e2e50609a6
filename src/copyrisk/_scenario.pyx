"""The kernel of the liquidation ladder: how far one symbol must move to bring an account to its levels.

Design
------
(a) A symbol's bid and ask are multiplied by ``s``, all other quotes stay. Prices are proportional to ``s``, and so is a
    conversion by the direct pair; one by the inverse pair is proportional to ``1/s``. So an account's equity and its
    margin are sums of ``s^-1, 1, s, s^2``, and the level is reached where ``equity - level x margin`` is 0: a line almost
    always, at most a cubic, all in closed form but the cubic.
(b) With conversion `side` a position that turns from loss to profit converts at another rate from there on: the curve
    has a kink there. It is walked from ``s = 1`` outwards, kink by kink, to the first zero.
(c) The rates are those that value the book (`price_legs`); which power of ``s`` stands before each follows from the
    instrument. Nothing is valued a second time by another formula.
"""
from libc.math cimport NAN, fabs, sqrt
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memset

from copyrisk._core cimport (
    CRITICAL, MARKET_CLOSED, OK, STATE_UNKNOWN, WARNING, Account, Figures, Instrument, Leg, LegRate, Quote,
)

cdef double LOWEST = 0.01
cdef double HIGHEST = 11.0
# Halvings of an interval of at most 11: what is left is below the distance of two doubles near 0.01.
cdef int HALVINGS = 64


# ------------------------------------------------------------------------------------------------- zeros

cdef inline double value_at(const Curve* c, double s) noexcept nogil:
    return c.of_power[0] / s + c.of_power[1] + s * (c.of_power[2] + s * c.of_power[3])


cdef inline bint is_nearer(double root, double than, double low, double high, bint up) noexcept nogil:
    """Whether a root lies inside, and is met before the other one (NaN: none)."""
    if not low <= root <= high:
        return False
    return than != than or (root < than if up else root > than)


cdef inline double quadratic_root(double a, double b, double c, double low, double high, bint up) noexcept nogil:
    """The first zero of ``a s^2 + b s + c`` inside, seen from the end where the walk begins; NaN if there is none."""
    cdef double square, q, found = NAN
    if a == 0.0:
        q = -c / b if b != 0.0 else NAN
        return q if low <= q <= high else NAN
    square = b * b - 4.0 * a * c
    if not square >= 0.0:
        return NAN
    # The sum without cancellation; the other root follows from the product of the two.
    q = -0.5 * (b + (sqrt(square) if b >= 0.0 else -sqrt(square)))
    if is_nearer(q / a, found, low, high, up):
        found = q / a
    if q != 0.0 and is_nearer(c / q, found, low, high, up):
        found = c / q
    return found


cdef double halved(const Curve* c, double above, double below) noexcept nogil:
    """The zero between a point where the curve is above 0 and one where it is not; monotone between them."""
    cdef int k
    cdef double middle
    for k in range(HALVINGS):
        middle = 0.5 * (above + below)
        if value_at(c, middle) > 0.0:
            above = middle
        else:
            below = middle
    return below


cdef double cubic_root(const Curve* c, double begin, double end) noexcept nogil:
    """The first zero of ``s`` times the curve from `begin`, where it is above 0; between its turning points."""
    cdef bint up = end > begin
    cdef double low = begin if up else end, high = end if up else begin
    cdef double turn, a = 3.0 * c.of_power[3], b = 2.0 * c.of_power[2]
    cdef int k
    for k in range(3):
        turn = quadratic_root(a, b, c.of_power[1], low, high, up)
        if turn != turn:
            turn = end
        if value_at(c, turn) <= 0.0:
            return halved(c, begin, turn)
        if turn == end:
            break
        begin = turn
        # The next turning point lies strictly behind this one.
        if up:
            low = turn * (1.0 + 1e-15)
        else:
            high = turn * (1.0 - 1e-15)
    return NAN


cdef double zero_between(const Curve* c, double begin, double end) noexcept nogil:
    """The first zero from `begin` to `end`, or NaN; rounding at a kink loses none."""
    cdef bint up = end > begin
    cdef double low = begin if up else end, high = end if up else begin, root
    if value_at(c, begin) <= 0.0:
        return begin
    if c.of_power[0] == 0.0:
        root = quadratic_root(c.of_power[3], c.of_power[2], c.of_power[1], low, high, up)
    elif c.of_power[3] == 0.0:
        root = quadratic_root(c.of_power[2], c.of_power[1], c.of_power[0], low, high, up)
    else:
        root = cubic_root(c, begin, end)
    if root != root and value_at(c, end) <= 0.0:
        return end
    return root


cdef double first_move(const Walk* w, const Curve* begun, bint up) noexcept nogil:
    """The move nearest to 0 in one direction at which the curve reaches 0, or NaN."""
    cdef Curve c = begun[0]
    cdef double begin = 1.0, root
    cdef int32_t k
    cdef const Kink* kink
    for k in range(w.n_kinks):
        kink = &w.kinks[k if up else w.n_kinks - 1 - k]
        if kink.is_above != up:
            continue
        root = zero_between(&c, begin, kink.at)
        if root == root:
            return root - 1.0
        c.of_power[kink.power + 1] += kink.fixed
        c.of_power[kink.power + 2] += kink.slope
        begin = kink.at
    root = zero_between(&c, begin, HIGHEST if up else LOWEST)
    return root - 1.0


# ------------------------------------------------------------------------------------------------ curves

cdef inline bint has_figures(const Quote* q) noexcept nogil:
    return q.code == OK or q.code == MARKET_CLOSED


cdef void read_terms(const Instrument* instruments, Py_ssize_t n, const Quote* quotes, Term* terms) noexcept nogil:
    """Which pair converts each instrument: the choice of `price_legs`."""
    cdef Py_ssize_t i
    cdef const Instrument* s
    for i in range(n):
        s = &instruments[i]
        terms[i].quote, terms[i].pair, terms[i].power = s.quote, -1, 0
        terms[i].margin_moves = not s.margin_at_open
        if s.profit_is_usd:
            continue
        if s.direct >= 0 and has_figures(&quotes[s.direct]):
            terms[i].pair, terms[i].power = s.direct, 1
        elif s.inverse >= 0 and has_figures(&quotes[s.inverse]):
            terms[i].pair, terms[i].power = s.inverse, -1


cdef inline void add_kink(Walk* w, const Leg* leg, double price, double change, double pnl, int32_t power) noexcept nogil:
    cdef double worth = leg.units * price
    cdef Kink* kink = &w.kinks[w.n_kinks]
    if worth == 0.0:
        return
    kink.is_above = (pnl > 0.0) != (worth > 0.0)
    kink.at = leg.cost / worth
    if kink.is_above:
        kink.at = max(kink.at, 1.0)
    else:
        kink.at = min(kink.at, 1.0)
    if not LOWEST < kink.at < HIGHEST:
        return
    kink.slope, kink.fixed, kink.power = worth * change, -leg.cost * change, power
    w.n_kinks += 1


cdef inline void add_leg(Walk* w, const Leg* leg, const LegRate* r, const Term* term, int32_t quote) noexcept nogil:
    """A leg's share of the curves, and its kink; `leg_pnl_usd` with the quote of one symbol times s."""
    cdef bint own = term.quote == quote
    cdef int32_t power = term.power if term.pair == quote else 0
    cdef double pnl = leg.units * r.price - leg.cost
    cdef double of_profit = min(r.gain, r.loss), of_loss = max(r.gain, r.loss)
    cdef double rate = of_profit if pnl > 0.0 else of_loss
    w.equity.of_power[power + 1 + own] += leg.units * r.price * rate
    w.equity.of_power[power + 1] -= leg.cost * rate
    w.margin.of_power[power + 1 + (own and term.margin_moves)] += leg.margin_base * r.margin
    if own and of_profit != of_loss:
        add_kink(w, leg, r.price, of_loss - of_profit if pnl > 0.0 else of_profit - of_loss, pnl, power)


cdef int by_place(const void* one, const void* two) noexcept nogil:
    """Kinks from low to high; where two stand at 1, the one below first."""
    cdef const Kink* a = <const Kink*>one
    cdef const Kink* b = <const Kink*>two
    return (a.at > b.at) - (a.at < b.at) or (a.is_above > b.is_above) - (a.is_above < b.is_above)


cdef inline Curve above_level(const Walk* w, double level_pct, double leverage) noexcept nogil:
    """What equity is above the level: 0 where the level is reached."""
    cdef Curve c
    cdef double part = level_pct / (100.0 * leverage)
    cdef int k
    for k in range(4):
        c.of_power[k] = w.equity.of_power[k] - part * w.margin.of_power[k]
    return c


cdef inline void find_moves(Walk* w, const Account* a, const Figures* f, Crossing* out) noexcept nogil:
    """Where the levels are reached; what stands there already has no move."""
    cdef Curve warning, critical
    out.code = AHEAD
    out.warning_down = out.warning_up = out.critical_down = out.critical_up = NAN
    if not value_at(&w.margin, 1.0) > 0.0:
        return
    if w.n_kinks > 1:
        qsort(w.kinks, w.n_kinks, sizeof(Kink), by_place)
    critical = above_level(w, a.critical_level_pct, a.leverage)
    # What the figures say counts at the level itself, where rounding could say otherwise.
    if f.state == CRITICAL or value_at(&critical, 1.0) <= 0.0:
        out.code = AT_CRITICAL
        return
    out.critical_down, out.critical_up = first_move(w, &critical, False), first_move(w, &critical, True)
    warning = above_level(w, a.warning_level_pct, a.leverage)
    if f.state == WARNING or value_at(&warning, 1.0) <= 0.0:
        out.code = AT_WARNING
        return
    out.warning_down, out.warning_up = first_move(w, &warning, False), first_move(w, &warning, True)


cdef void cross_one(Walk* w, int32_t row, const Account* a, const Leg* legs, const LegRate* rates, const Term* terms,
                    const Instrument* instruments, const Quote* quotes, const Figures* f, int32_t quote,
                    Crossing* out) noexcept nogil:
    cdef const Leg* leg
    cdef int32_t i
    memset(&w.equity, 0, sizeof(Curve))
    memset(&w.margin, 0, sizeof(Curve))
    memset(out, 0, sizeof(Crossing))
    w.n_kinks = 0
    w.lots = 0.0
    w.equity.of_power[1] = a.balance + a.fees_usd
    for i in range(a.n_executed):
        leg = legs + a.first + i
        if terms[leg.rate // 2].quote == quote:
            w.lots += fabs(leg.units) / instruments[leg.rate // 2].contract_size
        add_leg(w, leg, &rates[leg.rate], &terms[leg.rate // 2], quote)
    out.account, out.quote, out.lots = row, quote, w.lots
    out.warning_down = out.warning_up = out.critical_down = out.critical_up = NAN
    if f.state == STATE_UNKNOWN or not (f.code == OK or f.code == MARKET_CLOSED):
        out.code = NOT_KNOWN
    elif f.code == MARKET_CLOSED and quotes[quote].code != MARKET_CLOSED:
        out.code = MARKET_SHUT
    else:
        find_moves(w, a, f, out)


cdef Py_ssize_t cross_all(const int32_t[::1] rows, const Account* accounts, const Leg* legs, const LegRate* rates,
                          const Instrument* instruments, const Quote* quotes, const Figures* figures, const Term* terms,
                          int32_t* seen, Walk* w, Crossing* out) noexcept nogil:
    """One row for each account and symbol, accounts in the order given; returns how many."""
    cdef Py_ssize_t k, n = 0
    cdef int32_t i, row, quote
    cdef const Account* a
    for k in range(rows.shape[0]):
        row = rows[k]
        a = &accounts[row]
        for i in range(a.n_executed):
            quote = terms[legs[a.first + i].rate // 2].quote
            if seen[quote] == k:
                continue
            seen[quote] = k
            cross_one(w, row, a, legs, rates, terms, instruments, quotes, &figures[row], quote, &out[n])
            n += 1
    return n


def find_crossings(const int32_t[::1] rows, const Account[::1] accounts, const Leg[::1] legs,
                   const LegRate[::1] leg_rates, const Instrument[::1] instruments, const Quote[::1] quotes,
                   const Figures[::1] figures, Crossing[::1] crossings):
    """See `_scenario.pyi`."""
    cdef Py_ssize_t n, k, n_quotes = quotes.shape[0], n_instruments = instruments.shape[0]
    cdef int32_t longest = 0
    cdef Term* terms
    cdef int32_t* seen
    cdef Walk w
    n = check_all(rows, accounts, legs, leg_rates, instruments, n_quotes, figures, &longest)
    if crossings.shape[0] < n:
        raise_shape("crossings", f"room for {n} (all executed legs of these accounts)", crossings.shape[0])
    if n == 0:
        return 0
    terms, seen = <Term*>malloc(n_instruments * sizeof(Term)), <int32_t*>malloc(n_quotes * sizeof(int32_t))
    w.kinks = <Kink*>malloc(longest * sizeof(Kink))
    try:
        if not (terms and seen and w.kinks):
            raise MemoryError
        with nogil:
            for k in range(n_quotes):
                seen[k] = -1
            read_terms(&instruments[0], n_instruments, &quotes[0], terms)
            n = cross_all(rows, &accounts[0], &legs[0], &leg_rates[0], &instruments[0], &quotes[0], &figures[0], terms,
                          seen, &w, &crossings[0])
    finally:
        free(terms)
        free(seen)
        free(w.kinks)
    return n


# ------------------------------------------------------------------------------------------------ checks

cdef Py_ssize_t check_all(const int32_t[::1] rows, const Account[::1] accounts, const Leg[::1] legs,
                          const LegRate[::1] leg_rates, const Instrument[::1] instruments, Py_ssize_t n_quotes,
                          const Figures[::1] figures, int32_t* longest) except -1:
    """Every index is followed once, so that the pass can trust it; returns how many legs are executed."""
    cdef Py_ssize_t k, i, n = instruments.shape[0], total = 0
    cdef const Account* a
    if figures.shape[0] != accounts.shape[0]:
        raise_shape("figures", f"{accounts.shape[0]} (one for each account)", figures.shape[0])
    if leg_rates.shape[0] != 2 * n:
        raise_shape("leg_rates", f"{2 * n} (two for each instrument)", leg_rates.shape[0])
    for i in range(n):
        if not (0 <= instruments[i].quote < n_quotes and -1 <= instruments[i].direct < n_quotes
                and -1 <= instruments[i].inverse < n_quotes):
            raise_shape("instruments", f"quote rows below {n_quotes}", f"row {i} that points outside")
    for k in range(rows.shape[0]):
        if not 0 <= rows[k] < accounts.shape[0]:
            raise_shape("rows", f"account rows below {accounts.shape[0]}", rows[k])
        a = &accounts[rows[k]]
        # As unsigned numbers, negative ones are too large.
        if (<uint32_t>a.n_executed > <uint32_t>a.n_legs
                or <uint64_t><uint32_t>a.first + <uint32_t>a.n_legs > <uint64_t>legs.shape[0]):
            raise_shape("accounts", f"segments inside {legs.shape[0]} legs", f"row {rows[k]} that reaches outside")
        for i in range(a.first, a.first + a.n_executed):
            if not 0 <= legs[i].rate < 2 * n:
                raise_shape("legs", f"rates below {2 * n}", f"row {i} that points outside")
        total += a.n_executed
        longest[0] = max(longest[0], a.n_executed)
    return total


cdef int raise_shape(str name, object expected, object found) except -1:
    from copyrisk.errors import ShapeError  # not at the top, as in `_core`
    raise ShapeError(f"{name}: expected {expected}, found {found}")

"""Triggers of all orders: which pending orders, stop losses and take profits a quote has reached.

Design
------
(a) Four conditions serve all eight kinds: bid falls to a price, ask rises to it, bid rises to it, ask falls to it. A
    symbol has a ladder for each, a binary heap with the price on top that is reached first: a quote that fires nothing
    is compared with four prices, however many triggers there are.
(b) Every trigger knows its place in its heap and is moved or taken out there. Nothing dead stays in, so memory
    follows what is set, however often it is set and cleared.
(c) Keys are prices, negated where the condition is "falls to": then all heaps are alike, and fire while
    ``key <= reach``. Negation is exact, so a price equal to the quote fires.
(d) Equal prices are ordered by order row: what fires, and in which order, does not depend on how it came in.
(e) With its first trigger that fires an order loses all it has, and until its pending order has gone its exits are in
    no ladder. So an order fires at most once in a call; room for that is made with its row, and the scan needs no more.
(f) The ladders with stop losses are gone through before those with take profits: on one quote the stop loss wins.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport free, realloc

import numpy as np

cpdef enum TriggerKind:
    NO_TRIGGER = 0
    BUY_STOP = 1
    SELL_STOP = 2
    BUY_LIMIT = 3
    SELL_LIMIT = 4
    STOP_LOSS_OF_BUY = 5
    TAKE_PROFIT_OF_BUY = 6
    STOP_LOSS_OF_SELL = 7
    TAKE_PROFIT_OF_SELL = 8

cdef enum:  # what a trigger is to its order; what fires is handed over in this order
    STOP_LOSS, TAKE_PROFIT, PENDING, N_ROLES

cdef enum:  # conditions, in the order in which a quote is held against them
    BID_FALLS_TO, ASK_RISES_TO, BID_RISES_TO, ASK_FALLS_TO, N_LADDERS

cdef enum:
    N_KINDS = 9
    FIRST_ROWS = 64
    FIRST_SYMBOLS = 16
    FIRST_ENTRIES = 4

cdef int[N_KINDS] ROLE_OF = [
    N_ROLES, PENDING, PENDING, PENDING, PENDING, STOP_LOSS, TAKE_PROFIT, STOP_LOSS, TAKE_PROFIT]
cdef int[N_KINDS] LADDER_OF = [
    N_LADDERS, ASK_RISES_TO, BID_FALLS_TO, ASK_FALLS_TO, BID_RISES_TO,
    BID_FALLS_TO, BID_RISES_TO, ASK_RISES_TO, ASK_FALLS_TO]
cdef bint[N_KINDS] IS_BUY = [False, True, False, True, False, True, True, False, False]

_NOTHING = (np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.float64))


cdef struct Entry:              # 16 bytes, a trigger in its heap
    double key
    int32_t order
    int32_t role

cdef struct Ladder:             # 16 bytes; the four of a symbol are a cache line
    Entry* entries
    int32_t size
    int32_t room

cdef struct Row:                # 48 bytes, an order
    double[N_ROLES] price
    int32_t[N_ROLES] at         # place in its heap; -1 in none: an exit that waits, or no trigger
    int32_t symbol
    uint8_t[N_ROLES] kind       # TriggerKind
    uint8_t is_buy

cdef struct Fired:
    double price
    int32_t order
    uint8_t kind


cdef inline bint comes_first(const Entry* a, const Entry* b) noexcept nogil:
    return a.key < b.key or (a.key == b.key and a.order < b.order)


cdef inline bint falls_to(int which) noexcept nogil:
    return which == BID_FALLS_TO or which == ASK_FALLS_TO


cdef inline bint is_kind(int kind) noexcept nogil:
    return 1 <= kind < <int>N_KINDS  # not the names: C compilers may compare those without a sign


cdef inline bint has_any(const Row* row) noexcept nogil:
    return (row.kind[STOP_LOSS] | row.kind[TAKE_PROFIT] | row.kind[PENDING]) != NO_TRIGGER


cdef bint make_room(Ladder* ladder) noexcept nogil:
    """Room for one more; false, and nothing changed, without memory."""
    cdef int32_t room = 2 * ladder.room if ladder.room else FIRST_ENTRIES
    cdef void* entries
    if ladder.size < ladder.room:
        return True
    entries = realloc(ladder.entries, <size_t>room * sizeof(Entry))
    if entries == NULL:
        return False
    ladder.entries, ladder.room = <Entry*>entries, room
    return True


cdef void give_back(Ladder* ladder) noexcept nogil:
    """Halve the room where three quarters are empty; half of it stays empty, so that the next `make_room` is far."""
    cdef void* entries
    if ladder.room > FIRST_ENTRIES and ladder.size < ladder.room // 4:
        entries = realloc(ladder.entries, <size_t>(ladder.room // 2) * sizeof(Entry))
        if entries != NULL:
            ladder.entries, ladder.room = <Entry*>entries, ladder.room // 2


cdef class Ladders:
    """See `_triggers.pyi`."""

    cdef readonly int32_t count
    cdef readonly int32_t order_limit
    cdef readonly int32_t symbol_limit
    cdef int32_t n_rows
    cdef int32_t n_symbols
    cdef Row* rows                  # (n_rows,)
    cdef Fired* fired               # (n_rows,) scratch of `fire`
    cdef Ladder* ladders            # (n_symbols, N_LADDERS)

    def __cinit__(self, int32_t order_limit=1 << 24, int32_t symbol_limit=1 << 16):
        if not (1 <= order_limit <= 1 << 28 and 1 <= symbol_limit <= 1 << 24):
            raise ValueError("order_limit, symbol_limit: expected 1 to 2^28, 1 to 2^24")
        self.order_limit, self.symbol_limit = order_limit, symbol_limit

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(<Py_ssize_t>self.n_symbols * N_LADDERS):
            free(self.ladders[i].entries)
        free(self.ladders)
        free(self.fired)
        free(self.rows)

    # ---- heaps; without the GIL

    cdef inline void settle(self, Ladder* ladder, int32_t at, Entry entry) noexcept nogil:
        ladder.entries[at] = entry
        self.rows[entry.order].at[entry.role] = at

    cdef void sift_up(self, Ladder* ladder, int32_t at, Entry entry) noexcept nogil:
        """Put an entry in the hole `at`, or above it."""
        while at > 0 and comes_first(&entry, &ladder.entries[(at - 1) // 2]):
            self.settle(ladder, at, ladder.entries[(at - 1) // 2])
            at = (at - 1) // 2
        self.settle(ladder, at, entry)

    cdef void sift_down(self, Ladder* ladder, int32_t at, Entry entry) noexcept nogil:
        """Put an entry in the hole `at`, or below it."""
        cdef int32_t child = 2 * at + 1
        while child < ladder.size:
            if child + 1 < ladder.size and comes_first(&ladder.entries[child + 1], &ladder.entries[child]):
                child += 1
            if not comes_first(&ladder.entries[child], &entry):
                break
            self.settle(ladder, at, ladder.entries[child])
            at = child
            child = 2 * at + 1
        self.settle(ladder, at, entry)

    cdef inline Ladder* ladder_of(self, int32_t order, int kind) noexcept nogil:
        return &self.ladders[<Py_ssize_t>self.rows[order].symbol * N_LADDERS + LADDER_OF[kind]]

    cdef bint arm(self, int32_t order, int role) noexcept nogil:
        """Put a trigger that is set into its ladder; false, and nothing changed, without memory."""
        cdef Row* row = &self.rows[order]
        cdef Ladder* ladder = self.ladder_of(order, row.kind[role])
        cdef Entry entry
        if row.at[role] >= 0:
            return True
        if not make_room(ladder):
            return False
        entry.key = -row.price[role] if falls_to(LADDER_OF[row.kind[role]]) else row.price[role]
        entry.order, entry.role = order, role
        ladder.size += 1
        self.sift_up(ladder, ladder.size - 1, entry)
        return True

    cdef void disarm(self, int32_t order, int role) noexcept nogil:
        """Take a trigger out of its ladder, if it is in one; it stays set."""
        cdef Row* row = &self.rows[order]
        cdef int32_t at = row.at[role]
        cdef Ladder* ladder
        cdef Entry last
        if at < 0:
            return
        ladder = self.ladder_of(order, row.kind[role])
        row.at[role] = -1
        ladder.size -= 1
        last = ladder.entries[ladder.size]
        if at < ladder.size:
            if at > 0 and comes_first(&last, &ladder.entries[(at - 1) // 2]):
                self.sift_up(ladder, at, last)
            else:
                self.sift_down(ladder, at, last)
        give_back(ladder)

    # ---- orders; without the GIL

    cdef void forget(self, int32_t order, int role) noexcept nogil:
        self.disarm(order, role)
        if self.rows[order].kind[role] != NO_TRIGGER:
            self.rows[order].kind[role] = NO_TRIGGER
            self.count -= 1

    cdef bint put(self, int32_t order, int kind, double price) noexcept nogil:
        """Set a trigger of a row that has its symbol and side; false, and nothing changed, without memory."""
        cdef Row* row = &self.rows[order]
        cdef int role = ROLE_OF[kind]
        if not make_room(self.ladder_of(order, kind)):
            return False
        self.forget(order, role)
        row.kind[role], row.price[role] = kind, price
        self.count += 1
        if role == PENDING:
            self.disarm(order, STOP_LOSS)
            self.disarm(order, TAKE_PROFIT)
        elif row.kind[PENDING] != NO_TRIGGER:
            return True  # it waits
        return self.arm(order, role)

    cdef Py_ssize_t scan(self, int32_t symbol, double bid, double ask, Py_ssize_t n) noexcept nogil:
        """Append what a quote fires to the `n` that have fired; how many they are now."""
        cdef double[N_LADDERS] reach
        cdef Ladder* ladder
        cdef Row* row
        cdef int32_t order
        cdef int which, role
        reach[BID_FALLS_TO], reach[ASK_RISES_TO], reach[BID_RISES_TO], reach[ASK_FALLS_TO] = -bid, ask, bid, -ask
        for which in range(N_LADDERS):
            ladder = &self.ladders[<Py_ssize_t>symbol * N_LADDERS + which]
            while ladder.size > 0 and ladder.entries[0].key <= reach[which]:
                order, role = ladder.entries[0].order, ladder.entries[0].role
                row = &self.rows[order]
                self.fired[n].order, self.fired[n].kind, self.fired[n].price = order, row.kind[role], row.price[role]
                n += 1
                for role in range(N_ROLES):
                    self.forget(order, role)
        return n

    # ---- with it

    cdef int grow(self, int32_t n_rows, int32_t n_symbols) except -1:
        """Room for so many orders and symbols, each at least doubled where it is not enough."""
        cdef int32_t room, i
        cdef int role
        cdef void* moved
        if n_rows > self.n_rows:
            room = min(max(n_rows, 2 * self.n_rows, FIRST_ROWS), self.order_limit)
            moved = realloc(self.rows, <size_t>room * sizeof(Row))
            if moved == NULL:
                raise MemoryError
            self.rows = <Row*>moved
            moved = realloc(self.fired, <size_t>room * sizeof(Fired))
            if moved == NULL:
                raise MemoryError
            self.fired = <Fired*>moved
            for i in range(self.n_rows, room):
                for role in range(N_ROLES):
                    self.rows[i].kind[role], self.rows[i].at[role] = NO_TRIGGER, -1
            self.n_rows = room
        if n_symbols > self.n_symbols:
            room = min(max(n_symbols, 2 * self.n_symbols, FIRST_SYMBOLS), self.symbol_limit)
            moved = realloc(self.ladders, <size_t>room * N_LADDERS * sizeof(Ladder))
            if moved == NULL:
                raise MemoryError
            self.ladders = <Ladder*>moved
            for i in range(self.n_symbols * N_LADDERS, room * N_LADDERS):
                self.ladders[i].entries, self.ladders[i].size, self.ladders[i].room = NULL, 0, 0
            self.n_symbols = room
        return 0

    cdef int set_rows(self, const int32_t* orders, const int32_t* symbols, const uint8_t* kinds, const double* prices,
                      Py_ssize_t n) except -1:
        """All of them, or, if one is refused, none."""
        cdef Py_ssize_t i
        cdef int32_t n_rows = 0, n_symbols = 0
        cdef Row* row
        cdef bint has_memory = True
        for i in range(n):
            if not 0 <= orders[i] < self.order_limit:
                raise_shape(f"orders[{i}]", f"a row below {self.order_limit}", orders[i])
            if not 0 <= symbols[i] < self.symbol_limit:
                raise_shape(f"symbols[{i}]", f"a row below {self.symbol_limit}", symbols[i])
            if not is_kind(kinds[i]):
                raise ValueError(f"kinds[{i}]: expected a TriggerKind, 1 to 8, found {kinds[i]}")
            if not 0.0 < prices[i] < INFINITY:
                raise ValueError(f"prices[{i}]: expected a positive, finite price, found {prices[i]}")
            n_rows, n_symbols = max(n_rows, orders[i] + 1), max(n_symbols, symbols[i] + 1)
        self.grow(n_rows, n_symbols)
        # Symbol and side of an order without triggers mean nothing, so that writing them changes nothing yet.
        for i in range(n):
            row = &self.rows[orders[i]]
            if not has_any(row):
                row.symbol, row.is_buy = symbols[i], IS_BUY[kinds[i]]
        for i in range(n):
            row = &self.rows[orders[i]]
            if row.symbol != symbols[i] or row.is_buy != IS_BUY[kinds[i]]:
                raise ValueError(f"orders[{i}]: row {orders[i]} has triggers of another symbol or side; clear it first")
        with nogil:
            for i in range(n):
                has_memory = has_memory and self.put(orders[i], kinds[i], prices[i])
        if not has_memory:
            raise MemoryError
        return 0

    def set(self, int32_t order, int32_t symbol, int kind, double price):
        """See `_triggers.pyi`."""
        cdef uint8_t code = kind if is_kind(kind) else NO_TRIGGER
        self.set_rows(&order, &symbol, &code, &price, 1)

    def set_many(self, const int32_t[::1] orders, const int32_t[::1] symbols, const uint8_t[::1] kinds,
                 const double[::1] prices):
        """See `_triggers.pyi`."""
        cdef Py_ssize_t n = orders.shape[0]
        check_length("symbols", n, symbols.shape[0])
        check_length("kinds", n, kinds.shape[0])
        check_length("prices", n, prices.shape[0])
        if n > 0:
            self.set_rows(&orders[0], &symbols[0], &kinds[0], &prices[0], n)

    def clear(self, int32_t order, int kind=0):
        """See `_triggers.pyi`."""
        cdef int role
        cdef Row* row
        if order < 0 or (kind != 0 and not is_kind(kind)):
            raise ValueError(f"order, kind: expected a row and a TriggerKind, found {order}, {kind}")
        if order >= self.n_rows:
            return
        if kind != 0:
            self.forget(order, ROLE_OF[kind])
        else:
            for role in range(N_ROLES):
                self.forget(order, role)
        row = &self.rows[order]
        for role in range(PENDING):
            # Without a pending order the exits wait no longer.
            if row.kind[PENDING] == NO_TRIGGER and row.kind[role] != NO_TRIGGER and not self.arm(order, role):
                raise MemoryError

    def fire(self, const int32_t[::1] symbols, const double[::1] bids, const double[::1] asks):
        """See `_triggers.pyi`."""
        cdef Py_ssize_t i, n = 0, n_quotes = symbols.shape[0]
        cdef double bid, ask
        check_length("bids", n_quotes, bids.shape[0])
        check_length("asks", n_quotes, asks.shape[0])
        for i in range(n_quotes):
            if symbols[i] < 0:
                raise_shape(f"symbols[{i}]", "a row", symbols[i])
        with nogil:
            for i in range(n_quotes):
                bid, ask = bids[i], asks[i]
                # NaN fails every comparison, so that it fires nothing.
                if symbols[i] < self.n_symbols and 0.0 < bid and bid <= ask and ask < INFINITY:
                    n = self.scan(symbols[i], bid, ask, n)
        return self.handed_over(n) if n > 0 else _NOTHING

    cdef tuple handed_over(self, Py_ssize_t n):
        """The first `n` of `fired` as arrays: stop losses, then take profits, then pending orders."""
        cdef Py_ssize_t i, at = 0
        cdef int role
        made = np.empty(n, np.int32), np.empty(n, np.uint8), np.empty(n, np.float64)
        cdef int32_t[::1] orders = made[0]
        cdef uint8_t[::1] kinds = made[1]
        cdef double[::1] prices = made[2]
        for role in range(N_ROLES):
            for i in range(n):
                if ROLE_OF[self.fired[i].kind] == role:
                    orders[at], kinds[at], prices[at] = self.fired[i].order, self.fired[i].kind, self.fired[i].price
                    at += 1
        return made

    def __len__(self):
        return self.count

    def armed(self, int32_t symbol):
        """See `_triggers.pyi`."""
        cdef int which
        cdef Py_ssize_t n = 0
        if 0 <= symbol < self.n_symbols:
            for which in range(N_LADDERS):
                n += self.ladders[<Py_ssize_t>symbol * N_LADDERS + which].size
        return n

    def nearest(self, int32_t symbol):
        """See `_triggers.pyi`."""
        cdef int which
        cdef Ladder* ladder
        found = [float("nan")] * N_LADDERS
        if 0 <= symbol < self.n_symbols:
            for which in range(N_LADDERS):
                ladder = &self.ladders[<Py_ssize_t>symbol * N_LADDERS + which]
                if ladder.size > 0:
                    found[which] = -ladder.entries[0].key if falls_to(which) else ladder.entries[0].key
        return tuple(found)

    @property
    def nbytes(self):
        """See `_triggers.pyi`."""
        cdef Py_ssize_t i, n_entries = 0
        for i in range(<Py_ssize_t>self.n_symbols * N_LADDERS):
            n_entries += self.ladders[i].room
        return (self.n_rows * (sizeof(Row) + sizeof(Fired)) + self.n_symbols * N_LADDERS * sizeof(Ladder)
                + n_entries * sizeof(Entry))


cdef int check_length(str name, Py_ssize_t expected, Py_ssize_t found) except -1:
    if found != expected:
        raise_shape(name, expected, found)
    return 0


cdef int raise_shape(str name, object expected, object found) except -1:
    from copyrisk.errors import ShapeError  # not at the top: `errors` stands above this module
    raise ShapeError(f"{name}: expected {expected}, found {found}")

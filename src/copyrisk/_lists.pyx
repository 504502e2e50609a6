"""The orders of each account: doubly linked lists through the order rows, each change in one pass over a batch."""
from libc.stdint cimport int32_t, uint8_t

import numpy as np

from copyrisk._core cimport Order


def relink_orders(const int32_t[::1] account_rows, const int32_t[::1] counts, const int32_t[::1] listed,
                  Order[::1] orders, int32_t[::1] order_head, uint8_t[::1] is_listed):
    """See `_lists.pyi`."""
    cdef Py_ssize_t k, m, at = 0
    cdef int32_t account, i, follower
    removed = []
    if order_head.shape[0] == 0 and account_rows.shape[0]:
        raise_shape("order_head", "one for each account", 0)
    if counts.shape[0] != account_rows.shape[0] or is_listed.shape[0] != orders.shape[0]:
        raise_shape("counts, is_listed", "one for each account row, one for each order", counts.shape[0])
    for m in range(listed.shape[0]):
        if not 0 <= listed[m] < orders.shape[0]:
            raise_shape("listed", f"order rows below {orders.shape[0]}", listed[m])
    for k in range(account_rows.shape[0]):
        account = account_rows[k]
        if not 0 <= account < order_head.shape[0] or not 0 <= counts[k] <= listed.shape[0] - at:
            raise_shape("account_rows", f"rows below {order_head.shape[0]} with their share of `listed`", account)
        for m in range(at, at + counts[k]):
            is_listed[listed[m]] = 1
        i = order_head[account]
        while i >= 0:
            follower = orders[i].next
            if is_listed[i]:
                is_listed[i] = 0
            else:
                unlink_order(i, account, orders, order_head)
                removed.append(i)
            i = follower
        for m in range(at, at + counts[k]):
            if is_listed[listed[m]]:  # it was not in the list
                is_listed[listed[m]] = 0
                link_order(listed[m], account, orders, order_head)
        at += counts[k]
    return removed


def listed_orders(const int32_t[::1] account_rows, const Order[::1] orders, const int32_t[::1] order_head):
    """See `_lists.pyi`."""
    cdef Py_ssize_t k, n = 0
    cdef int32_t i
    found = np.empty(orders.shape[0], np.int32)
    cdef int32_t[::1] rows = found
    for k in range(account_rows.shape[0]):
        if not 0 <= account_rows[k] < order_head.shape[0]:
            raise_shape("account_rows", f"rows below {order_head.shape[0]}", account_rows[k])
        i = order_head[account_rows[k]]
        while i >= 0:
            if i >= orders.shape[0] or n == orders.shape[0]:
                raise_shape("orders", "lists that end inside the array, each asked for once", i)
            rows[n] = i
            n += 1
            i = orders[i].next
    return found[:n]


cdef inline void link_order(int32_t row, int32_t account, Order[::1] orders, int32_t[::1] order_head) noexcept:
    """Put an order at the head of its account's list."""
    orders[row].account, orders[row].prev, orders[row].next = account, -1, order_head[account]
    if order_head[account] >= 0:
        orders[order_head[account]].prev = row
    order_head[account] = row


cdef inline void unlink_order(int32_t row, int32_t account, Order[::1] orders, int32_t[::1] order_head) noexcept:
    if orders[row].prev >= 0:
        orders[orders[row].prev].next = orders[row].next
    else:
        order_head[account] = orders[row].next
    if orders[row].next >= 0:
        orders[orders[row].next].prev = orders[row].prev


cdef int raise_shape(str name, object expected, object found) except -1:
    from copyrisk.errors import ShapeError  # not at the top: `errors` stands above this module
    raise ShapeError(f"{name}: expected {expected}, found {found}")

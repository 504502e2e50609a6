"""What `explain` and `replication` print for people: a line a fact, `unknown` for what is not known."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from copyrisk.explaining import Explanation, Facts
from copyrisk.store.tallies import BUCKETS_MS

_LABEL_CHARS = 17


# ---- a master's order, and its followers


def explanation_lines(found: Explanation) -> list[str]:
    """For people: a line a fact."""
    lines = _order_lines(found.order)
    if len(found.followers) == 1:
        received_ms = found.order["times"]["received_ms"]
        lines += ["", *_follower_lines(found.followers[0], received_ms)]
    lines += [f"{follower}: sized again: {what}" for follower, what in sorted(found.differs.items())]
    return lines


def _order_lines(order: Facts) -> list[str]:
    times, received_ms = order["times"], order["times"]["received_ms"]
    target = order["target"]
    price = f"{order['order_type']} {order['lots']} {order['symbol']} at {order['order_price']}"
    stored = [_after(times[name], received_ms) for name in ("first_stored_ms", "last_stored_ms")]
    copied = f"{order['copied']} copied, {order['lots_copied']} lots"
    if not order["is_made"]:
        copied = f"{order['to_be_made']} to be copied, {order['lots_copied']} lots, not made yet"
    lines = [
        _line("order", f"{order['order_id']} of master {order['master']}: {price}{_levels(order)}"),
        _line("event", f"{order['event']}, version {order['version']}"),
        _line("ordered", f"{_clock(times['ordered_ms'])}, {_after(times['ordered_ms'], received_ms)}"),
        _line("received", _clock(received_ms)),
        _line("decided", _after(times["decided_ms"], received_ms)),
        _line("stored", f"first {stored[0]}, last {stored[1]}"),
        _line("master", _words(order["master_figures"])),
        _line("quote", _words(order["quote"])),
        _line("followers", f"{order['followers']}: {copied}"),
        *(_line("", f"{count} {reason}") for reason, count in order["why_not"].items()),
        _line("latency", _in_ms(order["latency_ms"])),
        _line("target", "as it was opened" if target is None else _set_words(target)),
        _line("waiting", f"{len(order['waiting'])} copies"),
    ]
    lines += [_line("", f"{own_id} of {one['follower']}: {one['code']}") for own_id, one in order["waiting"].items()]
    return [*lines, _line("recomputed", f"{order['recomputed']}, {order['sized']} sizes")]


def _follower_lines(one: Facts, received_ms: int) -> list[str]:
    sizing, now = one["sizing"], one.get("copy")
    lines = [
        _line("follower", f"{one['follower']}, copy {one['copy_id'] or 'none'}"),
        _line("group", _words(one["group"])),
        _line("settings", _set_words(one["settings"])),
        _line("quotes", f"{_known(one['equity_age_ms'])} ms old at most"),
    ]
    if sizing is None:
        lines.append(_line("size", "none was asked for"))
    else:
        lines += [_line(name.replace("_", " "), _known(value)) for name, value in sizing.items()]
        lines.append(_line("lots", f"{_known(one['lots'])}, {one['code']}"))
    is_made = one["version"] is not None
    made = f", version {one['version']}, margin {_known(one['margin_usd'])} USD" if is_made else ""
    lines += [
        _line("result", f"{one['result'] or 'not made yet'}{made}"),
        _line("stored", _after(one["stored_ms"], received_ms)),
        _line("filled", _after(one.get("filled_ms"), received_ms)),
        _line("copy now", _set_words(now)),
    ]
    lines += [_line("", _happened(said, received_ms)) for said in one.get("history", ())]
    if one["waiting"] is not None:
        lines.append(_line("waiting", one["waiting"]["code"]))
    return [*lines, _line("recomputed", one["recomputed"])]


def _happened(said: Facts, received_ms: int) -> str:
    left = [f"{name} {said[name]}" for name in ("code", "order_quantity", "order_price") if name in said]
    return ", ".join([f"{_after(said['at_ms'], received_ms)} {said['what']}", *left])


def _line(label: str, value: str) -> str:
    return f"{label:<{_LABEL_CHARS}}{value}"


def _words(said: Mapping[str, Any] | None) -> str:
    return "unknown" if said is None else ", ".join(f"{name} {_known(value)}" for name, value in said.items())


def _set_words(said: Mapping[str, Any] | None) -> str:
    """Without what is not set."""
    return _words(said and {name: value for name, value in said.items() if value is not None})


def _in_ms(said: Mapping[str, float] | None) -> str:
    return "unknown" if said is None else ", ".join(f"{name} {ms:g} ms" for name, ms in said.items())


def _known(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _levels(order: Facts) -> str:
    return "".join(f", {name} {order[name]}" for name in ("stop_loss", "take_profit") if order[name] is not None)


def _clock(ms: float) -> str:
    return datetime.fromtimestamp(ms / 1e3, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _after(ms: float | None, received_ms: int) -> str:
    """How long after the master's stream entry."""
    return "unknown" if ms is None else f"{round(ms - received_ms, 3):+} ms"


# ---- replication as a whole


def replication_lines(found: Facts) -> list[str]:
    """For people: a line a count, with its target where it has one."""
    success = "unknown" if found["success_pct"] is None else f"{found['success_pct']:.3f} %"
    waits = "" if found["oldest_entry_ms"] is None else f"; the oldest waits {found['oldest_entry_ms']} ms"
    holder = found["lease_holder"]
    return [
        _line("master", found["master"] or "all of them"),
        *(_line(name, str(found[name])) for name in ("orders", "followers", "copied", "failed")),
        _line("success", f"{success}, target {found['success_target_pct']} %{_missed(found['success_reached'])}"),
        *(_line("", f"{count} {reason}") for reason, count in found["why_not"].items()),
        _line("latency p50", _bound(found["p50_ms"])),
        _line(
            "latency p99",
            f"{_bound(found['p99_ms'])}, target {found['latency_target_ms']} ms{_missed(found['latency_reached'])}",
        ),
        *(_line("", f"{count} {_bound(bound)}") for bound, count in found["within_ms"].items()),
        _line("waiting copies", _known(found["waiting_copies"])),
        _line(
            "entries",
            f"{_known(found['entries'])}, {_known(found['entries_taken'])} of them taken, "
            f"{_known(found['entries_not_taken'])} not{waits}",
        ),
        _line("lease", "nobody has it" if holder is None else f"{holder}, {found['lease_left_ms']} ms left"),
    ]


def _bound(bound: str | None) -> str:
    if bound is None:
        return "unknown"
    return f"more than {BUCKETS_MS[-1]} ms" if bound == "inf" else f"at most {bound} ms"


def _missed(reached: bool | None) -> str:
    return " MISSED" if reached is False else ""

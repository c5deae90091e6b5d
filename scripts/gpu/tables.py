"""What was measured, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.gpu.end_to_end.comparison import TRANSFORMERS
from scripts.gpu.end_to_end.shapes import UNPRUNED
from scripts.gpu.limits import SHARE_LIMIT


def format_tables(records: Mapping[str, Mapping[str, Any]]) -> str:
    """All parts that ran; for people, the JSON files have everything."""
    lines: list[str] = []
    if kernels := records.get("kernels"):
        lines += _kernels(kernels)
    if end_to_end := records.get("end-to-end"):
        lines += _end_to_end(end_to_end)
    if any(record.get("toy") for record in records.values()):
        lines.append("toy shapes on the CPU: these figures mean nothing")
    return "\n".join(lines)


def _kernels(record: Mapping[str, Any]) -> list[str]:
    build, checks = record.get("build", {}), record.get("checks", {})
    for error in (record.get("error"), build.get("error"), checks.get("error")):
        if error:
            return [f"kernels: {error}"]
    lines = [f"kernels: {checks['checks']} checks, {len(checks['failures'])} failures"]
    lines += [f"  {failure}" for failure in checks["failures"][:10]]
    for tool, report in record["sanitizer"].items():
        lines.append(f"  {tool}: {'clean' if report['clean'] else report['reason']}")
    rows = [("  kernel", "median us", "min us", "floor us", "limit us", "")]
    for timing in record["timings"]:
        limit, within = timing["limit_us"], timing["within_limit"]
        cells = (f"{timing['median_us']:.1f}", f"{timing['min_us']:.1f}", f"{timing['floor_us']:.2f}")
        verdict = "" if within is None else "within" if within else "ABOVE"
        rows.append((f"  {timing['name']}", *cells, "" if limit is None else f"{limit:.0f}", verdict))
    return lines + (_columns(rows) if record["timings"] else [])


def _end_to_end(record: Mapping[str, Any]) -> list[str]:
    lines = [f"left out: {name}: {reason}" for name, reason in record.get("left_out", {}).items()]
    if record.get("error"):
        lines.append(f"end-to-end: {record['error']}")
    for name, shape in record.get("shapes", {}).items():
        if shape["error"]:
            lines.append(f"{name}: {shape['error']}")
        for run in shape["runs"]:
            turns = "in turn" if run["together"] else "one after the other"
            lines += ["", f"{name}, {run['backend'] or 'transformers alone'}, {turns}:"]
            lines += _columns([_HEADER, *(_contender_row(contender) for contender in run["contenders"])])
            lines += [f"  {_label(one['name'])}: {one['error']}" for one in run["contenders"] if one["error"]]
            lines += [f"  {budget}: no engines: {build['error']}" for budget, build in run["builds"].items() if build["error"]]
            lines += [f"  {_ratio(ratio)}" for ratio in run["ratios"]]
            if found := run["agreement"]:
                lines.append(f"  unpruned and transformers: {_agreement(found)}")
    for share in record.get("selection_shares", []):
        verdict = "within" if share["within_limit"] else "ABOVE"
        lines.append(
            f"both kernels, {share['shape']}, {_label(share['budget'])}: {share['share']:.2%} of the prefill of "
            f"{_label(share['prefill_of'])} on {share['backend'] or TRANSFORMERS}, {verdict} the limit of {SHARE_LIMIT:.0%}"
        )
    return lines


_HEADER = ("", "first token ms", "prefill ms", "decode ms", "tokens/s", "of floor", "KV MB", "memory MB", "peak MB")


def _contender_row(contender: Mapping[str, Any]) -> tuple[str, ...]:
    medians = contender["medians"]
    name = _label(contender["name"])
    if not medians:
        return (name, "failed")
    return (
        name,
        f"{medians['first_token_ms']:.1f}",
        f"{medians['prefill_ms']:.1f}",
        f"{medians['decode_ms_per_token']:.2f}",
        f"{contender['decode']['tokens_per_s']:.1f}",
        f"{contender['decode']['share_of_floor']:.0%}",
        _megabytes(sum(contender["details"]["kv_bytes"].values())),
        _megabytes(contender["memory"]),
        _megabytes(contender["peak_memory"]),
    )


def _label(contender: str) -> str:
    if contender == TRANSFORMERS:
        return contender
    return "unpruned" if contender == UNPRUNED else f"budget {contender}"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f}"


def _ratio(ratio: Mapping[str, Any]) -> str:
    faster = ratio["times_faster"]
    first, prefill, decode = (faster[name] for name in ("first_token_ms", "prefill_ms", "decode_ms_per_token"))
    pair = f"{_label(ratio['contender'])} against {_label(ratio['base'])}"
    return f"{pair}: first token {first:.2f} times as fast, prefill {prefill:.2f}, decode {decode:.2f}"


def _agreement(found: Mapping[str, Any]) -> str:
    counts = f"{found['equal']} of {found['of']} first tokens equal"
    if found["equal"] == found["of"]:
        return counts
    return f"{counts}, then {'a near tie' if found['near_tie'] else 'ANOTHER TOKEN'} (margin {found['margin']:.1e})"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """First column left, others right."""
    widths = [max(len(row[index]) for row in rows if index < len(row)) for index in range(len(rows[0]))]
    return ["  ".join(f"{cell:{'>' if index else '<'}{widths[index]}}" for index, cell in enumerate(row)) for row in rows]

"""What was measured, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scripts.gpu.end_to_end.baselines import BASELINES
from scripts.gpu.end_to_end.shapes import UNPRUNED
from scripts.gpu.reports.limits import SHARE_LIMIT


def format_tables(records: Mapping[str, Mapping[str, Any]]) -> str:
    """All parts that ran; for people, the JSON files have everything."""
    lines: list[str] = []
    for part, record in records.items():
        if record.get("error"):
            lines.append(f"{part}: {record['error']}")
        lines += _OF_PART[part](record)
        lines += map(_target, record.get("targets", []))
    if any(record.get("toy") for record in records.values()):
        lines.append("toy shapes on the CPU: these figures mean nothing")
    return "\n".join(lines)


def _target(target: Mapping[str, Any]) -> str:
    verdict = {True: "met", False: "MISSED", None: "not measured"}[target["met"]]
    value = "" if target["measured"] is None else f": {target['measured']:.4g}"
    return f"{verdict}: {target['target']}{value}"


def _kernels(record: Mapping[str, Any]) -> list[str]:
    checks = record.get("checks", {})
    if error := record.get("build", {}).get("error") or checks.get("error"):
        return [f"kernels: {error}"]
    if not checks:
        return []
    lines = [f"kernels: {checks['checks']} checks, {len(checks['failures'])} failures"]
    lines += [f"  {failure}" for failure in checks["failures"][:10]]
    if conformance := record.get("conformance"):
        lines.append(f"  sts_conformance: {'passed' if conformance['passed'] else conformance['reason']}")
    rows = [("  kernel", "median us", "min us", "floor us", "limit us", "")]
    for timing in record["timings"]:
        limit, within = timing["limit_us"], timing["within_limit"]
        cells = (f"{timing['median_us']:.1f}", f"{timing['min_us']:.1f}", f"{timing['floor_us']:.2f}")
        verdict = "" if within is None else "within" if within else "ABOVE"
        rows.append((f"  {timing['name']}", *cells, "" if limit is None else f"{limit:.0f}", verdict))
    return lines + (_columns(rows) if record["timings"] else [])


def _sanitize(record: Mapping[str, Any]) -> list[str]:
    if error := record.get("build", {}).get("error"):
        return [f"sanitize: {error}"]
    reports = record.get("sanitizer", {})
    return [f"{tool}: {'clean' if report['clean'] else report['reason']}" for tool, report in reports.items()]


def _profile(record: Mapping[str, Any]) -> list[str]:
    return [f"ncu, {name}: {one['reason'] or 'in the file'}" for name, one in record.get("profiles", {}).items()]


def _smoke(record: Mapping[str, Any]) -> list[str]:
    lines = []
    if capture := record.get("capture"):
        lines.append(f"capture and replay: {'right' if capture['right'] else capture['error'] or 'WRONG'}")
    for engine in record.get("engines", []):
        where = f"{engine['dtype']}, {engine['engine']}"
        if engine["error"]:
            lines.append(f"{where}: {engine['error']}")
        elif comparison := engine.get("comparison"):
            counts = f"tokens {comparison['equal_tokens']}, kept indices {comparison['equal_kept']} of {comparison['of']}"
            lines.append(f"{where} against {engine['against']}: equal {counts}")
    return lines


def _ab(record: Mapping[str, Any]) -> list[str]:
    if not (ways := record.get("ways")):
        return []
    rows = [("", "prefill ms", "unseen length ms", "select ms", "decode ms")]
    for way in ways:
        medians = way["medians"]
        names = ("prefill_ms", "unseen_prefill_ms", "select_ms", "decode_ms_per_token")
        rows.append((way["name"], *(f"{medians[name]:.2f}" for name in names)) if medians else (way["name"], "failed"))
    errors = [f"  {way['name']}: {way['error']}" for way in ways if way["error"]]
    if profiled := record.get("profiled"):
        errors.append(f"  kernels of {profiled['name']}: {profiled['error'] or 'in the file'}")
    return [f"{record['shape']}, {_label(record['budget'])}:", *_columns(rows), *errors]


def _end_to_end(record: Mapping[str, Any]) -> list[str]:
    lines = [f"left out: {name}: {reason}" for name, reason in record.get("left_out", {}).items()]
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
        counted = "both kernels" if share["of"] == "kernels" else "stage 1's graph"
        lines.append(
            f"{counted}, {share['shape']}, {_label(share['budget'])}: {share['share']:.2%} of the prefill on "
            f"{share['backend']}, {verdict} the limit of {SHARE_LIMIT:.0%}"
        )
    return lines


_HEADER = (
    "",
    "first token ms",
    "prefill ms",
    "decode ms",
    "tokens/s",
    "of floor",
    "prefill TFLOP",
    "KV MB",
    "memory MB",
    "peak MB",
)


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
        f"{contender['prefill_flops'] / 1e12:.2f}",
        _megabytes(sum(contender["details"]["kv_bytes"].values())),
        _megabytes(contender["memory"]),
        _megabytes(contender["peak_memory"]),
    )


def _label(contender: str) -> str:
    if contender in BASELINES:
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


_OF_PART: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "kernels": _kernels,
    "sanitize": _sanitize,
    "profile": _profile,
    "smoke": _smoke,
    "end-to-end": _end_to_end,
    "ab": _ab,
}

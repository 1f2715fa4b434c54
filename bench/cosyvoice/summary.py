"""All reports of the engine and the fleet in a folder, one line for each load:
``python -m bench.cosyvoice.summary DIR``."""

import sys
from pathlib import Path

import msgspec


def summary(directory: Path) -> str:
    """A table that fits the end of a log."""
    head = (
        "bench                      load            first p50   p95  underruns (worst)  x real time"
    )
    lines = [head]
    for path in sorted([*directory.glob("engine_*.json"), *directory.glob("gpu_*.json")]):
        report = msgspec.json.decode(path.read_bytes())["report"]
        levels = [("", level) for level in report["series"]["levels"]]
        for name, found in report["series"].get("baselines", {}).items():
            levels += [(f"{name}: ", level) for level in found]
        for name, level in levels:
            first = level["first"] or {"p50": float("nan"), "p95": float("nan")}
            said = f"{level['load']} {level['sessions']:g}"
            late = f"{level['underruns']} ({level['worst_underrun_ms']:.0f} ms)"
            if level["stop"]:
                late = f"stop p95 {level['stop']['p95']:.1f} ms"
            lines.append(
                f"{report['bench']:26} {said:14} {first['p50']:9.0f} {first['p95']:7.0f}"
                f"  {late:18} {level['x_real_time']:10.1f}  {name}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary(Path(sys.argv[1])))

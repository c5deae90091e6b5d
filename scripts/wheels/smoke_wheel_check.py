"""Whether the wheel that scripts/smoke_wheel has installed is complete, exports and answers; run outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

# Folder of the checkout -> where its files are in the wheel.
FOLDERS = {"sts_export": "sts_export", "graphs": "sts_export/graphs"}


def sts_export(*arguments: str | Path) -> str:
    """What the command prints; it must exit with 0."""
    result = subprocess.run(["sts-export", *map(str, arguments)], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"sts-export {arguments[0]} exited with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def main(site: Path, source: Path) -> None:
    import sts_export as package
    from sts_export.demo import MODEL_DIR, PICTURES_DIR

    for path in (Path(package.__file__), MODEL_DIR, PICTURES_DIR):
        if not path.is_relative_to(site):
            sys.exit(f"{path} was imported, not the wheel in {site}")
    expected = {
        f"{there}/{file.relative_to(source / here).as_posix()}"
        for here, there in FOLDERS.items()
        for file in (source / here).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    recorded = {str(name) for name in distribution("sts-export").files or () if "__pycache__" not in str(name)}
    if absent := sorted(expected - recorded):
        sys.exit(f"the wheel lacks {absent[0]} and {len(absent) - 1} other file(s); name their folder in pyproject.toml")
    packed = {name for name in recorded if not name.startswith(("sts_export-", "../"))}
    if foreign := sorted(packed - expected):
        sys.exit(f"the wheel has {foreign[0]}, which is no file of the package")

    if "--budget" not in sts_export("--help"):
        sys.exit("sts-export --help does not name --budget")
    sts_export("--model", "demo", "--budget", "128", "-o", "bundle")
    picture, questions = next(iter(json.loads((PICTURES_DIR / "questions.json").read_text()).items()))
    answer = sts_export("run", "bundle", "--image", PICTURES_DIR / picture, "--prompt", questions[0]["question"]).strip()
    if answer != questions[0]["answer"]:
        sys.exit(f"{questions[0]['question']} was answered with {answer!r}, not {questions[0]['answer']!r}")
    if "llava" not in sts_export("inspect", "bundle", "--check"):
        sys.exit("sts-export inspect does not name the family")
    print(f"sts-export {distribution('sts-export').version} exports, answers and inspects from the wheel")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

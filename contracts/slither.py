"""Holds slither's findings against slither.json, in which each accepted one has its reason.

A finding that is not there fails, and so does an entry that finds nothing any more. With --write the list is printed anew, with reasons kept.
Slither runs on what forge has compiled; its version is pinned in ./x.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BASELINE = HERE / "slither.json"


def place(finding):
    """The contract's member that a finding is about; lines move, names do not."""
    element = finding["elements"][0]
    while element["type"] not in ("function", "contract") and "parent" in element.get("type_specific_fields", {}):
        parent = element["type_specific_fields"]["parent"]
        if element["type"] == "variable" and parent["type"] == "contract":
            return f"{parent['name']}.{element['name']}"
        element = parent
    parent = element.get("type_specific_fields", {}).get("parent")
    return f"{parent['name']}.{element['name']}" if parent else element["name"]


def find(slither):
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        arguments = [slither, ".", "--ignore-compile", "--foundry-out-directory", "../target/forge/out", "--filter-paths", "node_modules|test/"]
        run = subprocess.run([*arguments, "--json", str(report)], cwd=HERE, capture_output=True, text=True)
        if not report.exists():
            sys.exit(f"slither did not run: {run.stderr}")
        result = json.loads(report.read_text())
    if not result["success"]:
        sys.exit(f"slither failed: {result['error']}")
    return {(finding["check"], place(finding)) for finding in result["results"].get("detectors", [])}


def main():
    found = find(sys.argv[1])
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if "--write" in sys.argv:
        checks = sorted({check for check, _ in found})
        why = {check: baseline.get(check, {}).get("why", "") for check in checks}
        made = {check: {"why": why[check], "where": sorted(where for other, where in found if other == check)} for check in checks}
        BASELINE.write_text(json.dumps(made, indent=1) + "\n")
        return
    accepted = {(check, where) for check, entry in baseline.items() if entry["why"] for where in entry["where"]}
    for check, where in sorted(found - accepted):
        print(f"slither: {check} in {where} is not explained in slither.json", file=sys.stderr)
    for check, where in sorted(accepted - found):
        print(f"slither: {check} in {where} is explained but not found any more", file=sys.stderr)
    if found != accepted:
        sys.exit(1)
    print(f"slither: {len(found)} findings, each with its reason")


main()

"""Write the kernels' ahead-of-time report as JSON: `python bench/kernel_report.py [FILE]`, same as
`marconi kernels report --json FILE`. With --write-budget, also renew kernels/report/resource_budget.json."""

import argparse
import json
import sys
from pathlib import Path

from marconi_ext.profiles.gpus import GPUS
from marconi_kernels.report.kernel_report import BUDGET_FILE, budget_from, build_report, over_budget


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("kernel_report.json"))
    parser.add_argument("--write-budget", action="store_true")
    options = parser.parse_args()
    report = build_report(GPUS.values())
    if options.write_budget:
        BUDGET_FILE.write_text(json.dumps(budget_from(report["resources"]), indent=1) + "\n")
        report["over_budget"] = over_budget(report["resources"])
    options.file.write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(report["over_budget"]) or f"all kernels within budget; wrote {options.file}")
    return bool(report["over_budget"])


if __name__ == "__main__":
    sys.exit(main())

"""Renew kernels/report/resource_budget.json: what the kernels take now is what they may take from now on.

    python bench/kernel_budget.py

Compiles each kernel ahead of time for each GPU, as `marconi kernels report` does; that command, and the tests, then say
what takes more than the budget.
"""

import json

from marconi_ext.profiles.gpus import GPUS
from marconi_ext.profiles.shapes import SHAPES
from marconi_kernels.report.kernel_report import BUDGET_FILE, budget_from, build_report


def main() -> None:
    taken = budget_from(build_report(SHAPES, GPUS.values())["resources"])
    BUDGET_FILE.write_text(json.dumps(taken, indent=1) + "\n")


if __name__ == "__main__":
    main()

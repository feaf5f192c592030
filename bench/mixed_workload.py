"""500 requests that find a wrong state, for tests and benchmarks of the live engine."""

from __future__ import annotations

from marconi_ext.traces.script import Script
from marconi_ext.traces.workloads import AgentSizes, FewShotSizes, ForkSizes, agent, few_shot, fork

VOCABULARY = 4_096


def mixed_workload() -> list[Script]:
    """Agent sessions, few-shot questions (1-token ones too) and forks one token apart: 500 requests."""
    answers = (2, 9)
    return [
        *agent(AgentSizes(20, 8, 300, (1, 120), answers), 1, VOCABULARY),
        *few_shot(FewShotSizes(160, 6, (60, 400), (1, 40), (1, 4)), 2, VOCABULARY),
        *fork(ForkSizes(20, 4, 5, 1, 130, (1, 90), answers), 3, VOCABULARY),
    ]

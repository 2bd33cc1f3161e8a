"""Every bar of merging that can be measured, in one run, as one table for each part.

    python tests/benchmarks/merging.py [--only tasks,posterior,intermediate,speed,memory] [--mergekit PYTHON]
                                       [--quick] [--json FILE] [--work FOLDER]

`tasks`: two tasks in one body, every strategy, and the search beside a sweep (`merging_tasks`).  `intermediate`: a task
with few labels helped by another's fine-tune.  `posterior`: linear-Gaussian models (`merging_posterior`).  `speed` and
`memory`: `mgit merge-file` beside mergekit, whose Python `--mergekit` names, and under a limit (`merging_speed`).
Fine-tunes are made once and kept in the work folder: with `--work` they outlive the run.  One thread.
"""

from __future__ import annotations

from merging_intermediate import rows as intermediate
from merging_posterior import rows as posterior
from merging_speed import memory_rows, speed_rows
from merging_tasks import rows as tasks
from parts import run_parts

if __name__ == "__main__":
    run_parts(
        __doc__,
        {
            "posterior": posterior,
            "tasks": tasks,
            "intermediate": intermediate,
            "speed": lambda plan: speed_rows(plan.work, mergekit=plan.mergekit, quick=plan.quick),
            "memory": lambda plan: memory_rows(plan.work / "memory", quick=plan.quick),
        },
    )

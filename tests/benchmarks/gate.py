"""The gate's bars: how many examples decide, how often wrongly, and at what cost, as one table for each part.

    python tests/benchmarks/gate.py [--only errors,examples,cost] [--quick] [--json FILE] [--work FOLDER]

`errors` simulates suites with flips on and beside the limit.  `examples` draws from 4,000 real test texts of two tasks
(movie reviews; 20 Newsgroups) on patches of a real model, made by the recipes in `gate_examples.py`.  `cost` runs the
commands of a user.  All seeds are stated there; everything runs in one thread.
"""

from __future__ import annotations

from gate_cost import rows as cost
from gate_errors import rows as errors
from gate_examples import rows as examples
from parts import run_parts

if __name__ == "__main__":
    run_parts(__doc__, {"errors": errors, "examples": examples, "cost": cost})

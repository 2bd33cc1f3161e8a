"""Every bar of the science, measured on the real model and real texts in one run, as one table for each part.

    python tests/benchmarks/science.py [--only estimators,kl,masks,patches,records,stored] [--quick]
                                       [--json FILE] [--work FOLDER]

A part is a module `science_NAME.py` beside this one with `rows(plan)`; all seeds are stated there.  Rates and other
choices are made on validation texts, figures are from test texts that nothing else saw.  Everything runs in one thread.
Fine-tunes that several parts need are made once and kept in the work folder: with `--work` they outlive the run.
`--quick` takes fewer texts and seeds, to see that a part runs at all; its figures mean nothing.
"""

from __future__ import annotations

from parts import run_parts
from science_estimators import rows as estimators
from science_kl import rows as kl
from science_masks import rows as masks
from science_patches import rows as patches
from science_records import rows as records
from science_stored import rows as stored

if __name__ == "__main__":
    run_parts(
        __doc__,
        {
            "estimators": estimators,
            "kl": kl,
            "masks": masks,
            "patches": patches,
            "records": records,
            "stored": stored,
        },
    )

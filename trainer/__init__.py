"""The trainer: from a stream of documents to a trained model, one document per step."""

import os

# OpenMP's threads spin while they wait, which is fast on idle cores and very slow on shared ones: with two runs on two
# cores, each was 4 times slower than alone. A short spin costs a step nothing (docs/decisions.md). OpenMP reads the
# variable when torch is first imported, so it is set here, unless the user has set either of the two.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

"""One document per step: from a stream of text to a trained model. Each module is a room."""

import os

# OpenMP's threads spin while they wait: fast on idle cores, a disaster on shared ones. Each of two runs on two cores
# was 4 times slower than one alone, with more of them 35 times; a short spin costs a step nothing (docs/decisions.md).
# It is read when torch is first imported, so it is set here; whoever has set it otherwise is left alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

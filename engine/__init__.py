"""Training, evaluation and export.

What they share with `deploy/` is in deploy/predictor, which this makes importable. `deploy/` can be
copied alone: it imports nothing from here.
"""

import sys
from pathlib import Path

DEPLOY = str(Path(__file__).resolve().parent.parent / 'deploy')
if DEPLOY not in sys.path:
    sys.path.append(DEPLOY)

from installation import TRAINING, require  # noqa: E402

require(Path(__file__).resolve().parent.parent, TRAINING)

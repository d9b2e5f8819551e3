"""Training, evaluation and export.

What they share with `deploy/`, which can be copied without them, lies there: its package
`predictor` is found from here on. `deploy/` imports nothing from here.
"""

import sys
from pathlib import Path

DEPLOY = str(Path(__file__).resolve().parent.parent / 'deploy')
if DEPLOY not in sys.path:
    sys.path.append(DEPLOY)

from installation import TRAINING, require  # noqa: E402

require(Path(__file__).resolve().parent.parent, TRAINING)

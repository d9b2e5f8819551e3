"""An exported network behind HTTP: one process, one model, batches made of what arrives."""

from __future__ import annotations

VERSION = '0.1.0'  # what GET /v2 says

"""Real photographs, weights and a SLURM cluster for tests; users do not have this folder."""

from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parents[2] / "shared"
SHARED = _FOLDER if (_FOLDER / "data").is_dir() else None

needs_shared = pytest.mark.skipif(SHARED is None, reason="the optional folder ../shared is absent")

"""Places outside the package that tests read."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_DATA = Path(os.environ.get("MMGA_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
"""Real data with known answers; tests that need it skip without it."""

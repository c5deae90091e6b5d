"""`python -m sts_export.cli`."""

from __future__ import annotations

import sys

from sts_export.cli import main

sys.exit(main())

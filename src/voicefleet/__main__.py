"""``python -m voicefleet``: the same as the command ``voicefleet``."""

import sys

from voicefleet.cli import main

sys.exit(main())

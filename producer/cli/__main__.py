"""``python -m producer.cli``: the same as ``voicefleet``."""

import sys

from producer.cli import main

sys.exit(main())

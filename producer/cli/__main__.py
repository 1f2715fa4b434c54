"""``python -m producer.cli``: the same as ``voicefleet``."""

import sys

from producer.cli.app import main

sys.exit(main())

"""``python -m verify.chaos.worker ...``: ``voicefleet worker ...`` with the saboteur installed."""

import sys
from pathlib import Path

from voicefleet.cli import main

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).with_name("plugin")))
    sys.exit(main(["worker", *sys.argv[1:]]))

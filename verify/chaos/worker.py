"""``python -m verify.chaos.worker ...``: ``voicefleet worker ...`` that knows the saboteur."""

import sys

from verify.chaos import sabotage

if __name__ == "__main__":
    sabotage.register()
    from voicefleet.cli import main  # after what it is to know

    sys.exit(main(["worker", *sys.argv[1:]]))

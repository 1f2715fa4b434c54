"""``python -m bench.ordeal.worker ...``: ``voicefleet worker ...`` that knows the saboteur."""

import sys

from bench.ordeal import sabotage

if __name__ == "__main__":
    sabotage.register()
    from voicefleet.producer.cli import main  # after what it is to know

    sys.exit(main(["worker", *sys.argv[1:]]))

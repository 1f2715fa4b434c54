"""``python -m verify``: chaos runs and fuzzing."""

import sys
from typing import Final

from cyclopts import App

from verify.chaos.command import chaos
from verify.fuzz.command import fuzz

app: Final = App(
    name="verify", help="Look for what breaks the fleet's promises.", help_format="plaintext"
)
app.command(chaos)
app.command(fuzz)


if __name__ == "__main__":
    sys.exit(app())

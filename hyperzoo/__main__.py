"""`python -m hyperzoo` is the command `hyperzoo`."""

from hyperzoo.cli import main

main()

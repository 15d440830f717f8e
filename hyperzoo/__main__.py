"""`python -m hyperzoo` is the command `hyperzoo`."""

from hyperzoo.cli.main import main

main()

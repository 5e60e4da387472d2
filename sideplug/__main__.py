"""`python -m sideplug`."""

from sideplug.cli import main

main()

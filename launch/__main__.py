"""`python -m launch …` is `retinaforge …`: launchers that start modules need it."""

from launch.cli import main

main()

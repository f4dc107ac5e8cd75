"""`python -m fleetd` is `fleetd`."""

from fleetd.daemon.main import main

main()

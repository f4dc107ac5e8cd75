"""How the deploy environment is built from packages. Not a room of fleetd, and never installed: `python3 -m deploy.build`."""

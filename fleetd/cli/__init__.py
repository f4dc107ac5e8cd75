"""The technician's hand, `fleetctl`: a client of the API and nothing more."""

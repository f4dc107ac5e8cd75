"""The ledger room: what fleetd knows, written so that nothing acknowledged is ever lost nothing is bound twice."""

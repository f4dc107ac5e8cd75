"""The heart: states and who may change them, the engine, playbooks and steps, leases, plans. It knows drivers by protocol only."""

"""A site that does not exist, on real wires: rehearse before the metal arrives, and test the real drivers.

Rooms of this house: `host.py` is the machine (power, boot, drives, faults), `bmc_*.py` and `ssh.py` are its wires,
`site.py` reads a site file and starts it all, `record.py` is the simulator's own log, which the daemon cannot read.
"""

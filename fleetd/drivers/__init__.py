"""The wires: BMCs, SSH, boot. Each protocol of `*/capabilities.py` is what the house may ask; a driver is how one wire does it."""

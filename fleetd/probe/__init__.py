"""What runs on the hosts: two zipapps (stdlib and nvidia-ml-py) that import nothing of fleetd, and how to build them.

`report` reads raw facts, `host` wipes and writes, `build.py` packs them, `remote.py` is the grammar of the commands
that push and run them.
"""

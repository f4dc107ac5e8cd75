"""The host-side commands: inspect, wipe, write an image; an order must fit this very host and this very boot.

`work.py` judges the order and journals it; `wipe.py` and `write.py` act through the protocols of `machine.py`, which the
real host, a directory (`--root`) and the simulator implement alike. Standard library only, Python 3.11 and newer.
"""

VERSION = "2"

"""The host-side commands: `status`, `wipe`, `write-image`; an order must fit this very host and this very boot.

Nothing here touches a block device: on real drives every destructive order ends in the refusal `imaging-not-landed`.
"""

VERSION = "1"
